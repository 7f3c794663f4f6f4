# what rules share


def one_of(names):
    """A wildcard that is one of `names`; nothing when there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def asked(stage):
    """What a job of a stage asks for: what it needs by the configuration, where by the cluster file."""
    took = partial(calibration.stop_seconds, PLAN, stage)
    place = CLUSTER.place(stage, PLAN.config.resources.of(stage), took) if CLUSTER else {}
    return PLAN.resources(stage) | place


def by_evalscope(wildcards):
    """Whether the paper's harness measures a benchmark."""
    return PLAN.config.evaluation.protocol_of(wildcards.benchmark) == "evalscope"


@cache
def state(file):
    """The files at `file` when this process first looked: all jobs of one call decide by one moment."""
    return external.state(file)


def found(*inputs):
    """Those of a job's inputs that no rule makes, as they are now. Beside settings and code, it decides what reruns."""
    return {file: state(file) for file in sorted(set(inputs)) if PLAN.files.is_external(file)}


def policy_files(policy):
    """A policy's directory; nothing for a model behind an endpoint."""
    return [PLAN.files.policy(policy)] if PLAN.policies.has_files(policy) else []


def manifest(file):
    """Beside a file; an output as well, so that `--cache` carries both."""
    return str(manifest_path(file))


def drawn(policy, part, shard):
    """A shard of samples, and what the sampler says of their log-probabilities, where it is asked to."""
    files = {"samples": PLAN.files.samples(policy, part, shard)}
    if PLAN.config.sampling.logprobs is True:
        files["logps"] = PLAN.files.sampler_logps(policy, part, shard)
    return files | {f"{name}_manifest": manifest(file) for name, file in files.items()}


def launched(stage):
    """The words that start a stage's Python."""
    needs, rank = PLAN.config.resources.of(stage), Path(workflow.basedir) / "workflow/rank.sh"
    return no_reason(cluster.launch(stage, needs, CLUSTER, rank))


def no_reason(value):
    """A param that, being a function of `resources`, is no reason to run a job again."""
    return lambda wildcards, resources: value


def scored_by(oracles):
    """The wildcard of scores by one of `oracles`, also against another policy's responses."""
    return f"({one_of(oracles)})({AGAINST}[^/]+)?"
