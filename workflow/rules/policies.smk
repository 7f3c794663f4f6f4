# policies: the reference, and what preference optimisation makes of it


rule sft:
    input:
        demonstrations=PLAN.demonstrations,
    output:
        directory(PLAN.policy("{policy}")),
    wildcard_constraints:
        policy="|".join(PLAN.prepared),
    params:
        settings=lambda w: PLAN.settings("sft", policy=w.policy),
        source=PLAN.source("sft"),
    log:
        f"{LOGS}/sft/{{policy}}.log",
    benchmark:
        f"{LOGS}/sft/{{policy}}.tsv"
    shell:
        "mnpo sft --settings {params.settings:q} --demonstrations {input.demonstrations} --output {output}"
        " 2>&1 | tee {log}"


rule train:
    input:
        start=lambda w: PLAN.policy(PLAN.fits[w.policy].start),
        pairs=lambda w: PLAN.fit_pairs(w.policy),
        logps=lambda w: PLAN.fit_logps(w.policy),
    output:
        directory(PLAN.policy("{policy}")),
    wildcard_constraints:
        policy="|".join(map(re.escape, PLAN.fits)),
    params:
        settings=lambda w: PLAN.settings("train", policy=w.policy),
        source=PLAN.source("train"),
        pairs=lambda w, input: [f"--pairs={file}" for file in input.pairs],
        logps=lambda w, input: [f"--logps={file}" for file in input.logps],
    log:
        f"{LOGS}/train/{{policy}}.log",
    benchmark:
        f"{LOGS}/train/{{policy}}.tsv"
    shell:
        "mnpo train --settings {params.settings:q} --start {input.start} {params.pairs} {params.logps}"
        " --output {output} 2>&1 | tee {log}"
