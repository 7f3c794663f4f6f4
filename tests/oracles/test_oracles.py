"""From scores to preferences, win rates and cycles; how an oracle is made of its settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo import oracles
from mnpo.config import Oracle
from mnpo.oracles import has_cycle, preferences_from_scores, win_rates

ROCK_PAPER_SCISSORS = [[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]]
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=7)


def test_whoever_scores_higher_is_preferred_and_equals_share() -> None:
    assert preferences_from_scores([1.0, 3.0, 1.0]) == [[0.5, 0.0, 0.5], [1.0, 0.5, 1.0], [0.5, 0.0, 0.5]]


@given(SCORES)
def test_preferences_of_scores_add_up_to_one_and_never_run_in_circles(scores: list[float]) -> None:
    preferences = preferences_from_scores(scores)
    n = len(scores)
    assert all(preferences[a][b] + preferences[b][a] == 1 for a in range(n) for b in range(n))
    assert not has_cycle(preferences)
    assert sum(win_rates(preferences)) == pytest.approx(n / 2)  # everybody plays everybody, one point a game


def test_win_rates_are_means_over_the_others() -> None:
    # Against (b, c): a wins .9 and .6; b .1 and .5; c .4 and .5.
    preferences = [[0.5, 0.9, 0.6], [0.1, 0.5, 0.5], [0.4, 0.5, 0.5]]
    assert win_rates(preferences) == pytest.approx([0.75, 0.3, 0.45])
    assert win_rates(ROCK_PAPER_SCISSORS) == [0.5, 0.5, 0.5]
    assert win_rates([[0.5]]) == [0.5]
    assert win_rates([[0.5, 1.0], [0.0, 0.5]]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("preferences", "cyclic"),
    [
        (ROCK_PAPER_SCISSORS, True),
        ([[0.5, 1.0, 0.5], [0.0, 0.5, 1.0], [0.5, 0.0, 0.5]], False),  # a > b > c, and c ties with a
        ([[0.5, 0.51, 0.49], [0.49, 0.5, 0.51], [0.51, 0.49, 0.5]], True),  # strict, however slightly
        ([[0.5, 0.5], [0.5, 0.5]], False),
        ([[0.5]], False),
        # d beats all of rock, paper and scissors: there is a winner, and a circle below it.
        ([[0.5, 0, 1, 0], [1, 0.5, 0, 0], [0, 1, 0.5, 0], [1, 1, 1, 0.5]], True),
        # a > b > c > d > a, and ties across.
        ([[0.5, 1, 0.5, 0], [0, 0.5, 1, 0.5], [0.5, 0, 0.5, 1], [1, 0.5, 0, 0.5]], True),
    ],
)
def test_cycles_are_strict_preferences_in_a_circle(preferences: list[list[float]], cyclic: bool) -> None:
    assert has_cycle(preferences) is cyclic


def test_an_oracle_is_made_of_its_settings_and_those_of_its_members(oracle_settings: dict[str, Any]) -> None:
    from mnpo.oracles.ensembles import Majority, Weighted
    from mnpo.oracles.rules import Rule

    settings = {name: Oracle.model_validate(s) for name, s in oracle_settings.items()}
    weighted, majority = (oracles.load(name, settings, {}) for name in ("overall", "majority"))
    assert isinstance(weighted, Weighted) and isinstance(majority, Majority)
    assert weighted.weights == {"correctness": 1.0, "brevity": 0.4, "courtesy": 0.2}
    members = [m for m in majority.members.values() if isinstance(m, Rule)]
    assert [m.name for m in members] == ["correctness", "brevity", "courtesy"]
