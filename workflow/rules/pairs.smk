# pairs: chosen and rejected responses, the shards together


rule pair:
    input:
        samples=lambda w: PLAN.files.sample_shards(w.policy, w.part),
        scores=lambda w: PLAN.files.score_shards(w.policy, w.part, w.oracle),
    output:
        PLAN.files.pairs("{policy}", "{part}", "{oracle}"),
    log:
        f"{LOGS}/pair/{{policy}}.{{part}}.{{oracle}}.log",
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
