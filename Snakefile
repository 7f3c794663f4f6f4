# Reads a configuration, unrolls it into a plan, and lets the rules make the plan's files.
# What runs is said by the configuration (config.yaml, or --configfile configs/demo.yaml), where and how by a profile.

from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

min_version("9.0")

import json
import os
import re
import shlex
import sys
from functools import cache, partial
from pathlib import Path

# Plan and rules use the package beside this file, in the Python that runs Snakemake unless a rule's environment brings
# another.
sys.path.insert(0, str(workflow.basedir))
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]),
    PYTHONPATH=str(workflow.basedir),
)
# Snakemake writes the path of its Python into the jobs that it submits, unquoted; the PATH has it, too.
if shlex.quote(sys.executable) != sys.executable:
    sys.executable = Path(sys.executable).name

from mnpo.config.blocks import DATASET, REFERENCE
from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import cluster, environments, job_graph, preflight, submission
from mnpo.planning.costs import calibration
from mnpo.planning.files import HELDOUT
from mnpo.planning.nouns import policies
from mnpo.planning.fits import AGAINST
from mnpo.planning.plan import Plan
from mnpo.planning.targets import FIGURES
from mnpo.storage import external
from mnpo.storage.artifacts import manifest_path
from mnpo.storage.hub import read_lock

if len(workflow.configfiles) > 1:
    raise WorkflowError("one --configfile at a time: a configuration that builds on another says `extends:`")
CONFIG = Path((workflow.configfiles or [Path(workflow.basedir) / "config.yaml"])[0])
try:
    PLAN = Plan(load(CONFIG, workflow.config_settings.config), read_lock())
    CLUSTER = cluster.load()
except BadInput as error:
    raise WorkflowError(str(error))
LOGS = f"logs/{PLAN.config.name}"


report: "workflow/report/workflow.rst"


# On a cluster these run where Snakemake does: where there is internet, or because they are over in seconds.
localrules:
    all,
    download,
    miniature,
    miniature_model,
    judge,
    compare,
    tabulate,
    players,
    examples,
    benchmarks,
    costs,
    rehearsal,
    plot,
    theory,
    study,
    report,
    score_asking,


# Before anything is submitted: tokens, keys and pins of what is about to run, the packages that it will import, and
# whether SLURM will take it. (What conda makes of envs/*.yaml has the packages.)
onstart:
    from mnpo.cli import FAMILIES
    from mnpo.warm import server

    try:
        cluster.require_no_jobs(Path.cwd())
        jobs = list(workflow.dag.needrun_jobs())
        named = [(job.rule.name, dict(job.wildcards)) for job in jobs]
        # Jobs with an environment of their own have other packages.
        here = DeploymentMethod.CONDA not in workflow.deployment_settings.deployment_method
        preflight.check(
            PLAN,
            named,
            *([partial(environments.require_packages, PLAN, named, FAMILIES)] if here else []),
            partial(submission.require_accepted, workflow.scheduler, jobs),
            *([partial(preflight.require_functions, PLAN, named)] if here else []),
        )
        warm = server.asked()
    except BadInput as error:
        raise WorkflowError(str(error))
    # With its usual limit of 100 jobs a second, Snakemake looks for jobs again a second after each look, beside the looks
    # that ending jobs cause: dozens a second in a long run, and each costs. Without a limit it looks when a job has ended.
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
    # Where it is asked for, jobs of this machine and this Python are forked from a process that has their libraries
    # (docs/environments.md#without-a-start-up).
    if warm and here and workflow.local_exec and not workflow.touch:
        if packages := environments.packages(PLAN, named, FAMILIES):
            server.start({job.threads for job in jobs}, packages)


wildcard_constraints:
    policy=r"[^/]+",
    scorer=r"[^/]+",
    oracle=r"[^/]+",
    part=rf"part\d+|{HELDOUT}",
    shard=r"\d+",
    text=r"[a-z-]+",


include: "workflow/rules/common.smk"
include: "workflow/rules/sources.smk"
include: "workflow/rules/prompts.smk"
include: "workflow/rules/policies.smk"
include: "workflow/rules/samples.smk"
include: "workflow/rules/scores.smk"
include: "workflow/rules/pairs.smk"
include: "workflow/rules/logps.smk"
include: "workflow/rules/evals.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/players.smk"
include: "workflow/rules/exploitability.smk"
include: "workflow/rules/theory.smk"


rule all:
    default_target: True
    input:
        job_graph.files(PLAN, PLAN.config.tables.targets),


# `snakemake table2`, `snakemake figures`, ...: one target and what it rests on.
for target in PLAN.targets.names:

    rule:
        name:
            target
        input:
            PLAN.targets.of(target),
