"""What a stage needs, as a cluster file places it."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.reading import load as read_configuration
from mnpo.config.resources import Needs
from mnpo.errors import BadInput
from mnpo.planning.cluster import VARIABLE, Cluster, launch, load
from mnpo.planning.costs.calibration import stop_seconds
from mnpo.planning.plan import Plan

ROOT = Path(__file__).parents[2]

FILE = """
account: lab
cpu: {partition: cpu, max_minutes: 60, qos: short}
gpu: {partition: gpu, max_minutes: 1000, per_node: 4, type: a100, constraint: 80gb}
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "cluster.yaml").write_text(FILE)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cluster.yaml"))
    loaded = load()
    assert loaded is not None
    return loaded


def placed(cluster: Cluster, stage: str, attempt: int = 1, **needs: Any) -> dict[str, Any]:
    asked = cluster.place(stage, Needs(**needs))
    return {name: value(None, attempt) if callable(value) else value for name, value in asked.items()}


def test_the_references_fine_tuning_starts_a_process_for_each_gpu_as_trainings_do() -> None:
    for stage in ("train", "sft"):
        assert launch(stage, Needs(gpus=2), None, Path("rank.sh")) == ["python", "-m", "mnpo.learning.launch", "2"]
    assert launch("sft", Needs(gpus=1), None, Path("rank.sh")) == ["python"]


def test_without_a_cluster_nothing_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert load() is None


def test_a_stage_without_gpus_goes_to_the_cpu_partition(cluster: Cluster) -> None:
    assert placed(cluster, "prompts", hours=0.5) == {
        "slurm_account": "lab", "slurm_partition": "cpu", "qos": "short", "runtime": 30
    }  # fmt: skip


