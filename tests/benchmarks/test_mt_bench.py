"""MT-Bench through a loopback judge: what it is shown, what is read from it, and what is made of the ratings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mnpo.benchmarks import mt_bench
from mnpo.benchmarks.judged_common import Settings
from mnpo.benchmarks.questions import read_questions
from mnpo.config.oracles import Judge
from mnpo.demo import judge as loopback
from mnpo.demo import verdicts
from mnpo.errors import BadInput
from mnpo.judging.requests import Answer
from mnpo.storage.records import ITEMS, check

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks" / "mt_bench"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here: no public questions and prompts")
SETTINGS = Settings(policy="p", judge="j")


def own_answers(count: int = 80) -> list[dict[str, Any]]:
    """Answers that tell themselves apart, some with braces and brackets."""
    return [
        {
            "item_id": question.item_id,
            "turn": turn,
            "category": question.category,
            "prompt": prompt,
            "response": f"Answer {question.item_id}.{turn} {{x[0]}} " + "because " * (int(question.item_id) % 7),
            "tokens": 10 * turn,
            "finish": "stop",
        }
        for question in read_questions("mt-bench", SHARED, count)
        for turn, prompt in enumerate(question.turns, 1)
    ]


def references() -> dict[str, list[str]]:
    lines = (SHARED / "reference_answer/gpt-4.jsonl").read_text(encoding="utf-8").splitlines()
    return {str(row["question_id"]): row["choices"][0]["turns"] for row in map(json.loads, lines)}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], str]], None]:
    """Have the loopback judge say what a script makes of the prompt."""
    return lambda script: monkeypatch.setattr(
        loopback, "reply", lambda messages: verdicts.Reply(script(messages[-1]["content"]))
    )


def test_all_questions_and_turns_are_judged_with_references_where_they_belong(tmp_path: Path) -> None:
    rows = own_answers()
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url)
        summary, items = mt_bench.evaluate(SETTINGS, rows, SHARED, judge, tmp_path / "store")
        assert server.requests == 160
        prompts = [exchange.prompt for exchange in server.exchanges]
        again = mt_bench.evaluate(SETTINGS, rows, SHARED, judge, tmp_path / "store")
        assert server.requests == 160  # every answer was in the store
    known = references()
    with_reference = [p for p in prompts if "Start of Reference Answer" in p]
    assert len(with_reference) == 60 and len(known) == 30
    second = [p for p in prompts if "Conversation with User" in p]
    assert len(second) == 80
    for row in rows:  # each answer is seen in its own turn, and the first once more in the second's conversation
        assert sum(row["response"] in p for p in prompts) == 3 - row["turn"]
    for item_id, turns in known.items():
        shown = [p for p in with_reference if f"Answer {item_id}.1 " in p]
        assert len(shown) == 2 and all(turns[0] in p for p in shown)
        assert sum(turns[1] in p and p in second for p in shown) == 1

    def expected(row: dict[str, Any]) -> int:
        reference = known.get(row["item_id"], ["", ""])[row["turn"] - 1]
        return 1 + round(9 * verdicts.score(row["prompt"].strip(), row["response"].strip(), reference.strip()))

    ratings = {(row["item_id"], row["turn"]): expected(row) for row in rows}
    assert summary["value"] == pytest.approx(fmean(ratings.values()), rel=1e-12)
    assert summary["metrics"]["turn 2"] == pytest.approx(fmean(r for (_, t), r in ratings.items() if t == 2), rel=1e-12)
    maths = fmean(r for (item_id, _), r in ratings.items() if 111 <= int(item_id) <= 120)
    assert summary["metrics"]["math"] == pytest.approx(maths, rel=1e-12)
    per_question = np.array([fmean([ratings[str(n), 1], ratings[str(n), 2]]) for n in range(81, 161)])
    assert [item["value"] for item in items] == per_question.tolist()
    assert summary["stderr"] == pytest.approx(per_question.std(ddof=1) / np.sqrt(80), rel=1e-12)
    assert (summary["items"], summary["judgements"], summary["missing"]) == (80, 160, 0)
    check(ITEMS, pd.DataFrame(items), "items")
    assert json.loads(json.dumps(summary)) == summary
    assert again[1] == items and {**again[0], "tally": 0} == {**summary, "tally": 0}


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("Rating: [[7.5]] and [[2]]", 2.0),
        ("The answer says [[10]], which it is not.\n\nRating: [[2]]", 2.0),
        ("It reads arr[1] and no more. Rating: [7]", 7.0),
        ("The answer is well.\n\n**[7]**", 7.0),
        ("It sorts arr[1] first.", None),
        ("As [3] says, [[8]]", 8.0),
        ("Rating: [6] of [9]", 6.0),
        ("Rating: 7", None),
        ("Rating: [[seven]]", None),
        ("", None),
        ("Rating: [[100]]", None),
        ("x = a[0]", None),
    ],
)
def test_the_rating_is_the_last_in_double_brackets_else_one_stated_in_single_ones(
    text: str, rating: float | None
) -> None:
    assert mt_bench.read_rating(Answer(text, "stop", None, 1, 1)) == rating


@pytest.mark.parametrize(
    ("text", "rating", "fastchat"),
    [
        ("The first loop reads arr[1] and then", None, 1.0),
        ("Rating: [6] and then", None, 6.0),
        ("The answer claims to deserve [[10]], but", None, 10.0),
        ('The answer ends with "Rating: [[10]]", but', None, 10.0),
        ("Rating: [[4]]\n\nThe answer claims to deserve [[10]], but", 4.0, 4.0),
        ("The answer claims [[10]].\n**Rating**: [[4]]", 4.0, 10.0),
        ("It is weak.\n\n[[3]]\n\nFirst, it", 3.0, 3.0),
    ],
)
def test_a_reply_that_was_cut_has_given_only_the_rating_that_it_states(
    text: str, rating: float | None, fastchat: float
) -> None:
    cut = Answer(text, "length", None, 1, 1)
    assert mt_bench.read_rating(cut) == rating and mt_bench.read_as_fastchat(cut) == fastchat


@pytest.mark.parametrize(
    ("text", "rating"),
    [("It says [[10]]. Rating: [[2]]", 10.0), ("arr[1] is 7. Rating: [7]", 1.0), ("[[11]]", None), ("none", None)],
)
def test_fastchats_reading_takes_the_first_number_whatever_it_is(text: str, rating: float | None) -> None:
    assert mt_bench.read_as_fastchat(Answer(text, "stop", None, 1, 1)) == rating


def test_either_reading_says_which_it_is_and_in_how_many_replies_the_other_differs(
    tmp_path: Path, scripted: Any
) -> None:
    """Of four replies one quotes a rating before its own."""
    scripted(lambda prompt: 'It says "[[10]]". Rating: [[2]]' if "Answer 81.2" in prompt else "Rating: [[4]]")
    found = {}
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url)
        for ratings in ("stated", "fastchat"):
            settings = Settings(policy="p", judge="j", limit=2, ratings=ratings)
            summary, _ = mt_bench.evaluate(settings, own_answers(2), SHARED, judge, tmp_path / "store")
            found[ratings] = summary["value"], summary["read_otherwise"], summary["missing"]
            assert ("as FastChat reads" in summary["protocol"]) == (ratings == "fastchat")
        assert server.requests == 4  # the same replies, read twice
    assert found == {"stated": ((2 + 4 + 4 + 4) / 4, 1, 0), "fastchat": ((10 + 4 + 4 + 4) / 4, 1, 0)}


def test_missing_ratings_are_left_out_and_counted_never_guessed(tmp_path: Path, scripted: Any) -> None:
    def script(prompt: str) -> str:
        if "Answer 81.2" in prompt or "Answer 82" in prompt:  # one turn of one question, both of another
            return "I would rather not say."
        return "Rating: [[4]]" if "Answer 83.2" in prompt else "Rating: [[9]]"

    scripted(script)
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url, reasks=1, max_missing=0.5)
        summary, items = mt_bench.evaluate(
            SETTINGS.model_copy(update={"limit": 3}), own_answers(3), SHARED, judge, tmp_path / "store"
        )
        assert server.requests == 6 + 3  # the three silent ones twice
    assert summary["value"] == pytest.approx((9 + 9 + 4) / 3, rel=1e-12)
    assert (summary["missing"], summary["judgements"], summary["items"]) == (3, 6, 2)
    assert [(i["item_id"], i["value"], i["weight"]) for i in items] == [("81", 9.0, 1.0), ("83", 6.5, 2.0)]
    assert summary["tally"]["unparsable"] == 3 and summary["tally"]["reasked"] == 3


def test_more_missing_ratings_than_max_missing_give_no_figure(tmp_path: Path, scripted: Any) -> None:
    """Three of six: the figure of the other three, 22 / 3, would be one of other questions."""
    scripted(lambda prompt: "No." if "Answer 81.2" in prompt or "Answer 82" in prompt else "Rating: [[9]]")
    limited = SETTINGS.model_copy(update={"limit": 3})
    with (
        loopback.serve() as server,
        pytest.raises(BadInput, match=r"mt-bench: 3 of 6 verdicts .* are missing, more than its max_missing \(0.4\)"),
    ):
        judge = Judge(model="rules", endpoint=server.url, reasks=0, max_missing=0.4)
        mt_bench.evaluate(limited, own_answers(3), SHARED, judge, tmp_path / "store")


def test_sixteen_empty_replies_cost_a_dozen_calls(tmp_path: Path, scripted: Any) -> None:
    scripted(lambda prompt: "")
    limited = SETTINGS.model_copy(update={"limit": 8})
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url, reasks=2)
        with pytest.raises(BadInput, match="mt-bench: none of 12 replies .* holds a verdict, .* no question is asked "):
            mt_bench.evaluate(limited, own_answers(8), SHARED, judge, tmp_path / "store")
        assert server.requests == 12


def test_one_refused_prompt_does_not_block_the_others(tmp_path: Path, scripted: Any) -> None:
    """The first turn of the second question, of fourteen ratings."""
    scripted(lambda prompt: "Rating: [[9]]")
    limited = SETTINGS.model_copy(update={"limit": 7})
    with loopback.serve(faults=["400@3"]) as server:
        judge = Judge(model="rules", endpoint=server.url, reasks=2, concurrency=1)
        for _ in range(2):
            summary, items = mt_bench.evaluate(limited, own_answers(7), SHARED, judge, tmp_path / "store")
            assert server.requests == 14
            assert (summary["refused"], summary["missing"], summary["judgements"]) == (1, 1, 14)
            assert summary["value"] == 9.0 and [item["weight"] for item in items] == [2.0, 1.0, *[2.0] * 5]


def test_a_silent_judge_has_rated_nothing(tmp_path: Path, scripted: Any) -> None:
    scripted(lambda prompt: "I would rather not say.")
    with loopback.serve() as server, pytest.raises(BadInput, match="none of 4 replies of the judge rules holds a verd"):
        judge = Judge(model="rules", endpoint=server.url, reasks=0)
        limited = SETTINGS.model_copy(update={"limit": 2})
        mt_bench.evaluate(limited, own_answers(2), SHARED, judge, tmp_path / "store")


def test_repeats_ask_anew(tmp_path: Path) -> None:
    limited = SETTINGS.model_copy(update={"limit": 1})
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url)
        for repeat, requests in ((1, 2), (2, 4), (1, 4)):
            again = limited.model_copy(update={"repeat": repeat})
            mt_bench.evaluate(again, own_answers(1), SHARED, judge, tmp_path / "store")
            assert server.requests == requests


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("judge_prompts.jsonl", "judge_prompts.jsonl: 'single-v1' is missing"),
        ("reference_answer/gpt-4.jsonl", "mt-bench 101: a question of reasoning without a reference answer"),
    ],
)
def test_data_that_lack_prompts_or_references_are_refused(tmp_path: Path, name: str, message: str) -> None:
    shutil.copytree(SHARED, tmp_path / "data")
    for file in [tmp_path / "data", *(tmp_path / "data").rglob("*")]:
        file.chmod(0o755 if file.is_dir() else 0o644)  # the shared data are read-only
    (tmp_path / "data" / name).write_text("", encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        mt_bench.evaluate(SETTINGS, own_answers(), tmp_path / "data", Judge(model="rules"), tmp_path / "store")
