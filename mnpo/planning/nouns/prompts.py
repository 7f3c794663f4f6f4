"""Stages that make prompts, and what comes with them: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.planning.files import HELDOUT
from mnpo.planning.registry import Work, reads, work
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


def _world(plan: Plan) -> list[str]:
    return ["mnpo.demo.world"] if plan.config.prompts.source == "demo" else []


@reads("prompts", by_name=_world)
def _prompts_settings(plan: Plan) -> dict[str, Any]:
    prompts = plan.config.prompts.model_copy(update={"scores": None})  # which the stage `prefer` reads
    return {"prompts": prompts, "seed": plan.config.seed}


@work
def _prompts_work(plan: Plan) -> list[Work]:
    return [Work("prompts", "all parts", tuple(plan.files.prompt_files), tuple(plan.files.prompt_sources))]


@reads("demonstrations")
def _demonstrations_settings(plan: Plan) -> dict[str, Any]:
    sft = plan.config.reference.sft
    assert sft is not None and sft.data is not None
    data = sft.data.model_copy(update={"turns": "all", "expected": None})  # which the stage `sft` and the plan read
    return {"data": data, "seed": derive(plan.config.seed, "demonstrations")}


@work
def _demonstrations_work(plan: Plan) -> list[Work]:
    sources = tuple(plan.files.sft_sources)
    outputs = (plan.files.sft_data("train"), plan.files.sft_data(HELDOUT))
    return [Work("demonstrations", "of the reference", outputs, sources)] if sources else []
