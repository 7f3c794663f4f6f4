"""Where and how jobs run on a SLURM cluster: what the cluster file says, in the words of Snakemake's plugin.

What a stage needs is the configuration's; which partition, type of GPU and time limit that means is the cluster's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field

from mnpo.config.blocks import Block, validated
from mnpo.config.reading import read_yaml
from mnpo.config.resources import Needs
from mnpo.errors import BadInput
from mnpo.progress import say

VARIABLE = "MNPO_CLUSTER"  # names the cluster file; profiles/slurm sets it
CONTINUED = ("sft", "train", "sample", "score", "logps", "answer")
"""Stages that stop when asked to, and go on where they stopped (mnpo/storage/resume.py)."""
RANKED = ("train", "sft")
"""Stages that run once for each of their GPUs, as one process group (mnpo/learning/distributed.py)."""


class Place(Block):
    """A partition, and what else sbatch needs to be let in."""

    partition: str
    max_minutes: int = Field(ge=1)
    """The partition's time limit: no job asks for more."""
    qos: str | None = None
    constraint: str | None = None


class Gpus(Place):
    """A partition with GPUs."""

    per_node: int = Field(ge=1)
    """A stage that wants more gets several nodes."""
    type: str | None = None
    """As in `sinfo -o %G`; None: any."""


class Cluster(Block):
    """A cluster file, such as profiles/slurm/cluster.yaml."""

    account: str | None = None
    cpu: Place
    gpu: Gpus
    jobs: int = Field(64, ge=1)
    """At most so many in the queue; read by the profile."""
    seconds_between_checks: int = Field(40, ge=1)
    """Before the first look at new jobs; read by the profile."""
    seconds_to_stop: int = Field(300, ge=1)
    """At least so long before its limit a stage that can be continued is told to stop; half the limit at most."""

    def place(self, stage: str, needs: Needs, took: Callable[[], float] = lambda: 0.0) -> dict[str, Any]:
        """Snakemake's resources that say where and how a job of `stage` with `needs` runs.

        Args:
            stage: its name.
            needs: what it asks for.
            took: how many seconds a stop of such a job takes, as far as is known. It gets twice that.

        Raises:
            BadInput: its GPUs do not divide over whole nodes, or the stage cannot use more than one node.
        """
        on = self.gpu if needs.gpus else self.cpu
        names = {"slurm_account": self.account, "slurm_partition": on.partition}
        asked: dict[str, Any] = {**names, "qos": on.qos, "constraint": on.constraint}
        asked = {name: value for name, value in asked.items() if value}

        def runtime(wildcards: Any, attempt: int) -> int:
            return min(max(round(needs.hours * 60 * attempt), 1), on.max_minutes)

        def stop(wildcards: Any, attempt: int) -> str:
            seconds = max(self.seconds_to_stop, ceil(2 * took()))
            return f"--signal=TERM@{min(seconds, 30 * runtime(wildcards, attempt))}"

        asked["runtime"] = runtime
        if stage in CONTINUED:
            asked["slurm_extra"] = stop
        if needs.gpus:
            nodes, each = self.nodes(stage, needs)
            asked["gres"] = ":".join(["gpu", *filter(None, [self.gpu.type]), str(each)])
            if stage in RANKED and needs.gpus > 1:  # `launch` starts the tasks: the plugin must not
                tasks = {"tasks_per_node": each} if each > 1 else {"tasks": nodes}
                cpus = _cpus_of_a_rank(needs, each)
                asked |= {"nodes": nodes, "mpi": "srun", **tasks, "tasks_per_gpu": 0, "cpus_per_task": cpus}
        return asked

    def nodes(self, stage: str, needs: Needs) -> tuple[int, int]:
        """On how many nodes a job runs, and its GPUs of each."""
        nodes = ceil(needs.gpus / self.gpu.per_node)
        if needs.gpus % nodes:
            raise BadInput(
                f"resources.stages.{stage}.gpus: {needs.gpus} GPUs do not divide over {nodes} nodes of "
                f"{self.gpu.per_node}"
            )
        if nodes > 1 and stage not in RANKED:
            raise BadInput(
                f"resources.stages.{stage}.gpus: {needs.gpus}, and a node has {self.gpu.per_node}; only "
                f"{' and '.join(RANKED)} run on several nodes"
            )
        return nodes, needs.gpus // nodes


