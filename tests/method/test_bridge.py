"""The bridge: minimising the pair loss of method/objectives.py IS method/updates.py (MNPO Lemma 1, Prop. 1).

Pairs are i.i.d. from a policy q and ordered by one draw of the oracle, so (chosen w, rejected l) has probability
2 q(w) q(l) P(w > l). All are enumerated, and a softmax policy over the actions is fitted by Newton's method through
autograd of the loss itself, in float64. The two must agree to 1e-6 in total variation.
"""

import numpy as np
import pytest
import torch

from mnpo.method import games, updates
from mnpo.method.family import Objective, member
from mnpo.method.objectives import Pair, preference_loss

SEEDS = [0, 1, 2]
RATE, RATIO = 1.7, 0.3  # of the updates; the losses are told eta = 1 / RATE


class World:
    """A random game of 5 actions and some random policies to be pi_t, its predecessors, the reference."""

    def __init__(self, seed: int):
        rng = np.random.default_rng(seed)
        self.preferences = np.stack([games.random_preference(5, 100 * seed + i) for i in range(3)])
        self.preference = self.preferences[0]
        self.policies = games.log_softmax(rng.normal(size=(3, 5)))
        self.current, self.previous, self.reference = self.policies


@pytest.fixture(params=SEEDS)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def exact_pairs(preference: np.ndarray, proposal: np.ndarray) -> np.ndarray:
    """[actions, actions]: probability that a pair i.i.d. from `proposal` comes out as (chosen, rejected)."""
    return 2 * np.outer(np.exp(proposal), np.exp(proposal)) * preference


def minimise(
    objective: Objective,
    pairs: np.ndarray,
    opponents: list[np.ndarray],
    weights: list[float],
    reference: np.ndarray | None = None,
) -> np.ndarray:
    """Log-probabilities of the softmax policy with the least expected loss over the pairs."""
    chosen, rejected = np.indices(pairs.shape).reshape(2, -1)
    share = torch.tensor(pairs.ravel())

    def pair(logs: torch.Tensor) -> Pair:
        return Pair(logs[chosen], logs[rejected])

    def loss(logits: torch.Tensor) -> torch.Tensor:
        others = [pair(torch.tensor(q)) for q in opponents]
        anchor = None if reference is None else pair(torch.tensor(reference))
        return share @ preference_loss(objective, pair(logits.log_softmax(0)), others, weights, anchor).loss

    logits = torch.zeros(len(pairs), dtype=torch.float64)
    for _ in range(3):  # quadratic in the logits: one step does it, the others polish
        gradient = torch.autograd.functional.jacobian(loss, logits)
        hessian = torch.autograd.functional.hessian(loss, logits)
        # a constant added to all logits changes nothing: the pseudo-inverse leaves that direction alone
        logits = logits - torch.linalg.pinv(hessian, rtol=1e-10, hermitian=True) @ gradient
    assert torch.autograd.functional.jacobian(loss, logits).abs().max() < 1e-12
    return logits.log_softmax(0).numpy()


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
    return 0.5 * abs(np.exp(one) - np.exp(other)).sum()


def assert_same(fitted: np.ndarray, exact: np.ndarray, start: np.ndarray) -> None:
    assert total_variation(fitted, exact) < 1e-6
    assert total_variation(exact, start) > 1e-3  # the update moved: agreement says something


def test_pairs_are_a_distribution(world: World) -> None:
    ordered = exact_pairs(world.preference, world.current)
    assert ordered.sum() == pytest.approx(1.0)


def test_identity_behind_both_forms_of_eta(world: World) -> None:
    """Eq. 12: E (h_wl - 1/(2 eta))^2 = E (h(y,y') - (P(y>pi) - P(y'>pi))/eta)^2 + const, for every h."""
    q, wins = np.exp(world.current), world.preference @ np.exp(world.current)

    def constant(seed: int) -> float:
        values = np.random.default_rng(seed).normal(size=5)
        h = values[:, None] - values[None, :]
        ordered = exact_pairs(world.preference, world.current)
        left = (ordered * (h - RATE / 2) ** 2).sum()
        right = (np.outer(q, q) * (h - RATE * (wins[:, None] - wins[None, :])) ** 2).sum()
        return left - right

    assert constant(1) == pytest.approx(constant(2)) == pytest.approx(constant(3))


def test_inpo(world: World) -> None:
    w = world
    pairs = exact_pairs(w.preference, w.current)
    fitted = minimise(member("inpo", eta=1 / RATE, ratio=RATIO), pairs, [w.current], [1.0], w.reference)
    assert_same(fitted, updates.inpo(w.preference, w.current, w.reference, RATE, RATIO), w.current)


def test_un_regularised_self_play_in_both_forms_of_eta(world: World) -> None:
    """No reference: INPO with ratio 0 is multiplicative weights, told eta or told the rate."""
    w = world
    pairs, exact = (
        exact_pairs(w.preference, w.current),
        updates.multiplicative_weights(w.preference, w.current[None], RATE),
    )
    assert_same(minimise(member("inpo", eta=1 / RATE), pairs, [w.current], [1.0]), exact, w.current)
    assert_same(minimise(member("inpo", eta_rate=RATE), pairs, [w.current], [1.0]), exact, w.current)


