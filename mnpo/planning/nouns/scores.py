"""Stages that make scores: what an oracle thinks of samples: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import REFERENCE
from mnpo.planning.files import HELDOUT, part_name
from mnpo.planning.fits import AGAINST
from mnpo.planning.registry import Work, reads, unique, work

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("score")
def _score_settings(plan: Plan, oracle: str, policy: str = REFERENCE) -> dict[str, Any]:
    name, _, other = oracle.partition(AGAINST)
    own, theirs = (plan.policies.strip(p) for p in (policy, other or policy))
    apart = {} if own == theirs else {"strip_against": theirs.get("strip", "template")}
    return plan.oracles.settings([oracle]) | {"oracle": name} | own | apart


@work
def _scores_work(plan: Plan) -> list[Work]:
    decides, scored = plan.policies.exploited, list[tuple[str, int | str, str]](plan.policies.paired)
    scored += [(e, HELDOUT, f"{decides[p]}{AGAINST}{p}") for p, some in plan.policies.exploiters.items() for e in some]
    scored += [
        (first, part, f"{fit.decides}{AGAINST}{second}")
        for fit in plan.policies.fits.values()
        for first, second in fit.games
        for part in fit.parts
    ]
    shards = range(plan.files.shards)
    return [
        Work(
            "score",
            f"{policy} {part_name(part)} {oracle}",
            tuple(plan.files.score_shards(policy, part, oracle)),
            (
                *plan.files.sample_shards(policy, part),
                *(file for s in shards for file in plan.files.against(part, oracle, s)),
                *plan.oracles.sources([oracle]),
            ),
            len(shards),
            models=tuple(plan.oracles.models([oracle])),
            part=part,
            oracle=oracle,
            judge=oracle if plan.oracles.asks(oracle) else None,
        )
        for policy, part, oracle in unique(scored)
    ]
