# policies: the reference, and what preference optimisation makes of it


rule sft:
    input:
        demonstrations=PLAN.demonstrations,
    output:
        directory(PLAN.policy("{policy}")),
    log:
        f"{LOGS}/sft/{{policy}}.log",
    benchmark:
        f"{LOGS}/sft/{{policy}}.tsv"
    wildcard_constraints:
        policy="|".join(PLAN.prepared),
    priority: 10
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=lambda w: PLAN.settings("sft", policy=w.policy),
        source=PLAN.source("sft"),
    shell:
        "python -m mnpo sft --settings {params.settings:q} --demonstrations {input.demonstrations} --output {output}"
        " 2>&1 | tee {log}"


rule train:
    input:
        start=lambda w: PLAN.policy(PLAN.fits[w.policy].start),
        pairs=lambda w: PLAN.fit_pairs(w.policy),
        logps=lambda w: PLAN.fit_logps(w.policy),
    output:
        directory(PLAN.policy("{policy}")),
    log:
        f"{LOGS}/train/{{policy}}.log",
    benchmark:
        f"{LOGS}/train/{{policy}}.tsv"
    wildcard_constraints:
        policy="|".join(map(re.escape, PLAN.fits)),
    priority: 10  # the chain before what hangs off it
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=lambda w: PLAN.settings("train", policy=w.policy),
        source=PLAN.source("train"),
        pairs=lambda w, input: [f"--pairs={file}" for file in input.pairs],
        logps=lambda w, input: [f"--logps={file}" for file in input.logps],
    shell:
        "python -m mnpo train --settings {params.settings:q} --start {input.start} {params.pairs} {params.logps}"
        " --output {output} 2>&1 | tee {log}"
