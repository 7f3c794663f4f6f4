"""Updates: numbers derived by hand, members that coincide, and what renaming must not change."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnpo.method import games, updates
from mnpo.method.games import preset

RPS = games.rock_paper_scissors()
UNIFORM = np.log(np.full(3, 1 / 3))
HALF = np.log([1 / 2, 1 / 4, 1 / 4])  # rock, paper, scissors; P(y > HALF) = (4, 5, 3) / 8
RATE = 4 * np.log(2)  # exp(RATE * P) = 16^P, so the gains of HALF are 4, 2^2.5, 2^1.5


def shares(*unnormalised: float) -> np.ndarray:
    return np.array(unnormalised) / sum(unnormalised)


def assert_policy(logs: np.ndarray, *unnormalised: float) -> None:
    np.testing.assert_allclose(np.exp(logs), shares(*unnormalised), atol=1e-14)


logits = arrays(float, 5, elements=st.floats(-3, 3))


def test_advantage_of_rps_by_hand() -> None:
    np.testing.assert_allclose(RPS @ np.exp(HALF), [4 / 8, 5 / 8, 3 / 8])


def test_multiplicative_weights_one_opponent_by_hand() -> None:
    """(1/2 * 4, 1/4 * 2^2.5, 1/4 * 2^1.5) = (2, 2^.5, 2^-.5)."""
    assert_policy(updates.multiplicative_weights(RPS, HALF[None], RATE), 2, 2**0.5, 2**-0.5)


def test_multiplicative_weights_two_opponents_by_hand() -> None:
    """Opponents (1/2, 1/4, 1/4), (1/4, 1/2, 1/4): geometric mean (2^-1.5, 2^-1.5, 2^-2), mixture (3/8, 3/8, 1/4),
    beaten with (7, 9, 8) / 16: at rate 16 log 2 factors 2^7, 2^9, 2^8, in all 2^(5.5, 7.5, 6)."""
    opponents = np.stack([HALF, np.log([1 / 4, 1 / 2, 1 / 4])])
    assert_policy(updates.multiplicative_weights(RPS, opponents, 4 * RATE), 1, 4, 2**0.5)


def test_inpo_by_hand() -> None:
    """Uniform reference with ratio 1/2: anchor (2^-.5, 1/2, 1/2), times the gains 2^1.5 * (1, 1, 1/2)."""
    assert_policy(updates.inpo(RPS, HALF, UNIFORM, RATE, 0.5), 2, 2, 1)


def test_ipo_by_hand() -> None:
    """Reference HALF, pairs from the reference: (2, 2^.5, 2^-.5) as above; from uniform: all gains are the same."""
    assert_policy(updates.ipo(RPS, HALF, HALF, RATE), 2, 2**0.5, 2**-0.5)
    assert_policy(updates.ipo(RPS, UNIFORM, HALF, RATE), 2, 1, 1)


def test_td_mnpo_by_hand_and_the_two_comparisons_differ() -> None:
    """Anchor (2^-1.5, 2^-1.5, 2^-2). At rate 16 log 2 gains are 2^(8, 10, 6) against HALF, 2^(7, 9, 8) both."""
    history = np.stack([HALF, np.log([1 / 4, 1 / 2, 1 / 4])])
    policy = updates.td_mnpo(RPS, history, [0.5, 0.5], UNIFORM, 4 * RATE, 0.0, "policy")
    opponents = updates.td_mnpo(RPS, history, [0.5, 0.5], UNIFORM, 4 * RATE, 0.0, "opponents")
    assert_policy(policy, 1, 4, 2**-2.5)
    assert_policy(opponents, 1, 4, 2**0.5)


def test_onpo_by_hand() -> None:
    """From a uniform base the gains of HALF once: (2^.5, 2, 1) * 2^1.5, and twice: (2, 4, 1) * 2^3."""
    policy, base = updates.onpo(RPS, HALF, UNIFORM, RATE)
    assert_policy(base, 2**0.5, 2, 1)
    assert_policy(policy, 2, 4, 1)


def test_egpo_by_hand() -> None:
    """The half step is INPO's (.4, .4, .2), which is beaten with (.4, .6, .5); the full step starts from HALF again:
    anchor (2^-.5, 2^-1, 2^-1) times 2^(1.6, 2.4, 2)."""
    policy, half = updates.egpo(RPS, HALF, UNIFORM, RATE, 0.5)
    assert_policy(half, 2, 2, 1)
    assert_policy(policy, 2**1.1, 2**1.4, 2)


def test_nash_md_by_hand() -> None:
    """pi_t ∝ (4, 1, 1) mixed half and half with uniform is HALF, which then moves by its own gains."""
    assert_policy(updates.nash_md(RPS, np.log(shares(4, 1, 1)), UNIFORM, RATE, 0.5), 2, 2**0.5, 2**-0.5)


def test_ht_mnpo_is_one_formula_per_player() -> None:
    """Written with products of probabilities, player by player: own oracle, the others' policies."""
    preferences = preset("random", players=3, actions=4).preferences
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=3)
    for comparisons in updates.COMPARISONS:
        updated = updates.ht_mnpo(
            preferences, np.log(probabilities), None, np.log(np.full(4, 1 / 4)), 2.0, 0, comparisons
        )
        for i in range(3):
            first, second = (probabilities[j] for j in range(3) if j != i)
            opposed = probabilities[i] if comparisons == "policy" else (first + second) / 2
            assert_policy(updated[i], *(np.sqrt(first * second) * np.exp(2.0 * preferences[i] @ opposed)))


