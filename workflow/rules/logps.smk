# logps: log-probabilities of pairs under whoever opposes; one job for each (pairs, scorer)


rule logps:
    input:
        policy=lambda w: PLAN.files.policy(w.scorer),
        pairs=PLAN.files.pairs("{policy}", "{part}", "{oracle}"),
        sampler=lambda w: PLAN.files.reused_logprobs(w.policy, w.part, w.text, w.scorer),
    output:
        logps=PLAN.files.logps("{policy}", "{part}", "{oracle}", "{text}", "{scorer}"),
        manifest=manifest(PLAN.files.logps("{policy}", "{part}", "{oracle}", "{text}", "{scorer}")),
    log:
        f"{LOGS}/logps/{{policy}}.{{part}}.{{oracle}}.{{text}}.{{scorer}}.log",
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("logps")
    resources:
        **asked("logps"),
    params:
        settings=lambda w: PLAN.settings("logps", text=w.text),
        code=PLAN.code("logps"),
        sampler=lambda w, input: [f"--sampler={file}" for file in input.sampler],
        external=lambda w: found(PLAN.files.policy(w.scorer)),
    shell:
        "exec python -m mnpo --log {log:q} logps --settings {params.settings:q} --policy {input.policy:q} --pairs {input.pairs:q}"
        " --output {output.logps:q} {params.sampler:q}"
