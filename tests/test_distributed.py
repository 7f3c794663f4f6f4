"""Two ranks against one process: the same trainings by every way of sharing them, on a CPU over gloo."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mnpo.artifacts import manifest
from mnpo.checkpoints import load_model
from mnpo.config import Text
from mnpo.stages.train import Settings, run

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("ddp", "fsdp", "zero2", "zero3")
TRAININGS = {
    **{f"{way}-stopped": {"parallel": way} for way in SHARED},
    "zero3-lora": {"parallel": "zero3", "lora": {"rank": 4, "alpha": 8}, "gradient_checkpointing": True},
}


def asked(text: Text, **training: Any) -> dict[str, Any]:
    optimisation = {"epochs": 2, "batch_size": 5, "learning_rate": 1e-3, "warmup": 0.2, "micro_batch_tokens": 100}
    return {
        "policy": "inpo.1",
        "start": "sft",
        "objective": {"name": "inpo", "eta": 0.2, "ratio": "1/3"},
        "opponents": [("sft", 1.0)],
        "scorers": ["sft"],
        "training": optimisation | training,
        "form": {},
        "text": text.model_dump(),
        "seed": 1,
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, chain: dict[str, Path], text: Text) -> dict[str, Path]:
    """The trainings by one process: without adapters, and with them."""
    directory = tmp_path_factory.mktemp("one")
    for name, training in {"whole": {}, "lora": {"lora": {"rank": 4, "alpha": 8}}}.items():
        settings = Settings.model_validate(asked(text, **training))
        run(settings, chain["policy"], [chain["pairs"]], [chain["logps"]], directory / name)
    return {name: directory / name for name in ("whole", "lora")}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, chain: dict[str, Path], text: Text) -> Path:
    """The same by two, launched as torchrun does: the directory of their outputs, and what each rank said."""
    directory = tmp_path_factory.mktemp("two")
    trainings = {name: asked(text, **training) for name, training in TRAININGS.items()}
    files = {name: str(chain[name]) for name in ("policy", "pairs", "logps")}
    (directory / "asked.json").write_text(json.dumps({"trainings": trainings, "output": str(directory), **files}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in "01":
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "tests/two_ranks.py"), str(directory / "asked.json")]
        with open(directory / f"said-{rank}", "wb") as said:
            processes.append(subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT))
    codes = [process.wait(600) for process in processes]
    assert codes == [0, 0], "".join((directory / f"said-{rank}").read_text()[-3000:] for rank in "01")
    return directory


def metrics(policy: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()]


def apart(policy: Path, other: Path) -> float:
    """The largest difference of two policies' weights, as transformers loads them."""
    one, two = (load_model(p).state_dict() for p in (policy, other))
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_train_as_one_process_does(two: Path, one: dict[str, Path], name: str) -> None:
    """Whole, or stopped by a signal to one of them and continued: the same rows, losses and policy."""
    alone = one["lora" if name.endswith("lora") else "whole"]
    ours, theirs = metrics(two / name), metrics(alone)
    assert len(ours) == len(theirs) > 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["tokens"] == other["tokens"] and mine["learning_rate"] == other["learning_rate"]
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
    assert apart(two / name, alone) < 1e-5
    files = [load_file(policy / "model.safetensors") for policy in (two / name, alone)]
    assert files[0].keys() == files[1].keys()  # a tied head is kept once
    assert not list(two.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    {
        "ours": ["-m", "mnpo.launch", "2"],
        "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"],
        "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--no_python"],
    }.items(),
    ids=lambda item: item[0],
)
def test_every_launcher_starts_ranks_that_train_together(
    launcher: tuple[str, list[str]],
    tmp_path: Path,
    one: dict[str, Path],
    chain: dict[str, Path],
    text: Text,
) -> None:
    """As docs/training.md says; torchrun and accelerate would read the stage's options themselves, so from a script."""
    name, words = launcher
    output, training = tmp_path / "policy", tmp_path / "training.jsonl"
    files = [f"--{noun}={chain[key]}" for noun, key in (("start", "policy"), ("pairs", "pairs"), ("logps", "logps"))]
    settings = json.dumps(asked(text))
    stage = ["-m", "mnpo", "--log", str(tmp_path / "log"), "train", "--settings", settings, *files]
    stage += [f"--output={output}", f"--training={training}"]
    script = tmp_path / "train.sh"
    script.write_text(f"exec {shlex.join([sys.executable, *stage])}\n")
    command = [sys.executable, *words, *(stage if name == "ours" else ["bash", str(script)])]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifest(output)["ranks"] == 2
    assert apart(output, one["whole"]) < 1e-5
    assert "train: " in (tmp_path / "log").read_text()  # rank 0's


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(two: Path) -> None:
    for rank, signal in ((0, "a signal to another rank"), (1, "SIGTERM")):
        stopped = [line for line in (two / f"said-{rank}").read_text().splitlines() if "stopped by" in line]
        assert len(stopped) == len(SHARED)
        assert all(f"stopped by {signal} after step 3 of " in line for line in stopped)
