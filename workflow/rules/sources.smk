# sources: models and data sets, pinned, fetched by the login node into the cache; everything after works offline


rule download:
    output:
        directory(PLAN.files.cached("{kind}", "{repository}", "{revision}")),
    log:
        f"{LOGS}/download/{{kind}}.{{repository}}.{{revision}}.log",
    wildcard_constraints:
        kind="models|datasets|github",
        repository="[^/]+",
        revision="[^/]+",
    retries: 3  # what has arrived is kept, and continued
    conda:
        "../../envs/infer.yaml"
    params:
        settings=lambda w, output: PLAN.settings("download", directory=output[0]),
    shell:
        "exec python -m mnpo --log {log:q} download --settings {params.settings:q} --output {output:q}"


# Small data in the columns of public ones (the demo, a rehearsal), and small models in the files of published ones.
rule miniature:
    output:
        directory(PLAN.files.miniature("{benchmark}")),
    log:
        f"{LOGS}/miniature/{{benchmark}}.log",
    wildcard_constraints:
        benchmark="[^/]+",
    conda:
        "../../envs/infer.yaml"
    params:
        settings=lambda w: PLAN.settings("miniature", benchmark=w.benchmark),
        code=PLAN.code("miniature"),
    shell:
        "exec python -m mnpo --log {log:q} miniature --settings {params.settings:q} --output {output:q}"


use rule miniature as miniature_model with:
    output:
        directory(PLAN.files.miniature_model("{model}")),
    log:
        f"{LOGS}/miniature/model.{{model}}.log",
    wildcard_constraints:
        model="[^/]+",
    params:
        settings=lambda w: PLAN.settings("miniature", model=w.model),
        code=PLAN.code("miniature"),
