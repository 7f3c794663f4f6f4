# tables and figures: everything that is printed


rule tabulate:
    input:
        evaluations=[PLAN.evaluation(policy, HELDOUT) for policy in PLAN.evaluated],
        rows=[PLAN.evaluation_items(policy, HELDOUT) for policy in PLAN.evaluated],
    output:
        PLAN.tables,
    params:
        settings=PLAN.settings("tabulate"),
        source=PLAN.source("tabulate"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
        directory=subpath(PLAN.tables[0], parent=True),
    log:
        f"{LOGS}/tabulate.log",
    benchmark:
        f"{LOGS}/tabulate.tsv"
    shell:
        "mnpo tabulate --settings {params.settings:q} {params.evaluations} --output {params.directory}"
        " 2>&1 | tee {log}"


rule costs:
    input:
        PLAN.artifacts,
    output:
        PLAN.table("costs") + ".csv",
        PLAN.table("costs") + ".md",
    params:
        source=PLAN.source("tabulate"),
        table=PLAN.table("costs"),
    log:
        f"{LOGS}/costs.log",
    benchmark:
        f"{LOGS}/costs.tsv"
    shell:
        "mnpo costs --output {params.table} {input} 2>&1 | tee {log}"


rule plot:
    input:
        tables=PLAN.tables,
        policies=lambda w: [PLAN.policy(p) for p in PLAN.fits] if w.figure == "training" else [],
    output:
        svg=report(PLAN.figure("{figure}") + ".svg", caption="../report/{figure}.rst", category="Figures"),
        png=PLAN.figure("{figure}") + ".png",
    wildcard_constraints:
        figure="|".join(FIGURES),
    params:
        settings=PLAN.settings("plot"),
        source=PLAN.source("plot"),
        tables=subpath(PLAN.tables[0], parent=True),
        policies=lambda w, input: [f"--policies={p}" for p in input.policies],
        figure=PLAN.figure("{figure}"),
    log:
        f"{LOGS}/plot/{{figure}}.log",
    benchmark:
        f"{LOGS}/plot/{{figure}}.tsv"
    shell:
        "mnpo plot {wildcards.figure} --settings {params.settings:q} --tables {params.tables} {params.policies}"
        " --output {params.figure} 2>&1 | tee {log}"
