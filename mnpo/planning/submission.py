"""What sbatch says to the jobs of a workflow before any of them is submitted.

The request is built by Snakemake's SLURM plugin itself, so that it is the one that the plugin will send.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterable
from typing import Any

from mnpo.errors import BadInput
from mnpo.progress import say

PLUGIN = "snakemake_executor_plugin_slurm"
SECONDS_TO_ANSWER = 30.0
_VALUES = ("--job-name", "--output", "--comment", "-D")
_SAID_BY_ALL = ("sbatch", "--parsable", "--export=ALL")


class NoAnswer(Exception):
    """SLURM cannot be asked; the message says why."""


def require_accepted(scheduler: Any, jobs: Iterable[Any]) -> None:
    """Whether sbatch takes one job of each rule that is going to be submitted.

    Where SLURM cannot be asked (no sbatch, no controller, no answer in time), that is said, and no more.

    Args:
        scheduler: Snakemake's, which knows who executes a job: the SLURM plugin, or another that submits nothing.
        jobs: Snakemake's jobs that are going to run. Jobs of one rule ask for the same.

    Raises:
        BadInput: one message for all refusals: the rule, what it asked for, and sbatch's own words.
    """
    refusals = []
    try:
        for rule, job in {job.rule.name: job for job in jobs}.items():
            executor = scheduler.get_executor(job)
            if type(executor).__module__ == PLUGIN and (refusal := _refusal(executor, job)):
                refusals.append(f"{rule}: {refusal}")
    except NoAnswer as error:
        say(f"sbatch was not asked beforehand whether it takes the jobs: {error}")
    if refusals:
        raise BadInput(
            "SLURM refuses what these stages ask for (`resources` of the configuration says how much, "
            "profiles/slurm/cluster.yaml says where: docs/cluster.md)\n" + "\n".join(refusals)
        )


def request(executor: Any, job: Any) -> list[str]:
    """The words with which the plugin submits a job, up to what the job runs.

    Raises:
        WorkflowError: what the plugin itself finds wrong, such as an account that is not the user's.
    """
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    parameters = {
        "run_uuid": executor.run_uuid,
        "slurm_logfile": "/dev/null",
        "comment_str": f"rule_{job.name}",
        "account": next(executor.get_account_arg(job)),
        "partition": executor.get_partition_arg(job),
        "workdir": executor.workflow.workdir_init,
    }
    settings, excluded = executor.workflow.executor_settings, executor._failed_nodes
    command = get_submit_command(job, parameters, settings=settings, failed_nodes=excluded)
    return shlex.split(command + set_gres_string(job))


def _refusal(executor: Any, job: Any) -> str | None:
    """What is wrong with a job's request; None: nothing."""
    from snakemake_interface_common.exceptions import WorkflowError

    try:
        words = request(executor, job)
    except WorkflowError as error:
        return str(error)
    except OSError as error:  # a command of SLURM that the plugin asks for the account
        raise NoAnswer(f"{error.filename}: {error.strerror}") from None
    said = _ask(words)
    return said and f"asked for {_what_matters(words)}: {said}"


def _ask(words: list[str]) -> str | None:
    """Why sbatch refuses a request; None: it does not."""
    command = [*words[1:], "--wrap=true"]
    test = _slurm("sbatch", "--test-only", *command)
    if test.returncode == 0:
        return None
    ping = _slurm("scontrol", "ping")
    if ping.returncode != 0 or "UP" not in ping.stdout:
        raise NoAnswer(_words(test))
    # The test refuses in the same words when the nodes are only down or drained now, and the job would wait for them.
    # The job itself tells these apart: it may not begin before it is taken back. (One that is held is not looked at.)
    job = _slurm("sbatch", "--begin=now+1hour", *command)
    if job.returncode != 0:
        return _words(job)
    _slurm("scancel", job.stdout.strip().partition(";")[0])
    say(f"sbatch takes {_what_matters(words)}, but no node can run it as the nodes are now: {_words(test)}")
    return None


def _words(answer: subprocess.CompletedProcess[str]) -> str:
    """What a command said of its failure."""
    return " ".join(answer.stderr.split()) or f"{answer.args[0]}: exit code {answer.returncode}"


def _slurm(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} gave no answer within {SECONDS_TO_ANSWER:.0f} s") from None
    except OSError as error:
        raise NoAnswer(f"{command[0]}: {error.strerror}") from None


def _what_matters(words: list[str]) -> str:
    """A request without names, logs and places, as somebody would type it."""
    kept, rest = [], iter(words)
    for word in rest:
        if word in _VALUES:
            next(rest, None)
        elif word not in _SAID_BY_ALL:
            kept.append(word)
    return shlex.join(kept)
