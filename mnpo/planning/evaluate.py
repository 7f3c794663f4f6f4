"""`mnpo evaluate`: a policy that no run made, on a configuration's benchmarks, by the workflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml

from mnpo.config.blocks import REFERENCE
from mnpo.config.evaluation import Table
from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.models.checkpoints import checkpoint
from mnpo.planning.plan import Plan
from mnpo.storage.artifacts import beside

ROOT = Path(__file__).parents[2]


def configure(policy: Path, base: Path, name: str | None = None, benchmarks: Sequence[str] = ()) -> Path:
    """Write results/{name}/config.yaml, which measures the policy and does nothing else, and say where it is.

    Args:
        policy: a checkpoint's directory, anywhere.
        base: the configuration that says how policies are measured: its data, judges and settings.
        name: of the results; None: the directory's.
        benchmarks: some of the base's; none: all of them.

    Raises:
        BadInput: not a checkpoint, a name that is taken or cannot be one.
        ConfigError: a base that is none, an unknown benchmark.
    """
    directory = checkpoint(policy.absolute())
    name = name or re.sub(r"[^a-z0-9_-]+", "-", directory.name.lower()).strip("-")
    file = Path("results", name, "config.yaml")
    if file.parent.exists() and not file.is_file():
        raise BadInput(f"{file.parent}: has results of something else; give this policy another --name")
    content = _content(directory, Path(os.path.relpath(base, file.parent)), name, benchmarks)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(file, "partial")
    partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    try:
        Plan(load(partial))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    return file


def _content(directory: Path, base: Path, name: str, benchmarks: Sequence[str]) -> dict[str, Any]:
    chosen = {"benchmarks": list(benchmarks)} if benchmarks else {}
    return {
        "extends": str(base),
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
