# policies: the reference, and what preference optimisation makes of it


rule sft:
    input:
        demonstrations=PLAN.files.demonstrations,
        heldout=lambda w: policies.heldout_of(PLAN, w.policy),
        model=lambda w: PLAN.files.model_sources([PLAN.policies.prepared[w.policy]]),
    output:
        directory(PLAN.files.policy("{policy}")),
    log:
        f"{LOGS}/sft/{{policy}}.log",
    wildcard_constraints:
        policy=one_of(PLAN.policies.prepared),
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: PLAN.threads("sft")
    resources:
        **asked("sft"),
    params:
        launch=launched("sft"),
        settings=lambda w: PLAN.settings("sft", policy=w.policy),
        code=PLAN.code("sft"),
        heldout=lambda w, input: [f"--heldout={file}" for file in input.heldout],
        events=str(Path(PLAN.files.training("sft")).parent / "tensorboard"),
        external=lambda w: found(*PLAN.files.model_sources([PLAN.policies.prepared[w.policy]]), *PLAN.files.template),
    shell:
        "exec {params.launch:q} -m mnpo --log {log:q} sft --settings {params.settings:q} --demonstrations {input.demonstrations:q} --output {output:q}"
        " --events {params.events:q}/{wildcards.policy:q} {params.heldout:q}"


rule weigh:
    input:
        lambda w: PLAN.files.game_scores(PLAN.policies.fits[w.policy]),
    output:
        PLAN.files.game("{policy}"),
    log:
        f"{LOGS}/weigh/{{policy}}.log",
    priority: 10
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("pair")
    resources:
        **asked("pair"),
    params:
        settings=lambda w: PLAN.settings("weigh", policy=w.policy),
        code=PLAN.code("weigh"),
        scores=lambda w, input: [f"--scores={file}" for file in input],
    shell:
        "exec python -m mnpo --log {log:q} weigh --settings {params.settings:q} {params.scores:q} --output {output:q}"


rule train:
    input:
        start=lambda w: PLAN.files.policy(PLAN.policies.fits[w.policy].start),
        pairs=lambda w: PLAN.files.fit_pairs(PLAN.policies.fits[w.policy]),
        logps=lambda w: PLAN.files.fit_logps(PLAN.policies.fits[w.policy]),
        game=lambda w: PLAN.files.fit_game(PLAN.policies.fits[w.policy]),
    output:
        policy=directory(PLAN.files.policy("{policy}")),
        training=PLAN.files.training("{policy}"),
        manifest=manifest(PLAN.files.training("{policy}")),
    log:
        f"{LOGS}/train/{{policy}}.log",
    wildcard_constraints:
        policy=one_of(p for p in PLAN.policies.fits if p not in PLAN.policies.passing),
    priority: 10  # the chain before what hangs off it
    conda:
        "../../envs/train.yaml"
    threads: PLAN.threads("train")
    resources:
        **asked("train"),
    params:
        launch=launched("train"),
        settings=lambda w: PLAN.settings("train", policy=w.policy),
        code=PLAN.code("train"),
        pairs=lambda w, input: [f"--pairs={file}" for file in input.pairs],
        logps=lambda w, input: [f"--logps={file}" for file in input.logps],
        game=lambda w, input: [f"--game={file}" for file in input.game],
    shell:
        "exec {params.launch:q} -m mnpo --log {log:q} train --settings {params.settings:q} --start {input.start:q} {params.pairs:q} {params.logps:q} {params.game:q}"
        " --output {output.policy:q} --training {output.training:q}"


use rule train as train_passing with:
    output:
        policy=temp(directory(PLAN.files.policy("{policy}"))),  # deleted when the last job that reads it is done
        training=PLAN.files.training("{policy}"),
        manifest=manifest(PLAN.files.training("{policy}")),
    wildcard_constraints:
        policy=one_of(PLAN.policies.passing),
