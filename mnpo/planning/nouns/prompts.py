"""Stages that make prompts, and what comes with them: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.planning.registry import Work, reads, work

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
