"""The benchmark against what a user would pick instead runs, and both sides of each part agree (benchmarks/peers)."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import __main__ as peers

ROOT = Path(__file__).parents[1]
COLUMNS = list(peers.COLUMNS)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.peers ...`."""
    command = [sys.executable, "-m", "benchmarks.peers", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def rows(output: str) -> list[list[str]]:
    """The cells of the table's rows."""
    table = [line for line in output.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in table[0].strip("|").split("|")] == COLUMNS
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


def assert_compared(row: list[str]) -> None:
    """Results agree, and both sides have a speed and a peak."""
    assert " of " in row[COLUMNS.index("apart")], row
    for name in ("peer's speed", "peak MiB, peer"):
        at = COLUMNS.index(name)
        for cell in row[at : at + 2]:
            assert float(cell.partition(" [")[0].replace(",", "")) > 0
    assert row[COLUMNS.index("ratio")].startswith("**")


@pytest.mark.slow
def test_every_part_but_training_runs_and_agrees_with_its_peer() -> None:
    done = run("--toy", "--dtypes", "float32", "--device", "cpu", "--only", "logps", "sampling", "scoring", "harness")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert [row[0].partition(",")[0] for row in found] == [
        "log-probabilities", "log-probabilities", "sampling", "scoring", "a task of lm-eval",
    ]  # fmt: skip
    for row in found:
        assert_compared(row)


@pytest.mark.slow
def test_training_takes_the_steps_of_trl() -> None:
    pytest.importorskip("trl", reason="TRL is the peer of training; envs/dev.txt has it")
    done = run("--toy", "--dtypes", "float32", "--device", "cpu", "--only", "training", "lora")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert [row[0] for row in found] == ["training", "training and its reference"] * 2
    for row in found:
        assert_compared(row)


def test_a_model_that_is_not_there_is_made_by_a_command_that_is_named(tmp_path: Path) -> None:
    done = run("--model", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "none: no model here; `make smollm2` makes it" in done.stderr


@pytest.mark.parametrize(
    ("theirs", "ours", "far"),
    [
        ([2.0, -4.0], [2.0, -4.0], 0.0),
        ([2.0, -4.0], [2.5, -4.0], 0.125),  # half of 4
        ([0.0, 0.0], [0.25, 0.0], 0.25),  # nothing to be a share of
        ([1.0], [1.0, 2.0], float("inf")),
        ([], [], float("inf")),  # nothing was compared
        (["abcd", "xy"], ["abcd", "xy"], 0.0),
        (["abcd", "xy"], ["abxx", "xy"], 0.25),  # one of two parts half-way
        (["", "a"], ["", "b"], 0.5),
    ],
)
def test_how_far_results_are_apart(theirs: list[Any], ours: list[Any], far: float) -> None:
    assert peers.apart(theirs, ours) == far


class Fake(peers.Bench):
    """Sides that take two seconds and one, with these results."""

    def __init__(self, values: Mapping[str, list[float]]) -> None:
        super().__init__(Path(), {"scoring": 100}, 1, None)
        self.values, self.batches = values, list[tuple[str, int]]()

    def once(self, part: Any, side: str, dtype: str, batch: int, taken: Any, greedy: bool = False) -> list[Any]:
        self.batches.append((side, batch))
        taken.seconds.setdefault(part.what, []).append({"peer": 2.0 + batch / 1000, "ours": 1.0}[side])
        taken.peaks.append({"peer": 1000.0, "ours": 500.0}[side])
        taken.done = 100
        return self.values[side]


SCORING = next(part for part in peers.PARTS if part.name == "scoring")


def test_a_row_has_ratios_of_medians_and_whether_targets_are_met() -> None:
    part = SCORING._replace(theirs=(0,), faster=1.5, smaller=0.4)
    (line,) = Fake({"peer": [1.0, 2.0], "ours": [1.0, 2.0]}).compare(part, "float32", 3, tune=False)
    (row,) = rows("| " + " | ".join(COLUMNS) + " |\n" + line)
    told = dict(zip(COLUMNS[3:6], row[3:6], strict=True))
    assert told == {"peer's speed": "50 [50 to 50]", "ours": "100 [100 to 100]", "ratio": "**2.00**"}
    assert row[8] == "**0.50**"
    assert row[10:12] == ["at least 1.5 times, at most 0.4 of the peak", "**no**"]


def test_results_that_differ_show_no_speed() -> None:
    (line,) = Fake({"peer": [1.0, 2.0], "ours": [1.0, 2.1]}).compare(SCORING, "float32", 3, tune=False)
    assert "results differ by 0.05, tolerated 0.0001: no speed is shown" in line
    assert "**" not in line


def test_each_side_gets_the_batch_that_is_fastest_when_asked() -> None:
    bench = Fake({"peer": [1.0], "ours": [1.0]})
    list(bench.compare(SCORING._replace(theirs=(16, 8, 32)), "float32", 1, tune=True))
    assert bench.batches == [("peer", 16), ("peer", 8), ("peer", 32), ("peer", 8), ("ours", 0)]


def test_the_peer_s_missing_library_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda _: None)
    options = argparse.Namespace(toy=True, only=["training"], vllm=None, tune=False, threads=1)
    peers.show(Fake({}), "toy", "", ["float32"], options)
    assert "| training |  | TRL | not installed here: envs/dev.txt has it |" in capsys.readouterr().out
