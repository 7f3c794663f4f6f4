"""What SLURM itself ends: jobs at their time limit, and jobs with their node. Last, for it is long to wait for."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future

import pytest
from checkouts import TRAINED, Checkout, held

from tests.helpers.checkouts import until

pytestmark = pytest.mark.slow

JOB = "train/inpo.1"


def test_what_a_time_limit_cuts_is_continued_and_what_cannot_be_gets_more_time(
    limited: tuple[Checkout, Future[str]], finished: tuple[Checkout, dict[str, str]], undisturbed: bytes
) -> None:
    """Before the limit SLURM tells a training to stop: it keeps a checkpoint and goes back into the queue."""
    checkout, running = limited
    said = running.result()
    (workflow,) = checkout.workflows
    assert workflow.submitted().count(JOB) == 1
    assert '"resumed": 1' in (checkout.path / TRAINED / "manifest.json").read_text()
    assert checkout.trained() == undisturbed
    assert "SLURM status is: 'TIMEOUT'" in said
    limits = re.findall(r"^rule assess:\n(?:    .*\n)*?    resources: .*runtime=(\d+)", said, re.M)
    assert limits in (["1", "2"], ["1", "2", "3"])  # the third where the machine was too slow to begin in a minute
    evaluations = [c.path / "results/small/evals/sft/heldout.json" for c in (checkout, finished[0])]
    assert json.loads(evaluations[0].read_bytes()) == json.loads(evaluations[1].read_bytes())


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
