"""The whole plan priced: when what runs, how much disk it takes at once, what runs share, and what one more costs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from mnpo.config.blocks import ConfigError, nearest
from mnpo.config.configuration import Config
from mnpo.config.evaluation import Target
from mnpo.config.runs import NASH
from mnpo.errors import BadInput
from mnpo.planning import job_graph
from mnpo.planning.costs.assumptions import TRAIN_BYTES, WEIGHT_BYTES
from mnpo.planning.costs.calibration import Measured, measured
from mnpo.planning.costs.calls import Calls
from mnpo.planning.costs.hardware import DEVICES
from mnpo.planning.costs.pieces import Estimate, estimate
from mnpo.planning.costs.quantities import Quantities, parameters
from mnpo.planning.files import HELDOUT
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work
from mnpo.planning.schedule import Job, ranks, schedule

TRAINED = ("train", "sft")
PREFERENCES = "preferences"
"""What a judge is asked for where it is an oracle."""


@dataclass(frozen=True)
class Sharing:
    """What it saves that runs share work."""

    alone: dict[str, float]
    """Run -> GPU-hours (job-hours, where no job has a GPU) of all that it alone would need."""
    together: float
    """The same of all that any of them needs."""

    @property
    def saved(self) -> float:
        """By doing once what several need."""
        return sum(self.alone.values()) - self.together


class Forecast:
    """What `pieces` of a plan's work cost.

    Raises:
        ConfigError: see mnpo.planning.costs.pieces.estimate; or a job asks for more GPUs or cores than there are at
            once.
    """

    def __init__(self, plan: Plan, pieces: Sequence[Work], known: Measured | None = None) -> None:
        self.plan = plan
        self.estimates = estimate(plan, pieces, known)
        gpus, cpus = plan.config.resources.gpus, plan.config.resources.cpus
        for e in self.estimates:
            for key, asked, there in (("gpus", e.gpus, gpus), ("cpus", e.cpus, cpus or math.inf)):
                if asked > there:
                    raise ConfigError(
                        f"resources.{key}: {there}, but resources.stages.{e.work.needs} asks for {asked} for one job"
                    )

    # ------------------------------------------------------------------------------------------------------------- sums

    @property
    def stages(self) -> dict[str, list[Estimate]]:
        """The estimates of each stage, in the order of the work."""
        stages: dict[str, list[Estimate]] = {}
        for e in self.estimates:
            stages.setdefault(e.work.stage, []).append(e)
        return stages

    @property
    def jobs(self) -> int:
        """How many jobs there are."""
        return sum(e.work.jobs for e in self.estimates)

    @property
    def gpu_hours(self) -> float:
        """Of everything."""
        return sum(e.gpu_hours for e in self.estimates)

    @property
    def overhead_hours(self) -> float:
        """GPU-hours of everything in which nothing is computed: start, loading, hashing, compiling, saving."""
        return sum(e.overhead_hours for e in self.estimates)

    @property
    def job_hours(self) -> float:
        """Of everything, one job after another."""
        return sum(e.job_hours for e in self.estimates)

    def hours_of(self, e: Estimate) -> float:
        """What counts: GPU-hours, or job-hours where no job has a GPU."""
        return e.gpu_hours if self.gpu_hours else e.job_hours

    @property
    def calls(self) -> dict[tuple[str, str], Calls]:
        """(judge, oracles that ask one, or model behind an endpoint; benchmark, HELDOUT or PREFERENCES) -> what is
        asked, all policies and repeats together."""
        oracles = self.plan.oracles
        deciding = ", ".join(name for name in oracles.over_reference if name in oracles.asking)
        asked: dict[tuple[str, str], list[Calls]] = defaultdict(list)
        for e in self.estimates:
            if e.calls.count:
                heldout = e.work.stage == "assess"
                who = deciding if heldout else e.work.judge or e.work.policy or ""
                asked[who, e.work.benchmark or (HELDOUT if heldout else PREFERENCES)].append(e.calls)
        return {key: Calls.sum(some) for key, some in asked.items()}

    @property
    def paid(self) -> Calls:
        """All calls together."""
        return Calls.sum(e.calls for e in self.estimates)

    # ------------------------------------------------------------------------------------------------------------- time

    @cached_property
    def _jobs(self) -> list[Job]:
        """The jobs, each after those whose outputs it reads: shard 3 of one thing reads shard 3 of another only."""
        makers = {output: e for e in self.estimates for output in e.work.outputs}
        first: dict[str, int] = {}
        jobs: list[Job] = []
        for e in self.estimates:
            first[e.work.name] = len(jobs)
            before = {makers[file].work.name: makers[file].work for file in e.work.inputs if file in makers}
            for shard in range(e.work.jobs):
                after: list[int] = []
                for maker in before.values():
                    begin = first[maker.name]
                    same = maker.jobs == e.work.jobs
                    after += [begin + shard] if same else range(begin, begin + maker.jobs)
                jobs.append(Job(e.seconds, e.gpus, e.cpus, tuple(after)))
        return jobs

    @cached_property
    def slots(self) -> list[tuple[Estimate, float, float]]:
        """When each job runs on the configured GPUs and cores: (what, start, end), seconds."""
        r = self.plan.config.resources
        times = schedule(self._jobs, r.gpus, r.cpus or math.inf)
        owners = [e for e in self.estimates for _ in range(e.work.jobs)]
        return [(e, start, end) for e, (start, end) in zip(owners, times, strict=True)]

    @property
    def wall_clock(self) -> float:
        """Seconds until everything is done."""
        return max((end for _, _, end in self.slots), default=0.0)

    @property
    def critical_path(self) -> float:
        """Seconds that everything takes on any number of GPUs."""
        return max(ranks(self._jobs), default=0.0)

    # ------------------------------------------------------------------------------------------------------------- disk

    @property
    def kept_bytes(self) -> float:
        """Disk when everything is done."""
        gone = {self.plan.files.policy(policy) for policy in self.plan.policies.passing}
        return sum(e.kept for e in self.estimates if not gone & set(e.work.outputs))

    @property
    def peak(self) -> tuple[float, str]:
        """The most disk at any time, and what begins then.

        An output is there from the start of its job, a passing policy until its last reader is done, a training's own
        checkpoint while it trains.
        """
        passing = {self.plan.files.policy(policy): policy for policy in self.plan.policies.passing}
        last: dict[str, float] = {}
        for e, _, end in self.slots:
            for file in passing.keys() & {*e.work.inputs, *e.work.outputs}:
                last[file] = max(last.get(file, 0.0), end)
        changes: list[tuple[float, float, str]] = []
        for e, start, end in self.slots:
            changes += [(start, e.kept / e.work.jobs + e.passing, e.work.name), (end, -e.passing, "")]
            changes += [(last[file], -e.kept, "") for file in passing.keys() & set(e.work.outputs)]
        most, at, there = 0.0, "", 0.0
        for _, change, name in sorted(changes):  # of one moment, what goes before what comes
            there += change
            if there > most:
                most, at = there, name
        return most, at

    # ---------------------------------------------------------------------------------------------------------- sharing

    @cached_property
    def sharing(self) -> Sharing:
        """What each run would cost alone, and what they cost together."""
        hours = {e.work.name: self.hours_of(e) for e in self.estimates}
        needed = job_graph.by_run(self.plan, [e.work for e in self.estimates])
        alone = {run: sum(hours[name] for name in names) for run, names in needed.items() if names}
        return Sharing(alone, sum(hours[name] for name in set().union(*needed.values())))

    @property
    def notes(self) -> list[str]:
        """What does not fit into the GPUs' memory."""
        said = {}
        for e in self.estimates:
            if e.gpus and e.work.models:
                size = max(parameters(self.plan.config.models[m]) for m in e.work.models)
                needed = size * (TRAIN_BYTES if e.work.stage in TRAINED else WEIGHT_BYTES)
                if needed > (there := e.gpus * DEVICES[e.device].memory):
                    said[e.work.stage, e.work.models] = (
                        f"{e.work.stage} of {', '.join(e.work.models)}: {needed / 1e9:.0f} GB do not fit into "
                        f"{e.gpus} x {e.device} ({there / 1e9:.0f} GB); raise resources.stages.{e.work.stage}.gpus"
                    )
        return list(said.values())


