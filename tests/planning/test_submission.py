"""What sbatch says beforehand, from a sbatch of ours; from a real one: tests/slurm/test_submission.py."""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_slurm import Executor, ExecutorSettings

from mnpo.config.resources import Needs
from mnpo.errors import BadInput
from mnpo.planning import submission
from mnpo.planning.cluster import Cluster

CLUSTER = Cluster.model_validate(
    {
        "account": "lab",
        "cpu": {"partition": "cpu", "max_minutes": 60},
        "gpu": {"partition": "gpu", "max_minutes": 600, "per_node": 8, "type": "h100", "qos": "long"},
    }
)
TRAIN = "-A lab -p gpu -t 120 --qos=long --mem 64000 --nodes=1 --requeue --ntasks-per-node=4 --cpus-per-task=2"
TRAIN += " --signal=TERM@300 --gres=gpu:h100:4"


class Resources(dict[str, Any]):
    """As Snakemake's: by name or as an attribute."""

    __getattr__ = dict.__getitem__


def job(rule: str, **needs: Any) -> SimpleNamespace:
    """A job of a stage as Snakemake hands it to the plugin, at its first try."""
    wanted = Needs(**needs)
    asked = {"mem_mb": round(1000 * wanted.memory_gb), "cpus_per_task": wanted.cpus} | CLUSTER.place(rule, wanted)
    values = {name: value(None, 1) if callable(value) else value for name, value in asked.items()}
    return SimpleNamespace(rule=SimpleNamespace(name=rule), name=rule, threads=wanted.cpus, resources=Resources(values))


class Scheduler:
    """As Snakemake's: SLURM's executor for what is submitted, another for what is not."""

    def __init__(self, directory: Path) -> None:
        settings = ExecutorSettings(requeue=True)
        self.slurm = Executor.__new__(Executor)
        self.slurm.workflow = SimpleNamespace(executor_settings=settings, workdir_init=directory)
        self.slurm.run_uuid = "mnpo_1"
        self.slurm.logger = logging.getLogger(__name__)
        self.slurm._failed_nodes = set()
        self.slurm._partitions = None

    def get_executor(self, job: Any) -> object:
        return object() if job.rule.name == "tabulate" else self.slurm


class Slurm:
    """Commands of SLURM that answer as they are told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.says("sacctmgr", "echo lab")
        self.says("scontrol", "echo Slurmctld at here is UP")
        self.says("sbatch", "echo sbatch: Job 1 to start >&2")

    def says(self, command: str, script: str) -> None:
        file = self.directory / command
        file.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {shlex.quote(str(file))}.asked\n{script}\n')
        file.chmod(0o755)

    def asked(self, command: str) -> list[str]:
        """All words of all calls."""
        file = self.directory / f"{command}.asked"
        return file.read_text().split("\0")[:-1] if file.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield Slurm(tmp_path)


def test_one_job_of_each_rule_is_asked_about_in_the_words_of_the_plugin(slurm: Slurm, tmp_path: Path) -> None:
    train = job("train", gpus=4, cpus=8, memory_gb=64, hours=2)
    submission.require_accepted(Scheduler(tmp_path), [train, train, job("tabulate"), job("pair")])
    words = slurm.asked("sbatch")
    assert words.count("--test-only") == 2 and words.count("--wrap=true") == 2
    assert words.count("rule_train") == words.count("rule_pair") == 1
    for word in (*TRAIN.split(), str(tmp_path), "--ntasks=1"):
        assert word in words


def test_a_refusal_names_the_stage_what_it_asked_for_and_sbatchs_words(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says(
        "sbatch", 'case "$*" in *rule_train*|*rule_pair*) echo "allocation failure: no such node" >&2; exit 1; esac'
    )
    train = job("train", gpus=4, cpus=8, memory_gb=64, hours=2)
    with pytest.raises(BadInput) as refused:
        submission.require_accepted(Scheduler(tmp_path), [train, job("sample", gpus=1), job("pair", memory_gb=1)])
    _, first, second = str(refused.value).splitlines()
    assert first == f"train: asked for {TRAIN}: allocation failure: no such node"
    assert second.startswith("pair: asked for -A lab -p cpu -t ") and "--mem 1000" in second


def test_what_only_waits_for_nodes_that_are_down_is_no_refusal_and_leaves_nothing_in_the_queue(
    slurm: Slurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sbatch --test-only` refuses it in the very words of a job that fits no node; sbatch queues it."""
    slurm.says("sbatch", 'case "$*" in *--test-only*) echo "not available" >&2; exit 1; esac; echo "17;cluster"')
    slurm.says("scancel", "")
    submission.require_accepted(Scheduler(tmp_path), [job("train", gpus=1)])
    words = slurm.asked("sbatch")
    assert words.count("--begin=now+1hour") == 1 and words.index("--test-only") < words.index("--begin=now+1hour")
    assert slurm.asked("scancel") == ["17"]
    assert "no node can run it as the nodes are now: not available" in capsys.readouterr().err


def test_an_account_that_the_plugin_refuses_is_said_with_its_stage(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says("sacctmgr", "echo theirs")
    with pytest.raises(BadInput, match="train: The given account lab appears to be invalid"):
        submission.require_accepted(Scheduler(tmp_path), [job("train", gpus=1)])


NOBODY_ANSWERS = {
    "no controller": ({"sbatch": "echo No controller >&2; exit 1", "scontrol": "echo DOWN; exit 1"},
                      "No controller"),
    "sbatch hangs": ({"sbatch": "exec sleep 60"}, "sbatch gave no answer within 0 s"),
    "the ping hangs": ({"sbatch": "exit 1", "scontrol": "exec sleep 60"}, "scontrol gave no answer within 0 s"),
}  # fmt: skip


@pytest.mark.parametrize("how", NOBODY_ANSWERS)
def test_where_nobody_answers_that_is_said_and_no_more(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    commands, reason = NOBODY_ANSWERS[how]
    for command, script in commands.items():
        slurm.says(command, script)
    if "hang" in how:
        monkeypatch.setattr(submission, "SECONDS_TO_ANSWER", 0.3)
    submission.require_accepted(Scheduler(tmp_path), [job("train", gpus=1), job("pair")])
    said = capsys.readouterr().err
    assert said.count("sbatch was not asked beforehand") == 1 and reason in said
    assert slurm.asked("sbatch").count("--test-only") <= 1  # one is enough to know


@pytest.mark.parametrize("missing", ["sbatch", "sacctmgr"])
def test_without_slurms_commands_that_is_said_and_no_more(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    scheduler = Scheduler(tmp_path)
    (tmp_path / missing).unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    submission.require_accepted(scheduler, [job("train", gpus=1)])
    assert f"{missing}: No such file or directory" in capsys.readouterr().err


def test_without_the_slurm_executor_sbatch_is_not_asked(slurm: Slurm, tmp_path: Path) -> None:
    slurm.says("sbatch", "exit 1")
    submission.require_accepted(Scheduler(tmp_path), [job("tabulate")])
    assert slurm.asked("sbatch") == []
    assert subprocess.run(["sbatch"], check=False).returncode == 1  # it is ours
