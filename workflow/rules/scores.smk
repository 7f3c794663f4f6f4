# scores: what an oracle thinks of those samples


rule score:
    input:
        samples=PLAN.files.samples("{policy}", "{part}", "{shard}"),
        against=lambda w: PLAN.files.against(w.part, w.oracle, w.shard),
        sources=lambda w: PLAN.oracles.sources([w.oracle]),
    output:
        scores=PLAN.files.scores("{policy}", "{part}", "{oracle}", "{shard}"),
        manifest=manifest(PLAN.files.scores("{policy}", "{part}", "{oracle}", "{shard}")),
    log:
        f"{LOGS}/score/{{policy}}.{{part}}.{{oracle}}.{{shard}}.log",
    wildcard_constraints:
        oracle=scored_by(o for o in PLAN.config.oracles if o not in PLAN.oracles.asking),
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("score")
    resources:
        **asked("score"),
    params:
        settings=lambda w: PLAN.settings("score", oracle=w.oracle, policy=w.policy),
        code=lambda w: PLAN.code("score", [w.oracle]),
        against=lambda w, input: [f"--against={file}" for file in input.against],
        store=lambda w, resources: (
            [f"--store={PLAN.files.opinions(w.policy, w.part, w.oracle, w.shard)}"]
            if PLAN.oracles.asks(w.oracle)
            else []
        ),
        external=lambda w: found(*PLAN.oracles.sources([w.oracle])),
    shell:
        "exec python -m mnpo --log {log:q} score --settings {params.settings:q} --samples {input.samples:q} {params.against:q}"
        " {params.store:q} --output {output.scores:q}"


# Oracles that ask a judge do so where the internet is: on the login node, where their models, if any, run as well.
use rule score as score_asking with:
    wildcard_constraints:
        oracle=scored_by(PLAN.oracles.asking),
    threads: PLAN.threads("judge")
    resources:
        **asked("judge"),
