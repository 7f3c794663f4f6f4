"""The family of objectives as data: the paper's Table 1 and its neighbours, what each fixes and what it leaves open.

No torch here: the plan reads it too. The losses themselves are in mnpo/method/objectives.py; notation and the numbered
equations in docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from mnpo.config.blocks import nearest

Distance = Literal["squared", "bernoulli-kl"]
Opponents = Literal["none", "reference", "policy", "history", "players", "external"]


@dataclass(frozen=True)
class Objective:
    """One member of the family; every difference between two members is a field.

    The loss of a pair is ``D(h, delta) - nll_weight * log pi(y_w)`` with
    ``h = beta * (m_pi - ratio * m_ref - (1 - ratio) * sum_j lambda_j m_j) - margin`` (docs/method.md, eq. 4, 5 and 11).
    """

    opponents: Opponents  # whom the plan puts on the other side
    distance: Distance  # D
    target: float = math.inf  # delta when it is a constant, in the units of h; inf only under bernoulli-kl
    reward_scale: float | None = None  # delta = reward_scale * (r(y_w) - r(y_l)) when given
    beta: float = 1.0  # scale of the log-ratios
    ratio: float = 0.0  # share of the reference beside the opponents, INPO's tau/eta
    margin: float = 0.0  # SimPO's gamma
    nll_weight: float = 0.0  # CPO's alpha
    per_response: bool = False  # SPPO: each response's own log-ratio against its own target
    length_normalised: bool = False  # SimPO: log-probabilities are means over the response's tokens


# The paper's Table 1 and its neighbours. What a member fixes is written here; what it leaves open comes from the run.
FAMILY: dict[str, Objective] = {
    "simpo": Objective("none", "bernoulli-kl", length_normalised=True),
    "cpo": Objective("none", "bernoulli-kl", nll_weight=1.0),
    "dpo": Objective("reference", "bernoulli-kl"),
    "distill-dpo": Objective("reference", "squared", reward_scale=1.0),
    "ipo": Objective("reference", "squared"),
    "dno-prct": Objective("policy", "bernoulli-kl"),
    "spin": Objective("policy", "bernoulli-kl"),
    "sppo": Objective("policy", "squared", per_response=True),
    "inpo": Objective("policy", "squared"),
    "onpo": Objective("policy", "squared"),
    "egpo": Objective("policy", "squared"),
    "td-mnpo": Objective("history", "squared"),
    "ht-mnpo": Objective("players", "squared"),
    "eo-mnpo": Objective("external", "squared"),
}

# Which settings each member leaves open; everything else about it is fixed above.
_MNPO = frozenset({"beta", "ratio", "distance", "reward_scale", "eta", "eta_rate"})
SETTINGS: dict[str, frozenset[str]] = {
    "simpo": frozenset({"beta", "margin"}),
    "cpo": frozenset({"beta", "nll_weight"}),
    "dpo": frozenset({"beta"}),
    "distill-dpo": frozenset({"beta", "reward_scale"}),
    "ipo": frozenset({"eta", "eta_rate"}),
    "dno-prct": frozenset({"beta"}),
    "spin": frozenset({"beta"}),
    "sppo": frozenset({"eta", "eta_rate"}),
    "inpo": frozenset({"ratio", "eta", "eta_rate"}),
    "onpo": frozenset({"eta", "eta_rate"}),
    "egpo": frozenset({"ratio", "eta", "eta_rate"}),
    "td-mnpo": _MNPO,
    "ht-mnpo": _MNPO,
    "eo-mnpo": _MNPO,
}


def member(name: str, *, eta: float | None = None, eta_rate: float | None = None, **settings: Any) -> Objective:
    """The member ``name`` of the family with its open settings filled in.

    Two conventions for eta meet in the literature and have two names here: ``eta`` is the inverse form, target
    ``1 / (2 eta)`` (INPO, MNPO's trained loss, and IPO's tau; eq. 6); ``eta_rate`` the learning-rate form, target
    ``eta_rate / 2`` (ONPO; eq. 7). Settings given as None are left at the member's own value.

    Raises:
        ValueError: unknown member, a setting that the member does not read, two target gaps or none where one is
            needed, or a value out of range.
    """
    if name not in FAMILY:
        raise ValueError(f"unknown objective {name!r}{nearest(name, FAMILY)}")
    given = {k: v for k, v in {"eta": eta, "eta_rate": eta_rate, **settings}.items() if v is not None}
    if unread := sorted(set(given) - SETTINGS[name]):
        reads = ", ".join(sorted(SETTINGS[name]))
        raise ValueError(f"objective {name!r} does not read {', '.join(unread)}; it reads {reads}")
    gaps = {k: given[k] for k in ("eta", "eta_rate", "reward_scale") if k in given}
    if len(gaps) > 1:
        raise ValueError(
            f"objective {name!r} got {' and '.join(f'{k}={v}' for k, v in gaps.items())} but has one target gap: give "
            "eta (gap 1/(2 eta)) or, in the other convention, eta_rate (gap eta_rate/2), or else reward_scale"
        )
    objective = replace(FAMILY[name], **{k: v for k, v in given.items() if k not in ("eta", "eta_rate")})
    if eta is not None:
        objective = replace(objective, target=1 / (2 * _positive("eta", eta)))
    if eta_rate is not None:
        objective = replace(objective, target=_positive("eta_rate", eta_rate) / 2)
    return _checked(name, objective)


def _positive(key: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{key} = {value}: must be a positive number")
    return value


def _checked(name: str, objective: Objective) -> Objective:
    _positive("beta", objective.beta)
    if objective.reward_scale is not None:
        _positive("reward_scale", objective.reward_scale)
    if not 0 <= objective.ratio <= 1:
        raise ValueError(f"ratio = {objective.ratio}: the reference's share must lie in [0, 1]")
    if not math.isfinite(objective.margin):
        raise ValueError(f"margin = {objective.margin}: must be a number")
    if not (math.isfinite(objective.nll_weight) and objective.nll_weight >= 0):
        raise ValueError(f"nll_weight = {objective.nll_weight}: must be a number >= 0")
    if objective.distance not in get_args(Distance):
        raise ValueError(f"unknown distance {objective.distance!r}{nearest(objective.distance, get_args(Distance))}")
    if objective.distance == "squared" and objective.reward_scale is None and math.isinf(objective.target):
        remedy = " or ".join(sorted({"eta", "eta_rate", "reward_scale"} & SETTINGS[name]))
        raise ValueError(f"objective {name!r} regresses on a target gap: give {remedy}")
    return objective


def normalised(weights: Sequence[float], opponents: int, where: str) -> list[float]:
    """The first ``opponents`` weights, scaled to sum to one: lambda over the opponents that exist (eq. 4).

    Raises:
        ValueError: too few weights, a negative or non-finite one, or a zero sum; ``where`` names run and iteration.
    """
    used = list(weights)[:opponents]
    if len(used) < opponents:
        raise ValueError(
            f"{where}: {opponents} opponents but {len(weights)} weights {list(weights)}; give one for each"
        )
    if bad := [w for w in weights if not (math.isfinite(w) and w >= 0)]:
        raise ValueError(f"{where}: weight {bad[0]} in {list(weights)} is not a finite number >= 0")
    if opponents and sum(used) <= 0:
        raise ValueError(f"{where}: weights {used} of the opponents that exist sum to zero; give one of them a share")
    return [w / sum(used) for w in used]
