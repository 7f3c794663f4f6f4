# theory: which algorithms converge in exact games, in which iterate. study: where opponents help, a map of random exact games.
# They need no policy.


rule theory:
    output:
        table=report(
            PLAN.files.table("theory") + ".csv",
            caption="../report/theory_table.rst",
            category="Theory",
            labels={"what": "table"},
        ),
        svg=report(
            PLAN.files.figure("theory") + ".svg",
            caption="../report/theory.rst",
            category="Theory",
            labels={"what": "figure"},
        ),
        png=PLAN.files.figure("theory") + ".png",
    log:
        f"{LOGS}/theory.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        code=PLAN.code("game"),
    shell:
        "exec python -m mnpo --log {log:q} theory --table {output.table:q} --figure {output.svg:q} --figure {output.png:q}"


rule study:
    output:
        table=report(
            PLAN.files.table("study") + ".csv",
            caption="../report/study_table.rst",
            category="Theory",
            labels={"what": "map, table"},
        ),
        svg=report(
            PLAN.files.figure("study") + ".svg",
            caption="../report/study.rst",
            category="Theory",
            labels={"what": "map, figure"},
        ),
        png=PLAN.files.figure("study") + ".png",
    log:
        f"{LOGS}/study.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        code=PLAN.code("study"),
    shell:
        "exec python -m mnpo --log {log:q} study --table {output.table:q} --figure {output.svg:q} --figure {output.png:q}"
