"""What a job reads: its settings, and the code behind its stage. What stands here decides what reruns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import Block
from mnpo.oracles import modules
from mnpo.planning import nouns  # noqa: F401 - registers the stages
from mnpo.planning.registry import BY_NAME, SETTINGS

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


def settings_of(plan: Plan, stage: str, **of: str) -> str:
    """The settings that a stage reads for one job, as canonical JSON."""
    return json.dumps(SETTINGS[stage](plan, **of), sort_keys=True, default=_plain)


def modules_of(plan: Plan, stage: str, oracles: Iterable[str] = ()) -> list[str]:
    """The modules that a stage's code starts from; `oracles` adds those of the kinds of oracle it uses."""
    kinds = {spec["kind"] for spec in plan.oracles.settings(oracles)["oracles"].values()}
    by_name = BY_NAME[stage](plan) if stage in BY_NAME else []
    return [f"mnpo.stages.{stage}", *modules(kinds), *by_name]


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"{value!r} has no canonical form")
