"""What a piece of work costs, all together: seconds, tokens, judge calls and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnpo.planning.costs.assumptions import DOWNLOADING, LATENCY, LOADING, SMALL_JOB, START, WEIGHT_BYTES
from mnpo.planning.costs.calibration import Measured, Rate
from mnpo.planning.costs.calls import Calls, calls, conversations
from mnpo.planning.costs.disk import kept_bytes, passing_bytes
from mnpo.planning.costs.hardware import CPU, DEVICES, device
from mnpo.planning.costs.passes import Pass, passes, seconds
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work

DEFAULT = "default"
"""The source of an estimate that nothing finished backs."""


@dataclass(frozen=True)
class Estimate:
    """What a piece of work costs."""

    work: Work
    device: str
    gpus: int
    """Of each job."""
    cpus: int
    start: float
    """Seconds until each job begins."""
    computing: float
    """Seconds of each job after that: what its manifest will say."""
    tokens: float
    """Read, written and learnt, by all jobs and models."""
    calls: Calls
    kept: float
    """Bytes of all outputs."""
    passing: float
    """Further bytes while it runs."""
    source: str
    """Where the seconds come from: DEFAULT, or measured (so many jobs)."""

    @property
    def seconds(self) -> float:
        """Of each job."""
        return self.start + self.computing

    @property
    def gpu_hours(self) -> float:
        """Of all jobs."""
        return self.work.jobs * self.gpus * self.seconds / 3600

    @property
    def job_hours(self) -> float:
        """Of all jobs, one after another."""
        return self.work.jobs * self.seconds / 3600


def estimate(plan: Plan, pieces: Sequence[Work], known: Measured | None = None) -> list[Estimate]:
    """What each of `pieces` costs, by what is `known` of finished jobs, else by default.

    Raises:
        ConfigError: the configuration does not say how many prompts there are, how large a model is, or names a GPU
            that is unknown.
    """
    known = known or Measured()
    q = Quantities(plan, known.lengths)
    return [_estimate(q, work, known) for work in pieces]


def _estimate(q: Quantities, work: Work, known: Measured) -> Estimate:
    steps, asked, on = passes(q, work), calls(q, work), device(q.plan, work.needs)
    needs, factor = q.plan.config.resources.of(work.needs), known.tokens.get(work.stage, 1.0)
    start, computing, source = _duration(q, work, steps, known, on)
    return Estimate(
        work,
        on,
        needs.gpus,
        needs.cpus,
        start,
        computing,
        sum(step.tokens * (factor if step.counted else 1.0) for step in steps),
        asked,
        kept_bytes(q, work),
        passing_bytes(q, work),
        source,
    )


def _duration(q: Quantities, work: Work, steps: list[Pass], known: Measured, on: str) -> tuple[float, float, str]:
    """Start and computation of each job in seconds, and where they come from."""
    key, gpus = (work.stage, on), max(1, q.plan.config.resources.of(work.needs).gpus)
    factor = known.tokens.get(work.stage, 1.0)
    start = START["small" if not steps else "cpu" if on == CPU else "gpu"]
    asking = sum(asked.count * LATENCY / at_once for asked, at_once in conversations(q, work)) / work.jobs
    if steps and key in known.rates:
        units = sum(step.parameters * step.tokens for step in steps if step.counted) * factor
        rate = known.rates[key]
        return start, asking + known.loading.get(key, 0.0) + units / work.jobs / (rate.value * gpus), _said(rate)
    if key in known.durations and not asking:
        return start, known.durations[key].value, _said(known.durations[key])
    if steps:
        loading = sum(WEIGHT_BYTES * q.size(model) for model in work.models) / LOADING
        return start, asking + loading + sum(seconds(s, DEVICES[on], gpus) for s in steps) / work.jobs, DEFAULT
    if asking:
        return start, asking, DEFAULT
    if work.stage == "download":
        return start, kept_bytes(q, work) / DOWNLOADING, DEFAULT
    if work.stage == "sft":
        return start, kept_bytes(q, work) / LOADING, DEFAULT
    return start, SMALL_JOB, DEFAULT


def _said(rate: Rate) -> str:
    return f"measured ({rate.jobs} job{'s' * (rate.jobs > 1)})"
