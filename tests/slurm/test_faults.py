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
from checkouts import CLUSTER, TRAINED, Checkout, held, pending, ran, stage, until

pytestmark = pytest.mark.slow

JOB = "train/td-mnpo.2"
QUEUE = ("RUNNING", "PENDING", "COMPLETING", "SUSPENDED")


def test_a_cancelled_training_is_said_and_started_again(checkout: Checkout, undisturbed: bytes) -> None:
    workflow = checkout.start(TRAINED)
    pid = held(checkout)
    ((number, comment),) = checkout.jobs("RUNNING")
    assert comment == "rule_train_wildcards_td-mnpo.2"
    checkout.cluster.run("scancel", number)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the training")
    said = workflow.succeeded()
    assert "SLURM status is: 'CANCELLED'" in said
    assert workflow.submitted() == [JOB, JOB]
    assert checkout.trained() == undisturbed


def test_a_training_that_its_time_limit_cuts_twice_ends_by_itself_in_the_same_weights(
    checkout: Checkout, undisturbed: bytes
) -> None:
    """Before the limit SLURM tells the training to stop: it keeps a checkpoint and goes back into the queue.

    SLURM looks twice a minute, and signals up to that much earlier than asked: after 60 to 90 of the 120 seconds.
    """
    checkout.needs(train={"hours": 2 / 60})
    checkout.describe(seconds_to_stop=30)
    workflow = checkout.start(TRAINED)
    cut = None
    for _ in range(2):
        cut = held(checkout, but=cut)
        until(lambda pid=cut: pending(pid, signal.SIGTERM), "SLURM's signal")
        os.kill(cut, signal.SIGCONT)
        ((number, _),) = until(lambda: checkout.jobs("PENDING"), "the job to be back in the queue")
    checkout.cluster.run("scontrol", "hold", number)
    assert "(1 of them in the queue)" in checkout.mnpo("status")
    checkout.cluster.run("scontrol", "release", number)
    workflow.succeeded()
    assert workflow.submitted() == [JOB]
    assert checkout.trained() == undisturbed
    assert '"resumed": 2' in (checkout.path / TRAINED / "manifest.json").read_text()


def test_a_job_over_its_time_limit_is_said_and_gets_more_time(checkout: Checkout) -> None:
    logps = checkout.path / "results/small/logps/td-mnpo.1/part2/overall/chat/td-mnpo.1.parquet"
    content = logps.read_bytes()
    logps.unlink()
    checkout.needs(logps={"hours": 1 / 60, "gpus": 1, "memory_gb": 1})
    target = str(logps.relative_to(checkout.path))
    workflow = checkout.start(target)
    os.kill(until(lambda: stage(checkout, "logps"), "the job"), signal.SIGSTOP)  # until SLURM kills it
    said = workflow.succeeded()
    assert "SLURM status is: 'TIMEOUT'" in said
    assert ran(said) == [f"logps {target.removeprefix('results/small/')}"] * 2
    assert re.findall(r"^    resources: .*runtime=(\d+)", said, re.M) == ["1", "2"]
    assert logps.read_bytes() == content


def test_a_lost_node_costs_its_job_and_nothing_else(checkout: Checkout, undisturbed: bytes) -> None:
    workflow = checkout.start(TRAINED)
    held(checkout)
    node = checkout.cluster.run("squeue", "-h", "-t", "RUNNING", "-o", "%N").strip()
    checkout.cluster.kill_node(node)
    try:
        until(lambda: checkout.cluster.states()[node].startswith("down"), "SLURM to miss the node")
        workflow.succeeded()
    finally:
        checkout.cluster.start_node(node)
        until(lambda: checkout.cluster.states()[node] == "idle", "the node")
    assert set(workflow.submitted()) == {JOB}
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
    assert "1 running" in checkout.mnpo("status")
    said = checkout.refused(TRAINED)
    assert f"{number} ({comment}); wait for them, or scancel {number}" in said
    assert ran(said) == []

    os.kill(pid, signal.SIGCONT)
    until(lambda: not checkout.jobs(*QUEUE), "the end of the job")
    assert (checkout.path / TRAINED / "model.safetensors").read_bytes() == undisturbed
    assert ran(checkout.run(TRAINED)) in ([], ["train policies/td-mnpo.2"])
    assert checkout.trained() == undisturbed


def test_an_interrupted_workflow_cancels_its_job(checkout: Checkout, undisturbed: bytes) -> None:
    """Ctrl-C: the queue is empty afterwards and the next run continues."""
    workflow = checkout.start(TRAINED)
    held(checkout)
    workflow.process.send_signal(signal.SIGINT)
    workflow.wait()
    until(lambda: not checkout.jobs(*QUEUE), "an empty queue")
    until(lambda: not stage(checkout), "the end of the training")
    assert not (checkout.path / TRAINED).exists()
    assert ran(checkout.run(TRAINED)) == ["train policies/td-mnpo.2"]
    assert checkout.trained() == undisturbed


def test_a_mistake_in_the_cluster_file_is_one_message(checkout: Checkout) -> None:
    checkout.describe(gpus={"partition": "gpu"})
    assert "profiles/slurm/cluster.yaml: gpus: unknown key; did you mean 'gpu'?" in checkout.refused("--dry-run")


def test_another_place_and_other_needs_rerun_nothing(checkout: Checkout) -> None:
    checkout.describe(gpu=CLUSTER["gpu"] | {"per_node": 4})
    checkout.needs(train={"gpus": 6}, sample={"gpus": 2})
    said = checkout.run("--dry-run", TRAINED)
    assert ran(said) == ["train policies/td-mnpo.2"]  # which is left to do anyhow
    (asked,) = re.findall(r"^    resources: (.*)$", said, re.M)
    assert {"gres=gpu:h100:3", "nodes=2", "mpi=srun", "tasks_per_node=3"} <= set(asked.split(", "))