def test_a_stage_is_told_to_stop_twice_as_early_as_stops_took(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As manifests of finished jobs say, and the records of begun ones; `seconds_to_stop` and half the limit hold."""
    monkeypatch.chdir(tmp_path)
    plan = Plan(read_configuration(ROOT / "tests/workflow/small.yaml"))
    one, other = (Path(plan.files.policy(name)) for name in ("inpo.1", "inpo.2"))
    for path, content in (
        (one / "manifest.json", {"stop_seconds": 100.2}),
        (other.with_name(f".work-{other.name}") / "work.json", {"stop_seconds": 211.3}),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(content))

    def told(stage: str, hours: float = 2) -> str:
        place = cluster.place(stage, Needs(hours=hours), partial(stop_seconds, plan, stage))
        return place["slurm_extra"](None, 1)  # type: ignore[no-any-return]

    before = cluster.seconds_to_stop
    assert before == 300 and told("sample") == f"--signal=TERM@{before}"
    assert told("train", hours=1) == "--signal=TERM@423"
    assert told("train", hours=0.1) == "--signal=TERM@180"
    other.with_name(f".work-{other.name}").joinpath("work.json").unlink()
    assert told("train", hours=1) == "--signal=TERM@300"  # twice 100.2 is less


def test_gpus_are_asked_for_by_type(cluster: Cluster) -> None:
    two = placed(cluster, "sample", gpus=2, hours=4)
    assert (two["slurm_partition"], two["gres"], two["constraint"]) == ("gpu", "gpu:a100:2", "80gb")
    assert not {"nodes", "mpi", "qos"} & set(two)
    with pytest.raises(BadInput, match="resources.stages.sample.gpus: 8, and a node has 4; only train and sft run on"):
        placed(cluster, "sample", gpus=8)


def test_a_training_gets_one_task_a_gpu_and_its_nodes_cpus_divided(cluster: Cluster) -> None:
    def tasks(on: Cluster = cluster, **needs: int) -> list[Any]:
        asked = placed(on, "train", **needs)
        keys = ("gres", "nodes", "tasks_per_node", "tasks", "tasks_per_gpu", "mpi", "cpus_per_task")
        return [asked.get(key) for key in keys]

    assert tasks(gpus=1, cpus=8) == ["gpu:a100:1", None, None, None, None, None, None]
    assert tasks(gpus=4, cpus=8) == ["gpu:a100:4", 1, 4, None, 0, "srun", 2]
    assert tasks(gpus=8, cpus=8) == ["gpu:a100:4", 2, 4, None, 0, "srun", 2]
    with pytest.raises(BadInput, match="resources.stages.train.gpus: 10 GPUs do not divide over 3 nodes of 4"):
        placed(cluster, "train", gpus=10)
    small = cluster.model_copy(update={"gpu": cluster.gpu.model_copy(update={"per_node": 1})})
    assert tasks(small, gpus=2, cpus=8) == ["gpu:a100:1", 2, None, 2, 0, "srun", 8]  # the plugin refuses 1 a node


def test_a_training_is_launched_once_for_each_gpu_with_its_share_of_the_cpus(cluster: Cluster) -> None:
    def words(gpus: int, on: Cluster | None, stage: str = "train", cpus: int = 1) -> list[str]:
        return launch(stage, Needs(gpus=gpus, cpus=cpus), on, Path("my rank.sh"))

    assert words(0, None) == words(1, None) == words(1, cluster) == words(4, cluster, "sample") == ["python"]
    assert words(4, None) == ["python", "-m", "mnpo.learning.launch", "4"]
    assert words(8, cluster, cpus=14) == [
        "srun", "--overlap", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=3", "--cpu-bind=none",
        "--kill-on-bad-exit=0", "--wait=120", "bash", "my rank.sh", "python",
    ]  # fmt: skip
    assert "--cpus-per-task=1" in words(4, cluster, cpus=2)
    for cpus in (2, 14):
        asked = placed(cluster, "train", gpus=8, cpus=cpus)["cpus_per_task"]
        assert f"--cpus-per-task={asked}" in words(8, cluster, cpus=cpus)  # of the job that the step is part of


@pytest.mark.parametrize(("said", "threads"), [({}, "3"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_a_rank_gets_torchruns_variables_and_the_words_of_its_command(
    root: Path, said: dict[str, str], threads: str
) -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "40001"}
    slurm["SLURM_CPUS_PER_TASK"] = "3"
    slurm |= {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "GLOO_SOCKET_IFNAME": "ib0", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["bash", str(root / "workflow/rank.sh"), "sh", "-c", 'env; printf "<%s>" "$@"', "sh", "a b", "c'd"],
        env=slurm | said, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *lines, words = done.stdout.splitlines()
    given = dict(line.split("=", 1) for line in lines)
    assert words == "<a b><c'd>"
    assert [given[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["5", "1", "8"]
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("10.0.0.7", "20001")
    assert given["GLOO_SOCKET_IFNAME"] == "ib0"
    assert given["OMP_NUM_THREADS"] == threads


def test_time_grows_with_the_try_up_to_the_partitions_limit(cluster: Cluster) -> None:
    tries = [placed(cluster, "train", attempt, gpus=1, hours=8)["runtime"] for attempt in (1, 2, 3)]
    assert tries == [480, 960, 1000]


def test_what_can_be_continued_is_told_to_stop_before_its_limit(cluster: Cluster) -> None:
    def signal(stage: str, hours: float) -> str | None:
        return placed(cluster, stage, gpus=1, hours=hours).get("slurm_extra")

    assert signal("train", 8) == signal("sample", 8) == "--signal=TERM@300"
    assert signal("train", 4 / 60) == "--signal=TERM@120"  # half of four minutes
    assert signal("assess", 8) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE.replace("partition: cpu", "partitoin: cpu"), "cpu.partitoin: unknown key; did you mean 'partition'?"),
        (FILE.replace("per_node: 4, ", ""), "gpu.per_node: required, and missing"),
        (FILE.replace("max_minutes: 60", "max_minutes: soon"), "cpu.max_minutes: Input should be a valid integer"),
        (FILE.replace("lab", "CHANGE_ME"), "CHANGE_ME stands where your account or partition belongs"),
    ],
)
def test_a_mistake_in_the_cluster_file_names_key_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cluster.yaml"))
    with pytest.raises(BadInput) as caught:
        load()
    assert said in str(caught.value) and str(tmp_path / "cluster.yaml") in str(caught.value)


@pytest.mark.parametrize("name", ["h100", "a100-features"])
def test_the_examples_are_cluster_files(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(VARIABLE, str(root / f"profiles/slurm/clusters/{name}.yaml"))
    assert load() is not None
