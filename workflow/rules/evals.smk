# evals: policies on benchmarks


rule evaluate:
    input:
        policy=PLAN.policy("{policy}"),
        reference=PLAN.policy(REFERENCE),
        prompts=PLAN.prompts(HELDOUT),
    output:
        summary=PLAN.evaluation("{policy}", "{benchmark}"),
        rows=PLAN.evaluation_items("{policy}", "{benchmark}"),
    log:
        f"{LOGS}/evaluate/{{policy}}.{{benchmark}}.log",
    benchmark:
        f"{LOGS}/evaluate/{{policy}}.{{benchmark}}.tsv"
    wildcard_constraints:
        benchmark=HELDOUT,
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        settings=lambda w: PLAN.settings("evaluate", policy=w.policy, benchmark=w.benchmark),
        source=PLAN.source("evaluate", PLAN.evaluation_oracles),
    shell:
        "python -m mnpo evaluate --settings {params.settings:q} --policy {input.policy} --reference {input.reference}"
        " --prompts {input.prompts} --output {output.summary} 2>&1 | tee {log}"
