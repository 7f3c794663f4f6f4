# tables and figures: everything that is printed

PRICED = job_graph.priced(PLAN)


rule compare:
    input:
        evaluations=lambda w: PLAN.targets.evaluations(w.table),
        published=lambda w: PLAN.targets.published(w.table),
    output:
        table=report(
            PLAN.files.table("{table}") + ".html",
            caption="../report/compare.rst",
            category="Paper",
            labels={"table": "{table}", "what": "ours beside the paper's"},
        ),
        gaps=report(
            PLAN.files.table("{table}") + "-gaps.html",
            caption="../report/gaps.rst",
            category="Paper",
            labels={"table": "{table}", "what": "published gaps and noise"},
        ),
        significance=report(
            PLAN.files.table("{table}") + "-significance.html",
            caption="../report/significance.rst",
            category="Paper",
            labels={"table": "{table}", "what": "our gaps and noise"},
        ),
        others=[file for file in PLAN.targets.comparison("{table}") if not file.endswith(".html")],
    log:
        f"{LOGS}/compare/{{table}}.log",
    wildcard_constraints:
        table=one_of(PLAN.targets.of_paper),
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=lambda w: PLAN.settings("compare", table=w.table),
        code=PLAN.code("compare"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
        published=subpath(input.published, parent=True),
        directory=subpath(output.table, parent=True),
    shell:
        "exec python -m mnpo --log {log:q} compare --settings {params.settings:q} {params.evaluations:q} --published {params.published:q}"
        " --output {params.directory:q}"


rule tabulate:
    input:
        evaluations=[PLAN.files.evaluation(policy, HELDOUT) for policy in PLAN.policies.evaluated],
        rows=[PLAN.files.evaluation_items(policy, HELDOUT) for policy in PLAN.policies.evaluated],
    output:
        main=report(
            PLAN.files.table("main") + ".html",
            caption="../report/main.rst",
            category="Tables",
            labels={"table": "main"},
        ),
        families=report(
            PLAN.files.table("families") + ".html",
            caption="../report/families.rst",
            category="Tables",
            labels={"table": "families"},
        ),
        wins=report(
            PLAN.files.table("wins") + ".html",
            caption="../report/wins.rst",
            category="Tables",
            labels={"table": "wins"},
        ),
        others=[file for file in PLAN.targets.heldout if not file.endswith(".html")],
    log:
        f"{LOGS}/tabulate.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("tabulate"),
        code=PLAN.code("tabulate"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
        directory=subpath(output.main, parent=True),
    shell:
        "exec python -m mnpo --log {log:q} tabulate --settings {params.settings:q} {params.evaluations:q} --output {params.directory:q}"


rule examples:
    input:
        evaluations=[PLAN.files.evaluation(policy, HELDOUT) for policy in PLAN.policies.shown],
        rows=[PLAN.files.evaluation_items(policy, HELDOUT) for policy in PLAN.policies.shown],
        prompts=PLAN.files.prompts(HELDOUT),
    output:
        report(
            PLAN.files.table("examples") + ".html",
            caption="../report/examples.rst",
            category="Tables",
            labels={"table": "examples"},
        ),
    log:
        f"{LOGS}/examples.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("examples"),
        code=PLAN.code("examples"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
    shell:
        "exec python -m mnpo --log {log:q} examples --settings {params.settings:q} {params.evaluations:q} --prompts {input.prompts:q}"
        " --output {output:q}"


rule preferences:
    input:
        pairs=[PLAN.files.pairs(*of) for of in (*PLAN.policies.annotated, *PLAN.policies.preferred)],
        scores=[file for of in PLAN.policies.annotated for file in PLAN.files.score_shards(*of)],
        samples=[file for policy, part, _ in PLAN.policies.annotated for file in PLAN.files.sample_shards(policy, part)],
    output:
        html=report(
            PLAN.files.table("preferences") + ".html",
            caption="../report/preferences.rst",
            category="Tables",
            labels={"table": "preferences"},
        ),
        csv=PLAN.files.table("preferences") + ".csv",
        md=PLAN.files.table("preferences") + ".md",
    log:
        f"{LOGS}/preferences.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("preferences"),
        code=PLAN.code("preferences"),
        pairs=lambda w, input: [f"--pairs={file}" for file in input.pairs],
        scores=lambda w, input: [f"--scores={file}" for file in input.scores],
        samples=lambda w, input: [f"--samples={file}" for file in input.samples],
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "exec python -m mnpo --log {log:q} preferences --settings {params.settings:q} {params.pairs:q} {params.scores:q}"
        " {params.samples:q} --output {params.table:q}"


rule benchmarks:
    input:
        PLAN.measurements.evaluations,
    output:
        html=report(
            PLAN.files.table("benchmarks") + ".html",
            caption="../report/benchmarks.rst",
            category="Tables",
            labels={"table": "benchmarks"},
        ),
        csv=PLAN.files.table("benchmarks") + ".csv",
        md=PLAN.files.table("benchmarks") + ".md",
    log:
        f"{LOGS}/benchmarks.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("benchmarks"),
        code=PLAN.code("benchmarks"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input],
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "exec python -m mnpo --log {log:q} benchmarks --settings {params.settings:q} {params.evaluations:q} --output {params.table:q}"


rule costs:
    input:
        PRICED,
    output:
        html=report(
            PLAN.files.table("costs") + ".html",
            caption="../report/costs.rst",
            category="Tables",
            labels={"table": "costs"},
        ),
        csv=PLAN.files.table("costs") + ".csv",
        md=PLAN.files.table("costs") + ".md",
    log:
        f"{LOGS}/costs.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        code=PLAN.code("tabulate"),
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "exec python -m mnpo --log {log:q} costs --output {params.table:q} {input:q}"


# What a small version of a configuration says of that one: engines, speeds, fixed costs.
rule rehearsal:
    input:
        of=PLAN.config.tables.rehearsal_of,
        artifacts=PRICED,
    output:
        html=report(
            PLAN.files.table("rehearsal") + ".html",
            caption="../report/rehearsal.rst",
            category="Tables",
            labels={"table": "rehearsal"},
        ),
        csv=PLAN.files.table("rehearsal") + ".csv",
        md=PLAN.files.table("rehearsal") + ".md",
    log:
        f"{LOGS}/rehearsal.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("rehearsal"),
        code=PLAN.code("rehearsal"),
        artifacts=lambda w, input: [f"--artifacts={file}" for file in input.artifacts],
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "exec python -m mnpo --log {log:q} rehearsal --settings {params.settings:q} {params.artifacts:q} --output {params.table:q}"


rule plot:
    input:
        tables=PLAN.targets.heldout,
        training=lambda w: [PLAN.files.training(p) for p in PLAN.policies.of_runs] if w.figure == "training" else [],
    output:
        svg=report(
            PLAN.files.figure("{figure}") + ".svg",
            caption="../report/figure.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
        png=PLAN.files.figure("{figure}") + ".png",
    log:
        f"{LOGS}/plot/{{figure}}.log",
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("plot"),
        code=PLAN.code("plot"),
        tables=lambda w, input: os.path.dirname(input.tables[0]),
        training=lambda w, input: [f"--training={file}" for file in input.training],
        figure=PLAN.files.figure("{figure}"),
    shell:
        "exec python -m mnpo --log {log:q} plot {wildcards.figure:q} --settings {params.settings:q} --tables {params.tables:q} {params.training:q}"
        " --output {params.figure:q}"


# The HTML report of everything that is made by default, with captions and statistics.
rule report:
    input:
        job_graph.files(PLAN, PLAN.config.tables.targets),
    output:
        PLAN.files.report,
    log:
        f"{LOGS}/report.log",
    conda:
        "../../envs/eval.yaml"
    params:
        configuration=["--configfile", str(CONFIG)],
        changes=[f"{key}={json.dumps(value)}" for key, value in workflow.config_settings.config.items()],
        style=str(Path(workflow.basedir) / "workflow/report/phone.css"),
    shell:
        # Inside a running workflow, which holds the lock and is not disturbed.
        "snakemake --nolock {params.configuration:q} --config {params.changes:q} --report {output:q}"
        " --report-stylesheet {params.style:q} > {log:q} 2>&1"
