"""A real SLURM for the tests, a checkout whose chain ran on it, and copies of that to break."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checkouts import LOCAL, TRAINED, Checkout, ran, stages, until
from cluster import Cluster, Unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start()
    except Unavailable as error:
        pytest.skip(f"no SLURM here: {error}")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """A checkout whose whole chain ran on SLURM, and what Snakemake said."""
    checkout = Checkout(tmp_path_factory.mktemp("slurm") / "finished", cluster)
    checkout.set_up()
    return checkout, checkout.run()


@pytest.fixture(scope="session")
def alone(finished: tuple[Checkout, str], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy whose training was made in one go by one process, without SLURM."""
    checkout = finished[0].edited(tmp_path_factory.mktemp("alone") / "checkout")
    assert ran(checkout.run(TRAINED, on=LOCAL)) == ["train policies/inpo.1"]
    return checkout


@pytest.fixture(scope="session")
def undisturbed(alone: Checkout) -> bytes:
    """The weights of that training."""
    return alone.trained()


@pytest.fixture
def checkout(finished: tuple[Checkout, str], cluster: Cluster, tmp_path: Path) -> Iterator[Checkout]:
    """A copy of the finished checkout with one training to do."""
    copy = finished[0].edited(tmp_path / "checkout")
    yield copy
    for number, _ in copy.jobs("PENDING", "RUNNING", "SUSPENDED"):
        cluster.run("scancel", "--signal=KILL", "--full", number, check=False)
        cluster.run("scancel", number, check=False)
    for pid in stages(copy):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not stages(copy), "the end of its stages")
