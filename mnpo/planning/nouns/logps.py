"""Stages that make log-probabilities of pairs under whoever opposes: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.runs import PRESETS
from mnpo.planning.registry import Work, reads, unique, work

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("logps")
def _logps_settings(plan: Plan, text: str) -> dict[str, Any]:
    protocols = [*PRESETS.values(), *(fit.protocol for fit in plan.policies.fits.values())]
    protocol = {p.reading(): p for p in protocols}[text]
    capped = {} if protocol.opponent_soft_cap else {"soft_cap": False}
    attention = {"attention": plan.config.training.attention} if plan.config.training.attention else {}
    form, dtype = protocol.opponent_text, plan.config.training.dtype
    return {"form": form, "text": plan.config.text, "dtype": dtype, **attention, **capped}


@work
def _logps_work(plan: Plan) -> list[Work]:
    scored = unique(
        (fit.sampler, part, fit.oracle, fit.protocol.reading(), scorer)
        for fit in plan.policies.fits.values()
        for scorer in fit.scorers
        for part in fit.parts
    )
    return [
        Work(
            "logps",
            f"{policy} part{part} {oracle} {text} under {scorer}",
            (plan.files.logps(policy, part, oracle, text, scorer),),
            (plan.files.policy(scorer), plan.files.pairs(policy, part, oracle), *said),
            policy=scorer,
            models=() if said else (plan.policies.model_of(scorer),),
            part=part,
            oracle=oracle,
        )
        for policy, part, oracle, text, scorer in scored
        for said in [plan.files.reused_logprobs(policy, part, text, scorer)]
    ]
