"""Copies of the project in which the workflow runs and files can be edited."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.helpers import warm

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "config.yaml", "workflow", "mnpo", "configs", "envs", "profiles", "results/paper")
ODD = "päth with 'space & co"
"""A name for directories that only survives a shell where it is quoted."""
FILES = (".parquet", ".json", ".jsonl", ".csv", ".md", ".html", ".svg", ".png")


def copy_project(path: Path, *more: str) -> None:
    """The project's files, and `more` of them, without the cluster file of whoever runs the tests."""
    for name in (*COPIED, *more):
        source = ROOT / name
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            results = ["tables"] if name.startswith("results/") else []
            ignored = shutil.ignore_patterns("__pycache__", "cluster.yaml", *results)
            shutil.copytree(source, path / name, ignore=ignored)
        else:
            shutil.copy(source, path / name)


def jobs_in(said: str) -> list[str]:
    """The jobs that Snakemake names, as `rule what-it-makes`."""
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    output: (\S+?),?(?: .*)?$", said, re.M)
    return [f"{rule} {output.split('results/small/', 1)[-1]}" for rule, output in jobs]


def edit(file: Path, old: str, new: str) -> None:
    """Replace the first `old`, which must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def until(ready: Callable[[], Any], what: str, seconds: float = 300) -> Any:
    """What `ready` says as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


class Checkout:
    """A copy of the project, and the configuration that it runs."""

    def __init__(self, path: Path, config: str) -> None:
        self.path, self.config = path, config

    @classmethod
    def of_project(cls, path: Path, config: str) -> Checkout:
        """A new copy, without results."""
        copy_project(path)
        return cls(path, config)

    def copy(self, path: Path) -> Checkout:
        """A copy of all of it, times and Snakemake's own records included."""
        shutil.copytree(self.path, path, symlinks=True)
        return Checkout(path, self.config)

    def python(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`python -m` a command here."""
        return warm.run(*command, cwd=self.path, environment=os.environ | {"PYTHONPATH": str(self.path)})

    def snakemake(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.python("snakemake", "--configfile", self.config, "--cores", "2", *options)

    def made(self, *options: str) -> str:
        """What a run says that has to succeed."""
        result = self.snakemake(*options)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
        return result.stdout

    @contextmanager
    def started(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """A workflow that runs meanwhile; none of its processes outlives this."""
        command = [sys.executable, "-m", "snakemake", "--configfile", self.config, "--cores", "2", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = os.environ | {"PYTHONPATH": str(self.path)}
        with subprocess.Popen(command, cwd=self.path, env=environment, **quiet) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                        each.kill()

    def process(self, output: str) -> psutil.Process | None:
        """The stage's process that makes `output`, if it runs."""
        for process in psutil.process_iter(["cmdline"]):
            if output in (process.info["cmdline"] or []):
                with suppress(psutil.Error):
                    if process.cwd() == str(self.path):
                        return process
        return None

    def planned(self, *options: str) -> set[str]:
        """The jobs that a dry run names, as `rule what-it-makes`."""
        said = self.made("--dry-run", *options)
        return set(jobs_in(said))

    def believe(self) -> None:
        """Files of no meaning, which Snakemake takes for a finished run: as if its jobs had made them."""
        for outputs in re.findall(r"^    output: (.*)$", self.made("--dry-run"), re.M):
            for output in outputs.split(", "):
                file = self.path / output
                if file.suffix not in FILES:
                    file /= "model.safetensors"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("{}" if file.suffix == ".json" else output)
        self.made("--touch", "--forceall")

    def edit(self, file: str, old: str, new: str) -> None:
        edit(self.path / file, old, new)
