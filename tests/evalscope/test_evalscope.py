"""EvalScope itself on the demo's small data, in an environment of its own: `make test-evalscope`."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mnpo.benchmarks.evalscope import TASKS, Settings, results
from mnpo.demo import benchmarks as demo
from mnpo.errors import BadInput
from mnpo.records import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("evalscope") is None, reason="not in this environment; `make test-evalscope` has it"
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("data")
    for name in TASKS:
        demo.make(directory / name, name, seed=0)
    return {name: directory / name for name in TASKS}


def replied(number: int) -> str:
    """One of several replies, by the prompt's place: letters for choices, numbers for problems."""
    return f"I think that\n\nANSWER: {'ABCD'[number % 4]}" if number % 5 else f"it is \\boxed{{{number}}}"


@pytest.mark.parametrize("benchmark", TASKS)
def test_the_number_is_what_its_items_say(data: dict[str, Path], tmp_path: Path, benchmark: str) -> None:
    prompts: list[str] = []

    def replies(name: str, asked: Sequence[str]) -> list[dict[str, Any]]:
        prompts.extend(asked)
        return [{"response": replied(i), "tokens": i} for i in range(len(asked))]

    chosen: dict[str, Any] = {"shots": 0} if benchmark == "mmlu" else {"shots": 1} if benchmark == "gsm8k" else {}
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {benchmark: chosen}})
    ((name, summary, rows),) = results(settings, data, replies, tmp_path)
    assert name == benchmark and summary["items"] == len(rows) >= 8 and "EvalScope 1.0.2" in summary["protocol"]
    assert ("shots instead of" in summary["protocol"]) == bool(chosen)
    scored = tmp_path / benchmark / "scored"
    (report_file,) = scored.rglob(f"reports/policy/{TASKS[benchmark].name}.json")
    report = json.loads(report_file.read_text())
    assert summary["value"] / 100 == pytest.approx(report["score"], abs=5e-5)  # which it rounds to four digits

    files = list(scored.rglob("reviews/policy/*.jsonl"))
    reviews = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    right = 0
    for review in reviews:  # anew, from what the item asks and what was replied
        target, reply = review["target"], review["sample_score"]["score"]["prediction"]
        if benchmark in ("gsm8k", "aime24"):
            numbers = re.findall(r"\d+", reply)
            right += bool(numbers) and float(numbers[-1]) == float(target)
        else:
            letter = re.search(r"ANSWER: (\w)", reply)
            right += bool(letter) and letter.group(1) == target.strip("[]'")
    assert summary["value"] == pytest.approx(100 * right / len(reviews))


def test_a_policy_that_knows_the_answers_scores_all(data: dict[str, Path], tmp_path: Path) -> None:
    rows = read_rows(next(data["gsm8k"].rglob("test*")))
    right = {row["question"]: row["answer"].split("####")[1].strip() for row in rows}

    def replies(name: str, asked: Sequence[str]) -> list[dict[str, Any]]:
        known = [next(a for q, a in right.items() if q in prompt) for prompt in asked]
        return [{"response": f"ANSWER: {answer}", "tokens": 3} for answer in known]

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {"shots": 0}}})
    ((_, summary, items),) = results(settings, data, replies, tmp_path)
    assert summary["value"] == 100 and summary["stderr"] == 0 and {row["tokens"] for row in items} == {3}


def test_missing_data_are_named(tmp_path: Path) -> None:
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {}}})
    with pytest.raises(BadInput, match="gsm8k: no data"):
        list(results(settings, {}, lambda *_: [], tmp_path))
