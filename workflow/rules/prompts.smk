# prompts: every train part, the held-out ones, and the demonstrations of the reference


rule prompts:
    output:
        parts=[PLAN.prompts(t) for t in range(1, PLAN.config.prompts.parts + 1)],
        heldout=PLAN.prompts(HELDOUT),
        demonstrations=PLAN.demonstrations,
    log:
        f"{LOGS}/prompts.log",
    benchmark:
        f"{LOGS}/prompts.tsv"
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=PLAN.settings("prompts"),
        source=PLAN.source("prompts"),
        directory=subpath(output.heldout, parent=True),
    shell:
        "python -m mnpo prompts --settings {params.settings:q} --output {params.directory} 2>&1 | tee {log}"
