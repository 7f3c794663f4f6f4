"""Equilibria by their own conditions, gaps by hand and by numerical best responses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mnpo.errors import BadInput
from mnpo.method import equilibria, games, updates
from mnpo.method.equilibria import duality_gap, player_gap
from mnpo.method.games import preset

RPS = games.rock_paper_scissors()
HALF = np.log([1 / 2, 1 / 4, 1 / 4])  # rock, paper, scissors; P(y > HALF) = (4, 5, 3) / 8


def test_gaps_by_hand() -> None:
    rock = np.array([1.0, 0, 0])
    assert duality_gap(RPS, rock) == 1.0  # paper wins always: 1 - 1/2, for both players
    assert player_gap(RPS, rock, np.array([0, 1.0, 0])) == 1.0  # scissors would win always, rock loses always
    assert duality_gap(RPS, np.exp(HALF)) == pytest.approx(2 * (5 / 8 - 1 / 2))
    assert duality_gap(RPS, np.full(3, 1 / 3)) == pytest.approx(0, abs=1e-15)


def test_duality_gap_is_max_minus_min() -> None:
    preference, policy = games.random_preference(6, 3), np.random.default_rng(1).dirichlet(np.ones(6))
    assert duality_gap(preference, policy) == pytest.approx((preference @ policy).max() - (policy @ preference).min())


def test_regularised_gap_against_numerical_best_response() -> None:
    preference, tau = games.random_preference(4, 3), 0.2
    policy, reference = np.random.default_rng(1).dirichlet(np.ones(4)), games.default_reference(4)

    def objective(probabilities: np.ndarray) -> float:
        return probabilities @ preference @ policy - tau * probabilities @ (np.log(probabilities) - reference)

    best = minimize(lambda logits: -objective(np.exp(games.log_softmax(logits))), np.zeros(4), tol=1e-12)
    assert player_gap(preference, policy, policy, tau, reference) == pytest.approx(
        -best.fun - objective(policy), abs=1e-9
    )


def test_nash_of_rps_is_uniform() -> None:
    np.testing.assert_allclose(equilibria.nash(RPS), 1 / 3, atol=1e-12)


def test_nash_of_bradley_terry_is_the_best_action() -> None:
    np.testing.assert_allclose(equilibria.nash(games.bradley_terry([0.3, 1.2, -2.0, 1.1])), [0, 1, 0, 0], atol=1e-12)


@given(st.integers(0, 500), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_gap_is_zero_at_nash_and_positive_elsewhere(seed: int, actions: int) -> None:
    preference = games.random_preference(actions, seed)
    assert duality_gap(preference, equilibria.nash(preference)) < 1e-9
    elsewhere = np.random.default_rng(seed).dirichlet(np.ones(actions))
    assert duality_gap(preference, elsewhere) > 1e-6


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", games.PRESETS)
def test_regularised_equilibrium_meets_its_condition(name: str, tau: float) -> None:
    game = preset(name, tau=tau)
    (preference,) = game.preferences
    logs = equilibria.regularised_equilibrium(preference, game.reference, tau)
    np.testing.assert_allclose(logs, updates.ipo(preference, logs, game.reference, 1 / tau), atol=1e-9)
    assert duality_gap(preference, np.exp(logs), tau, game.reference) < 1e-12
    elsewhere = 0.9 * np.exp(logs) + 0.1 * (np.arange(game.actions) == 0)
    assert duality_gap(preference, elsewhere, tau, game.reference) > 1e-4


def test_regularised_equilibrium_goes_from_reference_to_nash() -> None:
    game = preset("random")
    (preference,) = game.preferences
    strong, weak = (equilibria.regularised_equilibrium(preference, game.reference, tau) for tau in (1e4, 1e-3))
    np.testing.assert_allclose(strong, game.reference, atol=1e-3)
    np.testing.assert_allclose(np.exp(weak), equilibria.nash(preference), atol=0.02)


def test_regularised_equilibria_of_several_games_are_those_of_each() -> None:
    preferences = np.stack([games.random_preference(4, seed) for seed in range(20)])
    references = np.log(np.random.default_rng(0).dirichlet(np.ones(4), 20))
    found = equilibria.regularised_equilibrium(preferences, references, 0.01)
    alone = [equilibria.regularised_equilibrium(p, r, 0.01) for p, r in zip(preferences, references, strict=True)]
    np.testing.assert_allclose(found, alone, atol=1e-9)


@given(st.integers(0, 10_000), st.integers(2, 3))
def test_the_closed_form_for_few_policies_is_a_nash_policy(seed: int, n: int) -> None:
    """Its worst outcome is 1/2, as linear programming's is."""
    wins = games.random_preference(n, seed)
    weights = equilibria.nash_of_few(wins)
    assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-12
    assert (weights @ wins).min() > 0.5 - 1e-12


def test_stakes_of_a_circle_by_hand() -> None:
    """a beats b by .1, b beats c by .2, c beats a by .3: weights are the wins of the other two, 2 : 3 : 1."""
    wins = 0.5 + np.array([[0, 0.1, -0.3], [-0.1, 0, 0.2], [0.3, -0.2, 0]])
    np.testing.assert_allclose(equilibria.nash_of_few(wins), [2 / 6, 3 / 6, 1 / 6])
    with pytest.raises(BadInput, match="4 policies"):
        equilibria.nash_of_few(np.full((4, 4), 0.5))
