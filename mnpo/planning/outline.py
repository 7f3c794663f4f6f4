"""The plan for people and programs: who learns from what against whom, and what it costs (docs/costs.md)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from mnpo.benchmarks.cards import CARDS
from mnpo.config.blocks import DATASET
from mnpo.planning.costs.hardware import CPU
from mnpo.planning.costs.pieces import DEFAULT, Estimate
from mnpo.planning.estimate import Forecast
from mnpo.planning.fits import Fit

ORDER = (
    "download", "miniature", "prompts", "demonstrations", "sft", "reuse", "sample", "score", "pair", "prefer",
    "logps", "weigh", "train", "assess", "harness", "answer", "judge",
)  # fmt: skip
"""In which stages are shown; the tables come last."""


def describe(forecast: Forecast) -> str:
    """The plan, readable."""
    c = forecast.plan.config
    blocks = [
        f"{c.name}: policies, whose samples they learn from, and against whom\n{_policies(forecast)}",
        f"Work\n{_stages(forecast)}",
        *([f"Judges and endpoints\n{_judges(forecast)}"] if forecast.calls else []),
        "\n".join([_sharing(forecast), *_overhead(forecast), _time(forecast), _disk(forecast)]),
        *(["\n".join(f"Note: {note}" for note in forecast.notes)] if forecast.notes else []),
        f"{_closing(forecast)}\n{_sources(forecast)}",
    ]
    return "\n\n".join(blocks)


def dump(forecast: Forecast) -> str:
    """All of it as JSON: seconds, bytes, tokens, GPU-hours, US dollars."""
    plan, sharing, paid = forecast.plan, forecast.sharing, forecast.paid
    peak, during = forecast.peak
    content = {
        "name": plan.config.name,
        "resources": {k: getattr(plan.config.resources, k) for k in ("gpu", "gpus", "cpus")},
        "policies": [_fit(fit) for fit in _made(forecast)],
        "stages": {name: _sums(some) for name, some in _in_order(forecast)},
        "work": [_work(e) for e in forecast.estimates],
        "judges": [{"judge": j, "benchmark": b, **asdict(calls)} for (j, b), calls in forecast.calls.items()],
        "sharing": {"alone": sharing.alone, "together": sharing.together, "saved": sharing.saved},
        "disk": {"peak": peak, "peak_during": during, "kept": forecast.kept_bytes},
        "totals": {
            "jobs": forecast.jobs,
            "gpu_hours": forecast.gpu_hours,
            "overhead_gpu_hours": forecast.overhead_hours,
            "job_hours": forecast.job_hours,
            "tokens": sum(e.tokens for e in forecast.estimates),
            "wall_clock": forecast.wall_clock,
            "critical_path": forecast.critical_path,
            "calls": paid.count,
            "price": paid.price,
        },
        "notes": forecast.notes,
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


# ------------------------------------------------------------------------------------------------------------- policies


def _made(forecast: Forecast) -> list[Fit]:
    """The fits that the chosen work contains."""
    trained = {e.work.policy for e in forecast.estimates if e.work.stage == "train"}
    return [fit for policy, fit in forecast.plan.policies.fits.items() if policy in trained]


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "policy": fit.policy,
        "start": fit.start,
        "sampler": fit.sampler,
        "parts": list(fit.parts),
        "oracle": fit.oracle,
        "objective": fit.objective.name,
        "opponents": {name: None if fit.games else weight for name, weight in fit.opponents},
        "reference_share": fit.objective.ratio or 0.0,
    }


def _policies(forecast: Forecast) -> str:
    rows = [
        [
            fit.policy,
            fit.objective.name,
            fit.start,
            "the data set's own" if fit.sampler == DATASET else fit.sampler,
            ", ".join(map(str, fit.parts)),
            "the data set" if fit.oracle == DATASET else fit.oracle,
            _opponents(fit),
        ]
        for fit in _made(forecast)
    ]
    return _table(
        rows, ["policy", "objective", "starts from", "learns from", "part", "scored by", "opposed by (weight)"]
    )


def _opponents(fit: Fit) -> str:
    """Who opposes, each with its weight among all that do, the reference's share included."""
    share = fit.objective.ratio or 0.0
    if fit.games:
        names = ", ".join(name for name, _ in fit.opponents)
        return f"{names}: {1 - share:.2g} by their game" + (f", sft {share:.2g}" if share else "")
    weights: Counter[str] = Counter()
    for name, weight in fit.opponents:
        weights[name] += weight * (1 - share)  # type: ignore[assignment]
    if share:
        weights["sft"] += share  # type: ignore[assignment]
    return ", ".join(f"{name} {weight:.2g}" for name, weight in weights.items()) or "nobody"


# ----------------------------------------------------------------------------------------------------------------- work


def _sums(some: Sequence[Estimate]) -> dict[str, Any]:
    largest = max(some, key=lambda e: e.gpus)  # scoring by an oracle that asks a judge needs none
    return {
        "jobs": sum(e.work.jobs for e in some),
        "device": largest.device,
        "gpus": largest.gpus,
        "seconds": sum(e.work.jobs * e.seconds for e in some),
        "gpu_hours": sum(e.gpu_hours for e in some),
        "overhead_gpu_hours": sum(e.overhead_hours for e in some),
        "tokens": sum(e.tokens for e in some),
        "kept": sum(e.kept for e in some),
        "source": largest.source,
    }


