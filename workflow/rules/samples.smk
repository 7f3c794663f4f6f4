# samples: responses to each prompt of a part, shard by shard: K of a policy, or those that came with the prompts


rule reuse:
    input:
        responses=PLAN.files.responses,
        prompts=PLAN.files.prompts("{part}"),
    output:
        PLAN.files.samples(DATASET, "{part}", "{shard}"),
    log:
        f"{LOGS}/reuse/{{part}}.{{shard}}.log",
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("pair")
    resources:
        **asked("pair"),
    params:
        settings=lambda w: PLAN.settings("reuse", shard=w.shard),
        code=PLAN.code("reuse"),
    shell:
        "exec python -m mnpo --log {log:q} reuse --settings {params.settings:q} --responses {input.responses:q} --prompts {input.prompts:q}"
        " --output {output:q}"


rule sample:
    input:
        policy=lambda w: PLAN.files.policy(w.policy),
        prompts=PLAN.files.prompts("{part}"),
    output:
        **drawn("{policy}", "{part}", "{shard}"),
    log:
        f"{LOGS}/sample/{{policy}}.{{part}}.{{shard}}.log",
    wildcard_constraints:
        policy=f"(?!{DATASET}/)[^/]+",
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("sample")
    resources:
        **asked("sample"),
    params:
        settings=lambda w: PLAN.settings("sample", policy=w.policy, part=w.part, shard=w.shard),
        code=PLAN.code("sample"),
        logps=lambda w, output: [f"--logps={output.logps}"] if "logps" in output.keys() else [],
        external=lambda w: found(PLAN.files.policy(w.policy)),
    shell:
        "exec python -m mnpo --log {log:q} sample --settings {params.settings:q} --policy {input.policy:q} --prompts {input.prompts:q}"
        " --output {output.samples:q} {params.logps:q}"
