# pairs: chosen and rejected responses, the shards together: as an oracle scored them, or as data prefer them


rule pair:
    input:
        samples=lambda w: PLAN.files.sample_shards(w.policy, w.part),
        scores=lambda w: PLAN.files.score_shards(w.policy, w.part, w.oracle),
    output:
        PLAN.files.pairs("{policy}", "{part}", "{oracle}"),
    log:
        f"{LOGS}/pair/{{policy}}.{{part}}.{{oracle}}.log",
    wildcard_constraints:
        oracle=rf"(?!{DATASET}\.)[^/]+",
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("pair")
    resources:
        **asked("pair"),
    params:
        settings=lambda w: PLAN.settings("pair", oracle=w.oracle),
        code=PLAN.code("pair"),
        samples=lambda w, input: [f"--samples={file}" for file in input.samples],
        scores=lambda w, input: [f"--scores={file}" for file in input.scores],
    shell:
        "exec python -m mnpo --log {log:q} pair --settings {params.settings:q} {params.samples:q} {params.scores:q} --output {output:q}"


rule prefer:
    input:
        prompts=PLAN.files.prompts("{part}"),
        data=PLAN.files.prompt_sources,
        samples=lambda w: PLAN.files.own_samples(w.policy, w.part),
    output:
        PLAN.files.pairs("{policy}", "{part}", DATASET),
    log:
        f"{LOGS}/prefer/{{policy}}.{{part}}.log",
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("pair")
    resources:
        **asked("pair"),
    params:
        settings=PLAN.settings("prefer"),
        code=PLAN.code("prefer"),
        data=lambda w, input: [f"--data={directory}" for directory in input.data],
        samples=lambda w, input: [f"--samples={file}" for file in input.samples],
        external=lambda w: found(*PLAN.files.prompt_sources, *filter(None, [PLAN.config.prompts.path])),
    shell:
        "exec python -m mnpo --log {log:q} prefer --settings {params.settings:q} --prompts {input.prompts:q} {params.data:q}"
        " {params.samples:q} --output {output:q}"
