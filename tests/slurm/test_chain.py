"""The whole chain through `snakemake --profile slurm` on a real SLURM, and what its jobs get."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from checkouts import CLUSTER, GPU_STAGES, Checkout

pytestmark = pytest.mark.slow


def test_the_chain_makes_every_noun(finished: tuple[Checkout, str]) -> None:
    checkout, said = finished
    results = checkout.path / "results/small"
    for policy in ("sft", "td-mnpo.1", "td-mnpo.2"):
        assert (results / f"policies/{policy}/model.safetensors").is_file()
        assert (results / f"evals/{policy}/heldout.json").is_file()
    for table in ("main", "players", "benchmarks", "costs", "theory"):
        assert (results / f"tables/{table}.csv").is_file()
    assert not list(results.rglob(".partial*"))
    assert "(100%) done" in said


def test_a_second_run_has_nothing_to_do(finished: tuple[Checkout, str]) -> None:
    assert "Nothing to be done" in finished[0].run()


def test_each_job_ran_once_where_it_belongs_under_a_name_that_a_person_recognises(
    finished: tuple[Checkout, str],
) -> None:
    checkout = finished[0]
    rows = checkout.cluster.run(
        "sacct", "-X", "-n", "-P", "-S", "now-1days", "-o", "jobname,comment,partition,account,state,alloctres,workdir"
    )
    jobs = [row.split("|") for row in rows.splitlines() if row.endswith(f"|{checkout.path}")]
    assert all(name.startswith("mnpo_") for name, *_ in jobs)
    assert {state for _, _, _, _, state, *_ in jobs} == {"COMPLETED"}
    assert {account for _, _, _, account, *_ in jobs} == {"lab"}
    comments = Counter(comment for _, comment, *_ in jobs)
    assert set(comments.values()) == {1}
    assert {"rule_sft_wildcards_sft", "rule_train_wildcards_td-mnpo.2", "rule_sample_wildcards_sft_part1_0"} <= set(
        comments
    )
    for _, comment, partition, *_, resources, _ in jobs:
        gpu = comment.split("_")[1] in GPU_STAGES
        assert partition == ("gpu" if gpu else "cpu"), comment
        assert ("gres/gpu=1" in resources) is gpu, comment


# A workflow of one rule for each question, run by the profile itself.
PROBES = """
from pathlib import Path
from mnpo import cluster
from mnpo.config import Needs

CLUSTER = cluster.load()
ONE, TWO = Needs(gpus=2, cpus=4), Needs(gpus=4, cpus=4)

def launch(needs):
    return cluster.launch("train", needs, CLUSTER, Path(RANK))

LAUNCH_ONE, LAUNCH_TWO = launch(ONE), launch(TWO)

rule all:
    input: "sample.txt", "one.txt", "two.txt"

rule sample:  # one process with two GPUs
    output: "sample.txt"
    resources: mem_mb=1000, **{"cpus_per_task": 4, **CLUSTER.place("sample", ONE)}
    shell: "echo $CUDA_VISIBLE_DEVICES $SLURM_CPUS_ON_NODE > {output}"

rule one:  # two GPUs of one node, one rank each
    output: "one.txt"
    resources: mem_mb=1000, **CLUSTER.place("train", ONE)
    shell: "exec {LAUNCH_ONE} sum.py {output}"

rule two:  # four GPUs, which are two of each of two nodes
    output: "two.txt"
    resources: mem_mb=1000, **CLUSTER.place("train", TWO)
    shell: "exec {LAUNCH_TWO} sum.py {output}"
"""
# All ranks add their number + 1; each says what it sees.
SUM = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1])
dist.all_reduce(total)
with open(f"{sys.argv[1]}.{dist.get_rank()}", "w") as file:
    names = os.environ["SLURMD_NODENAME"], os.environ["LOCAL_RANK"], os.environ["CUDA_VISIBLE_DEVICES"]
    print(*names, int(total), dist.get_world_size(), file=file)
dist.barrier()
if dist.get_rank() == 0:
    open(sys.argv[1], "w").close()
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def probed(finished: tuple[Checkout, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the probes ran."""
    checkout = Checkout(tmp_path_factory.mktemp("probes") / "checkout", finished[0].cluster)
    (checkout.path / "profiles").mkdir(parents=True)
    shutil.copytree(finished[0].path / "profiles/slurm", checkout.path / "profiles/slurm")
    shutil.copy(finished[0].path / "Makefile", checkout.path)
    checkout.environment["PYTHONPATH"] = str(finished[0].path)
    checkout.link()
    checkout.describe(gpu=CLUSTER["gpu"] | {"per_node": 2, "qos": "long", "constraint": "big|small"})
    rank = finished[0].path / "workflow/rank.sh"
    (checkout.path / "Snakefile").write_text(f"RANK = {str(rank)!r}\n{PROBES}")
    (checkout.path / "sum.py").write_text(SUM)
    checkout.run()
    return checkout.path


def test_a_job_sees_the_gpus_and_cpus_it_asked_for(probed: Path) -> None:
    devices, cpus = (probed / "sample.txt").read_text().split()
    assert len(set(devices.split(","))) == 2
    assert cpus == "4"


@pytest.mark.parametrize(
    ("job", "ranks", "total"),
    [("one", [(0, 0), (0, 1)], "3"), ("two", [(0, 0), (0, 1), (1, 0), (1, 1)], "10")],  # 1 + 2; 1 + 2 + 3 + 4
)
def test_the_gpus_of_a_training_form_one_process_group(
    probed: Path, job: str, ranks: list[tuple[int, int]], total: str
) -> None:
    seen = [(probed / f"{job}.txt.{rank}").read_text().split() for rank in range(len(ranks))]
    nodes = sorted({name for name, *_ in seen})
    assert [(nodes.index(name), int(local)) for name, local, *_ in seen] == ranks
    for _, _, devices, summed, world in seen:
        assert len(set(devices.split(","))) == 2
        assert (summed, world) == (total, str(len(ranks)))
