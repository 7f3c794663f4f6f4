"""The judge's client against a real server on the loopback interface: faults, kills, budgets, secrets."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.oracles import Judge
from mnpo.config.sources import Model
from mnpo.demo.faults import REFUSALS
from mnpo.demo.judge import Loopback, serve
from mnpo.demo.verdicts import Reply
from mnpo.demo.world import CATEGORIES
from mnpo.errors import BadInput
from mnpo.judging import client as module
from mnpo.judging.client import Answer, BudgetSpent, Client, Request, require_key

WORDS = [word for members in CATEGORIES.values() for word in members]
SECRET = "distinctivekey0123456789"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "answers.sqlite"


@pytest.fixture
def client(store: Path) -> Callable[..., Client]:
    def _client(server: Loopback, **settings: Any) -> Client:
        return Client(Judge(model="demo", endpoint=server.url, **{"concurrency": 4, **settings}), store)

    return _client


def asked(*words: str, **settings: Any) -> list[Request]:
    """Questions whose answers are known: the demo's server says a word twice when it is told to."""
    return [Request(word, ({"role": "user", "content": f"Say {word} 2 times"},), **settings) for word in words]


def expected(*words: str) -> list[str]:
    return [f"{word} {word}" for word in words]


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def stored(path: Path) -> list[str]:
    """Names of the stored requests."""
    database = sqlite3.connect(path)
    try:
        return [name for (name,) in database.execute("SELECT name FROM answers ORDER BY name")]
    finally:
        database.close()


# -------------------------------------------------------------------------------------------------------------- asking


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


# -------------------------------------------------------------------------------------------------------------- faults


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


def test_what_retry_after_may_say() -> None:
    def seconds(value: str) -> float | None:
        return module._retry_after({"retry-after": value})

    assert [seconds(v) for v in ("2", "0.5", "-3", "0")] == [2.0, 0.5, 0.0, 0.0]
    assert [seconds(v) for v in ("", "soon", "nan", "Wed, 99 Foo")] == [None] * 4
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    ahead = seconds(email.utils.formatdate(time.time() + 5000, usegmt=True))
    assert ahead is not None and 4000 < ahead <= 5000


