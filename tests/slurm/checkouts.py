"""Checkouts in which `snakemake --profile slurm` runs as the README says, and hands on their processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster

ROOT = Path(__file__).parents[2]
COPIED = (
    *("Makefile", "Snakefile", "config.yaml", "workflow", "mnpo", "configs", "envs", "profiles"),
    *("results/paper", "tests/workflow"),
)
GPU_STAGES = ("sft", "train", "sample", "score", "logps", "assess")
# The test cluster as a person would describe it; jobs of seconds are looked at more often than jobs of hours.
CLUSTER: dict[str, Any] = {
    "account": "lab",
    "cpu": {"partition": "cpu", "max_minutes": 60},
    "gpu": {"partition": "gpu", "max_minutes": 120, "per_node": 8, "type": "h100"},
    "jobs": 3,
    "seconds_between_checks": 8,
}


class Checkout:
    """A copy of the project, set up as the README says, whose config.yaml is one run of the small demo."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        self.path = path
        self.cluster = cluster
        self.environment = cluster.environment | {
            "HOME": str(path / "home"),
            "XDG_CONFIG_HOME": str(path / "home/.config"),
            "PYTHONPATH": str(path),
            "PATH": f"{Path(sys.executable).parent}:{cluster.path}",
        }

    def set_up(self) -> None:
        """`make slurm-profile`, then a cluster file and a configuration of our own."""
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(
                    source, self.path / name, ignore=shutil.ignore_patterns("__pycache__", "cluster.yaml", "tables")
                )
            else:
                self.path.mkdir(exist_ok=True)
                shutil.copy(source, self.path / name)
        small = (self.path / "tests/workflow/small.yaml").read_text().replace("../../configs/", "configs/")
        one_run, dropped = re.subn(r"^  inpo:.*?(?=^  td-mnpo:)", "", small, flags=re.M | re.S)
        assert dropped == 1
        (self.path / "config.yaml").write_text(
            one_run.replace("evaluation: {", "evaluation: { benchmarks: [], judges: [],")
        )
        self.needs(**{stage: {"gpus": 1, "memory_gb": 1} for stage in GPU_STAGES})
        self.link()
        self.describe()

    def link(self) -> None:
        """Let Snakemake find this checkout's profile."""
        command = ["make", "slurm-profile", "CLUSTER=profiles/slurm/clusters/h100.yaml"]
        subprocess.run(command, cwd=self.path, env=self.environment, check=True, capture_output=True)

    def describe(self, **changes: Any) -> None:
        """Write the cluster file."""
        (self.path / "profiles/slurm/cluster.yaml").write_text(yaml.safe_dump(CLUSTER | changes))

    def needs(self, **stages: dict[str, Any]) -> None:
        """Let stages ask for other resources, in config.yaml."""
        path = self.path / "config.yaml"
        content = yaml.safe_load(path.read_text())
        content.setdefault("resources", {}).setdefault("stages", {}).update(stages)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def start(self, *options: str) -> Workflow:
        """Start `snakemake --profile slurm`."""
        return Workflow(self, options)

    def run(self, *options: str, timeout: float = 900) -> str:
        """Run `snakemake --profile slurm` to its end, which must be a good one; what it said."""
        workflow = self.start(*options)
        said = workflow.wait(timeout)
        assert workflow.process.returncode == 0, said[-6000:]
        return said

    def jobs(self, *states: str) -> list[str]:
        """The comments (rule and wildcards) of this checkout's jobs in the queue."""
        lines = self.cluster.run("squeue", "-h", "-t", ",".join(states) or "all", "-o", "%Z|%i|%k").splitlines()
        return [line.split("|", 1)[1] for line in lines if line.startswith(f"{self.path}|")]

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.path / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))


class Workflow:
    """A running `snakemake --profile slurm`."""

    def __init__(self, checkout: Checkout, options: tuple[str, ...]) -> None:
        self.log = checkout.path / f"workflow.{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["snakemake", "--profile", "slurm", *options],
                cwd=checkout.path,
                env=checkout.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, timeout: float = 300) -> str:
        """What it said until its end."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no end within {timeout} s:\n{self.said[-6000:]}") from None
        return self.said

    def submitted(self) -> list[str]:
        """The SLURM jobs that it submitted: rule, wildcards."""
        return re.findall(r"has been submitted with SLURM jobid \d+ \(log: .*?/rule_(.+)/\d+\.log\)", self.said)


def until(ready: Callable[[], Any], what: str, seconds: float = 120) -> Any:
    """What `ready` says as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
    return found


def stage(checkout: Path, name: str) -> int | None:
    """The process of `python -m mnpo NAME` that works on a checkout."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[1:3] == [b"-m", b"mnpo"] and name.encode() in words and (entry / "cwd").readlink() == checkout:
                    return int(entry.name)
            except OSError:
                continue
    return None


def held(checkout: Checkout, name: str) -> int:
    """The process of a stage, stopped while it writes."""
    pid = until(lambda: stage(checkout.path, name), f"a process of {name}")
    until(lambda: list((checkout.path / "results").rglob(".partial-*")), "something half written")
    os.kill(pid, signal.SIGSTOP)
    return int(pid)