@pytest.mark.parametrize("online", [False, True])
def test_ipo(world: World, online: bool) -> None:
    """Pairs from the reference, or online from pi_t; the anchor is the reference."""
    w = world
    proposal = w.current if online else w.reference
    fitted = minimise(member("ipo", eta=1 / RATE), exact_pairs(w.preference, proposal), [w.reference], [1.0])
    assert_same(fitted, updates.ipo(w.preference, proposal, w.reference, RATE), w.reference)


@pytest.mark.parametrize("ratio", [0.0, RATIO])
def test_td_mnpo_two_opponents(world: World, ratio: float) -> None:
    w = world
    pairs, weights = exact_pairs(w.preference, w.current), [0.667, 0.333]
    objective = member("td-mnpo", eta=1 / RATE, ratio=ratio)
    fitted = minimise(objective, pairs, [w.current, w.previous], weights, w.reference)
    exact = updates.td_mnpo(w.preference, np.stack([w.current, w.previous]), weights, w.reference, RATE, ratio)
    assert_same(fitted, exact, w.current)


def test_td_mnpo_compared_with_all_opponents(world: World) -> None:
    """comparisons "opponents": the same loss, pairs i.i.d. from the opponents' mixture instead of pi_t."""
    w = world
    weights = np.array([0.667, 0.333])
    history = np.stack([w.current, w.previous])
    mixture = np.log(weights @ np.exp(history))
    objective = member("td-mnpo", eta=1 / RATE, ratio=RATIO)
    fitted = minimise(objective, exact_pairs(w.preference, mixture), list(history), weights.tolist(), w.reference)
    assert_same(
        fitted, updates.td_mnpo(w.preference, history, weights, w.reference, RATE, RATIO, "opponents"), w.current
    )
    policy = updates.td_mnpo(w.preference, history, weights, w.reference, RATE, RATIO, "policy")
    assert total_variation(fitted, policy) > 1e-3  # the two comparisons are not the same update


def test_onpo_two_fits_on_the_same_pairs(world: World) -> None:
    w = world
    base, pairs = w.previous, exact_pairs(w.preference, w.current)
    objective = member("onpo", eta_rate=RATE)
    base_fit = minimise(objective, pairs, [base], [1.0])
    policy_fit = minimise(objective, pairs, [base_fit], [1.0])
    policy, new_base = updates.onpo(w.preference, w.current, base, RATE)
    assert_same(base_fit, new_base, base)
    assert_same(policy_fit, policy, w.current)


def test_egpo_half_step_then_full_step(world: World) -> None:
    w = world
    objective = member("egpo", eta=1 / RATE, ratio=RATIO)
    half_fit = minimise(objective, exact_pairs(w.preference, w.current), [w.current], [1.0], w.reference)
    full_fit = minimise(objective, exact_pairs(w.preference, half_fit), [w.current], [1.0], w.reference)
    full, half = updates.egpo(w.preference, w.current, w.reference, RATE, RATIO)
    assert_same(half_fit, half, w.current)
    assert_same(full_fit, full, half)


def test_nash_md_is_the_same_loss_on_the_mixture(world: World) -> None:
    w = world
    mixture = games.log_softmax(RATIO * w.reference + (1 - RATIO) * w.current)
    fitted = minimise(member("inpo", eta=1 / RATE), exact_pairs(w.preference, mixture), [mixture], [1.0])
    assert_same(fitted, updates.nash_md(w.preference, w.current, w.reference, RATE, RATIO), w.current)


@pytest.mark.parametrize("comparisons", updates.COMPARISONS)
def test_ht_mnpo_every_player_with_its_own_oracle(world: World, comparisons: str) -> None:
    w = world
    exact = updates.ht_mnpo(w.preferences, w.policies, None, w.reference, RATE, 0.0, comparisons)
    for i, preference in enumerate(w.preferences):
        others = [w.policies[j] for j in range(3) if j != i]
        mixture = np.log(np.exp(others).mean(0))
        pairs = exact_pairs(preference, w.policies[i] if comparisons == "policy" else mixture)
        fitted = minimise(member("ht-mnpo", eta=1 / RATE), pairs, others, [0.5, 0.5])
        assert_same(fitted, exact[i], w.policies[i])


def test_sampled_pairs(world: World) -> None:
    """200,000 drawn pairs give the update to about 1 / sqrt(200,000) = 0.002 in the logits, here within 0.01."""
    w = world
    rng = np.random.default_rng(7)
    drawn = rng.choice(5, p=np.exp(w.current), size=(200_000, 2))
    first_wins = rng.uniform(size=len(drawn)) < w.preference[drawn[:, 0], drawn[:, 1]]
    ordered = np.where(first_wins[:, None], drawn, drawn[:, ::-1])
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (ordered[:, 0], ordered[:, 1]), 1 / len(drawn))
    fitted = minimise(member("inpo", eta=1 / RATE, ratio=RATIO), pairs, [w.current], [1.0], w.reference)
    exact = updates.inpo(w.preference, w.current, w.reference, RATE, RATIO)
    assert total_variation(fitted, exact) < 0.01
    assert total_variation(exact, w.current) > 0.03
