"""Arena-Hard v0.1 through a loopback judge: games, battles, the logistic model, intervals."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mnpo.benchmarks import arena_hard
from mnpo.benchmarks.judged_common import Settings, weighted_mean
from mnpo.config.oracles import Judge
from mnpo.demo import judge as loopback
from mnpo.demo import verdicts
from mnpo.errors import BadInput
from mnpo.judging.requests import Answer
from mnpo.storage.records import ITEMS, check

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks" / "arena_hard_v0.1"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here: no public questions and answers")
SETTINGS = Settings(policy="p", judge="j")
SYSTEM = "Compare the answers and end with your verdict, such as [[A=B]]."  # this project's own, for tests only
TEMPLATE = (
    "<|User Prompt|>\n{QUESTION}\n\n<|The Start of Assistant A's Answer|>\n{ANSWER_A}\n<|The End of Assistant A's "
    "Answer|>\n\n<|The Start of Assistant B's Answer|>\n{ANSWER_B}\n<|The End of Assistant B's Answer|>"
)
GAME = re.compile(r"Answer\|>\n(policy|baseline) (\d+)\n")


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tiny(directory: Path, count: int) -> tuple[Path, list[dict[str, Any]]]:
    """Data of `count` questions in the older layout of the repository, and the policy's answers."""
    data = directory / "data" / "arena-hard-v0.1"
    asked = [{"question_id": f"q{n}", "cluster": "c", "turns": [{"content": f"Question {n}?"}]} for n in range(count)]
    lines(data / "question.jsonl", asked)
    baseline = [{"question_id": f"q{n}", "choices": [{"turns": [{"content": f"baseline {n}"}]}]} for n in range(count)]
    lines(data / "model_answer" / "gpt-4-0314.jsonl", baseline)
    older = re.sub(r"QUESTION|ANSWER_A|ANSWER_B", lambda m: OLDER[m.group()], TEMPLATE)
    config = json.dumps({"system_prompt": SYSTEM, "prompt_template": [older]})
    (directory / "config").mkdir()
    (directory / "config" / "judge_config.yaml").write_text(config, encoding="utf-8")
    rows = [
        {"item_id": f"q{n}", "turn": 1, "prompt": f"Question {n}?", "response": f"policy {n}", "tokens": 2}
        for n in range(count)
    ]
    return directory, rows


OLDER = {"QUESTION": "question_1", "ANSWER_A": "answer_1", "ANSWER_B": "answer_2"}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int, int], str]], None]:
    """Have the loopback judge say what a script says of question and game: 1 shows the baseline first, 2 the policy."""

    def install(script: Callable[[int, int], str]) -> None:
        def reply(messages: Sequence[dict[str, str]]) -> verdicts.Reply:
            assert messages[0] == {"role": "system", "content": SYSTEM}
            (first, number), (second, same) = GAME.findall(messages[1]["content"])
            assert {first, second} == {"policy", "baseline"} and number == same
            assert f"Question {number}?" in messages[1]["content"]
            return verdicts.Reply(script(int(number), 1 if first == "baseline" else 2))

        monkeypatch.setattr(loopback, "reply", reply)

    return install


def play(directory: Path, count: int, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    data, rows = tiny(directory, count)
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url, reasks=0, max_missing=0.3)
        settings = SETTINGS.model_copy(update=changes)
        return arena_hard.evaluate(settings, rows, data, judge, directory / "store")


# -------------------------------------------------------------------------------------------------------------- scoring


