"""What comes from outside and changes under its name: what reads it runs again, and `mnpo why` names the files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.checkouts import Checkout

CONFIG = "small.yaml"
SMALL = """\
extends: configs/demo.yaml
name: small
prompts:
  { source: file, path: outside/prompts.jsonl, part_size: null, demonstrations: 0, parts: 2, heldout: 3, expected: 8 }
models:
  base: { path: outside/base, parameters: 1 }
  rm: { hub: lab/rm, mirror: outside/rm, parameters: 1 }
  other: { path: outside/other, parameters: 1 }
  mine: { path: results/small/policies/inpo.1, parameters: 1 }
reference: { model: base, sft: null }
add:
  oracles: { learned: { kind: reward-model, model: rm } }
datasets: { gsm8k: { path: outside/gsm8k }, mt-bench: { path: outside/mt-bench } }
runs:
  inpo: { objective: { name: inpo, eta: 0.2 }, oracle: learned, iterations: [{ parts: [1] }] }
  eo: { objective: { name: eo-mnpo, eta: 0.2, players: [other] }, oracle: learned, iterations: [{ parts: [2] }] }
evaluation:
  {
    benchmarks: [gsm8k, mt-bench],
    models: [other, mine],
    oracle: learned,
    scores: [],
    accuracy: null,
    majority: null,
    bootstrap: 100,
  }
tables: { targets: [heldout, benchmarks], win_against: [sft] }
"""
PLACES = ("base", "rm", "other", "gsm8k", "mt-bench")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout.of_project(tmp_path_factory.mktemp("finished"), CONFIG)
    (checkout.path / CONFIG).write_text(SMALL)
    for place in PLACES:
        (checkout.path / "outside" / place).mkdir(parents=True)
        (checkout.path / "outside" / place / "file").write_text("then")
    (checkout.path / "outside/prompts.jsonl").write_text("then")
    for path in (checkout.path / "outside").rglob("*"):
        os.utime(path, ns=(10**18, 10**18))  # older than all that is made of it
    checkout.believe()
    assert checkout.planned() == set()
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    return finished.copy(tmp_path / "checkout")


def overwrite(file: Path) -> None:
    """Other content of the same size, and older still: nothing is newer than what was made of it."""
    parent = file.parent.stat()
    file.write_text("now!")
    os.utime(file, ns=(9 * 10**17, 9 * 10**17))
    os.utime(file.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))


READERS: dict[str, set[str]] = {
    # the place, and the jobs that read it themselves
    "base/file": {"sft policies/sft"},
    "rm/file": {
        "score scores/sft/part1/learned/0.parquet",
        *(f"assess evals/{policy}/heldout.json" for policy in ("sft", "inpo.1", "eo.1")),
    },
    "other/file": {
        "logps logps/sft/part2/learned/chat/other.parquet",
        "harness evals/other/gsm8k.json",
        "answer answers/other/mt-bench.parquet",
    },
    "gsm8k/file": {f"harness evals/{policy}/gsm8k.json" for policy in ("sft", "inpo.1", "eo.1", "other", "mine")},
    "mt-bench/file": {
        f"{job.format(policy)}"
        for policy in ("sft", "inpo.1", "eo.1", "other", "mine")
        for job in ("answer answers/{}/mt-bench.parquet", "judge evals/{}/mt-bench.demo.json")
    },
    "prompts.jsonl": {"prompts prompts/part1.parquet"},
}


@pytest.mark.parametrize("file", READERS)
def test_a_file_replaced_under_its_name_reruns_what_reads_it(checkout: Checkout, file: str) -> None:
    overwrite(checkout.path / "outside" / file)
    planned = checkout.planned()
    assert READERS[file] <= planned
    # Whatever else runs follows from these: without them, nothing does.
    first = min(READERS[file])
    output = f"results/small/{first.split(' ', 1)[1]}"
    said = checkout.python("mnpo", "why", output, "--config", CONFIG)
    assert said.returncode == 0, said.stderr
    place, _, name = f"outside/{file}".rpartition("/") if "/" in file else (f"outside/{file}", "", f"outside/{file}")
    assert f"{place} changed: {name} was 4 bytes of 2001-09-09" in said.stdout
    assert "and is 4 bytes of 1998-07-09" in said.stdout


def test_an_older_directory_in_its_place_reruns_what_reads_it(checkout: Checkout) -> None:
    other = checkout.path / "outside/other"
    older = shutil.copytree(other, checkout.path / "outside/older")
    overwrite(older / "file")
    shutil.rmtree(other)
    older.rename(other)
    os.utime(other, ns=(8 * 10**17, 8 * 10**17))
    assert READERS["other/file"] <= checkout.planned()


def test_nothing_changed_reruns_nothing(checkout: Checkout) -> None:
    """Copied with its times, read, and with a repository's own files in it."""
    for place in PLACES:
        directory = checkout.path / "outside" / place
        own = directory.stat()
        (directory / ".git").mkdir()
        (directory / ".git/index").write_text("")
        (directory / "file").read_text()
        os.utime(directory, ns=(own.st_atime_ns, own.st_mtime_ns))
    assert checkout.planned() == set()


def test_what_the_workflow_makes_is_not_external(checkout: Checkout) -> None:
    """A model of the configuration that is a policy of the same run: its maker decides, and `params` hold nothing."""
    records = [
        json.loads(file.read_text()) for file in (checkout.path / ".snakemake/metadata").rglob("*") if file.is_file()
    ]
    listed = Counter(place for r in records for p in r["params"] if p.startswith("{") for place in eval(p))
    assert set(listed) == {f"outside/{place}" for place in (*PLACES, "prompts.jsonl")}


def test_a_directory_that_is_not_there_yet_still_plans(checkout: Checkout) -> None:
    shutil.rmtree(checkout.path / "outside/other")
    (checkout.path / "outside/prompts.jsonl").unlink()
    plan = checkout.python("mnpo", "plan", "--config", CONFIG)
    assert plan.returncode == 0, plan.stderr
    said = checkout.snakemake("-n", "results/small/evals/other/gsm8k.json")
    assert "Missing input files for rule harness" in said.stdout + said.stderr
    assert "outside/other" in said.stdout + said.stderr
