"""Faults of an endpoint, a real server on the loopback interface: what is tried again, and when all stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.demo.judge import serve
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.requests import Request
from tests.helpers.repeated_words import WORDS, asked, expected, stored, texts


@pytest.mark.parametrize(
    ("fault", "lost"),
    [("429", 0), ("429-date", 0), ("500", 0), ("503", 0)]  # refused: not billed
    + [("truncated", 2), ("cut", 2), ("schema", 2), ("reset", 2)],  # perhaps billed
)
def test_every_fault_is_survived(client: Callable[..., Client], fault: str, lost: int) -> None:
    with serve(faults=[f"{fault}@2-3"], retry_after=0) as server:
        asking = client(server)
        assert texts(asking.ask(asked(*WORDS[:8]))) == expected(*WORDS[:8])
        assert server.requests == 8 + 2
    assert (asking.tally["retried"], asking.tally["lost"], asking.tally["calls"]) == (2, lost, 8 + lost)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_an_answer_that_does_not_come_is_asked_for_again(client: Callable[..., Client], fault: str) -> None:
    with serve(faults=[f"{fault}@2-3"]) as server:
        asking = client(server, timeout=2.0)
        assert texts(asking.ask(asked(*WORDS[:8]))) == expected(*WORDS[:8])
    assert asking.tally["lost"] == asking.tally["retried"] >= 2


@pytest.mark.parametrize(("fault", "seconds"), [("429", 2.5), ("429-date", 2.5)])
def test_nobody_asks_before_the_endpoint_says_so(client: Callable[..., Client], fault: str, seconds: float) -> None:
    # Requests 2 to 4 hang, so that their workers look for something to do while the first one must wait.
    with serve(faults=[f"{fault}@1", "hang@2-4"], retry_after=seconds) as server:
        answers = client(server, timeout=1.5).ask(asked(*WORDS[:8]))
    assert texts(answers) == expected(*WORDS[:8])
    refused, *later = (exchange.arrived for exchange in server.exchanges)
    assert min(later[3:]) - refused >= seconds


def test_an_endpoint_that_wants_to_be_left_alone_for_hours_is(client: Callable[..., Client]) -> None:
    with serve(faults=["429@1"], retry_after=7200) as server:
        with pytest.raises(BadInput, match=r"left alone for 7200 s\); run it again after that"):
            client(server, concurrency=1).ask(asked("cat", "dog"))
        assert server.requests == 1


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("401", "check the key in the environment variable JUDGE_KEY"),
        ("403", "the account of the key in JUDGE_KEY may use this model"),
        ("404", "check the judge's endpoint and model"),
        ("quota", "more quota"),
    ],
)
def test_what_no_further_try_can_mend_stops_at_once(client: Callable[..., Client], fault: str, remedy: str) -> None:
    with serve(faults=[f"{fault}@3"], delay=0.01) as server:
        with pytest.raises(BadInput, match=remedy) as caught:
            client(server, key="JUDGE_KEY", concurrency=1).ask(asked(*WORDS))
        assert server.requests == 3
    assert f"{server.url}, model demo: {WORDS[2]}: HTTP 4" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", ["400", "422"])
def test_a_refused_question_is_stored_left_out_and_not_asked_again(
    client: Callable[..., Client], store: Path, fault: str
) -> None:
    """The third of fourteen; then the same from the store."""
    words = WORDS[:14]
    with serve(faults=[f"{fault}@3"]) as server:
        asking = client(server, concurrency=1, max_calls=13)
        answers = asking.ask(asked(*words))
        assert server.requests == 14 and stored(store) == sorted(words)
        again = client(server, max_calls=13)
        assert again.ask(asked(*words)) == answers
        assert server.requests == 14
    assert texts(answers) == [*expected(*words[:2]), "", *expected(*words[3:])]
    assert answers[2].refused and answers[2].reason.startswith(f"HTTP {fault}: ")
    assert (asking.tally["refused"], asking.tally["calls"], asking.tally["input_tokens"]) == (1, 13, 13 * 4)
    assert (again.tally["refused"], again.tally["stored"], again.tally["calls"]) == (1, 14, 0)


def test_a_refused_question_has_no_verdict_and_is_not_reasked(client: Callable[..., Client]) -> None:
    with serve(faults=["400@3", "unparsable@4"]) as server:
        asking = client(server, concurrency=1, reasks=2)
        found = asking.verdicts(asked(*WORDS[:14]), lambda answer: answer.text if " " in answer.text else None)
        assert server.requests == 14  # "I would rather not say." is read here
    assert found[2] is None and found.count(None) == 1
    assert (asking.tally["refused"], asking.tally["reasked"], asking.tally["unparsable"]) == (1, 0, 0)


def test_where_most_questions_are_refused_it_is_the_settings(client: Callable[..., Client], store: Path) -> None:
    with serve(faults=["400@2-99"]) as server:
        with pytest.raises(BadInput, match=r"HTTP 400: .*; 12 of 13 questions are refused, .* settings") as caught:
            client(server, concurrency=1).ask(asked(*WORDS))
        assert server.requests == 13
    assert f"{server.url}, model demo: {WORDS[1]}: " in str(caught.value) and "\n" not in str(caught.value)
    assert stored(store) == [WORDS[0]]
    with serve(faults=["400@1"]) as server, pytest.raises(BadInput, match="1 of 1 questions are refused"):
        client(server).ask(asked("cat"))


def test_a_redirect_to_another_server_is_refused_and_said(client: Callable[..., Client]) -> None:
    with serve(faults=["307%1"]) as server, serve() as other:
        server.elsewhere = other.url + "/chat/completions"
        with pytest.raises(BadInput, match=f"HTTP 307: it sends its questions on to {other.url}/.*; no question was"):
            client(server, concurrency=1).ask(asked(*WORDS))
        assert (server.requests, other.requests) == (1, 0)


def test_a_reply_without_end_is_refused(client: Callable[..., Client]) -> None:
    with serve(faults=["flood@2"]) as server:
        asking = client(server, concurrency=1)
        with pytest.raises(BadInput, match="dog: a reply of more than 16 MiB, which is refused; check that"):
            asking.ask(asked("cat", "dog"))
        assert server.requests == 2 and asking.tally["lost"] == 1


def test_answers_under_way_are_stored_when_all_stops(client: Callable[..., Client], store: Path) -> None:
    with serve(faults=["401@2"], delay=0.2) as server:
        with pytest.raises(BadInput, match="HTTP 401"):
            client(server, concurrency=4).ask(asked(*WORDS))
        assert 3 <= server.answered == len(stored(store)) < 8


def test_one_request_without_an_answer_does_not_keep_the_others_from_theirs(
    client: Callable[..., Client], store: Path
) -> None:
    with serve(faults=["500@2-3"]) as server:
        with pytest.raises(BadInput, match=r"1 requests got no answer in 2 tries, the first dog \(HTTP 500") as caught:
            client(server, concurrency=1, retries=1).ask(asked("cat", "dog", "cow", "pig"))
        assert server.requests == 5
        assert stored(store) == ["cat", "cow", "pig"]
        assert f"3 answers are in {store}" in str(caught.value)
        assert texts(client(server).ask(asked("cat", "dog", "cow", "pig"))) == expected("cat", "dog", "cow", "pig")
        assert server.requests == 6


def test_requests_without_an_answer_among_others_are_no_endpoint_that_is_down(client: Callable[..., Client]) -> None:
    with serve(faults=["500@2-3", "500@5-6", "500@8-9"]) as server:
        with pytest.raises(BadInput, match="3 requests got no answer in 2 tries"):
            client(server, concurrency=1, retries=1).ask(asked(*WORDS[:8]))
        assert (server.requests, server.answered) == (5 + 3 * 2, 5)


def test_an_endpoint_that_is_down_is_given_up(client: Callable[..., Client]) -> None:
    with serve(faults=["503%1"]) as server:
        with pytest.raises(BadInput, match="3 requests got no answer in 3 tries"):
            client(server, concurrency=1, retries=2).ask(asked(*WORDS))
        assert server.requests == 3 * 3
    with pytest.raises(BadInput, match=r"the connection failed \(ConnectError\)"):  # now nobody listens there
        client(server, concurrency=1, retries=2).ask(asked(*WORDS))


def test_half_a_character_is_refused_before_it_is_asked(client: Callable[..., Client]) -> None:
    with (
        serve() as server,
        pytest.raises(BadInput, match=r"question 7: a message holds half a character \('\\ud800'\)"),
    ):
        client(server).ask([Request("question 7", ({"role": "user", "content": "a\ud800b"},))])
    assert server.requests == 0


def test_no_proxy_stands_between_the_machine_and_itself(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serve() as server:
        assert texts(client(server, retries=0).ask(asked("cat"))) == ["cat cat"]
