"""Which Python runs a stage, and whether it has the packages that the configuration asks for.

MNPO_ENVIRONMENTS names a directory with a virtual environment for each family of stages, as `make envs` makes it.
Without it, all stages run in the Python that runs Snakemake (docs/environments.md).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from mnpo.errors import BadInput
from mnpo.planning.registry import stage_of

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

VARIABLE = "MNPO_ENVIRONMENTS"
STAGES = ("typer", "pydantic", "yaml", "pandas", "pyarrow")  # imported by every one
MODELS = ("torch", "transformers", "tokenizers", "safetensors")
COMPUTING = ("sft", "sample", "score", "logps", "train", "assess", "harness", "answer")
PRINTING = ("tabulate", "compare", "players", "benchmarks", "costs", "preferences", "exploitability", "plot", "theory",
            "study", "rehearsal", "examples")  # fmt: skip
BENCHMARKS = {  # what lm-eval's tasks import beside it
    "ifeval": ("langdetect", "nltk", "immutabledict"),
    "minerva": ("math_verify", "sympy", "antlr4"),
}
ASK = "import importlib.util as i, json, sys; print(json.dumps([n for n in sys.argv[1:] if i.find_spec(n) is None]))"


def interpreter(family: str | None) -> Path:
    """The Python of a family of stages; of those that have none, and without MNPO_ENVIRONMENTS, this one.

    Raises:
        BadInput: there is no such environment.
    """
    environments = os.environ.get(VARIABLE)
    if not environments or family is None:
        return Path(sys.executable)
    python = Path(environments) / family / "bin" / "python"
    if not python.exists():
        raise BadInput(f"{python}: no such interpreter; {VARIABLE} is {environments}, and {_made(family)} makes it")
    return python


def command(plan: Plan, rule: str, of: Mapping[str, str]) -> str:
    """The command that a job runs: `mnpo COMMAND`."""
    stage = stage_of(rule)
    if stage == "judge" and plan.config.evaluation.protocol_of(of["benchmark"]) == "evalscope":
        return "judge-evalscope"
    return "harness-vllm" if stage == "harness" and plan.config.evaluation.backend == "vllm" else stage


def require_packages(
    plan: Plan, jobs: Iterable[tuple[str, Mapping[str, str]]], families: Mapping[str, str | None]
) -> None:
    """Whether the environment of each job has the packages that the job will import.

    It is asked by its own Python, as a job will run it; nothing is imported there.

    Args:
        jobs: (rule, wildcards) of every job that is going to run.
        families: command -> family of stages, for those that have one.

    Raises:
        BadInput: one line for each stage: the package, what asks for it, the environment, and the remedy.
    """
    commands = _commands(plan, jobs, families)
    absent = cache(partial(_missing, packages=sorted(set().union(*commands.values()))))  # each Python is asked once
    problems = []
    for (run, family), wanted in commands.items():
        try:
            _require(run, family, wanted, absent)
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))


def packages(plan: Plan, jobs: Iterable[tuple[str, Mapping[str, str]]], families: Mapping[str, str | None]) -> set[str]:
    """All that jobs will import, as in `require_packages`."""
    return set().union(*_commands(plan, jobs, families).values())


def _commands(
    plan: Plan, jobs: Iterable[tuple[str, Mapping[str, str]]], families: Mapping[str, str | None]
) -> dict[tuple[str, str | None], dict[str, str]]:
    """(command, its family) -> package that its jobs import -> what asks for it."""
    wanted: dict[tuple[str, str | None], dict[str, str]] = {}
    for rule, of in jobs:
        run = command(plan, rule, of)
        if run not in families:
            continue  # the login node's own: downloads, the report
        wanted.setdefault((run, families[run]), {}).update(_wanted(plan, run, of))
        if run == "evalscope":  # which lets the policy answer by a command of its own
            wanted.setdefault(("answer", families["answer"]), {}).update(_wanted(plan, "answer", of))
    return wanted


def _require(
    run: str, family: str | None, packages: Mapping[str, str], absent: Callable[[Path], Collection[str]]
) -> None:
    python = interpreter(family)
    try:
        missing = [package for package in packages if package in absent(python)]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BadInput(f"{run}: {python} cannot be asked for its packages ({error}); {_remedy(family)}") from None
    if missing:
        reasons: dict[str, list[str]] = {}
        for name in missing:
            reasons.setdefault(packages[name], []).append(name)
        said = "; ".join(f"{reason} needs {', '.join(names)}" for reason, names in reasons.items())
        raise BadInput(f"{run}: {said}, not installed for {python}; {_remedy(family)}")


def _missing(python: Path, packages: Iterable[str]) -> set[str]:
    """Which of `packages` a Python cannot find."""
    done = subprocess.run(
        [python, "-c", ASK, *packages],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return set(json.loads(done.stdout))


def _remedy(family: str | None) -> str:
    if os.environ.get(VARIABLE) and family:
        return f"{_made(family)} installs it from envs/{family}.txt (remove a broken environment first)"
    return (
        f"`make envs` makes environments with all packages, and `export {VARIABLE}=$PWD/.venvs` lets each stage run in "
        "its own (docs/environments.md)"
    )


def _made(family: str) -> str:
    return "`make .venvs/evalscope/.done`" if family == "evalscope" else "`make envs`"


def _wanted(plan: Plan, run: str, of: Mapping[str, str]) -> dict[str, str]:
    """Package -> what asks for it, of one job."""
    found = dict.fromkeys(STAGES, "every stage")
    for package, reason in _by_configuration(plan, run, of):
        found.setdefault(package, reason)
    return found


def _by_configuration(plan: Plan, run: str, of: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    from mnpo.config.blocks import REFERENCE  # whoever starts the command line does not wait for pydantic

    c = plan.config
    stage = "harness" if run == "harness-vllm" else run
    if "model" in of:  # a miniature one is made
        yield from ((package, "a model") for package in MODELS)
    if stage in COMPUTING and not (stage == "answer" and of["policy"] in c.models and c.models[of["policy"]].api):
        yield from ((package, "a model") for package in MODELS)
        if stage in ("answer", "harness") and c.evaluation.backend == "vllm":
            yield "vllm", "evaluation.backend: vllm"
    if stage == "sample" and c.sampling.sampler == "vllm":
        yield "vllm", "sampling.sampler: vllm"
    asked = [of["oracle"]] if stage == "score" else plan.oracles.of_evaluation if stage == "assess" else []
    for oracle in plan.oracles.with_members(asked):
        if c.oracles[oracle].kind == "constraints":
            yield from ((package, f"oracles.{oracle}") for package in ("lm_eval", *BENCHMARKS["ifeval"]))
    if stage in ("train", "sft"):
        fit = plan.policies.fits.get(of["policy"])
        trained = fit.training if fit else c.reference.sft if of["policy"] == REFERENCE else None
        block = "training" if fit else "reference.sft"
        if trained is not None and trained.lora is not None:
            yield "peft", f"{block}.lora"
        if trained is not None and trained.parallel.startswith("zero") and c.resources.of(stage).gpus > 1:
            yield "deepspeed", f"{block}.parallel: {trained.parallel}"
    if stage == "harness":
        yield "lm_eval", "evaluation.benchmarks"
        for benchmark in plan.measurements.harness:
            yield from ((package, f"the benchmark {benchmark}") for package in BENCHMARKS.get(benchmark, ()))
    if stage in ("evalscope", "judge-evalscope"):
        yield "evalscope", "evaluation.protocol: evalscope"
    if stage == "judge" and of["benchmark"] == "alpaca-eval":
        yield "alpaca_eval", "the benchmark alpaca-eval"
    if stage in PRINTING:
        yield from ((package, "tables and figures") for package in ("scipy", "matplotlib", "tabulate"))
