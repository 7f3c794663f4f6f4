"""Plays: steps and averages by hand, and what converges."""

import subprocess
import sys

import numpy as np
import pytest

from mnpo.method import equilibria, games, updates
from mnpo.method.equilibria import duality_gap
from mnpo.method.games import preset
from mnpo.method.play import play

RPS = games.rock_paper_scissors()


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
        ({"algorithm": "td-mnpo", "nash_tau": 0.1}, "nash_tau 0.1: .* td-mnpo-nash alone"),
        ({"algorithm": "td-mnpo-nash", "nash_tau": -0.1}, "nash_tau -0.1: .* not negative"),
        ({"algorithm": "td-mnpo-nash", "nash_tau": float("nan")}, "nash_tau nan"),
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


def test_play_counts_steps_and_averages() -> None:
    """Three updates by hand calls; the average is over the policies 1..3, not the start."""
    game = preset("rps")
    policies, policy = [], game.reference
    for _ in range(3):
        policy = updates.inpo(RPS, policy, game.reference, 0.7, 0.0)
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
        history = [updates.td_mnpo(preference, np.stack(history), weights, game.reference, 1.0, 0.1), *history][:2]
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
    equilibrium = np.exp(equilibria.regularised_equilibrium(game.preferences[0], game.reference, 0.1))
    trace = play(game, algorithm, 500, weights=(0.667, 0.333) if algorithm == "td-mnpo" else None)
    np.testing.assert_allclose(trace.last[0], equilibrium, atol=1e-8)
    assert trace.gap_last[-1] < 1e-12


def test_nash_md_stops_beside_the_equilibrium() -> None:
    trace = play(preset("rps", tau=0.1), "nash-md", 2000, record=[1000, 2000])
    assert trace.gap_last[0, 0] == pytest.approx(trace.gap_last[1, 0], rel=1e-6)
    assert 1e-4 < trace.gap_last[1, 0] < 1e-2


@pytest.mark.parametrize("comparisons", updates.COMPARISONS)
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
    policy, opponents = (
        play(game, "td-mnpo", 2000, 1.0, weights, kind).gap_last[-1, 0] for kind in updates.COMPARISONS
    )
    assert policy < 1e-5 and opponents > 0.1


@pytest.mark.parametrize("comparisons", updates.COMPARISONS)
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
    code = "import sys, mnpo.method.play; print(sorted({'torch', 'scipy', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_players_of_a_heterogeneous_game_weigh_the_others() -> None:
    """One update of three players by hand: each against the others with 1/4 and 3/4, in the others' order. At the
    start all are the reference, so the anchor is it; the second update has each one's own mixture."""
    game = preset("random", players=3, actions=4)
    rate, weights = 2.0, (0.25, 0.75)
    policies = np.exp(game.reference)[None].repeat(3, axis=0)
    for _ in range(2):
        moved = []
        for i in range(3):
            first, second = (policies[j] for j in range(3) if j != i)
            new = first**0.25 * second**0.75 * np.exp(rate * game.preferences[i] @ policies[i])
            moved.append(new / new.sum())
        policies = np.stack(moved)
    trace = play(game, "ht-mnpo", 2, learning_rate=rate, weights=weights)
    np.testing.assert_allclose(trace.last, policies, atol=1e-12)
    opposed = 0.25 * policies[1] + 0.75 * policies[2]  # the first player's gap is against that mixture too
    best = (game.preferences[0] @ opposed).max() - policies[0] @ game.preferences[0] @ opposed
    assert trace.gap_last[-1, 0] == pytest.approx(best)


def test_equal_weights_of_players_are_those_left_out() -> None:
    game = preset("condorcet", players=3, tau=0.1)
    given, left_out = (play(game, "ht-mnpo", 50, weights=w).last for w in ([2, 2], None))
    np.testing.assert_allclose(given, left_out, atol=1e-12)


def test_as_many_weights_as_other_players() -> None:
    with pytest.raises(ValueError, match="3 players, so give one for each of the others"):
        play(preset("rps", players=3), "ht-mnpo", 10, weights=[1.0])
