"""What a piece of work costs, all together: seconds, tokens, judge calls and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnpo.planning.costs.assumptions import DOWNLOADING, LATENCY, LOADING, SMALL_JOB, START
from mnpo.planning.costs.calibration import Measured, Rate
from mnpo.planning.costs.calls import Calls, calls, conversations
from mnpo.planning.costs.disk import kept_bytes, passing_bytes
from mnpo.planning.costs.hardware import CPU, DEVICES, device
from mnpo.planning.costs.overhead import fixed, loading
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
    """Seconds of each job in which it loads weights and works with them."""
    fixed: float
    """Further seconds of each job, which its work does not need: hashing, compiling, saving (costs/overhead.py). Where
    the seconds are measured, they are in `computing`."""
    loading: float
    """Of the seconds in `computing`, those in which libraries and weights are loaded."""
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
        return self.start + self.fixed + self.computing

    @property
    def overhead_hours(self) -> float:
        """GPU-hours of all jobs in which nothing is computed, as far as is known."""
        return self.work.jobs * self.gpus * (self.start + self.fixed + self.loading) / 3600

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
    start, computing, loaded, source = _duration(q, work, steps, known, on)
    further = fixed(q, work, on, computing - loaded) if steps and source == DEFAULT else 0.0
    return Estimate(
        work,
        on,
        needs.gpus,
        needs.cpus,
        start,
        computing,
        further,
        loaded,
        sum(step.tokens * (factor if step.counted else 1.0) for step in steps),
        asked,
        kept_bytes(q, work),
        passing_bytes(q, work),
        source,
    )


def _duration(
    q: Quantities, work: Work, steps: list[Pass], known: Measured, on: str
) -> tuple[float, float, float, str]:
    """Start and computation of each job in seconds, how much of that is loading, and where they come from."""
    key, gpus = (work.stage, on), max(1, q.plan.config.resources.of(work.needs).gpus)
    factor = known.tokens.get(work.stage, 1.0)
    start = START["small" if not steps else "cpu" if on == CPU else "gpu"]
    asking = sum(asked.count * LATENCY / at_once for asked, at_once in conversations(q, work)) / work.jobs
    if steps and key in known.rates:
        units = sum(step.parameters * step.tokens for step in steps if step.counted) * factor
        rate, loaded = known.rates[key], known.loading.get(key, 0.0)
        return start, asking + loaded + units / work.jobs / (rate.value * gpus), loaded, _said(rate)
    if key in known.durations and not asking:
        return start, known.durations[key].value, 0.0, _said(known.durations[key])
    if steps:
        loaded = loading(q, work)
        working = sum(seconds(s, DEVICES[on], gpus) for s in steps) / work.jobs
        return start, asking + loaded + working, loaded, DEFAULT
    if asking:
        return start, asking, 0.0, DEFAULT
    if work.stage == "download":
        return start, kept_bytes(q, work) / DOWNLOADING, 0.0, DEFAULT
    if work.stage == "sft":
        return start, kept_bytes(q, work) / LOADING, 0.0, DEFAULT
    return start, SMALL_JOB, 0.0, DEFAULT


def _said(rate: Rate) -> str:
    return f"measured ({rate.jobs} job{'s' * (rate.jobs > 1)})"
