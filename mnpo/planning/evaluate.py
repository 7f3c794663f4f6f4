"""`mnpo evaluate`: a policy that no run made, on a configuration's benchmarks, by the workflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.data import split_files
from mnpo.config.blocks import DATASET, REFERENCE, nearest
from mnpo.config.evaluation import Benchmark, Evaluation, Table
from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.models.checkpoints import checkpoint
from mnpo.planning.oracles import NLTK
from mnpo.planning.plan import drafted

ROOT = Path(__file__).parents[2]


def configure(
    policy: Path,
    base: Path | None,
    name: str | None = None,
    benchmarks: Sequence[str] = (),
    data: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Path:
    """Write results/{name}/config.yaml, which measures the policy and does nothing else, and say where it is.

    Args:
        policy: a checkpoint's directory, anywhere.
        base: the configuration that says how policies are measured: its data, judges and settings. None: nothing but
            `benchmarks` and `data` says it, and neither runs, prompts nor oracles are there.
        name: of the results; None: the directory's.
        benchmarks: some of the base's; none: all of them.
        data: benchmark (or `nltk`, for IFEval) -> the directory of its data, in the place of the base's.
        limit: items of each benchmark, at most.

    Raises:
        BadInput: not a checkpoint, a name that is taken or cannot be one.
        ConfigError: a base that is none, an unknown benchmark.
    """
    directory = checkpoint(policy.absolute())
    name = name or re.sub(r"[^a-z0-9_-]+", "-", directory.name.lower()).strip("-")
    if name in (REFERENCE, DATASET):
        raise BadInput(f"{policy}: nothing here can be called {name}, which is taken; give this policy another --name")
    file = Path("results", name, "config.yaml")
    _require_free(file, name, directory)
    places = {benchmark: {"path": os.path.abspath(where)} for benchmark, where in (data or {}).items()}
    _require_data(places, benchmarks, base)
    known = load(base) if base else None
    _require_splits(places, known.evaluation if known else Evaluation())
    content = _content(directory, name, benchmarks)
    if base is None or known is None:
        content |= {"models": content.pop("add")["models"], "datasets": places}
    else:
        content = {"extends": os.path.relpath(base, file.parent), **content}
        if places:
            theirs = known.model_dump(include={"datasets"}, exclude_none=True, exclude_defaults=True)
            content["datasets"] = {**theirs.get("datasets", {}), **places}
    if limit is not None:
        measured = benchmarks or (known.evaluation.benchmarks if known else [])
        content["evaluation"]["settings"] = {benchmark: {"limit": limit} for benchmark in measured}
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with drafted(file, yaml.safe_dump(content, sort_keys=False)):
            pass  # it is one that can be planned
    finally:
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    return file


def _require_free(file: Path, name: str, directory: Path) -> None:
    """Whether results/{name} is not there yet, or is this checkpoint's. Raises BadInput."""
    if not file.parent.exists():
        return
    try:
        there = yaml.safe_load(file.read_text(encoding="utf-8"))
        models = there.get("models") or there["add"]["models"]
        measured = models[name]["path"]
    except (OSError, yaml.YAMLError, AttributeError, LookupError, TypeError):  # nothing that was written here
        raise BadInput(f"{file.parent}: has results of something else; give this policy another --name") from None
    if os.path.realpath(measured) != os.path.realpath(directory):
        raise BadInput(f"{file}: measures another checkpoint, {measured}; give {directory} another --name")


def _require_data(places: Mapping[str, Any], benchmarks: Sequence[str], base: Path | None) -> None:
    """Whether data are given for what is measured, and are there. Raises BadInput."""
    for benchmark, where in places.items():
        if benchmark not in (*get_args(Benchmark), NLTK):
            raise BadInput(f"--data {benchmark}: no such benchmark{nearest(benchmark, get_args(Benchmark))}")
        if not Path(where["path"]).is_dir():
            raise BadInput(f"--data {benchmark}: {where['path']} is no directory (docs/evaluation.md#data-of-your-own)")
    if base is None:
        if not benchmarks:
            raise BadInput("--benchmarks: which? Without --config nothing else says it")
        if missing := [benchmark for benchmark in benchmarks if benchmark not in places]:
            raise BadInput(f"--data {missing[0]}=DIRECTORY: where are its data? Or give a --config that says so")


def _require_splits(places: Mapping[str, Any], evaluation: Evaluation) -> None:
    """Whether the files of all splits that lm-eval's tasks read are there. Raises BadInput, a line for each."""
    problems = []
    for benchmark, where in places.items():
        card = CARDS.get(benchmark)
        if card is None or evaluation.protocol_of(benchmark) != "harness":
            continue
        if not card.task or "{}" in card.task:  # answers for a judge; subjects, which come in several forms
            continue
        shots = evaluation.of(benchmark).shots
        for split in card.splits(card.shots if shots is None else shots):
            try:
                split_files(card, Path(where["path"]), split)
            except BadInput as error:
                problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))


def _content(directory: Path, name: str, benchmarks: Sequence[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {"benchmarks": list(benchmarks)} if benchmarks else {}
    return {
        "name": name,
        "add": {"models": {name: {"path": str(directory), "label": name}}},
        "runs": {},
        "evaluation": {**chosen, "models": [name]},
        "tables": {
            "targets": ["benchmarks"],
            "rows": dict.fromkeys(get_args(Table)),
            "win_against": [REFERENCE],
        },
    }


def run(config: Path, profile: str | None, further: Sequence[str]) -> int:
    """Let Snakemake make the table of benchmarks; its exit code. `further` are arguments of Snakemake."""
    where = ["--profile", profile] if profile else ["--cores", "all", "--rerun-incomplete"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *where]
    return subprocess.run([*command, "--configfile", str(config), *further, "--", "benchmarks"], check=False).returncode
