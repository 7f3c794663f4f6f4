# theory: which algorithms converge in exact games, in which iterate; needs no policy


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
