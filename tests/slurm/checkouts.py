"""Checkouts in which `snakemake --profile slurm` runs as docs/cluster.md says, and hands on their processes."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, alive, faults_of_ended_children

from tests.helpers.checkouts import ROOT, copy_project, edit, until

GPU_STAGES = ("sft", "train", "sample", "score", "logps", "assess", "harness")
# The test cluster as a person would describe it; jobs of seconds are looked at more often than jobs of hours.
CLUSTER: dict[str, Any] = {
    "account": "lab",
    "cpu": {"partition": "cpu", "max_minutes": 60},
    "gpu": {"partition": "gpu", "max_minutes": 120, "per_node": 8, "type": "h100"},
    "jobs": 3,
    "seconds_between_checks": 2,
}
PAGE = ROOT / "docs/cluster.md"
SLURM = "snakemake --profile slurm"
LOCAL = "snakemake --cores 2 --rerun-incomplete"
TRAINED = "results/small/policies/inpo.1"  # what `edited` leaves to do


def documented(heading: str) -> list[str]:
    """The commands that the page on clusters gives below a heading, without their comments."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    lines = re.findall(r"^ {4}(.+)$", section.replace("{name}", "small"), re.M)
    return [line.partition(" # ")[0].strip() for line in lines]


class Checkout:
    """A copy of the project whose config.yaml is small.yaml, in a home of its own."""

    def __init__(self, path: Path, cluster: Cluster) -> None:
        self.path = path
        self.cluster = cluster
        self.workflows: list[Workflow] = []
        self.environment = cluster.environment | {
            "HOME": str(path / "home"),
            "EDITOR": "cp cluster.yaml",
            "PYTHONPATH": str(path),
            "PATH": f"{cluster.directory}/bin:{Path(sys.executable).parent}:{cluster.path}",
            "OMP_NUM_THREADS": "1",
        }
        self.environment.pop("XDG_CONFIG_HOME", None)

    def check_out(self) -> None:
        """The project's files, our configuration, and what `$EDITOR` will make of the cluster file."""
        copy_project(self.path, "Makefile")
        small = (ROOT / "tests/slurm/small.yaml").read_text()
        (self.path / "config.yaml").write_text(small.replace("../../configs/", "configs/"))
        self.needs(**{stage: {"gpus": 1, "memory_gb": 1} for stage in GPU_STAGES})
        (self.path / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))

    def shell(self, command: str) -> str:
        """What a command prints that somebody types here."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.path, env=self.environment, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, (
            f"{command}: exit code {done.returncode}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout + done.stderr

    def edited(self, path: Path) -> Checkout:
        """A copy of this checkout, which is finished, with one training to do."""
        shutil.copytree(self.path, path, symlinks=True)
        copy = Checkout(path, self.cluster)
        copy.shell("make slurm-profile")
        copy.edit("config.yaml", "eta: 0.2", "eta: 0.1")
        return copy

    def describe(self, **changes: Any) -> None:
        """Write the cluster file."""
        (self.path / "profiles/slurm/cluster.yaml").write_text(yaml.safe_dump(CLUSTER | changes))

    def needs(self, **stages: dict[str, Any]) -> None:
        """Let stages ask for other resources, in config.yaml."""
        path = self.path / "config.yaml"
        content = yaml.safe_load(path.read_text())
        content.setdefault("resources", {}).setdefault("stages", {}).update(stages)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def edit(self, file: str, old: str, new: str) -> None:
        edit(self.path / file, old, new)

    def start(self, *options: str, on: str = SLURM) -> Workflow:
        """Start `snakemake --profile slurm`, or on two cores of this machine."""
        self.workflows.append(Workflow(self, shlex.split(on) + list(options)))
        return self.workflows[-1]

    def run(self, *options: str, on: str = SLURM, timeout: float = 1200) -> str:
        """Run a workflow to its end, which must be a good one; what it said."""
        return self.start(*options, on=on).succeeded(timeout)

    def refused(self, *options: str, on: str = SLURM) -> str:
        """Run a workflow that must fail; what it said."""
        workflow = self.start(*options, on=on)
        said = workflow.wait()
        assert workflow.process.returncode != 0, said[-6000:]
        return said

    def jobs(self, *states: str) -> list[tuple[str, str]]:
        """Number and comment (rule and wildcards) of this checkout's jobs in the queue."""
        lines = self.cluster.run("squeue", "-h", "-t", ",".join(states), "-o", "%Z|%i|%k").splitlines()
        rows = [line.split("|") for line in lines]
        return [(number, comment) for directory, number, comment in rows if directory == str(self.path)]

    def abandon(self) -> None:
        """End all that still works here."""
        for workflow in self.workflows:
            workflow.process.kill()
            workflow.process.wait()
        for number, _ in self.jobs("PENDING", "RUNNING", "SUSPENDED"):
            self.cluster.run("scancel", "--signal=KILL", "--full", number, check=False)
            self.cluster.run("scancel", number, check=False)
        for pid in stages(self):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not stages(self), "the end of its stages")

    def trained(self) -> bytes:
        """The weights of the one training; nothing half written lies about."""
        policy = self.path / TRAINED
        assert (policy / "manifest.json").is_file()
        assert not list((self.path / "results").rglob(".partial*"))
        assert not list((self.path / "results").rglob(".work*"))
        return (policy / "model.safetensors").read_bytes()


