"""Stages that make policies: the reference, and those that training makes of it: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import REFERENCE
from mnpo.planning.registry import Work, reads, work
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


def _tiny_model(plan: Plan) -> list[str]:
    return ["mnpo.demo.model"] if any(m.architecture is not None for m in plan.config.models.values()) else []


@reads("sft", by_name=_tiny_model)
def _sft_settings(plan: Plan, policy: str) -> dict[str, Any]:
    trained = plan.config.reference.sft if policy == REFERENCE else None
    turns = {"turns": trained.data.turns} if trained and trained.data else {}
    return turns | {
        "policy": policy,
        "model": plan.files.made_of(plan.policies.prepared[policy]),
        "sft": trained and trained.model_copy(update={"data": None}),  # the stage `demonstrations` reads it
        "text": plan.config.text,
        "seed": derive(plan.config.seed, "sft", policy),
    }


@reads("train")
def _train_settings(plan: Plan, policy: str) -> dict[str, Any]:
    fit = plan.policies.fits[policy]
    chosen = {k: v for k, v in fit.objective.member_settings().items() if v is not None}
    capped = {} if fit.protocol.opponent_soft_cap else {"opponent_soft_cap": False}
    return {
        "policy": policy,
        "start": fit.start,
        "objective": chosen,
        "opponents": [(name, None if fit.games else weight) for name, weight in fit.opponents],
        "scorers": fit.scorers,
        "training": fit.training,
        "length_normalised": fit.protocol.length_normalised,
        "form": fit.protocol.policy_text,
        "opponent_form": fit.protocol.opponent_text,
        **capped,
        "text": plan.config.text,
        "seed": derive(plan.config.seed, "train", policy),
    }


@reads("weigh")
def _weigh_settings(plan: Plan, policy: str) -> dict[str, Any]:
    fit = plan.policies.fits[policy]
    tau = {} if fit.objective.nash_tau is None else {"tau": fit.objective.nash_tau}
    return {
        "policy": policy,
        "oracle": fit.decides,
        "opponents": [name for name, _ in fit.opponents],
        "games": fit.games,
    } | tau


def heldout_of(plan: Plan, policy: str) -> list[str]:
    """Demonstrations that a policy's fine-tuning leaves aside."""
    return plan.files.heldout_demonstrations if policy == REFERENCE else []


@work
def _policies_work(plan: Plan) -> list[Work]:
    prepared = [
        Work(
            "sft",
            policy,
            (plan.files.policy(policy),),
            (*plan.files.model_sources([model]), plan.files.demonstrations, *heldout_of(plan, policy)),
            policy=policy,
            models=(model,),
        )
        for policy, model in plan.policies.prepared.items()
    ]
    base = plan.config.reference.model
    trained = [
        Work(
            "train",
            fit.policy,
            (plan.files.policy(fit.policy), plan.files.training(fit.policy)),
            (
                plan.files.policy(fit.start),
                *plan.files.fit_pairs(fit),
                *plan.files.fit_logps(fit),
                *plan.files.fit_game(fit),
            ),
            policy=fit.policy,
            models=(base,),
        )
        for fit in plan.policies.fits.values()
    ]
    weighed = [
        Work(
            "weigh", fit.policy, (plan.files.game(fit.policy),), tuple(plan.files.game_scores(fit)), oracle=fit.decides
        )
        for fit in plan.policies.fits.values()
        if fit.games
    ]
    return prepared + weighed + trained
