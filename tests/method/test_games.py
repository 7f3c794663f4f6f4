"""Exact games: numbers derived by hand, equilibria by their own conditions, and what converges."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from mnpo.method import games
from mnpo.method.games import duality_gap, play, player_gap, preset

RPS = games.rock_paper_scissors()
UNIFORM = np.log(np.full(3, 1 / 3))
HALF = np.log([1 / 2, 1 / 4, 1 / 4])  # rock, paper, scissors; P(y > HALF) = (4, 5, 3) / 8
RATE = 4 * np.log(2)  # exp(RATE * P) = 16^P, so the gains of HALF are 4, 2^2.5, 2^1.5


def shares(*unnormalised: float) -> np.ndarray:
    return np.array(unnormalised) / sum(unnormalised)


def assert_policy(logs: np.ndarray, *unnormalised: float) -> None:
    np.testing.assert_allclose(np.exp(logs), shares(*unnormalised), atol=1e-14)


# ------------------------------------------------------------------------------------------------------ by hand


def test_advantage_of_rps_by_hand() -> None:
    np.testing.assert_allclose(RPS @ np.exp(HALF), [4 / 8, 5 / 8, 3 / 8])


def test_multiplicative_weights_one_opponent_by_hand() -> None:
    """(1/2 * 4, 1/4 * 2^2.5, 1/4 * 2^1.5) = (2, 2^.5, 2^-.5)."""
    assert_policy(games.multiplicative_weights(RPS, HALF[None], RATE), 2, 2**0.5, 2**-0.5)


def test_multiplicative_weights_two_opponents_by_hand() -> None:
    """Opponents (1/2, 1/4, 1/4), (1/4, 1/2, 1/4): geometric mean (2^-1.5, 2^-1.5, 2^-2), mixture (3/8, 3/8, 1/4),
    beaten with (7, 9, 8) / 16: at rate 16 log 2 factors 2^7, 2^9, 2^8, in all 2^(5.5, 7.5, 6)."""
    opponents = np.stack([HALF, np.log([1 / 4, 1 / 2, 1 / 4])])
    assert_policy(games.multiplicative_weights(RPS, opponents, 4 * RATE), 1, 4, 2**0.5)


def test_inpo_by_hand() -> None:
    """Uniform reference with ratio 1/2: anchor (2^-.5, 1/2, 1/2), times the gains 2^1.5 * (1, 1, 1/2)."""
    assert_policy(games.inpo(RPS, HALF, UNIFORM, RATE, 0.5), 2, 2, 1)


def test_ipo_by_hand() -> None:
    """Reference HALF, pairs from the reference: (2, 2^.5, 2^-.5) as above; from uniform: all gains are the same."""
    assert_policy(games.ipo(RPS, HALF, HALF, RATE), 2, 2**0.5, 2**-0.5)
    assert_policy(games.ipo(RPS, UNIFORM, HALF, RATE), 2, 1, 1)


def test_td_mnpo_by_hand_and_the_two_comparisons_differ() -> None:
    """Anchor (2^-1.5, 2^-1.5, 2^-2). At rate 16 log 2 gains are 2^(8, 10, 6) against HALF, 2^(7, 9, 8) both."""
    history = np.stack([HALF, np.log([1 / 4, 1 / 2, 1 / 4])])
    policy = games.td_mnpo(RPS, history, [0.5, 0.5], UNIFORM, 4 * RATE, 0.0, "policy")
    opponents = games.td_mnpo(RPS, history, [0.5, 0.5], UNIFORM, 4 * RATE, 0.0, "opponents")
    assert_policy(policy, 1, 4, 2**-2.5)
    assert_policy(opponents, 1, 4, 2**0.5)


def test_onpo_by_hand() -> None:
    """From a uniform base the gains of HALF once: (2^.5, 2, 1) * 2^1.5, and twice: (2, 4, 1) * 2^3."""
    policy, base = games.onpo(RPS, HALF, UNIFORM, RATE)
    assert_policy(base, 2**0.5, 2, 1)
    assert_policy(policy, 2, 4, 1)


def test_egpo_by_hand() -> None:
    """The half step is INPO's (.4, .4, .2), which is beaten with (.4, .6, .5); the full step starts from HALF again:
    anchor (2^-.5, 2^-1, 2^-1) times 2^(1.6, 2.4, 2)."""
    policy, half = games.egpo(RPS, HALF, UNIFORM, RATE, 0.5)
    assert_policy(half, 2, 2, 1)
    assert_policy(policy, 2**1.1, 2**1.4, 2)


def test_nash_md_by_hand() -> None:
    """pi_t ∝ (4, 1, 1) mixed half and half with uniform is HALF, which then moves by its own gains."""
    assert_policy(games.nash_md(RPS, np.log(shares(4, 1, 1)), UNIFORM, RATE, 0.5), 2, 2**0.5, 2**-0.5)


def test_ht_mnpo_is_one_formula_per_player() -> None:
    """Written with products of probabilities, player by player: own oracle, the others' policies."""
    preferences = preset("random", players=3, actions=4).preferences
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=3)
    for comparisons in games.COMPARISONS:
        updated = games.ht_mnpo(
            preferences, np.log(probabilities), None, np.log(np.full(4, 1 / 4)), 2.0, 0, comparisons
        )
        for i in range(3):
            first, second = (probabilities[j] for j in range(3) if j != i)
            opposed = probabilities[i] if comparisons == "policy" else (first + second) / 2
            assert_policy(updated[i], *(np.sqrt(first * second) * np.exp(2.0 * preferences[i] @ opposed)))


