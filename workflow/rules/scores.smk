# scores: what an oracle thinks of those samples


rule score:
    input:
        samples=PLAN.samples("{policy}", "{part}", "{shard}"),
    output:
        PLAN.scores("{policy}", "{part}", "{oracle}", "{shard}"),
    log:
        f"{LOGS}/score/{{policy}}.part{{part}}.{{oracle}}.{{shard}}.log",
    benchmark:
        f"{LOGS}/score/{{policy}}.part{{part}}.{{oracle}}.{{shard}}.tsv"
    priority: 10
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
    params:
        settings=lambda w: PLAN.settings("score", oracle=w.oracle),
        source=lambda w: PLAN.source("score", [w.oracle]),
    shell:
        "python -m mnpo score --settings {params.settings:q} --samples {input.samples} --output {output} 2>&1 | tee {log}"
