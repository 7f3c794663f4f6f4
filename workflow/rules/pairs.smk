# pairs: chosen and rejected responses, the shards together


rule pair:
    input:
        samples=lambda w: PLAN.sample_shards(w.policy, w.part),
        scores=lambda w: PLAN.score_shards(w.policy, w.part, w.oracle),
    output:
        PLAN.pairs("{policy}", "{part}", "{oracle}"),
    params:
        settings=PLAN.settings("pair"),
        source=PLAN.source("pair"),
        samples=lambda w, input: [f"--samples={file}" for file in input.samples],
        scores=lambda w, input: [f"--scores={file}" for file in input.scores],
    log:
        f"{LOGS}/pair/{{policy}}.part{{part}}.{{oracle}}.log",
    benchmark:
        f"{LOGS}/pair/{{policy}}.part{{part}}.{{oracle}}.tsv"
    shell:
        "mnpo pair --settings {params.settings:q} {params.samples} {params.scores} --output {output}"
        " 2>&1 | tee {log}"
