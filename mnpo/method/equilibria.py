"""Where exact games come to rest, and how far from it policies are: equilibria and gaps."""

from __future__ import annotations

from collections.abc import Callable

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
    """Log-probabilities of the one policy with `pi ∝ pi_ref * exp(P(y > pi) / tau)`: 2407.00617, section 3.

    Of one game, preference [actions, actions] and reference [actions] -> [actions], or of several, [..., actions].

    Newton's method with halved steps. The Jacobian `I - P (diag(pi) - pi pi^T) / tau` is never singular: up to
    constants P is skew and the covariance positive, so its eigenvalues are 1 + i * something.
    """
    if not tau > 0:
        raise BadInput(f"tau is {tau}: the regularised equilibrium needs tau > 0; for tau = 0 use nash()")

    def residual(logits: Array) -> Array:
        error: Array = logits - reference - advantage(preference, np.exp(log_softmax(logits))) / tau
        centred: Array = error - error.mean(-1, keepdims=True)  # a constant in the logits is no error
        return centred

    logits = np.array(reference)
    error: Array = residual(logits)
    enough = tolerance * max(1, 1 / tau)
    for _ in range(1000):
        if abs(error).max() <= enough:
            return log_softmax(logits)
        policy = np.exp(log_softmax(logits))
        covariance: Array = policy[..., None] * (np.eye(policy.shape[-1]) - policy[..., None, :])
        jacobian = np.eye(policy.shape[-1]) - (preference - 0.5) @ covariance / tau
        step = np.asarray(np.linalg.solve(jacobian, error[..., None])[..., 0], float)
        logits, error = _nearer(residual, logits, step, error, enough)
    raise RuntimeError(
        f"the regularised equilibrium was not reached: optimality error {abs(error).max():.3g} at tau {tau}"
    )


def _nearer(
    residual: Callable[[Array], Array], logits: Array, step: Array, error: Array, enough: float
) -> tuple[Array, Array]:
    """Logits after a step, which is halved in each game until its error is less, or was enough, and their error."""
    size, scale = np.linalg.norm(error, axis=-1, keepdims=True), np.ones((*error.shape[:-1], 1))
    there = abs(error).max(-1, keepdims=True) <= enough
    while True:
        tried = logits - scale * step
        found = residual(tried)
        far = (np.linalg.norm(found, axis=-1, keepdims=True) >= size) & (scale > 1e-12) & ~there
        if not far.any():
            return tried, found
        scale = np.where(far, scale / 2, scale)


def among(wins: Array, tau: float | None = None) -> Array:
    """[..., n] weights, sum one: what a player would play who may only play the n policies (eq. 24). Ours.

    `wins` [..., n, n] as in eq. 14. Without `tau` one that loses to nobody has all the weight, of several the first:
    of one game, or of several with n <= 3. With it, the equilibrium that is regularised towards equal weights.
    """
    n = wins.shape[-1]
    if tau:
        return np.exp(regularised_equilibrium(wins, np.full(wins.shape[:-1], -np.log(n)), tau))
    return nash(wins) if n > 3 and wins.ndim == 2 else nash_of_few(wins)


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