def test_members_of_the_family_coincide_to_the_last_bit() -> None:
    policies = games.log_softmax(np.random.default_rng(0).normal(size=(3, 3)))
    current, _, reference = policies
    inpo = updates.inpo(RPS, current, reference, 1.3, 0.4)
    np.testing.assert_array_equal(updates.td_mnpo(RPS, current[None], [1.0], reference, 1.3, 0.4), inpo)
    np.testing.assert_array_equal(
        updates.td_mnpo(RPS, policies[:2], [1.0, 0.0], reference, 1.3, 0.4), inpo, "an opponent of weight 0 is none"
    )
    ipo = updates.ipo(RPS, current, reference, 1.3)
    np.testing.assert_array_equal(updates.td_mnpo(RPS, policies[:2], [0.6, 0.4], reference, 1.3, 1.0), ipo)
    mwu = updates.multiplicative_weights(RPS, policies[:2], 1.3, [0.6, 0.4])
    td = updates.td_mnpo(RPS, policies[:2], [0.6, 0.4], reference, 1.3, 0.0, "opponents")
    np.testing.assert_allclose(td, mwu, atol=1e-15)
    np.testing.assert_allclose(
        updates.nash_md(RPS, current, reference, 1.3, 0.0), updates.inpo(RPS, current, reference, 1.3, 0)
    )


def test_history_weights_are_those_of_the_opponents_that_exist() -> None:
    """Iteration 1 has one opponent: of weights (.667, .333) only the first counts, and counts as 1 (eq. 4)."""
    one = updates.td_mnpo(RPS, HALF[None], [0.667, 0.333], UNIFORM, 1.0, 0.2)
    np.testing.assert_array_equal(one, updates.inpo(RPS, HALF, UNIFORM, 1.0, 0.2))


@given(st.permutations(range(5)), logits, logits, logits, st.integers(0, 100))
@settings(deadline=None)
def test_renaming_actions_renames_the_update(
    order: list[int], current: np.ndarray, previous: np.ndarray, reference: np.ndarray, seed: int
) -> None:
    preference = games.random_preference(5, seed)

    def updated(p: np.ndarray, a: np.ndarray, b: np.ndarray, ref: np.ndarray) -> list[np.ndarray]:
        a, b, ref = map(games.log_softmax, (a, b, ref))
        return [
            updates.inpo(p, a, ref, 1.5, 0.2),
            updates.td_mnpo(p, np.stack([a, b]), [0.7, 0.3], ref, 1.5, 0.2, "opponents"),
            *updates.onpo(p, a, b, 1.5),
            *updates.egpo(p, a, ref, 1.5, 0.2),
            updates.nash_md(p, a, ref, 1.5, 0.2),
        ]

    original = updated(preference, current, previous, reference)
    renamed = updated(preference[np.ix_(order, order)], current[order], previous[order], reference[order])
    for one, other in zip(original, renamed, strict=True):
        np.testing.assert_allclose(other, one[order], atol=1e-12)


@given(st.permutations(range(3)), arrays(float, (3, 5), elements=st.floats(-3, 3)))
def test_opponents_move_with_their_weights(order: list[int], values: np.ndarray) -> None:
    preference, opponents, weights = games.random_preference(5, 0), games.log_softmax(values), np.array([0.5, 0.3, 0.2])
    one = updates.multiplicative_weights(preference, opponents, 1.0, weights)
    np.testing.assert_allclose(updates.multiplicative_weights(preference, opponents[order], 1.0, weights[order]), one)


