"""How far a run is, from what lies on the disk: outputs, manifests, Snakemake's marks and log, the stages' logs.

Reads only, takes no lock, imports nothing heavy: it can be asked at any time, on a login node, while a workflow runs.
A job counts as done when its outputs are there whole, unless the latest session set out to make them again and has not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from mnpo.planning import job_graph
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work, stage_of
from mnpo.storage import artifacts

SNAKEMAKE = Path(".snakemake")
PROGRESS = re.compile(r"(?P<done>\d+)/(?P<total>\d+) (?P<unit>.+), [\d.]+ \S+/s, (?P<left>\d+) s left$")
TAIL = 4000
"""Bytes at the end of a log in which the last line of progress is looked for."""


@dataclass(frozen=True)
class Job:
    """One job of a piece of work."""

    stage: str
    what: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Running:
    """A job that has begun."""

    job: Job
    seconds: float
    """Since when; on a cluster, since it was submitted."""
    left: float | None
    """Seconds, by its last line of progress."""
    progress: str
    """`120/500 steps`, or nothing."""


@dataclass
class StageStatus:
    """The jobs of one stage."""

    total: int = 0
    remaining: int = 0
    """Not done: running, queued and failed ones too."""
    running: list[Running] = field(default_factory=list)
    queued: int = 0
    """Submitted to SLURM, and waiting there."""
    failed: dict[str, str] = field(default_factory=dict)
    """Which noun -> the last line of its log."""
    seconds: list[float] = field(default_factory=list)
    """What each job that is done took."""
    gpus: int = 0
    """That one job occupies."""

    @property
    def done(self) -> int:
        """Jobs whose outputs are there."""
        return self.total - self.remaining

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return self.remaining - len(self.running) - len(self.failed)

    @property
    def mean(self) -> float | None:
        """Seconds of a job."""
        return sum(self.seconds) / len(self.seconds) if self.seconds else None

    @property
    def gpu_hours(self) -> float:
        """Used by what is done and by what runs."""
        return (sum(self.seconds) + sum(job.seconds for job in self.running)) * self.gpus / 3600


@dataclass(frozen=True)
class Session:
    """What the log of the latest `snakemake` says."""

    started: float
    to_do: Mapping[str, int]
    """Stage -> jobs that it set out to run and has not finished."""
    failed: frozenset[str]
    """Outputs of jobs that failed."""
    numbers: Mapping[str, str]
    """Output -> its job on the cluster: the mark loses that number when the job begins, and goes with a requeue."""


@dataclass(frozen=True)
class Status:
    """How far a run is."""

    name: str
    stages: Mapping[str, StageStatus]
    at_work: bool
    """Whether a workflow is running here, or its jobs are on the cluster."""
    locked: bool
    """Whether a workflow holds Snakemake's lock, or was killed while it did."""
    interrupted: int
    """Jobs that had begun when their workflow ended."""
    seconds_left: float | None
    unknown: tuple[str, ...]
    """Stages with jobs to come of which none is done, so that `seconds_left` is without them."""

    def count(self, what: str) -> int:
        """Jobs that are done, waiting, ... in all stages."""
        values = (getattr(stage, what) for stage in self.stages.values())
        return sum(value if isinstance(value, int) else len(value) for value in values)


def look(plan: Plan) -> Status:
    """How far the run of `plan` is, in the checkout that is the working directory."""
    jobs = [
        job
        for piece in job_graph.needed(plan, job_graph.files(plan, plan.config.tables.targets))
        for job in _jobs(piece)
    ]
    begun, session = marks(), _session(plan.config.name)
    numbers = {**session.numbers, **{output: mark.external for output, mark in begun.items() if mark.external}}
    queue = _queue() if numbers else {}
    on_cluster = not queue.keys().isdisjoint(numbers.values())
    locked = any((SNAKEMAKE / "locks").glob("*.lock"))
    watched = locked and _workflow_is_here()
    stages: dict[str, StageStatus] = {}
    missing, interrupted, busy = Counter[str](), 0, 0.0
    for job in jobs:
        stage = stages.setdefault(job.stage, StageStatus(gpus=_gpus(plan, job.stage)))
        stage.total += 1
        mark = next((begun[output] for output in job.outputs if output in begun), None)
        state = next((queue.get(numbers[output]) for output in job.outputs if output in numbers), None)
        if mark is None and _whole(plan, job):
            started, seconds = _manifest(job)
            stage.seconds.append(seconds)
            busy += seconds if started + 1 > session.started else 0  # manifests say whole seconds
            continue
        missing[job.stage] += 1
        if state == "PENDING":
            stage.queued += 1
        elif mark is None and not session.failed.isdisjoint(job.outputs):
            stage.failed[job.what] = _last_line(_log(plan, job))
        elif mark is None:
            continue
        elif state or (watched and mark.since >= session.started):
            stage.running.append(_running(plan, job, mark.since))
        else:
            interrupted += 1
    for name, stage in stages.items():
        stage.remaining = min(stage.total, max(missing[name], session.to_do.get(name, 0)))
    at_work = watched or on_cluster
    left, unknown = _seconds_left(stages, session, busy) if at_work else (None, ())
    return Status(plan.config.name, stages, at_work, locked, interrupted, left, unknown)


