# tables and figures: everything that is printed


rule tabulate:
    input:
        evaluations=[PLAN.evaluation(policy, HELDOUT) for policy in PLAN.evaluated],
        rows=[PLAN.evaluation_items(policy, HELDOUT) for policy in PLAN.evaluated],
    output:
        main=report(
            PLAN.table("main") + ".html", caption="../report/main.rst", category="Tables", labels={"table": "main"}
        ),
        families=report(
            PLAN.table("families") + ".html",
            caption="../report/families.rst",
            category="Tables",
            labels={"table": "families"},
        ),
        wins=report(
            PLAN.table("wins") + ".html", caption="../report/wins.rst", category="Tables", labels={"table": "wins"}
        ),
        others=[file for file in PLAN.tables if not file.endswith(".html")],
    log:
        f"{LOGS}/tabulate.log",
    benchmark:
        f"{LOGS}/tabulate.tsv"
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=PLAN.settings("tabulate"),
        source=PLAN.source("tabulate"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
        directory=subpath(output.main, parent=True),
    shell:
        "python -m mnpo tabulate --settings {params.settings:q} {params.evaluations} --output {params.directory}"
        " 2>&1 | tee {log}"


rule costs:
    input:
        PLAN.artifacts,
    output:
        html=report(
            PLAN.table("costs") + ".html", caption="../report/costs.rst", category="Tables", labels={"table": "costs"}
        ),
        csv=PLAN.table("costs") + ".csv",
        md=PLAN.table("costs") + ".md",
    log:
        f"{LOGS}/costs.log",
    benchmark:
        f"{LOGS}/costs.tsv"
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        source=PLAN.source("tabulate"),
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "python -m mnpo costs --output {params.table} {input} 2>&1 | tee {log}"


rule plot:
    input:
        tables=PLAN.tables,
        policies=lambda w: [PLAN.policy(p) for p in PLAN.fits] if w.figure == "training" else [],
    output:
        svg=report(
            PLAN.figure("{figure}") + ".svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        png=PLAN.figure("{figure}") + ".png",
    log:
        f"{LOGS}/plot/{{figure}}.log",
    benchmark:
        f"{LOGS}/plot/{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../envs/mnpo.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        settings=PLAN.settings("plot"),
        source=PLAN.source("plot"),
        tables=lambda w, input: os.path.dirname(input.tables[0]),
        policies=lambda w, input: [f"--policies={p}" for p in input.policies],
        figure=PLAN.figure("{figure}"),
    shell:
        "python -m mnpo plot {wildcards.figure} --settings {params.settings:q} --tables {params.tables} {params.policies}"
        " --output {params.figure} 2>&1 | tee {log}"
