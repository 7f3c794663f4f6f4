# policies: the reference, and what preference optimisation makes of it


rule sft:
    input:
        demonstrations=PLAN.demonstrations,
        model=lambda w: PLAN.model_sources([PLAN.prepared[w.policy]]),
    output:
        directory(PLAN.policy("{policy}")),
    log:
        f"{LOGS}/sft/{{policy}}.log",
    wildcard_constraints:
        policy=one_of(PLAN.prepared),
    priority: 10
    conda:
        "../../envs/train.yaml"
    threads: PLAN.threads("sft")
    resources:
        **asked("sft"),
    params:
        settings=lambda w: PLAN.settings("sft", policy=w.policy),
        code=PLAN.code("sft"),
        events=str(Path(PLAN.training("sft")).parent / "tensorboard"),
    shell:
        "exec python -m mnpo --log {log} sft --settings {params.settings:q} --demonstrations {input.demonstrations} --output {output}"
        " --events {params.events}/{wildcards.policy}"


rule train:
    input:
        start=lambda w: PLAN.policy(PLAN.fits[w.policy].start),
        pairs=lambda w: PLAN.fit_pairs(w.policy),
        logps=lambda w: PLAN.fit_logps(w.policy),
    output:
        policy=directory(PLAN.policy("{policy}")),
        training=PLAN.training("{policy}"),
        manifest=manifest(PLAN.training("{policy}")),
    log:
        f"{LOGS}/train/{{policy}}.log",
    wildcard_constraints:
        policy=one_of(p for p in PLAN.fits if p not in PLAN.passing),
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
    shell:
        "exec {params.launch} -m mnpo --log {log} train --settings {params.settings:q} --start {input.start} {params.pairs} {params.logps}"
        " --output {output.policy} --training {output.training}"


use rule train as train_passing with:
    output:
        policy=temp(directory(PLAN.policy("{policy}"))),  # deleted when the last job that reads it is done
        training=PLAN.training("{policy}"),
        manifest=manifest(PLAN.training("{policy}")),
    wildcard_constraints:
        policy=one_of(PLAN.passing),
