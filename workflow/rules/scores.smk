# scores: what an oracle thinks of those samples


rule score:
    input:
        samples=PLAN.samples("{policy}", "{part}", "{shard}"),
    output:
        PLAN.scores("{policy}", "{part}", "{oracle}", "{shard}"),
    params:
        settings=lambda w: PLAN.settings("score", oracle=w.oracle),
        source=lambda w: PLAN.source("score", [w.oracle]),
    log:
        f"{LOGS}/score/{{policy}}.part{{part}}.{{oracle}}.{{shard}}.log",
    benchmark:
        f"{LOGS}/score/{{policy}}.part{{part}}.{{oracle}}.{{shard}}.tsv"
    shell:
        "mnpo score --settings {params.settings:q} --samples {input.samples} --output {output} 2>&1 | tee {log}"
