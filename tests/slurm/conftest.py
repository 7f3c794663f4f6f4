"""A real SLURM for the tests, a checkout whose chain ran on it, and copies of that to break."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from checkouts import LOCAL, TRAINED, Checkout, documented, held, pending, stages
from cluster import Cluster, Unavailable, alive

from tests.helpers.checkouts import jobs_in, until


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
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkout, dict[str, str]]]:
    """A checkout in which docs/cluster.md was followed to the letter, and what each of its commands said.

    `snakemake --profile slurm` was interrupted once, by Ctrl-C while SFT ran, and started again.
    """
    checkout = Checkout(tmp_path_factory.mktemp("slurm") / "finished", cluster)
    checkout.check_out()
    *installed, make_profile, edit_profile = documented("Set up")
    set_up = make_profile, edit_profile  # whoever runs the tests has the packages in the Python that runs them
    assert installed == ["make envs", ". .venv/bin/activate", "export MNPO_ENVIRONMENTS=$PWD/.venvs"]
    said = {command: checkout.shell(command) for command in set_up}
    plan, _, run = documented("Run")
    said[plan] = checkout.shell(plan)
    try:
        workflow = checkout.start(on=run)
        held(checkout, "sft")  # until SLURM cancels it
        said |= {command: checkout.shell(command) for command in documented("Watch")}
        said["Ctrl-C"] = workflow.interrupt()
        until(lambda: not checkout.jobs("PENDING", "RUNNING", "COMPLETING"), "an empty queue")
        said[run] = checkout.run(on=run)
        yield checkout, said
    finally:
        checkout.abandon()


def run_into_limits(checkout: Checkout) -> str:
    """A training that is told to stop before its time limit, and an evaluation that runs into its own; what Snakemake
    said of it.

    SLURM looks at limits twice a minute, and signals up to that much earlier than asked: here after 120 to 240 of the
    training's 300 seconds, by what SFT needed to stop. A busy machine needs the first minute to begin.
    """
    evaluation = checkout.path / "results/small/evals/sft/heldout.json"
    evaluation.unlink()
    asked = {"gpus": 1, "memory_gb": 1}
    checkout.needs(train={"hours": 5 / 60, **asked}, assess={"hours": 1 / 60, **asked})
    checkout.describe(seconds_to_stop=60)
    workflow = checkout.start(TRAINED, str(evaluation.relative_to(checkout.path)))
    (pid,) = until(lambda: stages(checkout, "assess"), "the evaluation")
    os.kill(pid, signal.SIGSTOP)  # until SLURM kills it
    training = held(checkout)
    until(lambda: pending(training, signal.SIGTERM) or not alive(training), "SLURM's signal", 600)
    # The signal ends its parents, too. Where they end first, the kernel wakes what they leave stopped (SIGCONT), and
    # nobody sees the signal wait.
    with suppress(ProcessLookupError):
        os.kill(training, signal.SIGCONT)
    until(lambda: [comment for _, comment in checkout.jobs("PENDING") if "train" in comment], "its place in the queue")
    return workflow.succeeded()


@pytest.fixture(scope="session")
def limited(
    finished: tuple[Checkout, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Checkout, Future[str]]]:
    """A checkout whose jobs run into their time limits: minutes of waiting, beside other tests."""
    checkout = finished[0].edited(tmp_path_factory.mktemp("limited") / "checkout")
    with ThreadPoolExecutor(1) as beside:
        yield checkout, beside.submit(run_into_limits, checkout)
        checkout.abandon()


@pytest.fixture(scope="session")
def alone(finished: tuple[Checkout, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy whose training was made in one go by one process, without SLURM."""
    checkout = finished[0].edited(tmp_path_factory.mktemp("alone") / "checkout")
    assert jobs_in(checkout.run(TRAINED, on=LOCAL)) == ["train policies/inpo.1"]
    return checkout


@pytest.fixture(scope="session")
def undisturbed(alone: Checkout) -> bytes:
    """The weights of that training."""
    return alone.trained()


@pytest.fixture
def checkout(
    finished: tuple[Checkout, dict[str, str]], limited: tuple[Checkout, Future[str]], tmp_path: Path
) -> Iterator[Checkout]:
    """A copy of the finished checkout with one training to do."""
    copy = finished[0].edited(tmp_path / "checkout")
    yield copy
    copy.abandon()
