"""What SLURM will refuse is said before anything runs, from a checkout that has everything to do."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkouts import CLUSTER, GPU_STAGES, Checkout
from cluster import NODES, Cluster

from tests.helpers.checkouts import jobs_in, until

pytestmark = pytest.mark.slow


@pytest.fixture
def fresh(cluster: Cluster, tmp_path: Path) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path / "fresh", cluster)
    checkout.check_out()
    checkout.shell("make slurm-profile")
    checkout.describe()
    yield checkout
    checkout.abandon()


def refusals(checkout: Checkout) -> dict[str, str]:
    """What the workflow says of each stage that SLURM refuses; nothing ran, and nothing is left in the queue."""
    said = checkout.refused()
    assert jobs_in(said) == []
    assert checkout.jobs("PENDING", "RUNNING", "COMPLETING", "SUSPENDED") == []
    assert not (checkout.path / "results/small").exists()
    return dict(re.findall(r"^(\w+): asked for (.*)$", said, re.M))


def test_memory_that_no_node_has_is_refused_by_stage_before_anything_runs(fresh: Checkout) -> None:
    fresh.needs(train={"gpus": 1, "memory_gb": 9999})
    said = refusals(fresh)
    assert list(said) == ["train"]
    asked, _, words = said["train"].partition(": sbatch: error: ")
    assert {"-p", "gpu", "--mem", "9999000", "--gres=gpu:h100:1", "--requeue"} <= set(shlex.split(asked))
    assert words.startswith("Memory specification can not be satisfied")


def test_a_partition_that_does_not_exist_is_refused_for_each_stage_that_wants_it(fresh: Checkout) -> None:
    fresh.describe(gpu=CLUSTER["gpu"] | {"partition": "nope"})
    said = refusals(fresh)
    assert set(said) == set(GPU_STAGES)
    assert all("invalid partition specified: nope" in words for words in said.values())


def test_nodes_that_are_drained_are_no_refusal(fresh: Checkout) -> None:
    def node(node: str, state: str) -> None:
        fresh.cluster.run("scontrol", "update", f"nodename={node}", f"state={state}", "reason=test")

    for name in NODES:
        node(name, "drain")
    try:
        workflow = fresh.start("results/small/prompts/heldout.parquet")
        until(lambda: fresh.jobs("PENDING"), "a job in the queue")
        assert "but no node can run it as the nodes are now" in workflow.said
    finally:
        for name in NODES:
            node(name, "resume")
    workflow.succeeded()
