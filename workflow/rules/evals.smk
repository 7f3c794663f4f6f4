# evals: policies on benchmarks


rule assess:
    input:
        policy=PLAN.files.policy("{policy}"),
        reference=PLAN.files.policy(REFERENCE),
        prompts=PLAN.files.prompts(HELDOUT),
        sources=PLAN.oracles.sources(PLAN.oracles.of_evaluation),
        against=lambda w: PLAN.files.opposing(w.policy, PLAN.oracles.over_reference),
    output:
        summary=PLAN.files.evaluation("{policy}", HELDOUT),
        rows=PLAN.files.evaluation_items("{policy}", HELDOUT),
    log:
        f"{LOGS}/assess/{{policy}}.log",
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("assess")
    resources:
        **asked("assess"),
    params:
        settings=lambda w: PLAN.settings("assess", policy=w.policy),
        code=PLAN.code("assess", PLAN.oracles.of_evaluation),
        against=lambda w, input: [f"--against={file}" for file in input.against],
        store=lambda w, resources: (
            [f"--store={PLAN.files.heldout_opinions(w.policy)}"]
            if PLAN.oracles.judges(PLAN.oracles.of_evaluation)
            else []
        ),
        external=lambda w: found(*PLAN.oracles.sources(PLAN.oracles.of_evaluation)),
    shell:
        "exec python -m mnpo --log {log:q} assess --settings {params.settings:q} --policy {input.policy:q} --reference {input.reference:q}"
        " --prompts {input.prompts:q} {params.against:q} {params.store:q} --output {output.summary:q}"


# One job measures a policy on all benchmarks that need no judge: the policy is loaded once. What an earlier job of the
# same policy has measured is not measured again.
rule harness:
    input:
        policy=lambda w: PLAN.files.policy(w.policy),
        data=PLAN.measurements.sources(PLAN.measurements.harness),
    output:
        summaries=[PLAN.files.evaluation("{policy}", benchmark) for benchmark in PLAN.measurements.harness],
        rows=[PLAN.files.evaluation_items("{policy}", benchmark) for benchmark in PLAN.measurements.harness],
    log:
        f"{LOGS}/harness/{{policy}}.log",
    conda:
        f"../../envs/{'infer' if PLAN.config.evaluation.backend == 'vllm' else 'eval'}.yaml"
    threads: PLAN.threads("harness")
    resources:
        **asked("harness"),
    params:
        settings=lambda w: PLAN.settings("harness", policy=w.policy),
        command=no_reason(environments.command(PLAN, "harness", {})),
        data=[
            f"--data={name}={directory}"
            for name, directory in PLAN.measurements.data(PLAN.measurements.harness).items()
        ],
        directory=lambda w, output: os.path.dirname(output[0]),
        external=lambda w: found(PLAN.files.policy(w.policy), *PLAN.measurements.sources(PLAN.measurements.harness)),
    shell:
        "exec python -m mnpo --log {log:q} {params.command:q} --settings {params.settings:q} --policy {input.policy:q} {params.data:q}"
        " --output {params.directory:q}"


# The same by the paper's harness, in its own environment; the policy is run by `mnpo answer` in that one's.
rule evalscope:
    input:
        policy=lambda w: PLAN.files.policy(w.policy),
        data=PLAN.measurements.sources(PLAN.measurements.evalscope),
    output:
        summaries=[PLAN.files.evaluation("{policy}", benchmark) for benchmark in PLAN.measurements.evalscope],
        rows=[PLAN.files.evaluation_items("{policy}", benchmark) for benchmark in PLAN.measurements.evalscope],
    log:
        f"{LOGS}/evalscope/{{policy}}.log",
    conda:
        "../../envs/evalscope.yaml"
    threads: PLAN.threads("evalscope")
    resources:
        **asked("evalscope"),
    params:
        settings=lambda w: PLAN.settings("evalscope", policy=w.policy),
        data=[
            f"--data={name}={directory}"
            for name, directory in PLAN.measurements.data(PLAN.measurements.evalscope).items()
        ],
        directory=lambda w, output: os.path.dirname(output[0]),
        external=lambda w: found(PLAN.files.policy(w.policy), *PLAN.measurements.sources(PLAN.measurements.evalscope)),
    shell:
        "exec python -m mnpo --log {log:q} evalscope --settings {params.settings:q} --policy {input.policy:q} {params.data:q}"
        " --output {params.directory:q}"


rule answer:
    input:
        policy=lambda w: policy_files(w.policy),
        data=lambda w: PLAN.measurements.sources([w.benchmark]),
    output:
        PLAN.files.answers("{policy}", "{benchmark}"),
    log:
        f"{LOGS}/answer/{{policy}}.{{benchmark}}.log",
    wildcard_constraints:
        benchmark=one_of(PLAN.measurements.answered),
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("answer")
    resources:
        **asked("answer"),
    params:
        settings=lambda w: PLAN.settings("answer", policy=w.policy, benchmark=w.benchmark),
        code=PLAN.code("answer"),
        policy=lambda w: [f"--policy={directory}" for directory in policy_files(w.policy)],
        # Where paid answers lie is a function of `resources` too, and so no reason to run again.
        store=lambda w, resources: (
            [] if policy_files(w.policy) else [f"--store={PLAN.files.said(w.policy, w.benchmark)}"]
        ),
        external=lambda w: found(*policy_files(w.policy), *PLAN.measurements.sources([w.benchmark])),
    shell:
        "exec python -m mnpo --log {log:q} answer --settings {params.settings:q} {params.policy:q} --data {input.data:q}"
        " {params.store:q} --output {output:q}"


# The judge is asked from where there is internet. Its answers are kept for good: a rerun pays for what is new.
rule judge:
    input:
        answers=PLAN.files.answers("{policy}", "{benchmark}"),
        data=lambda w: PLAN.measurements.sources([w.benchmark]),
    output:
        summary=PLAN.files.evaluation("{policy}", "{benchmark}.{judge}{repeat}"),
        rows=PLAN.files.evaluation_items("{policy}", "{benchmark}.{judge}{repeat}"),
    log:
        f"{LOGS}/judge/{{policy}}.{{benchmark}}.{{judge}}{{repeat}}.log",
    wildcard_constraints:
        benchmark=one_of(PLAN.measurements.answered),
        judge=one_of(PLAN.config.judges),
        repeat=r"(\.r\d+)?",
    conda:
        lambda w: f"../../envs/{'evalscope' if by_evalscope(w) else 'eval'}.yaml"
    threads: PLAN.threads("judge")
    resources:
        **asked("judge"),
    params:
        settings=lambda w: PLAN.settings(
            "judge", policy=w.policy, benchmark=w.benchmark, judge=w.judge, repeat=w.repeat
        ),
        code=PLAN.code("judge"),
        command=lambda w: environments.command(PLAN, "judge", w),
        store=lambda w, resources: PLAN.files.judgements(w.policy, w.benchmark, w.judge),
        external=lambda w: found(*PLAN.measurements.sources([w.benchmark])),
    shell:
        "exec python -m mnpo --log {log:q} {params.command:q} --settings {params.settings:q} --answers {input.answers:q} --data {input.data:q}"
        " --store {params.store:q} --output {output.summary:q}"
