"""The client against a real server on the loopback interface: what is asked, how often, and what is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.oracles import Judge
from mnpo.config.sources import Model
from mnpo.demo.judge import serve
from mnpo.judging.client import Client
from mnpo.judging.requests import Answer, Request
from tests.helpers.repeated_words import WORDS, asked, expected, texts


def test_answers_come_in_the_order_of_the_requests(client: Callable[..., Client]) -> None:
    with serve(faults=["500@1", "429@5"], retry_after=0.05, delay=0.01) as server:
        answers = client(server).ask(asked(*WORDS))
    assert texts(answers) == expected(*WORDS)
    served = [exchange.prompt for exchange in server.exchanges if exchange.answered]
    in_order = [f"Say {word} 2 times" for word in WORDS]
    assert served != in_order and sorted(served) == sorted(in_order)
    # "Say", the word, "2", "times"; and the word twice
    assert {(a.input_tokens, a.output_tokens, a.finish, a.logprobs) for a in answers} == {(4, 2, "stop", None)}


def test_nothing_asked_is_nothing_answered(client: Callable[..., Client]) -> None:
    with serve() as server:
        assert client(server).ask([]) == []
    assert server.requests == 0


def test_equal_requests_are_asked_once_and_stored_ones_never(client: Callable[..., Client]) -> None:
    with serve() as server:
        first = client(server)
        assert texts(first.ask(asked("cat", "dog", "cat"))) == expected("cat", "dog", "cat")
        assert server.requests == 2
        again = client(server)
        assert texts(again.ask(asked("dog", "cat", "cow"))) == expected("dog", "cat", "cow")
        assert server.requests == 3
    assert (first.tally["calls"], first.tally["stored"]) == (2, 0)
    assert (again.tally["calls"], again.tally["stored"]) == (1, 2)
    assert (again.tally["input_tokens"], again.tally["output_tokens"]) == (4, 2)


def test_whatever_an_answer_depends_on_is_asked_anew(store: Path) -> None:
    (plain,) = asked("cat")
    with serve() as server:

        def ask(request: Request = plain, **settings: Any) -> None:
            Client(Judge(**{"model": "demo", "endpoint": server.url, **settings}), store).ask([request])

        variants: list[Callable[[], None]] = [
            lambda: ask(),
            lambda: ask(model="other"),
            lambda: ask(temperature=0.0),
            lambda: ask(max_tokens=50),
            lambda: ask(seed=1),
            lambda: ask(reasoning_effort="minimal"),
            lambda: ask(*asked("dog")),
            lambda: ask(*asked("cat", logprobs=5)),
            lambda: ask(*asked("cat", repeat=2)),
            lambda: ask(*asked("cat", max_tokens=60)),
            lambda: ask(*asked("cat", temperature=0.7)),
        ]
        for n, variant in enumerate(variants, 1):
            variant()
            assert server.requests == n
        # What changes nothing of an answer: how it is asked for, what it is called, the same number written otherwise.
        ask(concurrency=1, retries=0, timeout=5.0, price_input=1.0, max_calls=5)
        ask(Request("another name", plain.messages))
        ask(*asked("cat", temperature=0))
        ask(endpoint=server.url + "/")
        assert server.requests == len(variants)


def test_settings_reach_the_wire(client: Callable[..., Client]) -> None:
    with serve() as server:
        client(server).ask(asked("cat"))
        client(server, temperature=0.5, max_tokens=7, seed=3).ask(asked("cat", logprobs=5))
        client(server, reasoning_effort="minimal", max_tokens=7).ask(asked("cat"))
        client(server, seed=3, temperature=0.5).ask(asked("cat", repeat=2, temperature=0.0, max_tokens=9))
        client(server, seed=3).ask(asked("cat", repeat=3))
    plain, full, reasoning, replaced, third = (exchange.asked for exchange in server.exchanges)
    message = {"messages": [{"role": "user", "content": "Say cat 2 times"}], "model": "demo"}
    assert plain == message
    sampling = {"temperature": 0.5, "max_tokens": 7, "seed": 3, "logprobs": True, "top_logprobs": 5}
    assert full == message | sampling
    assert reasoning == message | {"reasoning_effort": "minimal", "max_completion_tokens": 7}
    assert (replaced["temperature"], replaced["max_tokens"]) == (0.0, 9)
    assert len({3, replaced["seed"], third["seed"]}) == 3  # the same seed would give the same judgement again


def test_log_probabilities_of_the_first_token(client: Callable[..., Client]) -> None:
    with serve() as server:
        (answer,) = client(server).ask(asked("cat", logprobs=5))
    assert answer.logprobs == (("cat", 0.0),)
    with serve() as server:
        (again,) = client(server).ask(asked("cat", logprobs=5))
        (from_store,) = client(server).ask(asked("cat", logprobs=5))
    assert answer == again == from_store


def test_a_policy_behind_an_api_is_asked_in_the_same_way(store: Path) -> None:
    with serve() as server:
        policy = Model(api="somebody/policy", endpoint=server.url, key="SOME_KEY")
        assert policy.api is not None
        client = Client(Judge(model=policy.api, endpoint=policy.endpoint, key=policy.key), store)
        turns = (
            {"role": "user", "content": "Say cat 2 times"},
            {"role": "assistant", "content": "cat cat"},
            {"role": "user", "content": "Opposite of hot?"},
        )
        (answer,) = client.ask([Request("question 1, turn 2", turns, max_tokens=16, temperature=0.7)])
    assert answer.text == "cold"
    assert server.exchanges[0].asked["model"] == "somebody/policy"


def test_concurrency_is_bounded(client: Callable[..., Client]) -> None:
    with serve(delay=0.05) as server:
        client(server, concurrency=3).ask(asked(*WORDS[:18]))
    assert 1 < server.peak <= 3


def test_progress_says_how_many_of_how_many(
    client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mnpo.progress.SECONDS_BETWEEN_LINES", 0.0)
    with serve() as server:
        client(server).ask(asked("dog"))
        client(server).ask(asked("cat", "dog", "cow"))  # one of them is stored: the rate is of the others
    assert "judge: 1/2 answers" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_an_unparsable_verdict_is_asked_again_so_often_and_then_counted(client: Callable[..., Client]) -> None:
    def parse(answer: Answer) -> str | None:
        return answer.text if answer.text in expected(*WORDS) else None

    with serve(faults=["unparsable%1"]) as server:
        asking = client(server, reasks=2)
        assert asking.verdicts(asked("cat", "dog"), parse) == [None, None]
        assert server.requests == 2 * 3
        assert (asking.tally["reasked"], asking.tally["unparsable"]) == (4, 2)
        again = client(server, reasks=2)  # the same verdicts from the store, and the same counts
        assert again.verdicts(asked("cat", "dog"), parse) == [None, None]
        assert (again.tally["reasked"], again.tally["unparsable"], again.tally["calls"]) == (4, 2, 0)
        assert server.requests == 6
    with serve(faults=["unparsable@1-3"]) as server:
        asking = client(server, reasks=2, concurrency=1)
        assert asking.verdicts(asked("cat", "dog"), parse) == expected("cat", "dog")  # 1 2 | 3 4 | 5
        assert (server.requests, asking.tally["reasked"], asking.tally["unparsable"]) == (5, 3, 0)