def test_several_games_at_once_are_each_of_them_alone() -> None:
    """Updates over [games, ...] arrays: the same numbers as one game after the other."""
    preferences = np.stack([games.random_preference(5, seed) for seed in range(3)])
    history = games.log_softmax(np.random.default_rng(0).normal(size=(2, 3, 5)))
    reference = games.log_softmax(np.random.default_rng(1).normal(size=5))
    every = (preferences, history[0], np.tile(reference, (3, 1)), 0.7, 0.2)
    for update in (updates.inpo, updates.nash_md, lambda *a: updates.egpo(*a)[0]):
        each = [update(preferences[g], history[0, g], reference, 0.7, 0.2) for g in range(3)]
        np.testing.assert_allclose(update(*every), each, atol=1e-14)
    for comparisons in updates.COMPARISONS:
        together = updates.td_mnpo(preferences, history, [0.3, 0.7], reference, 0.7, 0.2, comparisons)
        each = [
            updates.td_mnpo(preferences[g], history[:, g], [0.3, 0.7], reference, 0.7, 0.2, comparisons)
            for g in range(3)
        ]
        np.testing.assert_allclose(together, each, atol=1e-14)


def test_what_the_oracle_sees_takes_the_policys_place_in_the_advantage_alone() -> None:
    """Pairs of rock only: P(y > rock) = (1/2, 1, 0), at rate 4 log 2 the gains are (4, 16, 1); the anchor is HALF's."""

    def rock(policy: np.ndarray) -> np.ndarray:
        return np.array([1.0, 0.0, 0.0])

    assert_policy(updates.inpo(RPS, HALF, UNIFORM, RATE, 0.0, rock), 2, 4, 1 / 4)


def test_regularised_nash_weights_of_two_are_a_logistic_function_of_the_win() -> None:
    """Whatever the other's share, the first gains w - 1/2 on the second: logit(weight) = (w - 1/2) / tau."""
    wins = np.array([0.5, 0.6, 0.9])
    games = np.array([[[0.5, w], [1 - w, 0.5]] for w in wins])
    with np.errstate(divide="ignore"):
        pure = np.log(np.repeat(np.eye(2)[:, None], 3, axis=1))  # [policies, games, actions]
    first, second = updates.nash_weights(games, pure, 0.1)
    np.testing.assert_allclose(first, 1 / (1 + np.exp(-(wins - 0.5) / 0.1)), atol=1e-12)
    np.testing.assert_allclose(first + second, 1)
    np.testing.assert_allclose(updates.nash_weights(games, pure[:1], 0.1), 1)


def test_nash_weights_by_hand() -> None:
    """Policies that are almost rock, paper, scissors play rps: a third each. Of paper and rock, paper is all; of two
    equals, the newest."""
    pure = np.log(np.eye(3) * (1 - 3e-12) + 1e-12)
    np.testing.assert_allclose(updates.nash_weights(RPS, pure), [1 / 3, 1 / 3, 1 / 3], atol=1e-9)
    np.testing.assert_allclose(updates.nash_weights(RPS, pure[:2]), [0, 1])
    np.testing.assert_allclose(updates.nash_weights(RPS, pure[[1, 0]]), [1, 0])
    np.testing.assert_allclose(updates.nash_weights(RPS, pure[[0, 0]]), [1, 0])
    several = updates.nash_weights(np.stack([RPS, RPS.T]), np.stack([pure[[0, 0]], pure[[1, 1]]]))
    np.testing.assert_allclose(several, [[0, 1], [1, 0]])


def test_optimistic_td_mnpo_with_one_base_is_onpo() -> None:
    base = np.log([0.2, 0.3, 0.5])
    one = updates.optimistic_td_mnpo(RPS, HALF, base[None], None, UNIFORM, RATE, 0.3)
    np.testing.assert_allclose(one, updates.onpo(RPS, HALF, base, RATE, UNIFORM, 0.3))


def test_optimistic_td_mnpo_by_hand() -> None:
    """Bases (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4), half each, no reference: anchor (2^-1.5, 2^-1.5, 2^-2), once and
    twice the gains 2^(2, 2.5, 1.5) of HALF."""
    bases = np.stack([HALF, np.log([1 / 4, 1 / 2, 1 / 4])])
    policy, base = updates.optimistic_td_mnpo(RPS, HALF, bases, [0.5, 0.5], UNIFORM, RATE, 0.0)
    assert_policy(base, 2**0.5, 2, 2**-0.5)
    assert_policy(policy, 2**2.5, 2**3.5, 2)