def line(status: Status) -> str:
    """The whole run on one line."""
    counts = [f"{status.count('done')} of {status.count('total')} jobs done"]
    counts += [f"{status.count(what)} {what}" for what in ("running", "waiting", "failed")]
    if queued := status.count("queued"):
        counts[2] += f" ({queued} of them in the queue)"
    used = sum(stage.gpu_hours for stage in status.stages.values())
    return f"{status.name}: {', '.join(counts)}; {used:.1f} GPU-hours used; {_end(status)}"


def table(status: Status) -> str:
    """A line a stage, below it what runs and what failed."""
    lines = []
    for name, stage in status.stages.items():
        numbers = f"{stage.done}/{stage.total}".rjust(9)
        each = f", {_duration(stage.mean)} each" if stage.mean is not None else ""
        lines.append(f"  {name:<10} {numbers} done{each}")
        for running in stage.running:
            left = f", {_duration(running.left)} left" if running.left is not None else ""
            progress = f": {running.progress}{left}" if running.progress else ""
            lines.append(f"      runs    {running.job.what}, for {_duration(running.seconds)}{progress}")
        lines += [f"      failed  {what}: {message}" for what, message in stage.failed.items()]
    return "\n".join(lines)


def _end(status: Status) -> str:
    if status.count("remaining") == 0:
        return "finished"
    if not status.at_work:
        stopped = "its workflow was killed, or runs on another machine" if status.locked else "no workflow is running"
        return stopped + (f"; interrupted jobs: {status.interrupted}" if status.interrupted else "")
    if status.seconds_left is None:
        return "expected end not known yet"
    end = datetime.now() + timedelta(seconds=status.seconds_left)
    day = "" if end.date() == datetime.now().date() else f"{end:%Y-%m-%d} "
    without = f", without {', '.join(status.unknown)}, not timed yet" if status.unknown else ""
    return f"expected end about {day}{end:%H:%M} (in {_duration(status.seconds_left)}{without})"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seconds_left(
    stages: Mapping[str, StageStatus], session: Session, busy: float
) -> tuple[float | None, tuple[str, ...]]:
    """Work left over work done a second in this session, waits and starts included; and the stages not timed yet."""
    running = [job for stage in stages.values() for job in stage.running]
    elapsed = time.time() - session.started
    at_once = (busy + sum(job.seconds for job in running)) / elapsed if elapsed > 0 else 0
    unknown = tuple(name for name, stage in stages.items() if stage.remaining and stage.mean is None)
    if not at_once:
        return None, unknown
    left, longest = 0.0, 0.0
    for stage in stages.values():
        left += stage.waiting * (stage.mean or 0)
        for job in stage.running:
            own = job.left if job.left is not None else max((stage.mean or 0) - job.seconds, 0)
            left, longest = left + own, max(longest, own)
    return max(left / at_once, longest), unknown


# ------------------------------------------------------------------------------------------------ what lies on the disk


def _jobs(piece: Work) -> list[Job]:
    """The jobs of a piece of work: its outputs in equal shares, in order."""
    share = len(piece.outputs) // piece.jobs
    several = piece.jobs > 1
    return [
        Job(
            piece.stage,
            f"{piece.what} {Path(piece.outputs[n * share]).stem}" if several else piece.what,
            piece.outputs[n * share : (n + 1) * share],
        )
        for n in range(piece.jobs)
    ]


def _gpus(plan: Plan, stage: str) -> int:
    return plan.config.resources.of(stage).gpus


def _whole(plan: Plan, job: Job) -> bool:
    """Whether a job's outputs are there, but for a policy that is not kept."""
    passing = job.stage == "train" and job.what in plan.policies.passing
    gone = plan.files.policy(job.what) if passing else None
    return all(os.path.exists(output) for output in job.outputs if output != gone)


def _manifest(job: Job) -> tuple[float, float]:
    """When a job that is done started, and its seconds; zeros for what has no manifest."""
    facts = next((facts for output in job.outputs if (facts := artifacts.manifest(output))), {})
    if "started" not in facts:
        return 0.0, float(facts.get("seconds", 0))
    return datetime.fromisoformat(facts["started"]).timestamp(), float(facts["seconds"])


