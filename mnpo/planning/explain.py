"""Why a file would be made again, in words: the settings, inputs or code that are not what it was made with.

What runs is decided by Snakemake itself, in a dry run; the words come from what it recorded when it made the files.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import job_graph
from mnpo.planning.plan import Plan
from mnpo.planning.registry import stage_of
from mnpo.planning.settings import modules_of
from mnpo.planning.status import marks
from mnpo.storage import artifacts, code_digests, external, hub

DIGEST = re.compile(r"[0-9a-f]{12}")
STAGES = {"costs": "tabulate", "theory": "game"}
"""Rules that are not called as the stage that they call."""


@dataclass(frozen=True)
class Cause:
    """What makes one job run that would not run otherwise, and how that reaches the file asked about."""

    rule: str
    job: str
    """`train td-mnpo.2`."""
    changes: tuple[str, ...]
    """In words; equal for jobs that run for the same reason."""
    way: tuple[str, ...]
    """The jobs from this one to the one that makes the file, this one without."""


@dataclass(frozen=True)
class Answer:
    """Why a file would be made again, or that it would not."""

    file: str
    maker: str
    """The job that makes it."""
    made: str | None
    """When it was made, if it was."""
    recorded: bool
    """Whether Snakemake has a record of that."""
    jobs: Mapping[str, int]
    """Rule -> how many of its jobs would run, as in `snakemake -n FILE`."""
    causes: tuple[Cause, ...]
    upstream: int
    """Jobs that the file rests on, its own included."""


def ask(file: str | Path, config: Path) -> Answer:
    """Why `file` would be made again, in the checkout that is the working directory.

    Args:
        file: an output of a rule, a file inside one that is a directory, or the manifest of one.

    Raises:
        BadInput: no rule makes it, or the workflow cannot be read; the message is Snakemake's.
    """
    plan = Plan(load(config), hub.read_lock())
    target = _output(plan, file)
    dag = _dry_run(target, config)
    makers = {output: job for job in dag.jobs for output in map(str, job.output)}
    if target not in makers:
        raise BadInput(f"{target}: not an output of a rule; name a file or directory that one makes")
    names = {output: (piece.stage, piece.what) for piece in job_graph.everything(plan) for output in piece.outputs}
    maker, running = makers[target], [job for job in dag.jobs if dag.needrun(job)]
    causes = [
        Cause(job.rule.name, _name(job, names), changes, tuple(_name(j, names) for j in _way(dag, job, maker)))
        for job in sorted(running, key=lambda job: str(job.output[0]))
        if (changes := tuple(_changes(plan, dag, job)))
    ]
    record = dag.workflow.persistence.metadata(maker.output[0])
    return Answer(
        file=target,
        maker=_name(maker, names),
        made=_when(record.endtime) if record and Path(target).exists() else None,
        recorded=record is not None,
        jobs=Counter(job.rule.name for job in running),
        causes=tuple(causes),
        upstream=sum(1 for job in dag.jobs),
    )


def words(answer: Answer) -> str:
    """The answer for a person: a line on the file, one on each cause, one on what would run."""
    if not answer.jobs:
        if not answer.recorded:
            return f"{answer.file}: up to date by its time; there is no record of what it was made with"
        as_then = "settings, code and inputs are what they were then"
        rests = f", as are those of the {answer.upstream - 1} jobs before it" if answer.upstream > 1 else ""
        return f"{answer.file}: up to date; {answer.maker} made it on {answer.made}, and its {as_then}{rests}"
    lines = [f"{answer.file}: {answer.maker} will {'run again' if answer.made else 'run'}, because"]
    together: dict[tuple[str, tuple[str, ...]], list[Cause]] = {}
    for cause in answer.causes:
        together.setdefault((cause.rule, cause.changes), []).append(cause)
    for causes in together.values():
        first, others = causes[0], len(causes) - 1
        more = f" (and {others} more of {first.rule})" if others else ""
        lines.append(f"  {first.job}{more}: {'; '.join(first.changes)}")
        if first.way:
            lines.append(f"    then {', '.join(first.way)}")
    counts = ", ".join(f"{rule} {count}" for rule, count in sorted(answer.jobs.items()))
    return "\n".join([*lines, f"jobs that will run for it: {sum(answer.jobs.values())} ({counts})"])


# ----------------------------------------------------------------------------------------------- what Snakemake decides


def _output(plan: Plan, file: str | Path) -> str:
    """The output that `file` is, describes or lies in, as the rules call it."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    if path.name.endswith(".manifest.json"):
        path = path.with_name(path.name.removesuffix(".manifest.json"))
    outputs = {output for piece in job_graph.everything(plan) for output in piece.outputs}
    return next((str(p) for p in (path, *path.parents) if str(p) in outputs), str(path))