def _work(e: Estimate) -> dict[str, Any]:
    keys = ("device", "gpus", "seconds", "gpu_hours", "tokens", "kept", "passing", "source")
    return {"stage": e.work.stage, "what": e.work.what, "jobs": e.work.jobs} | {k: getattr(e, k) for k in keys}


def _in_order(forecast: Forecast) -> list[tuple[str, list[Estimate]]]:
    """The stages and their estimates."""
    return sorted(forecast.stages.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else len(ORDER))


def _stages(forecast: Forecast) -> str:
    rows = []
    for name, some in _in_order(forecast):
        s = _sums(some)
        rows.append(
            [
                name,
                s["jobs"],
                f"{s['gpus']} x {s['device']}" if s["gpus"] else CPU,
                _span(s["seconds"] / s["jobs"]),
                _hours(s["gpu_hours"]) if s["gpus"] else "",
                _count(s["tokens"]) if s["tokens"] else "",
                _size(s["kept"]) if s["kept"] >= 1e6 else "",
                s["source"],
            ]
        )
    return _table(rows, ["stage", "jobs", "a job on", "takes", "GPU-hours", "tokens", "disk", "times are"])


def _judges(forecast: Forecast) -> str:
    rows = [
        [
            who,
            CARDS[what].title if what in CARDS else what,
            f"{calls.count:,}",
            _count(calls.input_tokens),
            _count(calls.output_tokens),
            f"${calls.price:,.2f}" if calls.price else "no price given",
        ]
        for (who, what), calls in forecast.calls.items()
    ]
    return _table(rows, ["who", "what for", "calls", "tokens read", "written", "price"])


def _sharing(forecast: Forecast) -> str:
    s, unit = forecast.sharing, "GPU-hours" if forecast.gpu_hours else "hours of work"
    if not s.alone:
        return "Shared: nothing, no run is made"
    alone = sum(s.alone.values())
    share = s.saved / alone if alone else 0.0
    return (
        f"Shared: each of the {len(s.alone)} runs alone would take {_hours(alone)} {unit} in all, together "
        f"{_hours(s.together)}: {share:.0%} saved"
    )


def _overhead(forecast: Forecast) -> list[str]:
    if not (hours := forecast.gpu_hours):
        return []
    most, _ = max(((name, _sums(some)["overhead_gpu_hours"]) for name, some in _in_order(forecast)), key=lambda s: s[1])
    share = forecast.overhead_hours / hours
    return [
        f"Overhead: {_hours(forecast.overhead_hours)} of {_hours(hours)} GPU-hours ({share:.0%}) are no work, but "
        f"starting, loading, hashing, compiling and saving; most of it in {most}"
    ]


def _time(forecast: Forecast) -> str:
    r = forecast.plan.config.resources
    where = f"{r.gpus} x {r.gpu}" if forecast.gpu_hours else f"{r.cpus or 'any number of'} cores"
    return (
        f"Time: {_span(forecast.wall_clock)} on {where}, with waiting for each other counted; "
        f"never less than {_span(forecast.critical_path)}, however many"
    )


def _disk(forecast: Forecast) -> str:
    peak, during = forecast.peak
    kept = _size(forecast.kept_bytes)
    return f"Disk: at most {_size(peak)} at once (when {during} begins), {kept} when all is done; downloads included"


def _closing(forecast: Forecast) -> str:
    r, paid = forecast.plan.config.resources, forecast.paid
    hours = (
        f"about {_hours(forecast.gpu_hours)} GPU-hours ({_span(forecast.wall_clock)} on {r.gpus} x {r.gpu})"
        if forecast.gpu_hours
        else f"about {_span(forecast.job_hours * 3600)} of work ({_span(forecast.wall_clock)} of waiting)"
    )
    price = f", ${paid.price:,.0f}" if paid.price else ""
    calls = f", about {paid.count:,} judge calls{price}" if paid.count else ""
    return f"{forecast.jobs} jobs, {hours}, peak disk {_size(forecast.peak[0])}{calls}"


def _sources(forecast: Forecast) -> str:
    """What of it is a guess, what is known from finished jobs."""
    known = [name for name, some in _in_order(forecast) if all(e.source != DEFAULT for e in some)]
    r = forecast.plan.config.resources
    lengths = f"prompts of {r.prompt_tokens} and responses of {r.response_tokens} tokens"
    times = f"times of {', '.join(known)}" if known else "nothing, for none of these jobs is done"
    return f"estimates: {lengths}, and every time not measured (docs/costs.md); measured: {times}"


# ------------------------------------------------------------------------------------------------------------- in words


def _table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    numbers = ("jobs", "takes", "GPU-hours", "tokens", "disk", "calls", "tokens read", "written", "price")
    align = ["right" if h in numbers else "left" for h in headers]
    return str(
        tabulate(rows, headers=headers, tablefmt="simple", colalign=align if rows else None, disable_numparse=True)
    )


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


def _span(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _size(size: float) -> str:
    """Bytes in the unit that reads best, powers of ten."""
    return _scaled(size, ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1, " B")))


def _count(number: float) -> str:
    return _scaled(number, ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")))


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    size, unit = next((u for u in units if value >= u[0]), units[-1])
    return f"{value / size:.3g}{unit}" if value < 1000 * size else f"{value / size:,.0f}{unit}"