def _log(plan: Plan, job: Job) -> Path:
    """Where a job's log is: called as its output is."""
    logs, output = Path("logs") / plan.config.name, Path(job.outputs[0])
    try:
        parts = output.relative_to(plan.files.root).parts[1:]
    except ValueError:  # a download, which lies elsewhere
        parts = output.parts[-3:]
    stem = ".".join(parts).removesuffix(output.suffix if output.suffix in FILES else "")
    named = [logs / job.stage / f"{stem}.log", logs / job.stage / f"{parts[0]}.log", logs / f"{job.stage}.log"]
    return next((path for path in named if path.is_file()), named[0])


FILES = (".parquet", ".json", ".jsonl", ".svg", ".html", ".csv")


def _tail(log: Path) -> list[str]:
    try:
        with open(log, "rb") as stream:
            stream.seek(max(log.stat().st_size - TAIL, 0))
            return stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _last_line(log: Path) -> str:
    return f"{next((text for text in reversed(_tail(log)) if text.strip()), 'nothing was said')} ({log})"


def _running(plan: Plan, job: Job, since: float) -> Running:
    log = _log(plan, job)
    found = next((match for text in reversed(_tail(log)) if (match := PROGRESS.search(text))), None)
    seconds = time.time() - since
    if found is None or log.stat().st_mtime < since:
        return Running(job, seconds, None, "")
    left = max(float(found["left"]) - (time.time() - log.stat().st_mtime), 0)
    return Running(job, seconds, left, f"{found['done']}/{found['total']} {found['unit']}")


# ---------------------------------------------------------------------------------------- what Snakemake and SLURM know


@dataclass(frozen=True)
class Mark:
    """That a job began to make an output and has not finished."""

    since: float
    external: str | None
    """The job's number on the cluster."""


def marks() -> dict[str, Mark]:
    """Every output that a job of this checkout began and has not finished."""
    found = {}
    root = SNAKEMAKE / "incomplete"
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            encoded = "".join(part.removeprefix("@") for part in path.relative_to(root).parts)
            try:
                content = json.loads(path.read_text(encoding="utf-8") or "{}")
                since = path.stat().st_mtime
                found[urlsafe_b64decode(encoded).decode()] = Mark(since, content.get("external_jobid"))
            except (OSError, ValueError):  # it ended, or is being written
                continue
    return found


def _session(name: str) -> Session:
    """The latest session that was about the run `name`, as far as its log says what it was about."""
    for log in sorted((SNAKEMAKE / "log").glob("*.snakemake.log"), reverse=True):
        text = log.read_text(encoding="utf-8", errors="replace")
        about = set(re.findall(r"\bresults/([^/\s]+)/", text))
        if "Nothing to be done" in text or ("Job stats:" in text and (not about or name in about)):
            return _read(log, text)
    return Session(0.0, {}, frozenset(), {})


def _read(log: Path, text: str) -> Session:
    started = datetime.strptime(log.name.removesuffix(".snakemake.log"), "%Y-%m-%dT%H%M%S.%f")
    planned = text.partition("Job stats:")[2].partition("\n\n")[0]
    to_do = Counter[str]()
    for rule, count in re.findall(r"^(\w+) +(\d+)$", planned, re.M):
        to_do[stage_of(rule)] += int(count)
    to_do.subtract(stage_of(rule) for rule in re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", text, re.M))
    errors = re.findall(r"^Error in rule \w+:\n(?:    .*\n)*?    output: (.+)$", text, re.M)
    failed = frozenset(output for outputs in errors for output in outputs.split(", "))
    outputs_of = {
        job: outputs.split(", ")
        for outputs, job in re.findall(r"^    output: (.+)\n(?:    .*\n)*?    jobid: (\d+)$", text, re.M)
    }
    submitted = re.findall(r"^Job (\d+) has been submitted with SLURM jobid (\d+)", text, re.M)
    numbers = {output: number for job, number in submitted for output in outputs_of.get(job, [])}
    return Session(started.timestamp(), to_do, failed, numbers)


def _workflow_is_here() -> bool:
    """Whether a process on this machine runs Snakemake in this directory. True where that cannot be seen."""
    if not Path("/proc/self/cwd").exists():
        return True
    here = os.getcwd()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/cwd") == here:
                    with open(f"/proc/{entry}/cmdline", "rb") as stream:
                        if b"snakemake" in stream.read():
                            return True
            except OSError:
                continue
    return False


def _queue() -> dict[str, str]:
    """Our jobs in SLURM's queue, running ones too -> their state; empty without SLURM."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except subprocess.TimeoutExpired:
        return {}
    rows = [row.split() for row in result.stdout.splitlines()] if result.returncode == 0 else []
    return {row[0]: row[1] for row in rows if len(row) == 2}