def _dry_run(target: str, config: Path) -> Any:
    """Snakemake's graph of the jobs behind `target`, each with the reason to run it, if any."""
    try:
        from snakemake import api
        from snakemake.settings import types
        from snakemake.settings.enums import Quietness
    except ImportError:
        raise BadInput(
            "snakemake is not installed in this environment; run `mnpo why` where the workflow runs"
        ) from None
    output = types.OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False)
    with api.SnakemakeApi(output) as snakemake:
        try:
            workflow = snakemake.workflow(
                resource_settings=types.ResourceSettings(cores=1),
                config_settings=types.ConfigSettings(configfiles=[config]),
            )
            workflow.dag(types.DAGSettings(targets={target}, force_incomplete=True)).execute_workflow("dryrun")
            return workflow._workflow.dag
        except Exception as error:
            raise BadInput(f"{target}: {' '.join(str(error).split())}") from None


def _way(dag: Any, cause: Any, maker: Any) -> list[Any]:
    """The shortest way from one job that runs to another that rests on it, the first without."""
    before: dict[Any, Any] = {maker: None}
    waiting = deque([maker])
    while waiting and cause not in before:
        job = waiting.popleft()
        for needed in dag.dependencies[job]:
            if needed not in before and dag.needrun(needed):
                before[needed] = job
                waiting.append(needed)
    way, job = [], before.get(cause)
    while job is not None:
        way.append(job)
        job = before[job]
    return way


def _name(job: Any, names: Mapping[str, tuple[str, str]]) -> str:
    """What the plan calls a job: stage and noun, with the shard where there are several."""
    _, what = names.get(str(job.output[0]), ("", " ".join(job.wildcards_dict.values())))
    wildcards = job.wildcards_dict
    if "shard" in wildcards:
        what += f" shard {wildcards['shard']}"
    elif "figure" in wildcards:
        what = wildcards["figure"]
    rule = job.rule.name.removesuffix("_passing")
    return rule if rule == what else f"{rule} {what}".strip()


# ----------------------------------------------------------------------------------------------- what changed, in words


def _changes(plan: Plan, dag: Any, job: Any) -> Iterator[str]:
    """What makes a job run, its inputs' being made again aside."""
    reason, records = dag.reason(job), dag.workflow.persistence
    begun = [file for file in job.output if str(file) in marks()]
    if reason.forced:  # nobody forces: Snakemake does this to outputs that are there and marked as begun
        yield f"{_listed(begun)} is incomplete: its job was killed, or is running"
        return
    if not reason.derived:
        missing = {str(file) for file in reason.missing_output}
        if not missing.isdisjoint(begun):
            yield f"{_listed(begun)} was begun and is not finished: its job was killed, or is running"
        elif gone := [file for file in job.output if str(file) in missing and records.metadata(file)]:
            yield f"{_listed(gone)} is gone"
        elif missing:
            yield f"{_listed(missing)} was never made"
        for file in sorted(reason.updated_input - reason.updated_input_run):
            yield _newer(file, dag, records.metadata(job.output[0]))
    if records.has_metadata(job) and not records.has_outdated_metadata(job):
        yield from _recorded_changes(plan, records, job)


def _recorded_changes(plan: Plan, records: Any, job: Any) -> Iterator[str]:
    """How a job's settings, code, set of inputs and command differ from those recorded for its outputs."""
    changed = records.params_changed(job)
    if changed:
        yield from _differences(plan, changed.only_old, changed.only_new, job)
    if any(records.input_changed(job)):
        old, new = set(records.input(job.output[0]) or ()), {str(file) for file in job.input}
        if new - old:
            yield f"{_listed(new - old)} is among its inputs now"
        if old - new:
            yield f"{_listed(old - new)} is no longer among its inputs"
    if any(records.code_changed(job)):
        yield f"the command of rule {job.rule.name} changed"
    if any(records.software_stack_changed(job)):
        yield "its software environment changed"