class Workflow:
    """A running Snakemake."""

    def __init__(self, checkout: Checkout, command: list[str]) -> None:
        self.log = checkout.path / f"workflow.{time.monotonic_ns()}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=checkout.path,
                env=checkout.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # As at a terminal: whoever started the tests in the background had them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait(self, timeout: float = 900) -> str:
        """What it said until its end."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"no end within {timeout} s:\n{self.said[-6000:]}") from None
        return self.said

    def succeeded(self, timeout: float = 900) -> str:
        """What it said until its end, which must be a good one."""
        said = self.wait(timeout)
        assert self.process.returncode == 0, said[-8000:]
        return said

    def interrupt(self) -> str:
        """Ctrl-C between two looks at the queue: during one the plugin holds no list of its jobs, and cancels none."""
        before = faults_of_ended_children(self.process.pid)
        until(lambda: faults_of_ended_children(self.process.pid) > before, "a look at the queue")
        time.sleep(0.3)
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def submitted(self) -> list[str]:
        """The SLURM jobs that it submitted: rule, wildcards."""
        return re.findall(r"has been submitted with SLURM jobid \d+ \(log: .*?/rule_(.+)/\d+\.log\)", self.said)


def stages(checkout: Checkout, name: str | None = None) -> list[int]:
    """The processes of `python -m mnpo NAME` (None: of any stage) that work on a checkout."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ours = words[1:3] == [b"-m", b"mnpo"] and (name is None or name.encode() in words)
                if ours and (entry / "cwd").readlink() == checkout.path:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def environment(pid: int) -> dict[str, str]:
    """The environment of a process."""
    lines = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


def held(checkout: Checkout, stage: str = "train") -> int:
    """The process of a training or SFT, stopped while it writes: SIGTERM reaches it when it goes on."""
    (pid,) = until(lambda: stages(checkout, stage), "the training")
    until(lambda: _catches(pid, signal.SIGTERM) or not alive(pid), "the training to begin")
    os.kill(pid, signal.SIGSTOP)
    assert list((checkout.path / "results/small/policies").glob(".partial-*")), "it writes nothing yet"
    return int(pid)


def killed_when(ready: Callable[[], bool], pid: int) -> None:
    """Let a stopped process go on from system call to system call, and send it SIGKILL at the first where `ready`."""
    attach, go_on, threads = 16, 24, 0x40000000  # PTRACE_ATTACH, PTRACE_SYSCALL, __WALL
    kernel = ctypes.CDLL(None, use_errno=True)

    def trace(request: int, number: int = 0) -> None:
        done = kernel.ptrace(request, pid, ctypes.c_void_p(0), ctypes.c_void_p(number))
        assert done == 0, os.strerror(ctypes.get_errno())

    trace(attach)
    os.waitpid(pid, threads)
    os.kill(pid, signal.SIGCONT)
    trace(go_on)
    while True:
        _, status = os.waitpid(pid, threads)
        assert os.WIFSTOPPED(status), "it ended before that"
        if ready():
            break
        reason = os.WSTOPSIG(status)
        trace(go_on, 0 if reason in (signal.SIGTRAP, signal.SIGSTOP) else reason)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, threads)


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal has been sent to a process that is stopped."""
    return _has(pid, "ShdPnd", number) or _has(pid, "SigPnd", number)


def _catches(pid: int, number: signal.Signals) -> bool:
    return _has(pid, "SigCgt", number)


def _has(pid: int, line: str, number: signal.Signals) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    (mask,) = re.findall(rf"^{line}:\s*(\w+)$", status, re.M)
    return bool(int(mask, 16) >> (number - 1) & 1)
