"""EvalScope itself on the demo's small data, in an environment of its own: `make test-evalscope`."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.benchmarks.evalscope import Replies, Settings, results
from mnpo.benchmarks.evalscope_tasks import TASKS, VERDICT_READERS
from mnpo.errors import BadInput
from mnpo.storage.records import read_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("evalscope") is None, reason="not in this environment; `make test-evalscope` has it"
    ),
]


def replied(number: int) -> str:
    """One of several replies, by the prompt's place: letters for choices, numbers for problems."""
    return f"I think that\n\nANSWER: {'ABCD'[number % 4]}" if number % 5 else f"it is \\boxed{{{number}}}"


def of_each(replies: Callable[[Sequence[str]], list[dict[str, Any]]]) -> Replies:
    """The replies to each benchmark's prompts."""
    return lambda asked: {benchmark: replies(prompts) for benchmark, prompts in asked.items()}


LETTERS_AND_NUMBERS = [name for name in TASKS if name not in (*VERDICT_READERS, "ifeval", "humaneval")]


@pytest.mark.parametrize("benchmark", LETTERS_AND_NUMBERS)
def test_the_number_is_what_its_items_say(data: dict[str, Path], tmp_path: Path, benchmark: str) -> None:
    prompts: list[str] = []

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        prompts.extend(asked)
        return [{"response": replied(i), "tokens": i} for i in range(len(asked))]

    chosen: dict[str, Any] = {"shots": 0} if benchmark == "mmlu" else {"shots": 1} if benchmark == "gsm8k" else {}
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {benchmark: chosen}})
    ((name, summary, rows),) = results(settings, data, of_each(replies), tmp_path)
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

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        known = [next(a for q, a in right.items() if q in prompt) for prompt in asked]
        return [{"response": f"ANSWER: {answer}", "tokens": 3} for answer in known]

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {"shots": 0}}})
    ((_, summary, items),) = results(settings, data, of_each(replies), tmp_path)
    assert summary["value"] == 100 and summary["stderr"] == 0 and {row["tokens"] for row in items} == {3}


def test_thinking_that_was_taken_off_is_told(data: dict[str, Path], tmp_path: Path) -> None:
    """By whoever answers: EvalScope sees answers alone. The last one never ended its thinking."""

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        said = {"response": "ANSWER: 1", "tokens": 3, "thinking": 7, "finish": "stop"}
        return [said] * (len(asked) - 1) + [{"response": "", "tokens": 0, "thinking": 20, "finish": "length"}]

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {"shots": 0}}})
    ((_, summary, _),) = results(settings, data, of_each(replies), tmp_path)
    n = summary["answers"]
    lengths = {"mean_tokens": 3 * (n - 1) / n, "mean_tokens_with_thinking": (10 * (n - 1) + 20) / n}
    assert summary["empty"] == {"length": 1} and summary["thinking"] == {"answers": n, "empty": 1, **lengths}


def test_a_number_is_offered_by_its_value_too(data: dict[str, Path], tmp_path: Path) -> None:
    rows = read_rows(next(data["gsm8k"].rglob("test*")))
    right = {row["question"]: row["answer"].split("####")[1].strip() for row in rows}

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        known = [next(a for q, a in right.items() if q in prompt) for prompt in asked]
        return [{"response": f"ANSWER: ${answer}.00", "tokens": 3} for answer in known]

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {"shots": 0}}})
    ((_, summary, _),) = results(settings, data, of_each(replies), tmp_path)
    assert summary["value"] == 0 and summary["metrics"]["acc_mended"] == 1


def test_arc_is_both_of_its_sets_where_both_are_there(data: dict[str, Path], tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(data["arc"] / "ARC-Challenge", both / "ARC-Easy")
    shutil.copytree(data["arc"] / "ARC-Challenge", both / "ARC-Challenge")
    easy = next((both / "ARC-Easy").glob("test*"))
    pd.read_parquet(easy).iloc[:3].assign(question="Which one is it?").to_parquet(easy)
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"arc": {}}})
    said = {"response": "ANSWER: A", "tokens": 2}
    always = of_each(lambda asked: [said for _ in asked])
    ((_, summary, rows),) = results(settings, {"arc": both}, always, tmp_path / "s")
    assert summary["items"] == len(rows) == 8 + 3 and "11 items, the benchmark has 3,548" in summary["protocol"]
    assert [row["item_id"] for row in rows][-3:] == [f"arc_ARC-Easy/{i}" for i in range(3)]