def load() -> Cluster | None:
    """The cluster that MNPO_CLUSTER names; None without it.

    Raises:
        BadInput: there is no such file, or a mistake in it; one message with the key, the value and the remedy.
    """
    if (name := os.environ.get(VARIABLE)) is None:
        return None
    path = Path(name)
    if not path.is_file():
        raise BadInput(f"{path} is missing: run `make slurm-profile`, then edit it (docs/cluster.md)")
    cluster = validated(Cluster, read_yaml(path), str(path))
    if "CHANGE_ME" in path.read_text(encoding="utf-8").replace("# CHANGE_ME", ""):
        raise BadInput(f"{path}: CHANGE_ME stands where your account or partition belongs (docs/cluster.md)")
    return cluster


def launch(stage: str, needs: Needs, cluster: Cluster | None, rank: Path) -> list[str]:
    """The words before `-m mnpo`: Python, once, or for a stage of RANKED once for each GPU with torchrun's variables.

    On a cluster srun starts the processes, and the script `rank` tells each which it is. torchrun would kill what has
    not ended 30 s after a SIGTERM, sooner than a large checkpoint is written, and would swallow the exit code.
    """
    if stage not in RANKED or needs.gpus <= 1:
        return ["python"]
    if cluster is None:
        return ["python", "-m", "mnpo.learning.launch", str(needs.gpus)]
    nodes, each = cluster.nodes(stage, needs)
    tasks = [f"--nodes={nodes}", f"--ntasks={needs.gpus}", f"--ntasks-per-node={each}"]
    # A step gets one core a task unless it is told, and some sites bind each task to that one: a rank, with the threads
    # that load and hash, takes what the job has.
    cpus = [f"--cpus-per-task={_cpus_of_a_rank(needs, each)}", "--cpu-bind=none"]
    # When a process has ended, the others have time to end too; what hangs is killed.
    end = ["--kill-on-bad-exit=0", "--wait=120"]
    return ["srun", "--overlap", *tasks, *cpus, *end, "bash", str(rank), "python"]


def _cpus_of_a_rank(needs: Needs, each: int) -> int:
    """CPUs of one of `each` ranks on a node."""
    return max(needs.cpus // each, 1)


def requeue() -> None:
    """Put the SLURM job that this stage runs in back into the queue: it was told to stop, and is to be continued.

    A job that somebody cancelled, or that is over already, is left alone; so is what no workflow of ours started.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or VARIABLE not in os.environ or os.environ.get("RANK", "0") != "0":
        return
    query = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    if subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() == "RUNNING":
        say(f"SLURM job {job} goes back into the queue")
        subprocess.run(["scontrol", "requeue", job], check=False)


def require_no_jobs(directory: Path) -> None:
    """Two workflows must not make the same files. Raises BadInput naming the jobs that a killed one left in SLURM."""
    if not shutil.which("squeue"):
        return
    query = ["squeue", "--me", "--noheader", "--format=%i|%k|%Z"]
    lines = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    jobs = [line.split("|")[:2] for line in lines if line.endswith(f"|{directory}")]
    left = {number: comment for number, comment in jobs if comment.startswith("rule_")}  # as Snakemake's plugin says
    if left:
        names = ", ".join(f"{number} ({comment})" for number, comment in left.items())
        raise BadInput(
            f"SLURM still has jobs of an earlier workflow in {directory}: {names}; wait for them, or "
            f"scancel {' '.join(left)}"
        )
