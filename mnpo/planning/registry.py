"""The registry of stages: what each reads, and which work a plan has for it. mnpo/planning/nouns/ fills it.

One piece of work is all jobs of one stage on one noun: the 16 shards of a policy's samples on a part are one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

Item = TypeVar("Item")


@dataclass(frozen=True)
class Work:
    """Jobs of one stage that together make one noun."""

    stage: str
    what: str
    """Which noun: `td-mnpo.1 part2`, `inpo.3 mt-bench.gpt-5-mini`."""
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    jobs: int = 1
    policy: str | None = None
    """The policy that computes (samples, scores texts, is trained, answers)."""
    models: tuple[str, ...] = ()
    """Entries of `models` that compute: the policy's architecture, or the oracle's."""
    part: int | str | None = None
    """Of the prompts: 1, 2, ... or HELDOUT."""
    benchmark: str | None = None
    oracle: str | None = None
    """Who scores."""
    judge: str | None = None
    """Who is asked: an entry of `judges`, or an oracle that asks one."""

    @property
    def name(self) -> str:
        """Unique in a plan."""
        return f"{self.stage} {self.what}"

    @property
    def needs(self) -> str:
        """The entry of `resources.stages` that its jobs follow."""
        return "judge" if self.judge else self.stage


Settings = Callable[..., dict[str, Any]]
"""The plan, and what tells a stage's jobs apart -> the settings that a job reads."""
Pieces = Callable[["Plan"], Sequence[Work]]
SETTINGS: dict[str, Settings] = {}
BY_NAME: dict[str, Callable[[Plan], Sequence[str]]] = {}
WORK: list[Pieces] = []


def reads(stage: str, by_name: Callable[[Plan], Sequence[str]] | None = None) -> Callable[[Settings], Settings]:
    """Register what the jobs of a stage read; `by_name`: modules that it imports by name, for its digest."""

    def register(settings: Settings) -> Settings:
        SETTINGS[stage] = settings
        if by_name is not None:
            BY_NAME[stage] = by_name
        return settings

    return register


def work(pieces: Pieces) -> Pieces:
    """Register the work that a plan has for some stages."""
    WORK.append(pieces)
    return pieces


def stage_of(rule: str) -> str:
    """What a rule calls, of those that share a stage (`train_passing`, `score_asking`, `miniature_model`)."""
    return rule.partition("_")[0]


def unique(items: Iterable[Item]) -> list[Item]:
    """Each item once, in order."""
    return list(dict.fromkeys(items))