def forecast(plan: Plan, targets: Sequence[str] | None = None, known: Measured | None = None) -> Forecast:
    """What targets cost (default: those of the configuration), calibrated by what is done of them.

    Raises:
        BadInput: no such target.
        ConfigError: see Forecast.
    """
    names = list(targets or plan.config.tables.targets)
    for name in names:
        if name not in get_args(Target):
            raise BadInput(f"--target: unknown target {name!r}{nearest(name, get_args(Target))}")
    pieces = job_graph.needed(plan, job_graph.files(plan, names))
    return Forecast(plan, pieces, measured(plan, pieces) if known is None else known)


# --------------------------------------------------------------------------------------------------------------- slopes


@dataclass(frozen=True)
class Slope:
    """What a change of the configuration adds."""

    jobs: dict[str, int]
    """Stage -> jobs, where it adds or removes any."""
    gpu_hours: float
    job_hours: float
    tokens: dict[str, float]
    """Stage -> tokens, where it adds or removes any."""
    seconds: dict[str, float]
    """Stage -> seconds of computation, all jobs together, where it adds or removes any."""


def slope(before: Forecast, after: Forecast) -> Slope:
    """What `after` costs more than `before`."""
    return Slope(
        _difference(before, after, lambda e: e.work.jobs),
        after.gpu_hours - before.gpu_hours,
        after.job_hours - before.job_hours,
        _difference(before, after, lambda e: e.tokens),
        _difference(before, after, lambda e: e.work.jobs * e.computing),
    )


