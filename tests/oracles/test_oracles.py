"""From scores to preferences, win rates and cycles; how an oracle is made of its settings."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo import oracles
from mnpo.config.oracles import Oracle
from mnpo.oracles import Question, has_cycle, preferences_from_scores, win_rates

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


def test_bradley_terry_turns_differences_of_scores_into_probabilities() -> None:
    """logistic(ln 3 / 1) = 3/4; twice the temperature, the root of the odds."""
    soft = preferences_from_scores([math.log(3), 0.0], 1.0)
    assert soft[0] == pytest.approx([0.5, 0.75]) and soft[1] == pytest.approx([0.25, 0.5])
    assert preferences_from_scores([math.log(9), 0.0], 2.0)[0][1] == pytest.approx(0.75)
    assert preferences_from_scores([1e6, 0.0], 0.1) == [[0.5, 1.0], [0.0, 0.5]]  # without overflow


def test_a_scorer_reads_its_temperature_from_the_settings() -> None:
    rule = {"kind": "rule", "rule": "brevity"}
    settings = {
        "hard": Oracle.model_validate(rule),
        "soft": Oracle.model_validate(rule | {"temperature": 0.5}),
        "sum": Oracle.model_validate({"kind": "weighted", "weights": {"hard": 2}, "temperature": 0.5}),
    }
    question = Question(
        "Opposite of hot?", '{"family": "opposite", "answer": "cold", "word": "hot"}', ["cold", "a b c"]
    )
    hard, soft, weighted = (oracles.load(name, settings, {}).judge([question])[0] for name in settings)
    a, b = hard.scores
    assert hard.preferences[0][1] == 1.0 and soft.scores == hard.scores
    assert soft.preferences[0][1] == pytest.approx(1 / (1 + math.exp(-(a - b) / 0.5)))
    assert weighted.preferences[0][1] == pytest.approx(1 / (1 + math.exp(-2 * (a - b) / 0.5)))


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=7), st.floats(0.1, 3))
def test_sppos_authors_count_a_response_against_itself(scores: list[float], temperature: float) -> None:
    """Their `compute_prob.py`: the row sum of logistic(s_i - s_j) over all K, the own 1/2 included, divided by K. So
    P - 1/2 is (K - 1) / K of ours, 0.8 at K = 5 (ledger, point 48)."""
    preferences = preferences_from_scores(scores, temperature)
    theirs = [sum(1 / (1 + math.exp((b - a) / temperature)) for b in scores) / len(scores) for a in scores]
    ours, own = win_rates(preferences), win_rates(preferences, own=True)
    assert own == pytest.approx(theirs)
    share = (len(scores) - 1) / len(scores)
    assert [p - 0.5 for p in own] == pytest.approx([share * (p - 0.5) for p in ours])


def test_at_five_responses_the_own_one_leaves_four_fifths() -> None:
    assert win_rates(preferences_from_scores([4.0, 3.0, 2.0, 1.0, 0.0])) == [1, 0.75, 0.5, 0.25, 0]
    assert win_rates(preferences_from_scores([4.0, 3.0, 2.0, 1.0, 0.0]), own=True) == pytest.approx(
        [0.9, 0.7, 0.5, 0.3, 0.1]
    )


def test_pairs_that_were_not_compared_count_for_nobody() -> None:
    nan = math.nan
    preferences = [[0.5, 0.9, nan], [0.1, 0.5, nan], [nan, nan, 0.5]]
    assert win_rates(preferences) == pytest.approx([0.9, 0.1, 0.5])
    assert not has_cycle(preferences)
    # a > b > c > d > a along the compared pairs; the diagonals are open.
    ring = [[0.5, 1, nan, 0], [0, 0.5, 1, nan], [nan, 0, 0.5, 1], [1, nan, 0, 0.5]]
    assert has_cycle(ring)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "annotator"}, "kind annotator needs of"),
        ({"kind": "pair-model"}, "kind pair-model needs model"),
        ({"kind": "judge"}, "kind judge needs judge"),
        ({"kind": "majority", "of": ["a"], "temperature": 1}, "kind majority does not read temperature"),
        ({"kind": "reward-model", "model": "m", "comparisons": 4}, "kind reward-model does not read comparisons"),
        ({"kind": "judge", "judge": {"model": "j"}, "dtype": "float32"}, "kind judge does not read dtype"),
        ({"kind": "majority", "of": []}, "at least 1 item"),
    ],
)
def test_each_kind_reads_its_own_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Oracle.model_validate(settings)


def test_every_kind_has_a_module_that_builds_it() -> None:
    kinds = get_args(Oracle.model_fields["kind"].annotation)
    assert set(oracles.MODULES) == set(kinds)
    assert all(callable(import_module(f"mnpo.oracles.{oracles.MODULES[kind]}").build) for kind in kinds)


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