def test_members_of_the_family_coincide_to_the_last_bit() -> None:
    policies = games.log_softmax(np.random.default_rng(0).normal(size=(3, 3)))
    current, _, reference = policies
    inpo = games.inpo(RPS, current, reference, 1.3, 0.4)
    np.testing.assert_array_equal(games.td_mnpo(RPS, current[None], [1.0], reference, 1.3, 0.4), inpo)
    np.testing.assert_array_equal(
        games.td_mnpo(RPS, policies[:2], [1.0, 0.0], reference, 1.3, 0.4), inpo, "an opponent of weight 0 is none"
    )
    ipo = games.ipo(RPS, current, reference, 1.3)
    np.testing.assert_array_equal(games.td_mnpo(RPS, policies[:2], [0.6, 0.4], reference, 1.3, 1.0), ipo)
    mwu = games.multiplicative_weights(RPS, policies[:2], 1.3, [0.6, 0.4])
    td = games.td_mnpo(RPS, policies[:2], [0.6, 0.4], reference, 1.3, 0.0, "opponents")
    np.testing.assert_allclose(td, mwu, atol=1e-15)
    np.testing.assert_allclose(
        games.nash_md(RPS, current, reference, 1.3, 0.0), games.inpo(RPS, current, reference, 1.3, 0)
    )


def test_history_weights_are_those_of_the_opponents_that_exist() -> None:
    """Iteration 1 has one opponent: of weights (.667, .333) only the first counts, and counts as 1 (eq. 4)."""
    one = games.td_mnpo(RPS, HALF[None], [0.667, 0.333], UNIFORM, 1.0, 0.2)
    np.testing.assert_array_equal(one, games.inpo(RPS, HALF, UNIFORM, 1.0, 0.2))


# ------------------------------------------------------------------------------------------- equilibria and gaps


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
    np.testing.assert_allclose(games.nash(RPS), 1 / 3, atol=1e-12)


def test_nash_of_bradley_terry_is_the_best_action() -> None:
    np.testing.assert_allclose(games.nash(games.bradley_terry([0.3, 1.2, -2.0, 1.1])), [0, 1, 0, 0], atol=1e-12)