def _difference(before: Forecast, after: Forecast, of: Any) -> dict[str, Any]:
    sums: dict[str, Any] = defaultdict(int)
    for sign, side in ((-1, before), (1, after)):
        for e in side.estimates:
            sums[e.work.stage] += sign * of(e)
    return {stage: value for stage, value in sums.items() if abs(value) > 1e-6}


def slopes(config: Config, run: str, known: Measured | None = None) -> dict[str, Slope]:
    """What one more player of `run` costs, one more run like it, twice the prompts and twice the responses to each.

    One more player is one more past policy that opposes (TD-MNPO). A run like it shares all that does not rest on its
    own policies. `known` is what finished jobs say, for both sides of every difference.
    """
    before = forecast(Plan(config), known=known or Measured())
    p = config.prompts
    twice = {"part_size": 2 * Quantities(before.plan).part}
    changed = {
        "one more player": _with_run(config, run, _one_more_player(config, run)),
        "one more run": _once_more(config, run),
        "twice the prompts": config.model_copy(update={"prompts": p.model_copy(update=twice)}),
        "twice the responses": config.model_copy(
            update={"sampling": config.sampling.model_copy(update={"responses": 2 * config.sampling.responses})}
        ),
    }
    after = {name: forecast(Plan(c), [*c.tables.targets], known or Measured()) for name, c in changed.items()}
    return {name: slope(before, further) for name, further in after.items()}


def _with_run(config: Config, name: str, run: Any) -> Config:
    return config.model_copy(update={"runs": {**config.runs, name: run}})


def _once_more(config: Config, run: str) -> Config:
    """With the run under a second name, in every table that the run is in."""
    ours, name = config.runs[run], f"{run}-again"
    rows = {
        table: rows | {f"{row} again": name for row, of in rows.items() if of == run}
        for table, rows in config.tables.rows.items()
    }
    tables = config.tables.model_copy(update={"rows": rows})
    again = ours.model_copy(update={"label": f"{ours.label or run} again"})
    return _with_run(config, name, again).model_copy(update={"tables": tables})


def _one_more_player(config: Config, run: str) -> Any:
    """The run with one more past policy among its opponents: with equal weights, or weighed by their game as before."""
    ours = config.runs[run]
    if ours.objective.name != "td-mnpo":
        raise ConfigError(f"runs.{run}: {ours.objective.name} has no history; one more player is one of td-mnpo's")
    update: dict[str, Any] = {"history": ours.objective.history + 1}
    if ours.objective.weights != NASH:
        update |= {"weights": None, "nash_tau": None}
    objective, replaced = ours.objective.model_copy(update=update), ("history", "weights", "nash_tau")
    iterations = [
        i.model_copy(update={"objective": {k: v for k, v in i.objective.items() if k not in replaced}})
        for i in ours.iterations
    ]
    return ours.model_copy(update={"objective": objective, "iterations": iterations})
