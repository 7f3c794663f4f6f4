"""The whole chain through `snakemake --profile slurm` on a real SLURM, and what its jobs get."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

import pytest
from checkouts import CLUSTER, GPU_STAGES, TRAINED, Checkout, environment, stages

from tests.helpers.checkouts import jobs_in, until

pytestmark = pytest.mark.slow


def test_the_page_on_clusters_works_to_the_letter(finished: tuple[Checkout, dict[str, str]]) -> None:
    """Its commands in its order, a Ctrl-C and the same command again: 17 jobs, none finished one twice."""
    _, said = finished
    assert list(said)[:2] == ["make slurm-profile", "$EDITOR profiles/slurm/cluster.yaml"]
    assert re.search(r"^total +17$", said["snakemake --profile slurm -n"], re.M)
    assert re.search(r"^small: 2 of 16 jobs done, 1 running, 13 waiting, 0 failed; ", said["mnpo status"])
    assert "rule_sft_wildcards_sft" in said[next(command for command in said if command.startswith("squeue"))]
    assert "rule_prompts" in said[next(command for command in said if command.startswith("sacct"))]
    assert "will run for it: " in said[next(command for command in said if command.startswith("mnpo why"))]
    assert re.search("Terminating processes on user request|Cancelling", said["Ctrl-C"])
    jobs = jobs_in(said["snakemake --profile slurm"])
    assert len(jobs) == 14
    assert jobs[0] == "sft policies/sft"


def test_the_chain_makes_every_noun_and_a_second_run_has_nothing_to_do(
    finished: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, said = finished
    results = checkout.path / "results/small"
    for policy in ("sft", "inpo.1"):
        assert (results / f"policies/{policy}/model.safetensors").is_file()
        assert (results / f"evals/{policy}/heldout.json").is_file()
    for table in ("main", "benchmarks"):
        assert (results / f"tables/{table}.csv").is_file()
    assert not list(results.rglob(".partial*"))
    assert "(100%) done" in said["snakemake --profile slurm"]
    assert "Nothing to be done" in checkout.run()
    assert re.match(r"small: 16 of 16 jobs done, .*; finished$", checkout.shell("mnpo status"))


def test_each_job_ran_where_it_belongs_under_a_name_that_a_person_recognises(
    finished: tuple[Checkout, dict[str, str]],
) -> None:
    checkout = finished[0]
    jobs = accounted(checkout)
    assert all(job["jobname"].startswith("mnpo_") for job in jobs)
    assert {job["account"] for job in jobs} == {"lab"}
    states = defaultdict(list)
    for job in jobs:
        states[job["comment"]].append(job["state"].split()[0])
    assert states.pop("rule_sft_wildcards_sft") == ["CANCELLED", "COMPLETED"]
    assert {"rule_train_wildcards_inpo.1", "rule_sample_wildcards_sft_part1_0"} <= set(states)
    assert all(ends == ["COMPLETED"] for ends in states.values())
    for job in jobs:
        stage = job["comment"].split("_")[1]
        assert job["partition"] == ("gpu" if stage in GPU_STAGES else "cpu"), job
        assert ("gres/gpu=1" in job["alloctres"]) is (stage in GPU_STAGES), job
    logs = checkout.path / "logs/small"
    assert {path.parent.name for path in logs.rglob("*.log")} >= {*GPU_STAGES, "pair"}
    assert all(path.stat().st_size < 20_000 for path in logs.rglob("*.log"))  # no bar that is drawn again and again


def test_four_gpus_of_two_nodes_train_as_one_process_does(checkout: Checkout, alone: Checkout) -> None:
    """The same loss at each step, to the rounding of sums in another order."""
    checkout.needs(train={"gpus": 4, "cpus": 4, "memory_gb": 1})
    checkout.describe(gpu=CLUSTER["gpu"] | {"per_node": 2, "qos": "long", "constraint": "big|small"})
    workflow = checkout.start(TRAINED)
    until(lambda: len(stages(checkout, "train")) == 4, "four ranks")
    ranks = [environment(pid) for pid in stages(checkout, "train")]
    workflow.succeeded()

    ranks.sort(key=lambda rank: int(rank["RANK"]))
    first, second = ranks[0]["SLURMD_NODENAME"], ranks[2]["SLURMD_NODENAME"]
    assert first != second
    assert [(r["SLURMD_NODENAME"], r["LOCAL_RANK"]) for r in ranks] == [(n, r) for n in (first, second) for r in "01"]
    assert all(len(set(rank["CUDA_VISIBLE_DEVICES"].split(","))) == 2 for rank in ranks)
    assert {rank["SLURM_CPUS_PER_TASK"] for rank in ranks} == {"2"}
    assert len({rank["MASTER_ADDR"] for rank in ranks}) == len({rank["MASTER_PORT"] for rank in ranks}) == 1
    (job,) = accounted(checkout)
    assert {"gres/gpu=4", "node=2"} <= set(job["alloctres"].split(","))
    assert job["qos"] == "long"

    ours, theirs = (metrics(c) for c in (checkout, alone))
    assert len(ours) == len(theirs) > 1
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-5)


def accounted(checkout: Checkout) -> list[dict[str, str]]:
    """What sacct knows of a checkout's jobs."""
    columns = ["jobname", "comment", "partition", "account", "qos", "state", "alloctres", "workdir"]
    rows = checkout.cluster.run("sacct", "-X", "-n", "-P", "-S", "now-1days", "-o", ",".join(columns)).splitlines()
    jobs = [dict(zip(columns, row.split("|"), strict=True)) for row in rows]
    return [job for job in jobs if job["workdir"] == str(checkout.path)]


def metrics(checkout: Checkout) -> list[dict[str, Any]]:
    lines = (checkout.path / "results/small/training/inpo.1.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
