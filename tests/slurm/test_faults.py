"""Faults of a cluster, one by one: the next run completes, repeats nothing finished and reads nothing half-written.

Each test starts from a finished chain in which one setting changed, so that one training is left to do, and breaks what
is under way while that training's process is stopped with its output half written. What comes of it must be the bytes
of a training that nothing happened to.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from checkouts import CLUSTER, PAGE, TRAINED, Checkout, held, stages

from tests.helpers.checkouts import jobs_in, until

pytestmark = pytest.mark.slow

JOB = "train/inpo.1"
QUEUE = ("RUNNING", "PENDING", "COMPLETING", "SUSPENDED")


def test_a_cancelled_training_is_said_and_started_again_and_an_interrupted_workflow_cancels_it(
    checkout: Checkout, undisturbed: bytes
) -> None:
    workflow = checkout.start(TRAINED)
    pid = held(checkout)
    ((number, comment),) = checkout.jobs("RUNNING")
    assert comment == "rule_train_wildcards_inpo.1"
    checkout.cluster.run("scancel", number)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the training")

    held(checkout)  # the second
    assert "SLURM status is: 'CANCELLED'" in workflow.said
    assert workflow.submitted() == [JOB, JOB]
    workflow.interrupt()
    until(lambda: not checkout.jobs(*QUEUE), "an empty queue")
    until(lambda: not stages(checkout), "the end of the training")
    assert not (checkout.path / TRAINED).exists()
    assert jobs_in(checkout.run(TRAINED)) == ["train policies/inpo.1"]
    assert checkout.trained() == undisturbed


def test_a_killed_workflow_leaves_its_job_and_does_not_start_a_second_copy(
    checkout: Checkout, undisturbed: bytes
) -> None:
    """SIGKILL for Snakemake: its job runs on in SLURM. The next start says that there is a lock, and then who works."""
    workflow = checkout.start(TRAINED)
    pid = held(checkout)
    workflow.process.kill()
    workflow.process.wait()
    assert "--unlock" in checkout.refused(TRAINED)
    checkout.run("--unlock")
    ((number, comment),) = checkout.jobs("RUNNING")
    assert "1 running" in checkout.shell("mnpo status")
    said = checkout.refused(TRAINED)
    assert f"{number} ({comment}); wait for them, or scancel {number}" in said
    assert jobs_in(said) == []

    os.kill(pid, signal.SIGCONT)
    until(lambda: not checkout.jobs(*QUEUE), "the end of the job")
    assert (checkout.path / TRAINED / "model.safetensors").read_bytes() == undisturbed
    assert jobs_in(checkout.run(TRAINED)) in ([], ["train policies/inpo.1"])
    assert checkout.trained() == undisturbed


def test_a_mistake_in_the_cluster_file_is_one_message_and_another_place_reruns_nothing(checkout: Checkout) -> None:
    checkout.describe(gpus={"partition": "gpu"})
    assert "profiles/slurm/cluster.yaml: gpus: unknown key; did you mean 'gpu'?" in checkout.refused("--dry-run")
    checkout.describe(gpu=CLUSTER["gpu"] | {"per_node": 4})
    checkout.needs(train={"gpus": 6}, sample={"gpus": 2})
    said = checkout.run("--dry-run", TRAINED)
    assert jobs_in(said) == ["train policies/inpo.1"]  # which is left to do anyhow
    (asked,) = re.findall(r"^    resources: (.*)$", said, re.M)
    assert {"gres=gpu:h100:3", "nodes=2", "mpi=srun", "tasks_per_node=3"} <= set(asked.split(", "))
    (undo,) = re.findall(r"Undo: `(.+)`", PAGE.read_text())
    checkout.shell(undo)
    assert "slurm" in checkout.refused("--dry-run")
