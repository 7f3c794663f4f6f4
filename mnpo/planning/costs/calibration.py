"""What manifests of finished jobs say: speeds, durations and lengths in place of assumptions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from mnpo.planning import job_graph
from mnpo.planning.costs.hardware import CPU, known_as
from mnpo.planning.costs.passes import passes
from mnpo.planning.costs.quantities import Lengths, Quantities
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work
from mnpo.storage.artifacts import Spent, manifest
from mnpo.storage.resume import begun


@dataclass(frozen=True)
class Rate:
    """What finished jobs of a stage on a device say."""

    value: float
    """Parameters x tokens a second and GPU; of jobs without a model: seconds a job."""
    jobs: int


@dataclass(frozen=True)
class Measured:
    """What manifests of finished jobs say."""

    rates: dict[tuple[str, str], Rate] = field(default_factory=dict)
    """(stage, device) -> parameters x tokens a second and GPU."""
    durations: dict[tuple[str, str], Rate] = field(default_factory=dict)
    """(stage, device) -> seconds a job, where nothing says how many tokens."""
    loading: dict[tuple[str, str], float] = field(default_factory=dict)
    """(stage, device) -> seconds of a job, of those that have a rate, in which libraries and weights are loaded."""
    tokens: dict[str, float] = field(default_factory=dict)
    """stage -> measured tokens per estimated one."""
    lengths: Lengths | None = None
    """Of what was sampled."""


def measured(plan: Plan, pieces: Iterable[Work]) -> Measured:
    """What those of `pieces` that are done say: the median over jobs of every (stage, device)."""
    pieces = list(pieces)
    q = Quantities(plan, lengths := _lengths(pieces))
    rates, durations, loading, tokens = (defaultdict(list) for _ in range(4))
    for work in pieces:
        steps = [step for step in passes(q, work) if step.counted]
        planned = sum(step.tokens for step in steps) / work.jobs
        units = sum(step.parameters * step.tokens for step in steps) / work.jobs
        for facts in _finished(work):
            key = work.stage, known_as(str(facts.get("device", CPU))) or ""
            if steps and facts.get("tokens"):
                per_token = facts.get("parameters", units / planned)
                gpus = facts.get("gpus", max(1, plan.config.resources.of(work.needs).gpus))
                spent = Spent.of(facts)
                loading[key].append(spent.loading)
                rates[key].append(per_token * facts["tokens"] / (spent.seconds - spent.loading) / gpus)
                tokens[work.stage].append(facts["tokens"] / planned)
            elif not work.judge:  # whose verdicts may have come from its store
                durations[key].append(facts["seconds"])
    return Measured(
        {key: Rate(median(values), len(values)) for key, values in rates.items()},
        {key: Rate(median(values), len(values)) for key, values in durations.items()},
        {key: median(values) for key, values in loading.items()},
        {stage: median(values) for stage, values in tokens.items()},
        lengths,
    )


def _lengths(pieces: Iterable[Work]) -> Lengths | None:
    """What all finished jobs that drew samples say together."""
    said = [facts for work in pieces if work.stage == "sample" for facts in _finished(work)]
    sums = {key: sum(f.get(key, 0) for f in said) for key in ("prompts", "prompt_tokens", "drawn", "tokens")}
    if not sums["prompts"] or not sums["drawn"]:
        return None
    return Lengths(sums["prompt_tokens"] / sums["prompts"], sums["tokens"] / sums["drawn"])


def _finished(work: Work) -> list[dict[str, Any]]:
    """A manifest for each job that is done."""
    found = [facts for facts in map(manifest, work.outputs) if facts.get("seconds")]
    if work.stage in (
        "harness",
        "evalscope",
    ):  # one job makes the results of all benchmarks, each with a manifest of its own
        whole = len(found) == len(work.outputs) and all(facts.get("tokens") for facts in found)
        return [found[0] | {key: sum(f[key] for f in found) for key in ("tokens", "seconds")}] if whole else []
    return found if work.jobs == len(work.outputs) else found[:1]


def stop_seconds(plan: Plan, stage: str) -> float:
    """The longest that a stop of one of a stage's jobs took, or would have, as finished and begun ones say."""
    said = [
        facts.get("stop_seconds", 0.0)
        for output in _outputs(plan, stage)
        for facts in (manifest(output), begun(Path(output)))
    ]
    return max(said, default=0.0)


@cache
def _outputs(plan: Plan, stage: str) -> tuple[str, ...]:
    return tuple(output for work in job_graph.everything(plan) if work.stage == stage for output in work.outputs)
