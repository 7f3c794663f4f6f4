"""Stages that make samples, drawn or taken from the data set: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import DATASET
from mnpo.planning.files import HELDOUT, part_name
from mnpo.planning.registry import Work, reads, unique, work
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("sample")
def _sample_settings(plan: Plan, policy: str, part: str, shard: str) -> dict[str, Any]:
    of_others = {"prompts_a_job": 1, "reuse_logprobs": False}  # what the other stages read
    return {
        "sampling": plan.config.sampling.model_copy(update={"shards": plan.files.shards, **of_others}),
        "text": plan.config.text,
        "shard": int(shard),
        "seed": derive(plan.config.seed, "sample", policy, part.removeprefix("part")),
    }


@reads("reuse")
def _reuse_settings(plan: Plan, shard: str) -> dict[str, Any]:
    return {"shard": int(shard), "shards": plan.files.shards, "responses": plan.config.sampling.responses}


@work
def _samples_work(plan: Plan) -> list[Work]:
    fits = plan.policies.fits.values()
    drawn: list[tuple[str, int | str]] = [
        (fit.sampler, part) for fit in fits for part in fit.parts if (fit.sampler, fit.oracle) != (DATASET, DATASET)
    ]
    drawn += [(fit.exploits, part) for fit in fits if fit.exploits for part in fit.parts]
    drawn += [(player, part) for fit in fits for players in fit.games for player in players for part in fit.parts]
    drawn += [(policy, HELDOUT) for policies in plan.policies.exploiters.values() for policy in policies]
    shards = plan.files.shards
    work = []
    for policy, part in unique(drawn):
        outputs, prompts = tuple(plan.files.sample_shards(policy, part)), plan.files.prompts(part)
        if policy == DATASET:
            work.append(Work("reuse", part_name(part), outputs, (plan.files.responses, prompts), shards, part=part))
        else:
            inputs, what = (plan.files.policy(policy), prompts), f"{policy} {part_name(part)}"
            models = (plan.policies.model_of(policy),)
            work.append(Work("sample", what, outputs, inputs, shards, policy=policy, models=models, part=part))
    return work