def test_an_endpoint_that_wants_to_be_left_alone_for_hours_is(client: Callable[..., Client]) -> None:
    with serve(faults=["429@1"], retry_after=7200) as server:
        with pytest.raises(BadInput, match=r"left alone for 7200 s\); run it again after that"):
            client(server, concurrency=1).ask(asked("cat", "dog"))
        assert server.requests == 1


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [
        ("400", "check the judge's settings"),
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


def test_replies_that_say_less_or_other_than_they_should() -> None:
    (request,) = asked("cat", logprobs=2)  # 15 bytes

    def read(choice: Any, usage: Any = None, **more: Any) -> Answer:
        return module._answer(json.dumps({"choices": [choice], "usage": usage, **more}), request)

    said = {"message": {"content": "né"}}  # 3 bytes
    assert read(said) == Answer("né", "stop", None, 15, 3)
    assert read({"message": {"content": None}, "finish_reason": "content_filter"}, {"prompt_tokens": 7}) == Answer(
        "", "content_filter", None, 7, 0
    )
    tops = [{"token": "m", "logprob": -0.25}, {"token": "M", "logprob": -1.5}]
    for given, found in [(None, None), ({"content": []}, None), ({"content": [{"top_logprobs": tops}] * 2}, tops)]:
        logprobs = found and tuple((top["token"], top["logprob"]) for top in found)
        assert read(said | {"logprobs": given}).logprobs == logprobs
    for wrong in ({}, {"message": None}, {"message": {"content": 3}}, "text", said | {"logprobs": {"content": [{}]}}):
        with pytest.raises(module._Trouble, match="no chat completion"):
            read(wrong)
    for text in ("", "null", "[]", '{"error": {"message": "overloaded"}}', '{"choices": []}'):
        with pytest.raises(module._Trouble, match="no chat completion"):
            module._answer(text, request)


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


# -------------------------------------------------------------------------------------------------------------- budget


def test_the_budget_of_calls_is_never_exceeded(client: Callable[..., Client], store: Path) -> None:
    requests = asked(*WORDS[:12])
    with serve(delay=0.02) as server:
        for _ in range(2):  # a restart, by hand or by a scheduler, does not renew the budget
            with pytest.raises(BudgetSpent) as caught:
                client(server, concurrency=3, max_calls=5).ask(requests)
            assert server.requests == 5 == len(stored(store))
        message = str(caught.value)
        assert "max_calls (5) is spent: 5 calls and $0.0000" in message
        assert f"5 answers are in {store}" in message and "7 of 7 remain" in message
        raised = client(server, max_calls=12)
        assert texts(raised.ask(requests)) == expected(*WORDS[:12])
        assert server.requests == 12
        assert client(server, max_calls=1).ask(requests) == raised.ask(requests)  # who asks nothing needs no budget
        assert server.requests == 12


def test_refused_calls_cost_nothing_and_lost_ones_count(client: Callable[..., Client]) -> None:
    with serve(faults=["429@2", "500@3"], retry_after=0) as server:
        asking = client(server, max_calls=6)
        assert texts(asking.ask(asked(*WORDS[:6]))) == expected(*WORDS[:6])
        assert (server.requests, asking.tally["calls"]) == (8, 6)
    with serve(faults=["reset@2"]) as server:
        asking = client(server, max_calls=6)
        with pytest.raises(BudgetSpent):
            asking.ask(asked(*WORDS[:6]))
        assert (server.requests, server.answered, asking.tally["calls"]) == (6, 5, 6)


def test_the_budget_of_money_is_never_exceeded(client: Callable[..., Client], store: Path) -> None:
    # A dollar a token of output: two dollars an answer, and no call may cost more (max_tokens).
    priced = {"price_output": 1e6, "max_tokens": 2}
    with serve(delay=0.02) as server:
        asking = client(server, max_cost=7.0, **priced)
        with pytest.raises(
            BudgetSpent, match=r"max_cost \(7\) is spent: 3 calls and \$6.0000 in this job, and the next"
        ):
            asking.ask(asked(*WORDS[:8]))
        assert server.requests == 3 == len(stored(store))
        assert asking.tally["cost"] == 6.0
        asking = client(server, max_cost=16.0, **priced)
        assert texts(asking.ask(asked(*WORDS[:8]))) == expected(*WORDS[:8])
        assert (server.requests, asking.tally["cost"]) == (8, 10.0)


def test_a_lost_call_weighs_on_the_budget_with_all_it_may_have_cost(client: Callable[..., Client]) -> None:
    with serve(faults=["cut@1"]) as server:
        asking = client(server, max_cost=5.0, price_output=1e6, max_tokens=2)
        with pytest.raises(BudgetSpent):  # 2 for the lost one, 2 for the next, and 2 more would be 6
            asking.ask(asked(*WORDS[:8]))
        assert (server.requests, asking.tally["cost"]) == (2, 2.0)


def test_what_calls_cost_is_added_up(client: Callable[..., Client]) -> None:
    with serve() as server:
        asking = client(server, price_input=0.25, price_output=2.0)
        asking.ask(asked(*WORDS))
    assert (asking.tally["input_tokens"], asking.tally["output_tokens"]) == (4 * 36, 2 * 36)
    assert asking.tally["cost"] == pytest.approx(36 * (4 * 0.25 + 2 * 2.0) / 1e6, rel=1e-12)


def test_a_limit_of_money_without_prices_is_refused(client: Callable[..., Client]) -> None:
    with serve() as server, pytest.raises(BadInput, match="max_cost 3 limits nothing without prices"):
        client(server, max_cost=3.0)


# --------------------------------------------------------------------------------------------------------------- store

PROGRAM = """
import json, sys
from pathlib import Path
from mnpo.judging.client import Client, Request
from mnpo.config.oracles import Judge
client = Client(Judge(model="demo", endpoint=sys.argv[1], concurrency=8), Path(sys.argv[2]))
requests = [Request(f"r{i:03}", ({"role": "user", "content": f"Question {i:03}"},)) for i in range(int(sys.argv[3]))]
print(json.dumps({"texts": [answer.text for answer in client.ask(requests)], **client.tally}))
"""


def start(server: Loopback, store: Path, requests: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, server.url, str(store), str(requests)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out)  # type: ignore[no-any-return]


@pytest.mark.slow
def test_after_a_kill_no_stored_answer_is_asked_for_again(store: Path) -> None:
    with serve(delay=0.05) as server:
        process = start(server, store, 200)
        while server.answered < 60:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)  # for what is still on its way to the server
        before, kept = server.requests, stored(store)
        assert before - len(kept) <= 8 and len(kept) >= 60 - 8  # what was in flight, and nothing else
        result = finish(start(server, store, 200))
        assert server.requests == before + (200 - len(kept))
    assert (result["stored"], result["calls"]) == (len(kept), 200 - len(kept))
    assert result["texts"] == [f"I think that this is about question and {i:03}." for i in range(200)]
    times = Counter(exchange.prompt for exchange in server.exchanges)
    assert [times[f"Question {name[1:]}"] for name in kept] == [1] * len(kept)


