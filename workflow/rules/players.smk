# players: every run's last policy in its game


rule players:
    input:
        evaluations=[PLAN.files.evaluation(policy, HELDOUT) for policy in PLAN.policies.evaluated],
        rows=[PLAN.files.evaluation_items(policy, HELDOUT) for policy in PLAN.policies.evaluated],
    output:
        html=report(
            PLAN.files.table("players") + ".html",
            caption="../report/players.rst",
            category="Tables",
            labels={"table": "players"},
        ),
        csv=PLAN.files.table("players") + ".csv",
        md=PLAN.files.table("players") + ".md",
    log:
        f"{LOGS}/players.log",
    conda:
        "../../envs/eval.yaml"
    threads: PLAN.threads("tabulate")
    resources:
        **asked("tabulate"),
    params:
        settings=PLAN.settings("players"),
        code=PLAN.code("players"),
        evaluations=lambda w, input: [f"--evaluations={file}" for file in input.evaluations],
        table=subpath(output.csv, strip_suffix=".csv"),
    shell:
        "exec python -m mnpo --log {log:q} players --settings {params.settings:q} {params.evaluations:q} --output {params.table:q}"
