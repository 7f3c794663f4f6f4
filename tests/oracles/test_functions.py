"""A user's own functions as oracles: what they are given, and one message for each way to go wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo import oracles
from mnpo.config.oracles import Oracle as Settings
from mnpo.errors import BadInput
from mnpo.oracles import Judgement, Question
from mnpo.oracles.functions import BATCH
from mnpo.oracles.pairs import Pairwise

QUESTIONS = [
    Question("Opposite of hot?", json.dumps({"answer": "cold"}), ["cold", "cool water", ""], "p1"),
    Question("And of big?", "", ["small"], "p2", json.dumps([{"role": "system", "content": "Be brief."}])),
]
Judge = Callable[..., list[Judgement]]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    def _judge(text: str, questions: list[Question] = QUESTIONS, **settings: Any) -> list[Judgement]:
        (tmp_path / "rewards.py").write_text(text)
        spec = Settings(kind="function", file=str(tmp_path / "rewards.py"), function="f", **settings)
        return oracles.load("own", {"own": spec}, {}).judge(questions)

    return _judge


def test_a_function_scores_responses_in_the_order_of_the_rows(judge: Judge) -> None:
    judged = judge("def f(responses):\n    return [-len(r.split()) for r in responses]\n")
    assert [j.scores for j in judged] == [[-1.0, -2.0, 0.0], [-1.0]]
    assert judged[0].preferences == [[0.5, 1.0, 0.0], [0.0, 0.5, 0.0], [1.0, 1.0, 0.5]]
    tempered = judge("def f(responses):\n    return [-len(r.split()) for r in responses]\n", temperature=1)
    assert tempered[0].preferences[0][1] == pytest.approx(1 / (1 + 2.718281828459045**-1))


def test_it_is_given_prompts_columns_and_whole_conversations(judge: Judge) -> None:
    text = (
        "def f(prompts, responses, columns, turns):\n"
        "    assert prompts == ['Opposite of hot?'] * 3 + ['And of big?']\n"
        "    assert [t[0]['role'] for t in turns] == ['user'] * 3 + ['system'] and len(turns[3]) == 2\n"
        "    return [r == c.get('answer') for r, c in zip(responses, columns)]\n"
    )
    assert [j.scores for j in judge(text)] == [[1.0, 0.0, 0.0], [0.0]]


def test_numbers_may_be_numpys_or_torchs(judge: Judge) -> None:
    for text in (
        "import numpy\ndef f(responses): return numpy.arange(4)",
        "import torch\ndef f(responses): return torch.arange(4.0)",
    ):
        assert [j.scores for j in judge(text)] == [[0.0, 1.0, 2.0], [3.0]]


def test_it_is_asked_in_batches(judge: Judge) -> None:
    many = [Question("?", "", ["x"] * BATCH, "p1"), Question("?", "", ["y"] * 3, "p2")]
    judged = judge("def f(responses):\n    return [len(responses)] * len(responses)\n", many)
    assert judged[0].scores == [BATCH] * BATCH and judged[1].scores == [3.0] * 3


def test_a_function_that_compares_is_asked_in_both_orders(judge: Judge, tmp_path: Path) -> None:
    """It prefers the shorter one, and the one shown first by .2: averaged over both orders, the latter cancels."""
    text = "def f(first, second):\n    return [.2 + .6 * (len(a) < len(b)) for a, b in zip(first, second)]\n"
    judged = judge(text, compare=True)
    assert judged[0].preferences[0][1] == pytest.approx((0.8 + (1 - 0.2)) / 2)
    assert judged[0].preferences[1][0] == pytest.approx(0.2)
    assert judged[0].scores == pytest.approx([(0.8 + 0.2) / 2, 0.2, 0.8]) and judged[1].scores == [0.5]
    loaded = oracles.load(
        "own",
        {
            "own": Settings(
                kind="function", file=str(tmp_path / "rewards.py"), function="f", compare=True, comparisons=2
            )
        },
        {},
    )
    assert isinstance(loaded, Pairwise)
    loaded.judge(QUESTIONS)
    assert loaded.facts()["games"] == 4  # two of the three pairs, in both orders


def test_it_can_be_one_of_several(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "def f(responses): return [len(r) for r in responses]\n"
        "def g(first, second): return [1 - (len(a) > len(b)) for a, b in zip(first, second)]\n"
    )
    own = {"kind": "function", "file": str(tmp_path / "rewards.py")}
    specs = {
        "long": Settings(function="f", **own),
        "short": Settings(function="g", compare=True, **own),
        "sum": Settings(kind="weighted", weights={"long": 2}),
        "vote": Settings(kind="majority", of=["long", "short", "sum"]),
    }
    assert oracles.load("sum", specs, {}).judge(QUESTIONS)[0].scores == [8.0, 20.0, 0.0]
    assert oracles.load("vote", specs, {}).judge(QUESTIONS)[0].scores == [0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "message"),
    {
        "return [1, 2]": r"returned 2 numbers for 4 responses, the first to prompt p1, .*; return one for each",
        "return 1.5": r"returned 1\.5 for 4 responses, .*; return a list with a number for each",
        "return None": r"returned None for 4 responses",
        "return [1, float('nan'), 1, 1]": r"returned nan for prompt p1, response 1 \('cool water'\); .* finite number",
        "return [1, 1, 1, -float('inf')]": r"returned -inf for prompt p2, response 0 \('small'\); .* finite number",
        "return [1, '2', 1, 1]": r"returned '2' for prompt p1, response 1 .*; return a number",
        "return [1, 1, None, 1]": r"returned None for prompt p1, response 2 \(''\); return a number",
        "return [1, 1, [1], 1]": r"returned \[1\] for prompt p1, response 2",
        "return [1 / len(r) for r in responses]": r"raised ZeroDivisionError in line 2: .*, for prompt p1, response 2",
        "if len(responses) > 1: raise OSError('many')": r"raised OSError in line 2: many, for 4 responses together",
    }.items(),
)
def test_what_a_function_returns_is_checked_row_by_row(judge: Judge, body: str, message: str) -> None:
    with pytest.raises(BadInput, match=rf"rewards\.py: f {message}"):
        judge(f"def f(responses):\n    {body}\n")


def test_a_column_that_is_not_there_is_named_with_those_that_are(judge: Judge) -> None:
    with pytest.raises(
        BadInput,
        match=r"raised KeyError in line 1: 'ref' \(columns: answer; prompts\.further names them\), for prompt p1",
    ):
        judge("def f(columns): return [len(c['ref']) for c in columns]\n")


def test_a_preference_is_a_probability(judge: Judge) -> None:
    with pytest.raises(
        BadInput,
        match=r"f returned 2\.0 for prompt p1, response 0 against 1 .*; return P\(first is better\), from 0 to 1",
    ):
        judge("def f(first): return [2] * len(first)\n", compare=True)


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "import no_such_package\ndef f(responses): ...": r"cannot be imported \(ModuleNotFoundError: .*\); install it",
        "x = 1 / 0\ndef f(responses): ...": r"cannot be imported \(ZeroDivisionError: .*\); mend the file",
        "f = 3": r"f is 3, not a function",
        "f = max": r"f does not tell its parameters; wrap it",
        "import functools\ndef g(a, responses): ...\nf = functools.partial(g)": r"f has a parameter 'a'",
    }.items(),
)
def test_a_file_that_cannot_be_used_is_refused_with_the_remedy(judge: Judge, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=rf"rewards\.py: {message}"):
        judge(text)


def test_it_imports_what_lies_beside_it_and_nothing_of_the_same_name(tmp_path: Path) -> None:
    """Two files, each with helpers of its own, imported early and late; the path is as it was before."""
    found, before = [], list(sys.path)
    for name in ("one", "two"):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "helpers.py").write_text(f"VALUE = {len(found) + 1}\n")
        late = "def f(responses):\n    import helpers\n    return [helpers.VALUE] * len(responses)\n"
        (directory / "own.py").write_text(late if name == "two" else "from helpers import VALUE\n" + late)
        found.append(
            oracles.load("own", {"own": Settings(kind="function", file=str(directory / "own.py"), function="f")}, {})
        )
    assert [o.judge(QUESTIONS)[1].scores for o in (*found, *found)] == [[1.0], [2.0]] * 2
    assert sys.path == before
