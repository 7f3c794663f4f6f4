# pairs: chosen and rejected responses, the shards together


rule pair:
    input:
        samples=lambda w: PLAN.sample_shards(w.policy, w.part),
        scores=lambda w: PLAN.score_shards(w.policy, w.part, w.oracle),
    output:
        PLAN.pairs("{policy}", "{part}", "{oracle}"),
    log:
        f"{LOGS}/pair/{{policy}}.part{{part}}.{{oracle}}.log",
    benchmark:
        f"{LOGS}/pair/{{policy}}.part{{part}}.{{oracle}}.tsv"
    priority: 10
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=PLAN.settings("pair"),
        source=PLAN.source("pair"),
        samples=lambda w, input: [f"--samples={file}" for file in input.samples],
        scores=lambda w, input: [f"--scores={file}" for file in input.scores],
    shell:
        "python -m mnpo pair --settings {params.settings:q} {params.samples} {params.scores} --output {output}"
        " 2>&1 | tee {log}"
