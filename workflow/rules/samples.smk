# samples: K responses of a policy to each prompt of a part, shard by shard


rule sample:
    input:
        policy=PLAN.policy("{policy}"),
        prompts=PLAN.prompts("{part}"),
    output:
        PLAN.samples("{policy}", "{part}", "{shard}"),
    log:
        f"{LOGS}/sample/{{policy}}.part{{part}}.{{shard}}.log",
    benchmark:
        f"{LOGS}/sample/{{policy}}.part{{part}}.{{shard}}.tsv"
    priority: 10
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=lambda w: PLAN.settings("sample", policy=w.policy, part=w.part, shard=w.shard),
        source=PLAN.source("sample"),
    shell:
        "python -m mnpo sample --settings {params.settings:q} --policy {input.policy} --prompts {input.prompts}"
        " --output {output} 2>&1 | tee {log}"
