"""Block `resources`: what jobs ask for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mnpo.config.blocks import Block, Positive


class Needs(Block):
    """What one job of a stage asks for."""

    gpus: int = Field(0, ge=0)
    """Altogether; the cluster file says how many a node has."""
    cpus: int = Field(1, ge=1)
    """On each node."""
    memory_gb: Positive = 2
    """On each node; half as much again at a further try."""
    hours: Positive = 1
    """As much again at a further try."""


Stage = Literal["prompts", "sft", "sample", "score", "pair", "logps", "train", "answer", "judge", "harness", "assess",
                "tabulate"]  # fmt: skip


class Resources(Block):
    """What jobs ask the cluster for, and what the plan prices."""

    gpu: str = "h100"
    """The plan's GPU type, one of mnpo/planning/costs/hardware.py."""
    gpus: int = Field(8, ge=1)
    """GPUs that run at once, for the plan's wall-clock."""
    cpus: int | None = Field(None, ge=1)
    """Cores that run at once, for the plan's wall-clock; None: whatever jobs ask for."""
    prompt_tokens: int = Field(190, ge=1)
    """The plan's estimate of a prompt's mean length."""
    response_tokens: int = Field(400, ge=1)
    """The plan's estimate of a response's mean length."""
    stages: dict[Stage, Needs] = {}

    def of(self, stage: str) -> Needs:
        """What a job of `stage` asks for; EvalScope's, what lm-eval's do."""
        return self.stages.get("harness" if stage == "evalscope" else stage, Needs())  # type: ignore[call-overload, no-any-return]
