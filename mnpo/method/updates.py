"""Every algorithm as the update it makes when its loss is minimised exactly, on the games of mnpo/method/games.py.

All exact: the minimiser of the pair loss over all softmax policies (tests/method/test_bridge.py minimises it and
compares). Equation numbers are those of docs/method.md, papers are arXiv ids.

Two forms of eta. Everything here takes `learning_rate`: updates `exp(learning_rate * P)`, target of the pair loss
`learning_rate / 2`. The `inverse` form of INPO and of the trained loss has updates `exp(P / eta)` and target
`1 / (2 eta)`. They are one update, `learning_rate = 1 / eta`. A KL weight tau gives the reference the share
`ratio = tau / eta = learning_rate * tau` of the anchor.

Several games at once: preferences [..., actions, actions], policies [..., actions], a history or players in front.
`seen` is what the oracle's advantage is measured on, of the log-policy that made the pairs: np.exp, the policy itself;
a study of noise gives an estimate.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mnpo.method.equilibria import among
from mnpo.method.games import Array, Weights, advantage, choose, log_softmax, normalised

Seen = Callable[[Array], Array]
COMPARISONS = ("policy", "opponents")


def multiplicative_weights(
    preference: Array, opponents: Array, learning_rate: float, weights: Weights | None = None
) -> Array:
    """n-player multiplicative weights: eq. 3; MNPO, 2509.23102. Opponents [n-1, actions] -> [actions].

    `pi' ∝ prod_j pi_j^w_j * exp(learning_rate * sum_j w_j P(y > pi_j))`, w uniform when None.
    """
    weights = normalised(weights, len(opponents))
    return log_softmax(
        mixture(weights, opponents) + learning_rate * advantage(preference, mixture(weights, np.exp(opponents)))
    )


def mixture(weights: Array, policies: Array) -> Array:
    """[..., actions]: the mean of policies [n, ..., actions], by weights [n] or [n, ...]."""
    mean: Array = np.einsum("n...,n...a->...a", weights, policies)
    return mean


def ipo(preference: Array, policy: Array, reference: Array, learning_rate: float) -> Array:
    """IPO: eq. 15; 2310.12036, online 2403.08635. `pi' ∝ pi_ref * exp(learning_rate * P(y > policy))`, rate 1/tau.

    `policy` made the pairs: the reference itself (offline), or pi_t (online: the regularised best response to pi_t).
    """
    return log_softmax(reference + learning_rate * advantage(preference, np.exp(policy)))


def inpo(
    preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float, seen: Seen = np.exp
) -> Array:
    """INPO: eq. 15; 2407.00617. `pi' ∝ pi_ref^ratio * pi_t^(1 - ratio) * exp(learning_rate * P(y > pi_t))`."""
    anchor = ratio * reference + (1 - ratio) * policy
    return log_softmax(anchor + learning_rate * advantage(preference, seen(policy)))


def td_mnpo(
    preference: Array,
    history: Array,
    weights: Weights | None,
    reference: Array,
    learning_rate: float,
    ratio: float,
    comparisons: str = "policy",
    seen: Seen = np.exp,
) -> Array:
    """TD-MNPO: eq. 15; 2509.23102. History [n-1, actions], newest first -> [actions].

    `pi' ∝ pi_ref^ratio * (prod_j pi_{t-j}^lambda_j)^(1 - ratio) * exp(learning_rate * P(y > q))`, with
    comparisons "policy": q = pi_t, pairs from pi_t as the trained loss has them;
    comparisons "opponents": q = sum_j lambda_j pi_{t-j}, the update of eq. 3, pairs from q.
    The reference regularises but is nobody to compare with: that would move the equilibrium.
    """
    weights = _of_history(weights, history)
    anchor = ratio * reference + (1 - ratio) * mixture(weights, history)
    own = choose(comparisons, COMPARISONS, "comparisons") == "policy"
    opposed = seen(history[0]) if own else mixture(weights, np.stack([seen(policy) for policy in history]))
    return log_softmax(anchor + learning_rate * advantage(preference, opposed))


def _of_history(weights: Weights | None, history: Array) -> Array:
    """Of all games one weight a policy, normalised; or a game's own, [n-1, ...], as they are."""
    several = isinstance(weights, np.ndarray) and weights.ndim > 1
    return np.asarray(weights) if several else normalised(weights, len(history))


def nash_weights(preference: Array, history: Array, tau: float = 0.0) -> Array:
    """[n-1, ...]: the Nash policy of the game in which the past policies play each other, newest first.

    At most three of them, or any number with tau (`equilibria.among`). The paper fixes the weights by hand.
    """
    past = np.moveaxis(np.exp(history), 0, -2)
    wins = past @ preference @ np.swapaxes(past, -1, -2)
    return np.moveaxis(among(wins, tau), -1, 0)


