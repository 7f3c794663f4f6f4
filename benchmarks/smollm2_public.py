"""The experiment's policies on public benchmarks: what `python -m benchmarks.smollm2 --public DIR` does beside.

DIR has a directory for each, as docs/evaluation.md says: gsm8k and humaneval (test.jsonl), mt-bench (question.jsonl),
alpaca-eval (reference_outputs_gpt4_1106_preview.json). Nobody is asked to judge: of the last two, lengths are measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.storage.records import ANSWERS, ITEMS, read

if TYPE_CHECKING:
    from benchmarks.smollm2 import Results

NEW_TOKENS = 128
LIMITS = {"gsm8k": 50, "humaneval": 50, "mt-bench": 80, "alpaca-eval": 100}
SCORED = ("gsm8k", "humaneval")
ANSWERED = ("mt-bench", "alpaca-eval")
HOW = {"batch_size": 64, "dtype": "bfloat16"}


def directory(results: Results, policy: str) -> Path:
    """What a policy's benchmarks left."""
    return results.root / "public" / policy


def measure(results: Results, policies: Sequence[str], data: Path, cores: int) -> None:
    """Let policies answer, so many at once as there are cores."""
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(lambda policy: _measure(results, policy, data), policies))


def _measure(results: Results, policy: str, data: Path) -> None:
    output, model = directory(results, policy), ["--policy", str(results.root / "policies" / policy)]
    asked: dict[str, Any] = {name: {"limit": LIMITS[name], "max_new_tokens": NEW_TOKENS} for name in SCORED}
    asked["gsm8k"]["shots"] = 0
    harness = {"harness": {"policy": policy, "benchmarks": asked, **HOW}}
    files = [f"--data={name}={data / name}" for name in SCORED]
    if not all((output / f"{name}.json").exists() for name in SCORED):
        _run("harness", harness, *model, *files, "--output", str(output))
    for name in ANSWERED:
        if not (file := output / f"{name}.parquet").exists():
            settings = {"policy": policy, "benchmark": name, "limit": LIMITS[name], "max_new_tokens": NEW_TOKENS}
            settings |= {"seed": 0, **HOW}
            _run("answer", {"asked": settings}, *model, "--data", str(data / name), "--output", str(file))


def _run(stage: str, settings: dict[str, Any], *options: str) -> None:
    subprocess.run([sys.executable, "-m", "mnpo", stage, "--settings", json.dumps(settings), *options], check=True)


def table(results: Results, policies: dict[str, str], spread: Any) -> Iterator[dict[str, str]]:
    """Shares of right answers, and the mean words of an answer's first turn.

    Args:
        policies: what a row is called -> its policy.
        spread: values -> their mean with its interval.
    """
    for method, policy in policies.items():
        row, found = {"policy": method}, directory(results, policy)
        for name in SCORED:
            right = read(ITEMS, found / f"{name}.parquet")["value"].to_numpy(dtype=float)
            row[f"{name}, {len(right)} items"] = spread(right)
        for name in ANSWERED:
            answers = read(ANSWERS, found / f"{name}.parquet")
            words = answers[answers["turn"] == 1]["response"].str.split().str.len().to_numpy(dtype=float)
            row[f"{name}, words"] = spread(words)
        yield row