@pytest.mark.slow
def test_two_processes_share_a_store(store: Path) -> None:
    with serve(delay=0.02) as server:
        results = [finish(process) for process in [start(server, store, 60) for _ in range(2)]]
        assert len(stored(store)) == 60
        assert (
            results[0]["texts"]
            == results[1]["texts"]
            == [f"I think that this is about question and {i:03}." for i in range(60)]
        )
        assert sum(result["calls"] for result in results) == server.requests
        assert [result["calls"] + result["stored"] for result in results] == [60, 60]
        assert finish(start(server, store, 60))["calls"] == 0


def test_what_another_process_has_stored_meanwhile_is_not_paid_for(
    client: Callable[..., Client], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        cat, dog = asked("cat", "dog")
        elsewhere = Answer("from elsewhere", "stop", None, 1, 1)
        asking = client(server, concurrency=1)
        key = module._key(asking.judge, dog, 0)

        def reply(messages: Any) -> Reply:
            with module._Store(store) as other:
                other.add(key, dog, asking.judge, elsewhere)
            return Reply("cat cat")

        monkeypatch.setattr("mnpo.demo.judge.reply", reply)
        assert texts(asking.ask([cat, dog])) == ["cat cat", "from elsewhere"]
        assert (server.requests, asking.tally["calls"], asking.tally["stored"]) == (1, 1, 1)


def test_of_two_answers_to_one_request_the_first_is_everybodys(store: Path) -> None:
    judge, (request,) = Judge(model="demo"), asked("cat")
    one, other = Answer("one", "stop", (("one", -0.5),), 1, 2), Answer("other", "stop", None, 3, 4)
    with module._Store(store) as here, module._Store(store) as there:
        assert here.add("key", request, judge, one) == one
        assert there.add("key", request, judge, other) == one == there.find("key")


@pytest.mark.parametrize("damage", ["text", "half", "page", "row", "foreign"])
def test_a_damaged_store_is_refused_and_left_as_it_is(client: Callable[..., Client], store: Path, damage: str) -> None:
    with serve() as server:
        client(server).ask(asked(*WORDS))
        content = store.read_bytes()
        match damage:
            case "text":
                store.write_text("not a database at all\n" * 50)
            case "half":
                store.write_bytes(content[: len(content) // 2])
            case "page":
                store.write_bytes(content[:4096] + b"\xff" * 4096 + content[8192:])
            case "row":
                with sqlite3.connect(store) as database:
                    database.execute("UPDATE answers SET answer = '{\"text\": 1' WHERE name = 'cat'")
                database.close()
            case "foreign":
                store.unlink()
                with sqlite3.connect(store) as database:
                    database.execute("CREATE TABLE things (name TEXT)")
                database.close()
        damaged, requests = store.read_bytes(), server.requests
        with pytest.raises(BadInput, match="not a readable store of answers .* it is left as it is") as caught:
            opened = client(server)
            assert damage == "row", "other damage is seen before anything is asked"
            opened.ask(asked(*WORDS))
        assert str(caught.value).startswith(f"{store}: ")
        assert (store.read_bytes(), server.requests) == (damaged, requests)


def test_a_store_that_cannot_be_made_is_one_message(client: Callable[..., Client], store: Path) -> None:
    store.mkdir(parents=True)
    with serve() as server, pytest.raises(BadInput, match="the store of answers cannot be used"):
        client(server)


# ------------------------------------------------------------------------------------------------------------- secrets


def test_a_key_is_needed_before_anything_is_asked(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(model="gpt-5-mini", key="JUDGE_KEY")
    for value in (None, "", "  "):
        monkeypatch.delenv("JUDGE_KEY", raising=False)
        if value is not None:
            monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(BadInput, match="https://api.openai.com/v1 needs a key.* JUDGE_KEY is not set"):
            require_key(judge)
        with pytest.raises(BadInput, match="JUDGE_KEY"):
            Client(judge, store)
    assert not store.exists()
    monkeypatch.setenv("JUDGE_KEY", f"  {SECRET}\n")  # as `export JUDGE_KEY=$(cat file)` may leave it
    require_key(judge)


def test_loopback_endpoints_need_none() -> None:
    for host in ("127.0.0.1", "localhost", "127.1.2.3", "[::1]"):
        require_key(Judge(model="demo", endpoint=f"http://{host}:8000/v1", key="NOT_SET"))
    for host in ("127.0.0.1.example.org", "10.0.0.1", "localhost.example.org"):
        with pytest.raises(BadInput, match="NOT_SET"):
            require_key(Judge(model="demo", endpoint=f"http://{host}:8000/v1", key="NOT_SET"))


def test_a_key_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (f"{SECRET}\n{SECRET}", f"{SECRET} {SECRET}", f"{SECRET}é"):
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(BadInput, match="JUDGE_KEY holds no key") as caught:
            require_key(Judge(model="gpt-5-mini", key="JUDGE_KEY"))
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["api.openai.com/v1", "ftp://host/v1", "https:///v1", "https://host/v1?key=1"])
def test_an_endpoint_must_be_an_address(endpoint: str) -> None:
    with pytest.raises(BadInput, match="is no address such as"):
        require_key(Judge(model="demo", endpoint=endpoint))


def test_a_key_within_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(BadInput, match="host holds a user or password") as caught:
        require_key(Judge(model="demo", endpoint=f"https://me:{SECRET}@host/v1"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("echo", ["key {authorization}", "x" * 275 + "{authorization}"])
@pytest.mark.parametrize("fault", ["401", "500"])
def test_the_key_is_nowhere_but_in_the_header(
    client: Callable[..., Client],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    fault: str,
    echo: str,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    monkeypatch.setitem(REFUSALS, fault, echo)
    caplog.set_level(logging.DEBUG)
    with serve(faults=[f"{fault}@2-9"]) as server:
        asking = client(server, key="JUDGE_KEY", concurrency=1, retries=1)
        # The server's answer repeats the words of its question: an echo in an answer, which is stored.
        (answer,) = asking.ask([Request("echo", ({"role": "user", "content": f"{SECRET}?"},))])
        assert answer.text == "I think that this is about [key]."
        with pytest.raises(BadInput, match="HTTP") as caught:
            asking.ask(asked("cat"))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(vars(asking))
    shown += caplog.text + "".join(capfd.readouterr())
    assert "HTTP" in shown and SECRET[:12] not in shown
    files = list(store.parent.iterdir())
    assert files and all(SECRET.encode() not in file.read_bytes() for file in files)
