"""The whole chain, a training on two ranks included, in a checkout whose path only survives where it is quoted."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkouts import Checkout, environment, stages
from cluster import Cluster

from tests.helpers.checkouts import ODD, until

pytestmark = pytest.mark.slow

# What a submission says of itself, and not of what it asks for.
OWN = ("--job-name", "--output", "--comment", "-D")
Environments = list[dict[str, str]]


class OddCheckout(Checkout):
    """With a virtual environment inside it, as the README makes one, and a sbatch that remembers its words."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        super().__init__(path, cluster)
        self.bin = path / ".venv/bin"
        self.asked = path / "sbatch.asked"
        self.environment["PATH"] = f"{self.bin}:{self.environment['PATH']}"

    def check_out(self) -> None:
        super().check_out()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.path / ".venv"], check=True)
        (packages,) = self.path.glob(".venv/lib/*/site-packages")
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        there = f"{self.cluster.directory}/bin"
        # As pip writes a script whose interpreter's path has a space in it.
        self._script("snakemake", f'exec "$(dirname "$0")/python" {there}/snakemake "$@"')
        self._script("mnpo", 'exec "$(dirname "$0")/python" -m mnpo "$@"')
        remember = f"printf '%s\\0' sbatch \"$@\" >> {shlex.quote(str(self.asked))}"
        self._script("sbatch", f'{remember}\nexec {there}/sbatch "$@"')

    def _script(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def submissions(self) -> dict[bool, dict[str, set[tuple[str, ...]]]]:
        """For each rule what sbatch was asked for: by tests (True) and by jobs (False)."""
        found: dict[bool, dict[str, set[tuple[str, ...]]]] = {True: defaultdict(set), False: defaultdict(set)}
        for call in self.asked.read_text().removeprefix("sbatch\0").split("\0sbatch\0"):
            words = [word for word in call.rstrip("\0").split("\0") if not word.startswith("--wrap=")]
            test = "--test-only" in words
            rule = re.sub("_wildcards_.*", "", words[words.index("--comment") + 1])
            for option in OWN:
                at = words.index(option)
                del words[at : at + 2]
            found[test][rule].add(tuple(word for word in words if word != "--test-only"))
        return found


@pytest.fixture(scope="module")
def odd(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OddCheckout, Environments]]:
    """A checkout whose chain has run, and the environments of its two ranks."""
    checkout = OddCheckout(tmp_path_factory.mktemp("slurm") / ODD, cluster)
    checkout.check_out()
    checkout.shell("make slurm-profile")
    checkout.describe()
    checkout.needs(train={"gpus": 2, "cpus": 4, "memory_gb": 1})
    checkout.environment["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        workflow = checkout.start()
        until(lambda: len(stages(checkout, "train")) == 2 or workflow.process.poll() is not None, "two ranks", 1200)
        ranks = [environment(pid) for pid in stages(checkout, "train")]
        workflow.succeeded(1200)
        yield checkout, ranks
    finally:
        checkout.abandon()


def test_the_chain_and_its_report_are_made_under_an_odd_path(odd: tuple[OddCheckout, Environments]) -> None:
    checkout, _ = odd
    assert (checkout.path / "results/small/tables/main.csv").is_file()
    assert "Nothing to be done" in checkout.run()
    assert re.match(r"small: 16 of 16 jobs done, .*; finished$", checkout.shell("mnpo status"))
    checkout.run("report")
    assert (checkout.path / "results/small/report.html").is_file()


def test_each_rank_gets_its_share_of_the_cpus_bound_to_none_and_the_variables_of_networks(
    odd: tuple[OddCheckout, Environments],
) -> None:
    _, ranks = odd
    assert sorted(rank["RANK"] for rank in ranks) == ["0", "1"]
    for rank in ranks:
        assert rank["SLURM_CPUS_PER_TASK"] == "2"
        assert "none" in rank["SLURM_CPU_BIND"].split(",")
        assert rank["GLOO_SOCKET_IFNAME"] == "lo"
        assert rank["MASTER_ADDR"] == "127.0.0.1"


def test_sbatch_was_asked_beforehand_for_what_it_was_asked_for_later(odd: tuple[OddCheckout, Environments]) -> None:
    before, later = (odd[0].submissions()[test] for test in (True, False))
    assert set(later) >= {"rule_train", "rule_sft", "rule_prompts", "rule_sample"}
    assert before == later


def test_a_policy_under_an_odd_path_is_measured(odd: tuple[OddCheckout, Environments]) -> None:
    checkout, _ = odd
    shutil.copytree(checkout.path / "results/small/policies/sft", checkout.path.parent / f"policy {ODD}")
    policy = shlex.quote(f"../policy {ODD}")
    checkout.shell(f"mnpo evaluate --policy {policy} --config config.yaml --name mine --profile slurm")
    assert (checkout.path / "results/mine/tables/benchmarks.csv").is_file()
