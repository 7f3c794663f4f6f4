"""Where exact games come to rest, and how far from it policies are: equilibria and gaps."""

from __future__ import annotations

import numpy as np

from mnpo.errors import BadInput
from mnpo.method.games import Array, advantage, log_softmax


def nash(preference: Array) -> Array:
    """[actions] probabilities: a Nash policy of the symmetric game, `max_x min_b (x P)_b`, by linear programming."""
    from scipy.optimize import linprog  # type: ignore[import-untyped, unused-ignore]

    actions = len(preference)
    solution = linprog(  # variables x and v: maximise v subject to v <= (x P)_b for every b
        c=np.r_[np.zeros(actions), -1.0],
        A_ub=np.c_[-preference.T, np.ones(actions)],
        b_ub=np.zeros(actions),
        A_eq=np.r_[np.ones(actions), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * actions + [(None, None)],
    )
    if solution.x is None:
        raise RuntimeError(f"no Nash policy found by linear programming: {solution.message}")
    probabilities: Array = np.clip(solution.x[:actions], 0, None)
    return probabilities / float(probabilities.sum())


def nash_of_few(wins: Array) -> Array:
    """[..., n] probabilities: the Nash policy of each game of n <= 3 policies, wins [..., n, n] (i beats j).

    One that loses to nobody is it (the first, of several); of three in a circle each has the weight of the win between
    the other two: rock, paper, scissors with unequal stakes.
    """
    margins = (wins - np.swapaxes(wins, -1, -2)) / 2  # 0 for a policy and itself, whatever the rounding
    n = wins.shape[-1]
    if n > 3:
        raise BadInput(f"{n} policies: the closed form is for three at most; use nash()")
    unbeaten = np.asarray((margins >= 0).all(-1))
    pure: Array = np.eye(n)[unbeaten.argmax(-1)]
    if n < 3:
        return pure
    stakes = abs(np.stack([margins[..., 1, 2], margins[..., 2, 0], margins[..., 0, 1]], -1))
    total = stakes.sum(-1, keepdims=True)
    circle = np.divide(stakes, total, out=np.zeros_like(stakes), where=total > 0)
    weights: Array = np.where(unbeaten.any(-1, keepdims=True), pure, circle)
    return weights


def regularised_equilibrium(preference: Array, reference: Array, tau: float, tolerance: float = 1e-12) -> Array:
    """[actions] log-probabilities of the one policy with `pi ∝ pi_ref * exp(P(y > pi) / tau)`: 2407.00617, section 3.

    Newton's method with halved steps. The Jacobian `I - P (diag(pi) - pi pi^T) / tau` is never singular: up to
    constants P is skew and the covariance positive, so its eigenvalues are 1 + i * something.
    """
    if not tau > 0:
        raise BadInput(f"tau is {tau}: the regularised equilibrium needs tau > 0; for tau = 0 use nash()")

    def residual(logits: Array) -> Array:
        error = logits - reference - preference @ np.exp(log_softmax(logits)) / tau
        return error - float(error.mean())  # a constant in the logits is no error

    logits = np.array(reference)
    error = residual(logits)
    for _ in range(1000):
        if abs(error).max() <= tolerance * max(1, 1 / tau):
            return log_softmax(logits)
        policy = np.exp(log_softmax(logits))
        jacobian = np.eye(len(policy)) - (preference - 0.5) @ (np.diag(policy) - np.outer(policy, policy)) / tau
        step, scale = np.linalg.solve(jacobian, error), 1.0
        while scale > 1e-12 and np.linalg.norm(residual(logits - scale * step)) >= np.linalg.norm(error):
            scale /= 2
        logits = logits - scale * step
        error = residual(logits)
    raise RuntimeError(
        f"the regularised equilibrium was not reached: optimality error {abs(error).max():.3g} at tau {tau}"
    )


def player_gap(
    preference: Array, policy: Array, opposed: Array, tau: float = 0.0, reference: Array | None = None
) -> Array:
    """What a player could gain alone: `max_pi' J(pi', O) - J(pi, O)`, eq. 19. Probabilities [..., actions] -> [...].

    Of one game, preference [actions, actions], or of as many as there are policies, [..., actions, actions].
    `J(pi, O) = pi P opposed - tau KL(pi || pi_ref)`, `opposed` the opponents' mixture, `reference` log-probabilities.
    """
    gains = advantage(preference, opposed)
    gained: Array = (policy * gains).sum(-1)
    if tau == 0:
        gap: Array = gains.max(-1) - gained
        return np.maximum(gap, 0.0)
    if reference is None:
        raise BadInput("the regularised gap needs the reference")
    best: Array = tau * np.logaddexp.reduce(reference + gains / tau, axis=-1)
    logs = np.log(np.where(policy > 0, policy, 1.0))  # 0 log 0 is 0
    divergence: Array = (policy * (logs - reference)).sum(-1)
    return np.maximum(best - gained + tau * divergence, 0.0)  # a true 0 rounds to -1e-16


def duality_gap(preference: Array, policy: Array, tau: float = 0.0, reference: Array | None = None) -> Array:
    """`max_a J(a, pi) - min_b J(pi, b)`, eq. 19's two-player form: what both gain, so twice the `player_gap`."""
    return 2 * player_gap(preference, policy, policy, tau, reference)