def optimistic_td_mnpo(
    preference: Array,
    policy: Array,
    bases: Array,
    weights: Weights | None,
    reference: Array,
    learning_rate: float,
    ratio: float,
    seen: Seen = np.exp,
) -> tuple[Array, Array]:
    """TD-MNPO that bets like ONPO: -> (pi_{t+1}, base_{t+1}). Ours; bases [n-1, actions], newest first, as a history.

    `base' ∝ pi_ref^ratio * (prod_j base_j^lambda_j)^(1 - ratio) * exp(learning_rate * P(y > pi_t))`, and pi' takes the
    same gain once more from base'. One base: eq. 16.
    """
    gain = learning_rate * advantage(preference, seen(policy))
    base = log_softmax(ratio * reference + (1 - ratio) * mixture(_of_history(weights, bases), bases) + gain)
    return log_softmax(ratio * reference + (1 - ratio) * base + gain), base


def ht_mnpo(
    preferences: Array,
    policies: Array,
    weights: Array | None,
    reference: Array,
    learning_rate: float,
    ratio: float = 0.0,
    comparisons: str = "policy",
) -> Array:
    """HT-MNPO: eq. 15; 2509.23102. Preferences [n, actions, actions], policies [n, actions] -> [n, actions].

    `pi_i' ∝ pi_ref^ratio * (prod_{j != i} pi_j^w_ij)^(1 - ratio) * exp(learning_rate * P_i(y > q_i))`, with
    comparisons "policy": q_i = pi_i, pairs from player i's own policy as the paper has them;
    comparisons "opponents": q_i = sum_j w_ij pi_j. Weights [n, n] as `opponent_weights` gives them.
    """
    weights = opponent_weights(len(policies)) if weights is None else weights
    anchors = ratio * reference + (1 - ratio) * np.tensordot(weights, policies, 1)
    own = choose(comparisons, COMPARISONS, "comparisons") == "policy"
    opposed = np.exp(policies) if own else np.tensordot(weights, np.exp(policies), 1)
    return log_softmax(anchors + learning_rate * advantage(preferences, opposed))


def opponent_weights(players: int, weights: Weights | None = None) -> Array:
    """[players, players], row i: lambda over the others, in their order, and 0 for player i itself.

    Uniform where no `weights` are given: one for each other player, the same list for every player.
    """
    row = normalised([1.0] * (players - 1) if weights is None else weights, players - 1)
    return np.stack([np.insert(row, player, 0.0) for player in range(players)])


def onpo(
    preference: Array,
    policy: Array,
    base: Array,
    learning_rate: float,
    reference: Array | None = None,
    ratio: float = 0.0,
    seen: Seen = np.exp,
) -> tuple[Array, Array]:
    """ONPO: eq. 16; 2502.16852. -> (pi_{t+1}, base_{t+1}): two fits on the pairs of pi_t, base is the paper's pi'.

    `base' ∝ base * exp(learning_rate * P(y > pi_t))`, then `pi' ∝ base' * exp(learning_rate * P(y > pi_t))`: the second
    bets that the next advantage is this one. The paper has ratio 0; with a ratio both fits are INPO's (our extension).
    """
    reference = base if reference is None else reference
    return optimistic_td_mnpo(preference, policy, base[None], None, reference, learning_rate, ratio, seen)


def egpo(
    preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float, seen: Seen = np.exp
) -> tuple[Array, Array]:
    """EGPO: eq. 17; 2503.08942. -> (pi_{t+1}, pi_half): extragradient, both steps FROM pi_t.

    `∝ pi_ref^ratio * pi_t^(1 - ratio) * exp(learning_rate * P(y > q))`: q = pi_t for pi_half, q = pi_half for pi_{t+1}.
    """
    anchor = ratio * reference + (1 - ratio) * policy
    half = log_softmax(anchor + learning_rate * advantage(preference, seen(policy)))
    return log_softmax(anchor + learning_rate * advantage(preference, seen(half))), half


def nash_md(
    preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float, seen: Seen = np.exp
) -> Array:
    """Nash-MD: eq. 18; 2312.00886. `mix ∝ pi_t^(1 - ratio) * pi_ref^ratio`, `pi' ∝ mix * exp(rate * P(y > mix))`.

    The mixture is the opponent too, so at a fixed rate the fixed point is NEAR the regularised equilibrium, not at it.
    """
    mixed = log_softmax(ratio * reference + (1 - ratio) * policy)
    return log_softmax(mixed + learning_rate * advantage(preference, seen(mixed)))