def test_missing_data_are_named(tmp_path: Path) -> None:
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"gsm8k": {}}})
    with pytest.raises(BadInput, match="gsm8k: no data"):
        list(results(settings, {}, of_each(lambda _: []), tmp_path))


def test_instructions_are_checked_and_a_check_that_fails_is_counted(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second reply says the word four times and follows all instructions; the others say it with commas,
    too often, and in too many sentences."""
    broken = tmp_path / "broken"
    shutil.copytree(data["ifeval"], broken)
    file = broken / "ifeval_input_data.jsonl"
    items = read_rows(file)
    items[1]["instruction_id_list"][0] = "keywords:nobody_knows"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    words = [item["kwargs"][0]["keywords"][0] for item in items]
    said = [f"{word}, " * 9 + "One. Two. Three." if i % 2 else f"{word} " * 4 for i, word in enumerate(words)]

    def follows(item: dict[str, Any], reply: str) -> bool:
        name, limits = item["instruction_id_list"][1], item["kwargs"][1]
        if name == "length_constraints:number_words":
            return len(re.findall(r"\w+", reply)) < limits["num_words"]
        if name == "keywords:frequency":
            return reply.count(limits["keyword"]) >= limits["frequency"]
        return "," not in reply if name == "punctuation:no_comma" else reply.count(".") < 2

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"ifeval": {}}})

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        assert list(asked) == [item["prompt"] for item in items]
        return [{"response": reply, "tokens": 4} for reply in said]

    monkeypatch.setattr("nltk.data.path", [])
    ((_, summary, rows),) = results(settings, {"ifeval": broken}, of_each(replies), tmp_path / "scratch")
    wanted = [float(follows(item, reply)) for item, reply in zip(items, said, strict=True)]
    assert summary["missing"] == 1 and summary["items"] == len(items) - 1 and 0 < sum(wanted) < len(wanted)
    assert [row["value"] for row in rows] == [value for i, value in enumerate(wanted) if i != 1]
    assert summary["metric"] == "prompt_level_strict" and "inst_level_loose" in summary["metrics"]


def test_ifeval_without_its_sentence_model_is_refused(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nltk.data.path", [])
    bare = tmp_path / "bare"
    shutil.copytree(data["ifeval"], bare, ignore=shutil.ignore_patterns("nltk_data"))
    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"ifeval": {}}})
    with pytest.raises(BadInput, match="punkt_tab is missing"):
        list(results(settings, {"ifeval": bare}, of_each(lambda _: []), tmp_path / "scratch"))


def test_programs_run_in_our_sandbox_and_never_in_evalscope(data: dict[str, Path], tmp_path: Path) -> None:
    """Right bodies, a wrong one, and one that would leave a file where EvalScope's own process may write."""
    (file,) = data["humaneval"].rglob("*.parquet")
    problems = read_rows(file)
    trace = tmp_path / "was here"
    bodies = [problem["canonical_solution"] for problem in problems]
    bodies[0] = f"open({str(trace)!r}, 'w').close() or {bodies[0]}"
    bodies[1] = "None"

    def replies(asked: Sequence[str]) -> list[dict[str, Any]]:
        assert all(p["prompt"] in prompt for p, prompt in zip(problems, asked, strict=True))
        return [{"response": f"Like so:\n```python\n{body}```\nThat is it.", "tokens": 9} for body in bodies]

    settings = Settings.model_validate({"policy": "tiny", "benchmarks": {"humaneval": {}}})
    ((_, summary, rows),) = results(settings, data, of_each(replies), tmp_path / "scratch")
    assert [row["value"] for row in rows] == [0.0, 0.0] + [1.0] * (len(problems) - 2)
    assert summary["metric"] == "pass" and not trace.exists()
    assert summary["value"] == pytest.approx(100 * (1 - 2 / len(problems)))