def _newer(file: Any, dag: Any, record: Any) -> str:
    """An input that is newer than the oldest output, and why that counts."""
    path, limit = Path(file), dag.max_checksum_file_size
    if path.is_dir():
        return f"{file} is newer, and a directory, whose content is not compared"
    if path.stat().st_size > limit:
        return f"{file} is newer, and too large for its content to be compared (over {limit / 1e6:g} MB)"
    if record is None or file not in (record.input_checksums or {}):
        return f"{file} is newer, and what it contained then is not recorded"
    return f"{file} has another content"


def _differences(plan: Plan, old: Iterable[str], new: Iterable[str], job: Any) -> Iterator[str]:
    """Recorded and present parameters, each as its repr: settings key by key, digests of code as files, external
    directories file by file."""
    before, now = ([_parameter(text) for text in sorted(texts)] for texts in (old, new))
    for kind in ("settings", "code", "external", "other"):
        was, is_ = ([value for of, value in side if of == kind] for side in (before, now))
        if kind == "settings":
            for a, b in zip(was, is_, strict=False):
                yield from _settings(plan, a, b, job)
        elif kind == "code" and (was or is_):
            yield _code(plan, job)
        elif kind == "external":
            yield from _external(was[0] if was else None, is_[0] if is_ else {})
        elif was or is_:
            yield f"{_shown(was)} was among its parameters, {_shown(is_)} is"


def _parameter(text: str) -> tuple[str, Any]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return "other", text
    if isinstance(value, str) and value.startswith("{"):
        return "settings", json.loads(value)
    if isinstance(value, dict):
        return "external", value
    if isinstance(value, str) and DIGEST.fullmatch(value):
        return "code", value
    return "other", value


def _settings(plan: Plan, old: Mapping[str, Any], new: Mapping[str, Any], job: Any) -> Iterator[str]:
    for key, was, is_ in _keys(old, new):
        if key == "code":
            yield _code(plan, job)
        elif key.startswith("functions.") and _ABSENT not in (was, is_):
            yield f"the code of {key.removeprefix('functions.')} changed"
        elif was is _ABSENT:
            yield f"{key} is {_shown(is_)} and was not set"
        elif is_ is _ABSENT:
            yield f"{key} was {_shown(was)} and is not set"
        else:
            yield f"{key} was {_shown(was)} and is {_shown(is_)}"


def _external(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Iterator[str]:
    """How the files of external directories differ; what became another directory is said by settings and inputs."""
    if old is None:
        yield from (f"what {path} contained then is not recorded" for path in new)
        return
    for path in sorted(old.keys() & new.keys()):
        changed = [f"{name or path} {said}" for name, said in external.differences(old[path], new[path])]
        if changed:
            more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            yield f"{path} changed: {', '.join(changed[:2])}{more}"


_ABSENT = object()


def _keys(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of everything that differs; lists are compared whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _keys(old.get(key, _ABSENT), new.get(key, _ABSENT), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def _code(plan: Plan, job: Any) -> str:
    """That a stage's code changed, with the files if git knows them."""
    stage = STAGES.get(job.rule.name, stage_of(job.rule.name))
    commit = (artifacts.manifest(str(job.output[0])).get("git_commit") or "").removesuffix("-dirty")
    oracles = json.loads(getattr(job.params, "settings", "{}")).get("oracles", {})
    files = _changed_files(commit, modules_of(plan, stage, oracles)) if commit else []
    return f"the code of {stage} changed" + (f" ({_listed(files)}, since commit {commit[:7]})" if files else "")


def _changed_files(commit: str, modules: Iterable[str]) -> list[str]:
    """The files behind `modules` whose code, comments aside, is not what it was at `commit`; none without git."""
    root = code_digests.PACKAGE.parent
    changed = []
    for name in sorted(code_digests.closure(*modules)):
        file = code_digests.file(name).relative_to(root)
        command = ["git", "-C", str(root), "show", f"{commit}:./{file}"]
        try:
            result = subprocess.run(command, capture_output=True, check=False)
        except OSError:
            return []
        now = code_digests.fingerprint((root / file).read_bytes())
        if result.returncode == 0 and code_digests.fingerprint(result.stdout) != now:
            changed.append(str(file))
    return changed


def _shown(value: Any) -> str:
    """A value, on one line and not too long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _listed(files: Iterable[Any]) -> str:
    names = sorted(map(str, files))
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d at %H:%M", time.localtime(seconds))
