"""The page of a rehearsal: what ran on what, and the fixed costs that the configuration it stands for would pay.

A miniature's tokens a second say nothing about a model of 9B: they measure Python and kernel launches. What a job pays
before it computes (imports, engines, process groups) is nearly the same for both, and is what this page carries over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from mnpo.planning.estimate import Forecast
from mnpo.storage.artifacts import Spent, manifest

ENGINES = {"evalscope": "EvalScope", "sft": "files", "reuse": "files", "pair": "pandas"}


@dataclass(frozen=True)
class Ran:
    """The finished jobs of a stage, by their manifests."""

    stage: str
    jobs: Sequence[Mapping[str, Any]]

    @property
    def engines(self) -> list[str]:
        """Who computed."""
        return sorted({_engine(self.stage, facts) for facts in self.jobs})

    @property
    def devices(self) -> list[str]:
        """On what."""
        return sorted({str(facts["device"]) for facts in self.jobs})

    @property
    def fixed(self) -> float:
        """Seconds of a job in which libraries and weights are loaded and engines start: the median."""
        return median(Spent.of(facts).loading for facts in self.jobs)

    def total(self, key: str) -> float:
        """The sum of a fact."""
        return float(sum(facts.get(key, 0) for facts in self.jobs))

    def most(self, key: str) -> float | None:
        """The largest of a fact that some jobs state."""
        return max((facts[key] for facts in self.jobs if key in facts), default=None)


def _engine(stage: str, facts: Mapping[str, Any]) -> str:
    """Who computed in a job, by its settings and the libraries that it had imported."""
    if stage == "train":
        parallel = facts["settings"]["training"].get("parallel") if facts.get("ranks", 1) > 1 else None
        return f"{parallel or 'one process'}, {facts['settings']['training']['dtype']}"
    if stage in ENGINES:
        return ENGINES[stage]
    if stage == "harness":
        return f"lm-eval, {facts['settings']['harness']['backend']}"
    if stage == "judge":
        return str(facts["settings"]["judge"]["endpoint"])
    return next((name for name in ("vllm", "transformers") if name in facts.get("versions", {})), "Python")


def ran(artifacts: Iterable[Path]) -> list[Ran]:
    """Stage by stage, the jobs that made these artifacts; a job that made several counts once."""
    stages: dict[str, dict[Any, Mapping[str, Any]]] = {}
    for path in artifacts:
        if facts := manifest(path):
            of = _job(path, facts)
            jobs = stages.setdefault(facts["stage"], {})
            jobs[of] = _together(jobs[of], facts) if of in jobs else facts
    return [Ran(stage, list(jobs.values())) for stage, jobs in stages.items()]


def _job(path: Path, facts: Mapping[str, Any]) -> Any:
    """What tells a job from others: the harness makes all results of a policy in one."""
    return path.parent if facts["stage"] in ("harness", "evalscope") else path


def _together(job: Mapping[str, Any], facts: Mapping[str, Any]) -> Mapping[str, Any]:
    sums = {key: job.get(key, 0) + facts.get(key, 0) for key in ("seconds", "loading_seconds", "tokens")}
    return {**job, **sums}


def page(found: Iterable[Ran], real: Forecast) -> pd.DataFrame:
    """One row a stage: what ran; and of the real plan the jobs, GPU-hours, and what fixed costs as here come to."""
    name = real.plan.config.name
    return pd.DataFrame([_ran(stage) | _carried_over(stage, real, name) for stage in found])


def _ran(stage: Ran) -> dict[str, Any]:
    seconds, loading, tokens = (stage.total(key) for key in ("seconds", "loading_seconds", "tokens"))
    gpu_memory = stage.most("peak_gpu_memory_mb")
    return {
        "stage": stage.stage,
        "jobs": len(stage.jobs),
        "engine": ", ".join(stage.engines),
        "device": ", ".join(stage.devices),
        "ranks": int(stage.most("ranks") or 1),
        "seconds_a_job": seconds / len(stage.jobs),
        "tokens": tokens or None,
        "tokens_per_second": tokens / (seconds - loading) if tokens and seconds > loading else None,
        "peak_memory_gb": (stage.most("peak_memory_mb") or 0) / 1024,
        "peak_gpu_memory_gb": None if gpu_memory is None else gpu_memory / 1024,
        "overhead_share": loading / seconds if seconds else None,
    }


def _carried_over(stage: Ran, real: Forecast, name: str) -> dict[str, Any]:
    estimates = real.stages.get(stage.stage, [])
    return {
        f"{name}_jobs": sum(e.work.jobs for e in estimates),
        f"{name}_gpu_hours": sum(e.gpu_hours for e in estimates) or None,
        f"{name}_gpu_hours_of_overhead": _overhead_hours(stage, real) or None,
    }


def _overhead_hours(stage: Ran, real: Forecast) -> float:
    """GPU-hours that the real plan's jobs of a stage spend on what a job pays here before it computes."""
    gpus = sum(e.work.jobs * e.gpus for e in real.stages.get(stage.stage, []))
    return gpus * stage.fixed / 3600


def notes(found: Sequence[Ran], real: Forecast) -> list[str]:
    """What a reader has to know beside the table."""
    name, devices = real.plan.config.name, sorted({device for stage in found for device in stage.devices})
    overhead = sum(_overhead_hours(stage, real) for stage in found)
    return [
        f"Measured on {', '.join(devices)}, with small models. Their tokens per second measure Python and the start of "
        f"kernels, so none is carried over to {name}",
        f"{name}: {real.jobs} jobs, {real.gpu_hours:.1f} GPU-hours by `mnpo plan`. If its jobs load libraries and "
        f"start engines as long as these did, {overhead:.1f} GPU-hours go into that; larger weights take longer",
        "overhead share: of the seconds in manifests, those in which libraries and weights are loaded and engines "
        "start; what comes before a stage begins (Snakemake, Python) is in no manifest",
    ]
