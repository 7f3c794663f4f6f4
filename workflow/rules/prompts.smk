# prompts: every train part, the held-out ones, and the demonstrations of the reference


rule prompts:
    input:
        data=PLAN.files.prompt_sources,
    output:
        PLAN.files.prompt_files,
    log:
        f"{LOGS}/prompts.log",
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("prompts")
    resources:
        **asked("prompts"),
    params:
        settings=PLAN.settings("prompts"),
        code=PLAN.code("prompts"),
        directory=lambda w, output: os.path.dirname(output[0]),
        data=lambda w, input: [f"--data={directory}" for directory in input.data],
        external=lambda w: found(*PLAN.files.prompt_sources, *filter(None, [PLAN.config.prompts.path])),
    shell:
        "exec python -m mnpo --log {log:q} prompts --settings {params.settings:q} {params.data:q} --output {params.directory:q}"