@given(st.integers(0, 500), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_gap_is_zero_at_nash_and_positive_elsewhere(seed: int, actions: int) -> None:
    preference = games.random_preference(actions, seed)
    assert duality_gap(preference, games.nash(preference)) < 1e-9
    elsewhere = np.random.default_rng(seed).dirichlet(np.ones(actions))
    assert duality_gap(preference, elsewhere) > 1e-6


@pytest.mark.parametrize("tau", [1.0, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("name", games.PRESETS)
def test_regularised_equilibrium_meets_its_condition(name: str, tau: float) -> None:
    game = preset(name, tau=tau)
    (preference,) = game.preferences
    logs = games.regularised_equilibrium(preference, game.reference, tau)
    np.testing.assert_allclose(logs, games.ipo(preference, logs, game.reference, 1 / tau), atol=1e-9)
    assert duality_gap(preference, np.exp(logs), tau, game.reference) < 1e-12
    elsewhere = 0.9 * np.exp(logs) + 0.1 * (np.arange(game.actions) == 0)
    assert duality_gap(preference, elsewhere, tau, game.reference) > 1e-4


def test_regularised_equilibrium_goes_from_reference_to_nash() -> None:
    game = preset("random")
    (preference,) = game.preferences
    strong, weak = (games.regularised_equilibrium(preference, game.reference, tau) for tau in (1e4, 1e-3))
    np.testing.assert_allclose(strong, game.reference, atol=1e-3)
    np.testing.assert_allclose(np.exp(weak), games.nash(preference), atol=0.02)


# -------------------------------------------------------------------------------------------------- presets, files


@pytest.mark.parametrize("name", games.PRESETS)
@pytest.mark.parametrize("players", [1, 3])
def test_presets_are_preferences_and_start_off_equilibrium(name: str, players: int) -> None:
    game = preset(name, players=players)
    assert game.players == players
    for matrix in game.preferences:
        np.testing.assert_array_equal(games.check_preference(matrix, name), (matrix + 1 - matrix.T) / 2)
        assert duality_gap(matrix, np.exp(game.reference)) > 0.1


def test_presets_are_seeded() -> None:
    for name in ("random", "bradley-terry"):
        np.testing.assert_array_equal(preset(name, seed=3).preferences, preset(name, seed=3).preferences)
        assert abs(preset(name, seed=3).preferences - preset(name, seed=4).preferences).max() > 0.1


def test_bradley_terry_by_hand() -> None:
    np.testing.assert_allclose(games.bradley_terry([0, np.log(3)]), [[0.5, 0.25], [0.75, 0.5]])


def test_condorcet_by_hand() -> None:
    """Rankings abc, bca, cab with shares .4 .35 .25: a > b .65, b > c .75, c > a .6, a cycle of majorities."""
    mixture = games.condorcet([[0, 1, 2], [1, 2, 0], [2, 0, 1]], [0.4, 0.35, 0.25])
    np.testing.assert_allclose(mixture, [[0.5, 0.65, 0.4], [0.35, 0.5, 0.75], [0.6, 0.25, 0.5]])


def test_condorcet_preset_has_a_majority_cycle() -> None:
    beats = preset("condorcet").preferences[0] > 0.5
    assert any(beats[a, b] and beats[b, c] and beats[c, a] for a, b, c in itertools.permutations(range(6), 3))


def test_csv_game(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("0.5,0.2\n0.8,0.5\n")
    game = games.from_csv(path, path, tau=0.1)
    assert (game.name, game.players, game.actions, game.tau) == ("mine+mine", 2, 2, 0.1)
    np.testing.assert_allclose(game.preferences[0], [[0.5, 0.2], [0.8, 0.5]], atol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,0.2\n0.7,0.5\n", r"mine.csv, row 1, column 2: 0.2 \+ its opposite 0.7 = 0.9, P \+ P\^T must be 1.* 0.8"),
        ("0.5,nan\n0.7,0.5\n", "row 1, column 2: nan is not a finite number"),
        ("0.5,20\n0.7,0.5\n", "row 1, column 2: 20.0 is not a probability.*not percentages"),
        ("0.5,0.2\n0.8,1\n", "row 2, column 2: 1.0 on the diagonal: it must be 0.5"),
        ("0.5,0.2\n0.8\n", "row 2: 1 columns, 2 rows: the matrix must be square"),
        ("a,b\n0.5,0.2\n", "row 1, column 1: 'a' is no number; no header"),
        ("", "a preference matrix is square, with at least 2 actions"),
    ],
)
def test_csv_errors_name_file_place_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        games.from_csv(path)
    assert str(path) in str(error.value)


def test_csv_players_need_the_same_actions(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("0.5,0.2\n0.8,0.5\n")
    (tmp_path / "three.csv").write_text("0.5,1,0\n0,0.5,1\n1,0,0.5\n")
    with pytest.raises(ValueError, match=r"three\.csv has 3 actions, .*two\.csv 2"):
        games.from_csv(tmp_path / "two.csv", tmp_path / "three.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"algorithm": "td-mpno"}, "unknown algorithm 'td-mpno': did you mean 'td-mnpo'"),
        ({"algorithm": "inpo", "weights": (0.5, 0.5)}, "inpo has no history"),
        ({"algorithm": "td-mnpo", "weights": (1, float("nan"))}, r"weights \[1.0, nan\]"),
        ({"algorithm": "td-mnpo", "weights": (1, -1)}, r"weights \[1.0, -1.0\]: each must be a number >= 0"),
        ({"algorithm": "td-mnpo", "weights": (0, 1)}, "the first, pi_t's own, must be positive"),
        ({"algorithm": "td-mnpo", "comparisons": "oponents"}, r"unknown comparisons .* did you mean 'opponents'"),
        ({"algorithm": "egpo", "comparisons": "opponents"}, "egpo has one way to compare"),
        ({"algorithm": "ht-mnpo"}, "ht-mnpo on a game of 1 matrices"),
        ({"algorithm": "ipo"}, "ipo's rate is 1 / tau"),
        ({"algorithm": "inpo", "learning_rate": 0.0}, "must be positive"),
        ({"algorithm": "inpo", "steps": 0}, "must be positive"),
        ({"algorithm": "inpo", "record": [11]}, "between 1 and 10"),
    ],
)
def test_play_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        play(preset("rps"), **({"steps": 10} | arguments))


def test_game_errors() -> None:
    with pytest.raises(ValueError, match="unknown preset 'rsp': did you mean 'rps'"):
        preset("rsp")
    with pytest.raises(ValueError, match="rps has 3 actions, not 4"):
        preset("rps", actions=4)
    with pytest.raises(ValueError, match="tau is -1"):
        preset("rps", tau=-1)
    with pytest.raises(ValueError, match="3 rankings but 2 annotator shares"):
        games.condorcet([[0, 1], [1, 0], [0, 1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="share of the anchor is at most 1"):
        play(preset("rps", tau=0.6), "inpo", 10, learning_rate=2.0)


# ------------------------------------------------------------------------------------------------------ properties

logits = arrays(float, 5, elements=st.floats(-3, 3))


@given(logits, st.floats(-100, 100))
def test_a_constant_in_the_logits_is_no_difference(values: np.ndarray, constant: float) -> None:
    np.testing.assert_allclose(games.log_softmax(values + constant), games.log_softmax(values), atol=1e-10)
    assert np.exp(games.log_softmax(values)).sum() == pytest.approx(1)


@given(st.permutations(range(5)), logits, logits, logits, st.integers(0, 100))
@settings(deadline=None)
def test_renaming_actions_renames_the_update(
    order: list[int], current: np.ndarray, previous: np.ndarray, reference: np.ndarray, seed: int
) -> None:
    preference = games.random_preference(5, seed)

    def updates(p: np.ndarray, a: np.ndarray, b: np.ndarray, ref: np.ndarray) -> list[np.ndarray]:
        a, b, ref = map(games.log_softmax, (a, b, ref))
        return [
            games.inpo(p, a, ref, 1.5, 0.2),
            games.td_mnpo(p, np.stack([a, b]), [0.7, 0.3], ref, 1.5, 0.2, "opponents"),
            *games.onpo(p, a, b, 1.5),
            *games.egpo(p, a, ref, 1.5, 0.2),
            games.nash_md(p, a, ref, 1.5, 0.2),
        ]

    original = updates(preference, current, previous, reference)
    renamed = updates(preference[np.ix_(order, order)], current[order], previous[order], reference[order])
    for one, other in zip(original, renamed, strict=True):
        np.testing.assert_allclose(other, one[order], atol=1e-12)


@given(st.permutations(range(3)), arrays(float, (3, 5), elements=st.floats(-3, 3)))
def test_opponents_move_with_their_weights(order: list[int], values: np.ndarray) -> None:
    preference, opponents, weights = games.random_preference(5, 0), games.log_softmax(values), np.array([0.5, 0.3, 0.2])
    one = games.multiplicative_weights(preference, opponents, 1.0, weights)
    np.testing.assert_allclose(games.multiplicative_weights(preference, opponents[order], 1.0, weights[order]), one)


# ------------------------------------------------------------------------------------------------------------ play


def test_play_counts_steps_and_averages() -> None:
    """Three updates by hand calls; the average is over the policies 1..3, not the start."""
    game = preset("rps")
    policies, policy = [], game.reference
    for _ in range(3):
        policy = games.inpo(RPS, policy, game.reference, 0.7, 0.0)
        policies.append(np.exp(policy))
    trace = play(game, "inpo", 3, 0.7)
    assert trace.steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(trace.last[0], policies[-1])
    np.testing.assert_allclose(trace.average[0], np.mean(policies, axis=0))
    np.testing.assert_allclose(trace.gap_last[:, 0], [duality_gap(RPS, p) for p in policies])
    np.testing.assert_allclose(trace.gap_average[1, 0], duality_gap(RPS, np.mean(policies[:2], axis=0)))


def test_play_keeps_the_history_newest_first() -> None:
    game = preset("random", tau=0.1)
    (preference,) = game.preferences
    history, weights = [game.reference], [0.6, 0.4]
    for _ in range(3):
        history = [games.td_mnpo(preference, np.stack(history), weights, game.reference, 1.0, 0.1), *history][:2]
    np.testing.assert_allclose(play(game, "td-mnpo", 3, weights=weights).last[0], np.exp(history[0]))


def test_gap_of_the_average_obeys_the_regret_bound() -> None:
    """Hedge: after T steps at rate eta the average's gap is at most 2 (log(1/min start) / (eta T) + eta / 8); the best
    fixed eta makes that O(1/sqrt T). The averaged policies start at step 1."""
    game = preset("random")
    for steps in (10, 100, 1000, 10000):
        rate = np.sqrt(8 * np.log(game.actions) / steps)
        first = play(game, "inpo", 1, rate).last
        bound = 2 * (-np.log(first.min()) / (rate * steps) + rate / 8)
        gap = play(game, "inpo", steps, rate, record=[steps]).gap_average[0, 0]
        assert gap <= bound
        assert gap <= 2 / np.sqrt(steps)


@pytest.mark.parametrize("name", ["rps", "random", "condorcet"])
def test_without_the_reference_only_optimism_converges_in_the_last_iterate(name: str) -> None:
    game = preset(name)
    plain, several, onpo = (
        play(game, algorithm, 2000, weights=weights, record=range(1001, 2001))
        for algorithm, weights in (("inpo", None), ("td-mnpo", (0.667, 0.333)), ("onpo", None))
    )
    assert plain.gap_last.max() > 0.3 and several.gap_last.max() > 0.3
    assert plain.gap_average[-1] < 0.02 and several.gap_average[-1] < 0.01
    assert onpo.gap_last.max() < 0.015 and onpo.gap_average[-1] < 0.001


@pytest.mark.parametrize("name", games.PRESETS)
@pytest.mark.parametrize("algorithm", ["inpo", "td-mnpo", "onpo", "egpo"])
def test_with_the_reference_last_iterates_reach_the_regularised_equilibrium(name: str, algorithm: str) -> None:
    game = preset(name, tau=0.1)
    equilibrium = np.exp(games.regularised_equilibrium(game.preferences[0], game.reference, 0.1))
    trace = play(game, algorithm, 500, weights=(0.667, 0.333) if algorithm == "td-mnpo" else None)
    np.testing.assert_allclose(trace.last[0], equilibrium, atol=1e-8)
    assert trace.gap_last[-1] < 1e-12


def test_nash_md_stops_beside_the_equilibrium() -> None:
    trace = play(preset("rps", tau=0.1), "nash-md", 2000, record=[1000, 2000])
    assert trace.gap_last[0, 0] == pytest.approx(trace.gap_last[1, 0], rel=1e-6)
    assert 1e-4 < trace.gap_last[1, 0] < 1e-2


@pytest.mark.parametrize("comparisons", games.COMPARISONS)
@pytest.mark.parametrize("share", [0.0, 0.333, 0.75])
def test_growth_of_the_rotation_near_equilibrium(comparisons: str, share: float) -> None:
    """Linearised at uniform, the advantage of RPS turns the logits by a quarter: i w theta with w = sqrt(3)/6.

    With weights (1 - share, share) the growth z per step solves z^2 = (1 - share) z + share + i w z, or, compared with
    both opponents, + i w ((1 - share) z + share).
    """
    w = 1j * np.sqrt(3) / 6
    gain = [w, 0] if comparisons == "policy" else [w * (1 - share), w * share]
    growth = abs(np.roots([1, -(1 - share) - gain[0], -share - gain[1]])).max()
    game = games.Game("near", RPS[None], games.log_softmax(np.array([1e-9, 0, 0])))
    near, far = (
        np.linalg.norm(play(game, "td-mnpo", steps, 1.0, (1 - share, share), comparisons).last - 1 / 3)
        for steps in (100, 200)
    )
    assert far < 1e-3  # still linear
    assert (far / near) ** (1 / 100) == pytest.approx(growth, abs=1e-5)


def test_comparing_with_past_opponents_destabilises() -> None:
    """Ledger, point 8: on RPS with tau .01 the trained loss's simplification converges, eq. 3's update cycles."""
    game, weights = preset("rps", tau=0.01), (0.25, 0.75)
    policy, opponents = (play(game, "td-mnpo", 2000, 1.0, weights, kind).gap_last[-1, 0] for kind in games.COMPARISONS)
    assert policy < 1e-5 and opponents > 0.1


@pytest.mark.parametrize("comparisons", games.COMPARISONS)
def test_ht_mnpo_solves_the_mean_oracle_not_the_players_game(comparisons: str) -> None:
    game = preset("condorcet", players=3, tau=0.1)
    trace = play(game, "ht-mnpo", 1000, comparisons=comparisons)
    assert trace.gap_last[-1].min() > 0.05
    group = duality_gap(game.preferences.mean(0), trace.last.mean(0), game.tau, game.reference)
    assert group < 1e-5


def test_alternating_players_move_in_turn_against_those_that_moved() -> None:
    """One update of two players by hand: the first against the reference, the second against the first."""
    game = preset("random", players=2, actions=4)
    trace = play(game, "ht-mnpo-alternating", 1, learning_rate=2.0)
    reference, (one, two) = np.exp(game.reference), game.preferences
    first = reference * np.exp(2.0 * one @ reference)
    first /= first.sum()
    second = first * np.exp(2.0 * two @ reference)
    np.testing.assert_allclose(trace.last, [first, second / second.sum()])


def test_ht_mnpo_of_equal_players_is_self_play() -> None:
    several = play(preset("rps", players=3, tau=0.1), "ht-mnpo", 50)
    alone = play(preset("rps", tau=0.1), "inpo", 50)
    np.testing.assert_allclose(several.last, np.repeat(alone.last, 3, axis=0), atol=1e-12)
    np.testing.assert_allclose(2 * several.gap_last, np.repeat(alone.gap_last, 3, axis=1), atol=1e-12)


def test_import_is_light() -> None:
    code = "import sys, mnpo.method.games; print(sorted({'torch', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