def test_the_win_rate_of_constructed_verdicts_is_the_closed_form(tmp_path: Path, scripted: Any) -> None:
    verdicts = {
        (0, 1): "B>>A", (0, 2): "A>B",  # the policy wins 3 + 1 battles
        (1, 1): "A=B", (1, 2): "B>A",  # half of one, and none of one
        (2, 1): "A>>B", (2, 2): "A=B",  # none of three, and half of one
        (3, 1): "B>A", (3, 2): "",  # one; an unreadable game adds nothing
        (4, 1): "", (4, 2): "",
    }  # fmt: skip
    scripted(lambda question, game: f"So it is [[{verdicts[question, game]}]]")
    summary, items = play(tmp_path, 5)
    assert summary["value"] == pytest.approx(100 * (4 + 0.5 + 0 + 0 + 0.5 + 1) / (4 + 2 + 4 + 1), rel=1e-12)
    assert [(i["item_id"], i["value"], i["weight"]) for i in items] == [
        ("q0", 1.0, 4.0),
        ("q1", 0.25, 2.0),
        ("q2", 0.125, 4.0),
        ("q3", 1.0, 1.0),
    ]
    assert (summary["missing"], summary["judgements"], summary["items"]) == (3, 10, 4)
    assert summary["metrics"]["battles"] == 11 and summary["metrics"]["mean_characters"] == 8
    assert summary["metrics"]["low"] <= summary["value"] <= summary["metrics"]["high"]
    check(ITEMS, pd.DataFrame(items), "items")
    assert json.loads(json.dumps(summary)) == summary


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    questions=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6), min_size=2, max_size=20
    ).filter(lambda questions: 0 < sum(map(sum, questions)) < sum(map(len, questions)))
)
def test_the_win_rate_is_what_an_unpenalised_logistic_fit_of_ratings_says(questions: list[list[float]]) -> None:
    """Scale 400, by scikit-learn: every battle once as won and once as lost, weighted by its outcome."""
    from sklearn.linear_model import LogisticRegression

    won = np.array([battle for battles in questions for battle in battles])
    design = np.full((2 * len(won), 1), math.log(10))
    outcomes = np.repeat([1, 0], len(won))
    fit = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000)
    fit.fit(design, outcomes, sample_weight=np.concatenate([won, 1 - won]))
    rating = 400 * fit.coef_[0, 0]
    rate, _ = weighted_mean([sum(b) / len(b) for b in questions], [float(len(b)) for b in questions])
    assert rate == pytest.approx(won.mean(), rel=1e-12)
    assert rate == pytest.approx(1 / (1 + 10 ** (-rating / 400)), abs=1e-5)


@pytest.mark.parametrize("verdict", ["A>B", "A>>B", "B>A", "B>>A", "A=B"])
def test_a_judge_that_goes_by_position_alone_gives_exactly_a_half(tmp_path: Path, scripted: Any, verdict: str) -> None:
    scripted(lambda question, game: f"[[{verdict}]]")
    summary, items = play(tmp_path, 7)
    assert summary["value"] == 50.0
    assert {item["value"] for item in items} == {0.5} and summary["stderr"] == 0.0


@pytest.mark.parametrize(("policy_wins", "rate"), [(True, 100.0), (False, 0.0)])
def test_a_judge_that_goes_by_the_answer_alone_gives_all_or_nothing(
    tmp_path: Path, scripted: Any, policy_wins: bool, rate: float
) -> None:
    scripted(lambda question, game: "[[A>>B]]" if (game == 2) == policy_wins else "[[B>A]]")
    summary, _ = play(tmp_path, 4)
    assert summary["value"] == summary["metrics"]["low"] == summary["metrics"]["high"] == rate


def test_the_interval_has_the_normal_width_and_follows_from_the_names(tmp_path: Path) -> None:
    battles = [1.0] * 300 + [0.0] * 700
    low, high = arena_hard.interval(battles, seed=1)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low < 0.3 < high and (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert arena_hard.interval(battles, seed=1) == (low, high) != arena_hard.interval(battles, seed=2)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("My final verdict is tie: [[A=B]]", "A=B"),
        ("[[A>>B]]", "A>>B"),
        ("First [[B>A]], and at the end [[B>A]].", "B>A"),
        ("First [[B>A]], and at the end [[A>B]].", None),
        ("[[B>>A]] [A>B]", "B>>A"),
        ("[A>B]", None),
        ("[[A<B]]", None),
        ("[[A]]", None),
        ("", None),
    ],
)
def test_a_verdict_is_one_label_in_double_brackets(text: str, verdict: str | None) -> None:
    assert arena_hard.read_verdict(Answer(text, "stop", None, 1, 1)) == verdict


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Were B's code right, I would say [[A>>B]] is too harsh, so let me look", None),
        ("The options begin with [[A>>B]],", None),
        ("My final verdict is Assistant A is slightly better: [[A>B]]\n\nTo explain this,", "A>B"),
        ("**Final verdict:** [[B>>A]]. First,", "B>>A"),
        ("[[A=B]]\nBoth answers", "A=B"),
        ("My verdict is [[A>B]], no, [[B>A]] since", None),
    ],
)
def test_a_reply_that_was_cut_has_given_only_the_verdict_that_it_states(text: str, verdict: str | None) -> None:
    assert arena_hard.read_verdict(Answer(text, "length", None, 1, 1)) == verdict


