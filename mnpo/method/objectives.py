"""The losses: pure functions on log-probabilities, one page, equation numbers beside them.

Notation and numbered equations: docs/method.md. ``x`` prompt, ``y_w``/``y_l`` chosen/rejected response,
``m_q = log q(y_w|x) - log q(y_l|x)`` the pair's log-ratio under a model ``q``, in nats. Everything is per pair: tensors
of shape ``[pairs]``. Arithmetic is float32 whatever comes in, except that float64 stays float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mnpo.method.family import Objective


class Pair(NamedTuple):
    """Something known of the chosen and the rejected response of each pair: two tensors ``[pairs]``.

    Log-probabilities in nats, rewards in the oracle's unit, or win probabilities in [0, 1].
    """

    chosen: Tensor
    rejected: Tensor

    @property
    def gap(self) -> Tensor:
        """Chosen minus rejected, ``[pairs]``; for log-probabilities this is ``m_q``."""
        return self.chosen - self.rejected


class Outcome(NamedTuple):
    """What an objective says of each pair, all ``[pairs]``.

    The implicit reward of a response is ``beta`` times its log-ratio to the anchor (nats); ``margin`` is that of the
    chosen minus that of the rejected one: ``h`` of eq. 4 before SimPO's margin is taken off.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    margin: Tensor


def preference_loss(
    objective: Objective,
    policy: Pair,
    opponents: Sequence[Pair] = (),
    weights: Sequence[float] = (),
    reference: Pair | None = None,
    *,
    rewards: Pair | None = None,
    win_probability: Pair | None = None,
) -> Outcome:
    """The general objective, per pair (docs/method.md, eq. 4 to 11; MNPO, arXiv 2509.23102, Table 1).

    Args:
        objective: which member of the family.
        policy: log pi of both responses, nats; gradients flow to it alone.
        opponents: log-probabilities under each opponent; empty for members that play alone.
        weights: lambda_j, one per opponent, summing to one (see `family.normalised`).
        reference: log pi_ref, needed when ``objective.ratio > 0``.
        rewards: r(x, y) of both responses, needed when the gap is reward-aware.
        win_probability: P(y > pi_t) of both responses for per-response targets; hard labels (1, 0) when absent.

    Raises:
        ValueError: opponents, the reference or the rewards are missing, or counts, weights or shapes do not fit.
    """
    _require_fit(objective, opponents, weights)
    log_policy = _exact(policy)
    anchor = [
        (weight * (1 - objective.ratio), _fixed(q, policy, "an opponent's log-probabilities"))
        for weight, q in zip(weights, opponents, strict=True)
    ]
    if objective.ratio > 0:
        if reference is None:
            raise ValueError(f"ratio = {objective.ratio} needs the reference's log-probabilities; give them or ratio 0")
        anchor.append((objective.ratio, _fixed(reference, policy, "the reference's log-probabilities")))
    implicit = Pair(
        *(objective.beta * (y - sum(share * q[i] for share, q in anchor)) for i, y in enumerate(log_policy)),
    )
    if objective.per_response:
        loss = _response_loss(objective, implicit, win_probability)
    else:
        loss = _pair_loss(objective, implicit, rewards)
    if objective.nll_weight:
        loss = loss - objective.nll_weight * log_policy.chosen  # eq. 11, CPO
    return Outcome(loss, implicit.chosen, implicit.rejected, implicit.gap)


def _pair_loss(objective: Objective, implicit: Pair, rewards: Pair | None) -> Tensor:
    delta: Tensor | float = objective.target
    if objective.reward_scale is not None:  # eq. 8
        if rewards is None:
            raise ValueError(
                f"reward_scale = {objective.reward_scale} needs the rewards of both responses; give them, or eta"
            )
        delta = objective.reward_scale * _fixed(rewards, implicit, "rewards").gap
    distance = squared if objective.distance == "squared" else bernoulli_kl
    return distance(implicit.gap - objective.margin, delta)


def _response_loss(objective: Objective, implicit: Pair, win_probability: Pair | None) -> Tensor:
    """Eq. 10, SPPO: each response towards ``(P(y > pi_t) - 1/2) / eta``, which is ``2 target (P - 1/2)``."""
    if win_probability is None:
        win_probability = Pair(torch.ones_like(implicit.chosen), torch.zeros_like(implicit.rejected))
    wins = _fixed(win_probability, implicit, "win probabilities")
    chosen, rejected = (squared(r, 2 * objective.target * (p - 0.5)) for r, p in zip(implicit, wins, strict=True))
    return chosen + rejected


def squared(h: Tensor, delta: Tensor | float) -> Tensor:
    """``(h - delta)^2``, per pair (eq. 5; IPO, INPO, MNPO)."""
    return (h - delta).square()


def bernoulli_kl(h: Tensor, delta: Tensor | float) -> Tensor:
    """Backward Bernoulli KL ``KL(s(delta) || s(h))``, ``s`` the logistic function (eq. 9; RPO, arXiv 2502.00203).

    Its limit for ``delta -> inf`` is ``-log s(h)``, the logistic loss of DPO, and is what ``math.inf`` gives.
    """
    if isinstance(delta, float) and delta == math.inf:
        return -logsigmoid(h)
    d = torch.as_tensor(delta, dtype=h.dtype, device=h.device)
    return d.sigmoid() * (logsigmoid(d) - logsigmoid(h)) + (-d).sigmoid() * (logsigmoid(-d) - logsigmoid(-h))


def _require_fit(objective: Objective, opponents: Sequence[Pair], weights: Sequence[float]) -> None:
    if len(weights) != len(opponents):
        raise ValueError(f"{len(opponents)} opponents but {len(weights)} weights {list(weights)}; give one for each")
    if objective.opponents == "none" and opponents:
        raise ValueError(f"this objective plays alone but got {len(opponents)} opponents; leave them out")
    if objective.opponents != "none" and not opponents:
        raise ValueError(f"this objective plays against {objective.opponents!r} but got no opponents; give one")
    if opponents and not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f"weights {list(weights)} sum to {sum(weights)}, not to one; scale them by family.normalised")


def _exact(pair: Pair) -> Pair:
    return Pair(*(t if t.dtype == torch.float64 else t.float() for t in pair))


def _fixed(pair: Pair, like: Pair, what: str) -> Pair:
    """A pair that the loss takes as given: no gradient, and no broadcasting that would mix up the rows."""
    for ours, theirs in zip(pair, like, strict=True):
        if ours.shape != theirs.shape:
            raise ValueError(
                f"{what} have shape {list(ours.shape)}, the policy's log-probabilities {list(theirs.shape)}; "
                "give one number a response"
            )
    return _exact(Pair(*(t.detach() for t in pair)))
