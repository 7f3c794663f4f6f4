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

from mnpo.family import Objective


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
    """What an objective says of each pair, all ``[pairs]``: loss, implicit rewards of both (nats), their margin."""

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
        policy: log pi of both responses, nats; gradients flow through it alone.
        opponents: log-probabilities under each opponent; empty for members that play alone.
        weights: lambda_j, one per opponent, normalised (see `family.normalised`).
        reference: log pi_ref, needed when ``objective.ratio > 0``.
        rewards: r(x, y) of both responses, needed when the gap is reward-aware.
        win_probability: P(y > pi_t) of both responses for per-response targets; hard labels (1, 0) when absent.

    Raises:
        ValueError: a model's log-probabilities or the rewards are missing, or counts differ.
    """
    if len(weights) != len(opponents):
        raise ValueError(f"{len(opponents)} opponents but {len(weights)} weights")
    if objective.ratio > 0 and reference is None:
        raise ValueError(f"ratio = {objective.ratio} needs the reference's log-probabilities")
    log_policy = _exact(policy)
    anchor = [(weight * (1 - objective.ratio), _exact(q)) for weight, q in zip(weights, opponents, strict=True)]
    if objective.ratio > 0 and reference is not None:
        anchor.append((objective.ratio, _exact(reference)))
    reward = Pair(
        *(objective.beta * (y - sum(w * q[i] for w, q in anchor)) for i, y in enumerate(log_policy)),
    )
    loss = _distances(objective, reward, rewards, win_probability)
    if objective.nll_weight:
        loss = loss - objective.nll_weight * log_policy.chosen  # eq. 11, CPO
    return Outcome(loss, reward.chosen, reward.rejected, reward.gap)


def _distances(objective: Objective, reward: Pair, rewards: Pair | None, win_probability: Pair | None) -> Tensor:
    if objective.per_response:  # eq. 10, SPPO: each response towards (P(y > pi_t) - 1/2) / eta
        if win_probability is None:
            win_probability = Pair(torch.ones_like(reward.chosen), torch.zeros_like(reward.rejected))
        targets = (2 * objective.target * (_exact(win_probability)[i] - 0.5) for i in range(2))
        return sum(((r - t).square() for r, t in zip(reward, targets, strict=True)), torch.zeros_like(reward.chosen))
    delta: Tensor | float = objective.target
    if objective.reward_scale is not None:
        if rewards is None:
            raise ValueError("a reward-aware gap needs the rewards of both responses")
        delta = objective.reward_scale * _exact(rewards).gap
    distance = squared if objective.distance == "squared" else bernoulli_kl
    return distance(reward.gap - objective.margin, delta)


def squared(h: Tensor, delta: Tensor | float) -> Tensor:
    """``(h - delta)^2``, per pair (eq. 5; IPO, INPO, MNPO)."""
    return (h - delta).square()


def bernoulli_kl(h: Tensor, delta: Tensor | float) -> Tensor:
    """Backward Bernoulli KL ``KL(s(delta) || s(h))``, ``s`` the logistic function (eq. 9; RPO, arXiv 2502.00203).

    Its limit for ``delta -> inf`` is ``-log s(h)``, the logistic loss of DPO, and is what ``math.inf`` gives.
    """
    if isinstance(delta, float) and math.isinf(delta):
        return -logsigmoid(h)
    d = torch.as_tensor(delta, dtype=h.dtype, device=h.device)
    return d.sigmoid() * (logsigmoid(d) - logsigmoid(h)) + (-d).sigmoid() * (logsigmoid(-d) - logsigmoid(-h))


def _exact(pair: Pair) -> Pair:
    return Pair(*(t if t.dtype == torch.float64 else t.float() for t in pair))
