"""An LLM judge as oracle: a real server on the loopback interface that judges by the demo's rules."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mnpo.config.oracles import Judge, Oracle
from mnpo.demo.judge import Loopback, serve
from mnpo.demo.verdicts import score
from mnpo.errors import BadInput
from mnpo.judging import session
from mnpo.judging.requests import Answer
from mnpo.oracles import Kept, Question, load
from mnpo.oracles.judges import verdict

QUESTIONS = [
    Question("Say cat 3 times", "", ["cat cat cat", "dog", "cat cat cat. I hope that this helps you very much."], "p1"),
    Question("Say dog 2 times", "", ["dog dog", "cat {prompt}"], "p2"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def settings(server: Loopback, **more: int) -> dict[str, Oracle]:
    judge = Judge(model="demo", endpoint=server.url, reasks=1)
    return {"llm": Oracle(kind="judge", judge=judge, **more)}


def test_a_judges_verdicts_become_preferences(tmp_path: Path) -> None:
    with serve() as server:
        oracle = load("llm", settings(server), {}, Kept(tmp_path / "store.sqlite"))
        judged = oracle.judge(QUESTIONS)
        again = load("llm", settings(server), {}, Kept(tmp_path / "store.sqlite"))
        assert again.judge(QUESTIONS) == judged
    assert server.requests == 8  # three pairs and one, each in both orders; the second oracle found them all
    for question, judgement in zip(QUESTIONS, judged, strict=True):
        worth = [score(question.prompt, response) for response in question.responses]
        for a, x in enumerate(worth):
            for b, y in enumerate(worth):
                expected = 0.5 if abs(x - y) < 0.05 else float(x > y)  # the demo's judge calls that a tie
                assert judgement.preferences[a][b] == expected
    assert judged[0].scores == [1.0, 0.25, 0.25] and judged[1].scores == [1.0, 0.0]
    assert {e.asked["messages"][0]["role"] for e in server.exchanges} == {"system"}
    facts = oracle.facts()
    assert facts["tally"]["calls"] == 8 and facts["games"] == 8 and facts["overturned_by_order"] == 0
    assert again.facts()["tally"]["stored"] == 8


def test_an_unreadable_verdict_is_asked_again_and_then_left_out(tmp_path: Path) -> None:
    """One game of p2 stays without a verdict at the second asking; its other order decides."""
    with serve(faults=["unparsable@1", "unparsable@3"]) as server:
        judge = {
            "llm": Oracle(
                kind="judge", judge=Judge(model="demo", endpoint=server.url, reasks=1, concurrency=1, max_missing=0.5)
            )
        }
        oracle = load("llm", judge, {}, Kept(tmp_path / "store.sqlite"))
        (judgement,) = oracle.judge(QUESTIONS[1:])
    assert judgement.preferences == [[0.5, 1.0], [0.0, 0.5]]
    facts = oracle.facts()
    assert facts["games_without_a_verdict"] == 1 and facts["tally"]["unparsable"] == 1


def test_more_missing_verdicts_than_max_missing_stop_the_stage(tmp_path: Path) -> None:
    """One game of two, which the default of a fifth does not permit."""
    with (
        serve(faults=["unparsable@1"]) as server,
        pytest.raises(
            BadInput, match=r"oracle demo: 1 of 2 verdicts .* are missing, more than its max_missing \(0.2\)"
        ),
    ):
        judge = Judge(model="demo", endpoint=server.url, reasks=0, concurrency=1)
        oracle = load("llm", {"llm": Oracle(kind="judge", judge=judge)}, {}, Kept(tmp_path / "store.sqlite"))
        oracle.judge(QUESTIONS[1:])


def test_a_judge_that_never_says_a_verdict_stops_the_stage(tmp_path: Path) -> None:
    with (
        serve(faults=["unparsable%1"]) as server,
        pytest.raises(BadInput, match="oracle demo: none of 2 replies .* holds a verdict"),
    ):
        load("llm", settings(server), {}, Kept(tmp_path / "store.sqlite")).judge(QUESTIONS[1:])


def test_without_a_place_for_its_answers_it_is_refused() -> None:
    oracles = {"llm": Oracle(kind="judge", judge=Judge(model="demo", endpoint="http://127.0.0.1:9/v1"))}
    with pytest.raises(BadInput, match="nothing says where its answers are kept"):
        load("llm", oracles, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A is right.\n[[A>B]]", 1.0),
        ("[[A>>B]]", 1.0),
        ("[[B>A]]", 0.0),
        ("[[A=B]]", 0.5),
        ("[[B=A]]", 0.5),
        ("At first [[A>B]], but then again [[B>>A]].", 0.0),  # the last one
        ("[[A>A]]", None),
        ("[[A]] A>B", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts(text: str, expected: float | None) -> None:
    assert verdict(Answer(text, "stop", None, 1, 1)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One might say [[A>B]], but then", None),
        ("Reasons.\n[[B>A]]", 0.0),
        ("Verdict: [[A=B]]. And yet [[A>B]] might", 0.5),
    ],
)
def test_a_reply_that_was_cut_has_given_only_the_verdict_that_it_states(text: str, expected: float | None) -> None:
    assert verdict(Answer(text, "length", None, 1, 1)) == expected


def asked(tmp_path: Path, question: Question) -> list[list[dict[str, str]]]:
    with serve() as server:
        load("llm", settings(server), {}, Kept(tmp_path / "store.sqlite")).judge([question])
    return [exchange.asked["messages"] for exchange in server.exchanges]


def test_a_prompt_of_one_turn_is_shown_as_it_always_was(tmp_path: Path) -> None:
    """To the byte, here as a digest: answers that were paid for are found again."""
    shown = asked(tmp_path, QUESTIONS[1])
    digests = {hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16] for messages in shown}
    assert digests == {"491c8e40208e775d", "d25fc2c4245cfa3b"}


def test_a_conversation_is_shown_whole(tmp_path: Path) -> None:
    context = [
        {"role": "system", "content": "Be {brief}."},
        {"role": "user", "content": "Say dog"},
        {"role": "assistant", "content": "dog"},
    ]
    shown = asked(tmp_path, Question("Say cat", "", ["cat", "cow"], "p1", json.dumps(context)))
    first, second = sorted(messages[1]["content"] for messages in shown)
    assert first == (
        "Both assistants have answered the last turn of this conversation, and know all of it.\n\n"
        "<|The Start of the Conversation|>\n<|System|>\nBe {brief}.\n\n<|User|>\nSay dog\n\n<|Assistant|>\ndog\n\n"
        "<|User|>\nSay cat\n<|The End of the Conversation|>\n\n<|The Start of Assistant A's Answer|>\ncat\n"
        "<|The End of Assistant A's Answer|>\n\n<|The Start of Assistant B's Answer|>\ncow\n"
        "<|The End of Assistant B's Answer|>"
    )
    assert "Answer|>\ncow\n" in second and {messages[0]["role"] for messages in shown} == {"system"}
