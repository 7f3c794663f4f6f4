"""The budgets of calls and of money, kept to against a real server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.demo.judge import serve
from mnpo.judging.budget import BudgetSpent
from mnpo.judging.client import Client
from tests.helpers.repeated_words import WORDS, asked, expected, stored, texts


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
