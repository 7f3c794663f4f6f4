# prompts: every train part and the held-out ones; the demonstrations of the reference, the demo's or one's own


rule prompts:
    input:
        data=PLAN.files.prompt_sources,
    output:
        PLAN.files.prompt_files,
    log:
        f"{LOGS}/prompts.log",
    priority: 10
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


rule demonstrations:
    input:
        PLAN.files.sft_sources,
    output:
        PLAN.files.sft_data("train"),
        PLAN.files.sft_data(HELDOUT),
    log:
        f"{LOGS}/demonstrations.log",
    priority: 10
    conda:
        "../../envs/infer.yaml"
    threads: PLAN.threads("prompts")
    resources:
        **asked("prompts"),
    params:
        settings=lambda w: PLAN.settings("demonstrations"),
        code=PLAN.code("demonstrations"),
        directory=lambda w, output: os.path.dirname(output[0]),
        external=lambda w: found(*PLAN.files.sft_sources),
    shell:
        "exec python -m mnpo --log {log:q} demonstrations --settings {params.settings:q} --data {input:q} --output {params.directory:q}"
