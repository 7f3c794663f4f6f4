"""Stages that make pairs: chosen and rejected responses: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import REFERENCE
from mnpo.config.sampling import Pairing
from mnpo.planning.fits import AGAINST
from mnpo.planning.registry import Work, reads, work

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("pair")
def _pair_settings(plan: Plan, oracle: str) -> dict[str, Any]:
    """`min_gap` is in the units of the oracle's scores; win rates against a policy have none."""
    return {"pairing": Pairing() if AGAINST in oracle else plan.config.pairing, **plan.policies.strip(REFERENCE)}


@reads("prefer")
def _prefer_settings(plan: Plan) -> dict[str, Any]:
    return {"prompts": plan.config.prompts}


@work
def _pairs_work(plan: Plan) -> list[Work]:
    return [
        Work(
            "pair",
            f"{policy} part{part} {oracle}",
            (plan.files.pairs(policy, part, oracle),),
            (*plan.files.sample_shards(policy, part), *plan.files.score_shards(policy, part, oracle)),
            part=part,
            oracle=oracle,
        )
        for policy, part, oracle in plan.policies.paired
    ] + [
        Work(
            "prefer",
            f"{policy} part{part}",
            (plan.files.pairs(policy, part, oracle),),
            (plan.files.prompts(part), *plan.files.prompt_sources, *plan.files.own_samples(policy, part)),
            part=part,
            oracle=oracle,
        )
        for policy, part, oracle in plan.policies.preferred
    ]