# ----------------------------------------------------------------------------------------------------------------- data


def test_a_judge_configuration_without_system_prompt_is_refused_with_the_remedy(tmp_path: Path) -> None:
    data, rows = tiny(tmp_path, 1)
    (data / "config" / "judge_config.yaml").write_text(json.dumps({"prompt_template": TEMPLATE}), encoding="utf-8")
    with pytest.raises(BadInput, match="no system_prompt; fetch lmarena/arena-hard-auto at a commit before April 2025"):
        arena_hard.evaluate(SETTINGS, rows, data, Judge(model="rules"), tmp_path / "store")


def test_a_question_without_a_baseline_answer_is_refused(tmp_path: Path) -> None:
    data, rows = tiny(tmp_path, 2)
    path = data / "data" / "arena-hard-v0.1" / "model_answer" / "gpt-4-0314.jsonl"
    path.write_text(path.read_text(encoding="utf-8").splitlines(keepends=True)[0], encoding="utf-8")
    with pytest.raises(BadInput, match="arena-hard q1: gpt-4-0314 has no answer to it"):
        arena_hard.evaluate(SETTINGS, rows, data, Judge(model="rules"), tmp_path / "store")


def public(directory: Path, model: str) -> tuple[Path, list[dict[str, Any]]]:
    """The public questions and baseline under a system prompt of our own, and a model's public answers."""
    for name in ("question.jsonl", "model_answer/gpt-4-0314.jsonl"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(SHARED / name)
    config = {"system_prompt": SYSTEM, "prompt_template": TEMPLATE}
    (directory / "judge_config.yaml").write_text(json.dumps(config), encoding="utf-8")
    answers = (SHARED / "model_answer" / f"{model}.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [
        {
            "item_id": row["uid"],
            "turn": 1,
            "prompt": row["messages"][0]["content"],
            "response": row["messages"][1]["content"]["answer"],
            "tokens": 1,
        }
        for row in (json.loads(line) for line in answers if line)
    ]
    return directory, rows


@needs_shared
@pytest.mark.slow
def test_all_public_questions_are_judged_in_two_games_end_to_end(tmp_path: Path) -> None:
    data, rows = public(tmp_path / "data", "gpt-3.5-turbo-0125")
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url)
        summary, items = arena_hard.evaluate(SETTINGS, rows, data, judge, tmp_path / "store")
        assert server.requests == 1000
    _, theirs = public(tmp_path / "baseline", "gpt-4-0314")
    baseline = {row["item_id"]: row["response"] for row in theirs}

    def battles(row: dict[str, Any]) -> tuple[float, int]:  # of both games: the rules know no position
        question = row["prompt"].strip()
        lead = verdicts.score(question, row["response"].strip()) - verdicts.score(
            question, baseline[row["item_id"]].strip()
        )
        return (0.5, 2) if abs(lead) < verdicts.SLIGHT else (float(lead > 0), 2 if abs(lead) < verdicts.CLEAR else 6)

    outcomes = [battles(row) for row in rows]
    expected = sum(won * weight for won, weight in outcomes) / sum(weight for _, weight in outcomes)
    assert summary["value"] == pytest.approx(100 * expected, rel=1e-12)
    assert (summary["items"], len(items), summary["missing"]) == (500, 500, 0)


@needs_shared
def test_the_baseline_against_itself_is_exactly_a_half(tmp_path: Path) -> None:
    data, rows = public(tmp_path / "data", "gpt-4-0314")
    first = {json.loads(line)["uid"] for line in (data / "question.jsonl").read_text(encoding="utf-8").split("\n")[:20]}
    with loopback.serve() as server:
        judge = Judge(model="rules", endpoint=server.url)
        kept = [row for row in rows if row["item_id"] in first]
        settings = SETTINGS.model_copy(update={"limit": 20})
        summary, _ = arena_hard.evaluate(settings, kept, data, judge, tmp_path / "store")
        assert server.requests == 20  # both games of a question are the same question to the judge, and asked once
    assert summary["value"] == 50.0
