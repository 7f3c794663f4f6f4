"""EvalScope's judged benchmarks, asked by our client: each answer stored, counted, and paid for once."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mnpo.benchmarks import judged_common
from mnpo.benchmarks.evalscope import evaluate
from mnpo.benchmarks.evalscope_tasks import VERDICT_READERS
from mnpo.benchmarks.questions import read_questions
from mnpo.config.oracles import Judge
from mnpo.demo.judge import Loopback, serve
from mnpo.demo.verdicts import SIDE, reply
from mnpo.errors import BadInput
from mnpo.judging.budget import BudgetSpent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("evalscope") is None, reason="not in this environment; `make test-evalscope` has it"
    ),
]
SETTINGS = judged_common.Settings(policy="tiny", judge="demo")
CALLS = {"alpaca-eval": 14, "arena-hard": 28, "minerva": 8}


def answers(benchmark: str, directory: Path) -> list[dict[str, Any]]:
    """The prompt's last words and a number: some are right, none is twice."""
    asked = read_questions(benchmark, directory)
    return [
        {"item_id": q.item_id, "turn": 1, "prompt": q.turns[0], "response": f"{q.turns[0][-9:]} {i}", "tokens": i}
        for i, q in enumerate(asked)
    ]


def judge(server: Loopback, **changes: Any) -> Judge:
    return Judge.model_validate({"model": "demo", "endpoint": server.url, **changes})


def said(server: Loopback) -> list[str]:
    """What was asked for and answered, prompt by prompt."""
    return [reply(exchange.asked["messages"]).text for exchange in server.exchanges]


@pytest.mark.parametrize("benchmark", VERDICT_READERS)
def test_the_value_is_that_of_the_verdicts_and_no_call_is_made_twice(
    data: dict[str, Path], tmp_path: Path, benchmark: str
) -> None:
    given = answers(benchmark, data[benchmark])
    with serve() as server:
        how = judge(server, concurrency=1)
        summary, rows = evaluate(benchmark, SETTINGS, given, data[benchmark], how, tmp_path / "s.sqlite")
        verdicts = said(server)
        assert len(verdicts) == CALLS[benchmark] == summary["judgements"] == summary["tally"]["calls"]
        again, _ = evaluate(benchmark, SETTINGS, given, data[benchmark], how, tmp_path / "s.sqlite")
        assert server.requests == CALLS[benchmark] and again["tally"]["calls"] == 0
    if benchmark == "arena-hard":
        points = {">>": (3, 1.0), ">": (1, 1.0), "=": (1, 0.5)}
        own = {row["response"] for row in given}
        won = weight = 0.0
        for exchange, text in zip(server.exchanges, verdicts, strict=True):
            verdict = text.split("[[")[1].rstrip("]")
            times, point = points[verdict.strip("AB")]
            mine = "A" if dict(SIDE.findall(exchange.prompt))["A"] in own else "B"
            won += times * (point if verdict[0] == mine else 1 - point)
            weight += times
        wanted = 100 * won / weight
    else:
        wanted = 100 * sum(text == {"alpaca-eval": "M", "minerva": "A"}[benchmark] for text in verdicts) / len(verdicts)
    assert 0 < summary["value"] < 100 and summary["value"] == again["value"] == pytest.approx(wanted)
    assert summary["items"] == len(rows) == len(given) and summary["missing"] == 0
    assert {row["response"] for row in rows} == {row["response"] for row in given}


def test_arena_hard_is_evalscopes_own_figure(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its logistic fit, which rounds to four digits, against the closed form behind our items."""
    import evalscope

    reports: list[dict[str, Any]] = []
    real = evalscope.run_task

    def watched(config: Any) -> Any:
        reports.append(real(config))
        return reports[-1]

    monkeypatch.setattr(evalscope, "run_task", watched)
    with serve() as server:
        given = answers("arena-hard", data["arena-hard"])
        summary, _ = evaluate("arena-hard", SETTINGS, given, data["arena-hard"], judge(server), tmp_path / "s.sqlite")
    assert summary["value"] / 100 == pytest.approx(reports[-1]["arena_hard"].score, abs=1e-4)


@pytest.mark.parametrize("benchmark", VERDICT_READERS)
def test_a_reply_without_a_verdict_is_asked_again_then_left_out_and_counted(
    data: dict[str, Path], tmp_path: Path, benchmark: str
) -> None:
    """The first question's three replies say nothing."""
    given, calls = answers(benchmark, data[benchmark]), CALLS[benchmark]
    with serve(faults=["unparsable@1", f"unparsable@{calls + 1}-{calls + 2}"]) as server:
        how = judge(server, concurrency=1, reasks=2)
        summary, rows = evaluate(benchmark, SETTINGS, given, data[benchmark], how, tmp_path / "s.sqlite")
        assert server.requests == calls + 2
    assert summary["missing"] == summary["tally"]["unparsable"] == 1 and summary["tally"]["reasked"] == 2
    left_out = int(benchmark != "arena-hard")  # where the game is lost, not the question
    assert summary["items"] == len(rows) == len(given) - left_out


def test_a_spent_budget_and_a_failing_endpoint_stop_the_stage(data: dict[str, Path], tmp_path: Path) -> None:
    given, benchmark = answers("minerva", data["minerva"]), "minerva"
    with serve() as server:
        with pytest.raises(BudgetSpent, match="max_calls"):
            evaluate(benchmark, SETTINGS, given, data[benchmark], judge(server, max_calls=3), tmp_path / "s.sqlite")
        assert server.answered == 3
        summary, _ = evaluate(benchmark, SETTINGS, given, data[benchmark], judge(server), tmp_path / "s.sqlite")
        assert server.answered == CALLS[benchmark] and summary["missing"] == 0
    with serve(faults=["500%1"]) as server, pytest.raises(BadInput, match="got no answer in 1 tries"):
        evaluate(benchmark, SETTINGS, given, data[benchmark], judge(server, retries=0), tmp_path / "other.sqlite")


def test_answers_to_other_prompts_are_refused(data: dict[str, Path], tmp_path: Path) -> None:
    given = answers("minerva", data["minerva"])
    given[3]["prompt"] = "What is 2 + 2?"
    with serve() as server, pytest.raises(BadInput, match=r"minerva 3, turn 1: the answer is to 'What is 2 \+ 2\?'"):
        evaluate("minerva", SETTINGS, given, data["minerva"], judge(server), tmp_path / "s.sqlite")


def test_evalscope_never_has_the_key(
    data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its configuration is written down in its output directory, with what it was given."""
    key = "sk-recognisable-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("mnpo.benchmarks.evalscope.TemporaryDirectory", lambda **_: _Kept(tmp_path / "scratch"))
    with serve() as server:
        given = answers("minerva", data["minerva"])
        evaluate("minerva", SETTINGS, given, data["minerva"], judge(server), tmp_path / "s.sqlite")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name.endswith(".yaml") for file in files) and len(files) > 5
    assert not [file for file in files if key.encode() in file.read_bytes()]
    assert key not in "".join(capfd.readouterr()) and json.dumps(dict(os.environ)).count(key) == 1


class _Kept:
    """A temporary directory that stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> str:
        self.path.mkdir()
        return str(self.path)

    def __exit__(self, *error: object) -> None:
        pass
