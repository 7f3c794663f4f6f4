"""`mnpo status` on directories laid out by hand, and beside a real workflow: running, failing, killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mnpo.planning import job_graph, status
from mnpo.planning.plan import Plan
from tests.helpers.checkouts import copy_project

ROOT = Path(__file__).resolve().parents[2]
SNAKEMAKE = Path(".snakemake")
DPO = {"objective": {"name": "dpo", "beta": 0.1}, "oracle": "overall", "iterations": [{"parts": [1]}]}
SMALL: dict[str, Any] = {
    "name": "small",
    "sampling": {"shards": 2},
    "runs": {"dpo": DPO},
    "tables": {"targets": ["heldout"], "win_against": ["sft"]},
    "resources": {"stages": {"sample": {"gpus": 1}, "train": {"gpus": 16}}},
}
STATS = "Job stats:\njob    count\n-----  -----\n{}  {}\n\n"
# prompts, sft, 2 samples, 2 scores, pair, logps under sft, train, 2 evaluations, tabulate
JOBS = 12


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkout, the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def plan(planned: Callable[..., Plan]) -> Plan:
    return planned(**SMALL)


def make(output: str, seconds: float = 0, started: float | None = None) -> None:
    """An output with a manifest."""
    path = Path(output)
    directory = not path.suffix or "policies" in path.parts
    path.parent.mkdir(parents=True, exist_ok=True)
    if directory:
        path.mkdir(exist_ok=True)
    else:
        path.write_text("content")
    stamp = datetime.fromtimestamp(started or time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    manifest = path / "manifest.json" if directory else path.with_name(f"{path.name}.manifest.json")
    manifest.write_text(json.dumps({"seconds": seconds, "started": stamp}))


def make_all(plan: Plan, seconds: float = 10, started: float | None = None) -> None:
    for piece in job_graph.needed(plan, job_graph.files(plan, plan.config.tables.targets)):
        for output in piece.outputs:
            make(output, seconds, started)


def mark(output: str, since: float | None = None, external: str | None = None) -> None:
    """The mark that Snakemake leaves at a job's start, split as it splits long names."""
    name = urlsafe_b64encode(output.encode()).decode()
    pieces = [name[i : i + 254] for i in range(0, len(name), 254)]
    path = SNAKEMAKE.joinpath("incomplete", *(f"@{piece}" for piece in pieces[:-1]), pieces[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"external_jobid": external}))
    if since is not None:
        os.utime(path, (since, since))


def lock() -> None:
    (SNAKEMAKE / "locks").mkdir(parents=True, exist_ok=True)
    (SNAKEMAKE / "locks/0.output.lock").write_text("\n")


def session(started: float, text: str) -> None:
    """The log of a session of Snakemake."""
    path = SNAKEMAKE / "log" / f"{datetime.fromtimestamp(started):%Y-%m-%dT%H%M%S.%f}.snakemake.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def workflow(here: Path) -> Iterator[None]:
    """A process in this directory that is called as the workflow is, and holds its lock."""
    lock()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "snakemake"])
    yield
    process.kill()
    process.wait()


def counts(found: status.Status) -> tuple[int, ...]:
    return tuple(found.count(what) for what in ("total", "done", "running", "waiting", "failed"))


def test_nothing_made(plan: Plan) -> None:
    expected = f"small: 0 of {JOBS} jobs done, 0 running, {JOBS} waiting, 0 failed; 0.0 GPU-hours used; "
    assert status.line(status.look(plan)) == expected + "no workflow is running"


def test_everything_made(plan: Plan) -> None:
    make_all(plan)
    found = status.look(plan)
    assert counts(found) == (JOBS, JOBS, 0, 0, 0)
    assert status.line(found).endswith("; finished")


def test_gpu_hours_are_seconds_times_gpus(plan: Plan) -> None:
    make(plan.files.samples("sft", 1, 0), seconds=3600)  # one GPU: 1
    make(plan.files.policy("dpo.1"), seconds=1800)  # 16 GPUs: 8
    make(plan.files.training("dpo.1"), seconds=1800)  # the same job's
    make(plan.files.pairs("sft", 1, "overall"), seconds=1800)  # none
    found = status.look(plan)
    assert counts(found) == (JOBS, 3, 0, JOBS - 3, 0)
    assert "; 9.0 GPU-hours used; " in status.line(found)


def test_a_job_with_one_of_its_outputs_is_not_done(plan: Plan) -> None:
    make(plan.files.policy("dpo.1"))
    assert counts(status.look(plan)) == (JOBS, 0, 0, JOBS, 0)


def test_a_policy_that_is_not_kept_counts_as_done_without_it(planned: Callable[..., Plan]) -> None:
    run = DPO | {"iterations": [{"parts": [1]}, {"parts": [2]}]}
    tables = {"targets": ["benchmarks"]}  # of last policies only
    plan = planned(**SMALL | {"runs": {"dpo": run}, "checkpoints": "temporary", "tables": tables})
    assert plan.policies.passing == ["dpo.1"]
    job = status.Job("train", "dpo.1", (plan.files.policy("dpo.1"), plan.files.training("dpo.1")))
    assert not status._whole(plan, job)
    make(plan.files.training("dpo.1"))
    assert status._whole(plan, job)


def test_a_mark_without_a_workflow_is_an_interrupted_job(plan: Plan) -> None:
    mark(plan.files.samples("sft", 1, 0))
    found = status.look(plan)
    assert counts(found) == (JOBS, 0, 0, JOBS, 0)
    assert status.line(found).endswith("no workflow is running; interrupted jobs: 1")
    lock()
    expected = "its workflow was killed, or runs on another machine; interrupted jobs: 1"
    assert status.line(status.look(plan)).endswith(expected)


def test_marks_with_long_names_are_read(here: Path) -> None:
    long = "results/small/" + "x" * 300 + "/0.parquet"
    mark(long, since=5)
    assert status.marks() == {long: status.Mark(5, None)}


@pytest.mark.usefixtures("workflow")
def test_what_runs_with_its_progress_and_the_expected_end(plan: Plan) -> None:
    now = time.time()
    session(now - 100, STATS.format("sample", 2) + "Finished jobid: 2 (Rule: sample)\n")
    make(plan.files.samples("sft", 1, 0), seconds=50, started=now - 100)
    mark(plan.files.samples("sft", 1, 1), since=now - 50)
    mark(plan.files.policy("sft"), since=now - 500)  # of an earlier session, killed
    log = Path("logs/small/sample/sft.part1.1.log")
    log.parent.mkdir(parents=True)
    log.write_text(
        "sample: 10/160 batches, 1.0 batches/s, 150 s left\nsample: 40/160 batches, 2.0 batches/s, 60 s left\n"
    )
    found = status.look(plan)
    assert counts(found) == (JOBS, 1, 1, JOBS - 2, 0)
    (running,) = found.stages["sample"].running
    assert running.progress == "40/160 batches"
    assert running.left == pytest.approx(60, abs=5)
    # 50 s done and 50 s of the running one in 100 s: one job at once, and 60 s of work left
    assert found.seconds_left == pytest.approx(60, rel=0.1)
    assert set(found.unknown) == {"prompts", "sft", "score", "pair", "logps", "train", "assess", "tabulate"}
    assert "expected end about " in status.line(found)
    assert re.search(r"runs    sft part1 1, for 5\d s: 40/160 batches, [56]\d s left", status.table(found))


@pytest.mark.usefixtures("workflow")
def test_the_expected_end_takes_means_of_stages_and_what_ran_at_once(plan: Plan) -> None:
    """Scores of 40 s, two at once in this session: the policy's two evaluations of 100 s each are 100 s away."""
    now = time.time()
    finished = "Finished jobid: 1 (Rule: score)\nFinished jobid: 2 (Rule: score)\n"
    session(now - 40, STATS.format("assess", 2) + finished)
    make_all(plan, seconds=100, started=now - 1000)
    for shard in (0, 1):
        make(plan.files.scores("sft", 1, "overall", shard), seconds=40, started=now - 40)
    found = status.look(plan)
    assert counts(found) == (JOBS, JOBS - 2, 0, 2, 0)  # there, but to be made again
    assert found.seconds_left == pytest.approx(100, rel=0.1)


def test_what_failed_in_the_latest_session(plan: Plan) -> None:
    output = plan.files.pairs("sft", 1, "overall")
    error = f"Error in rule pair:\n    message: None\n    jobid: 4\n    input: a, b\n    output: {output}\n    log: x\n"
    session(time.time() - 20, STATS.format("pair", 1) + error)
    log = Path("logs/small/pair/sft.part1.overall.log")
    log.parent.mkdir(parents=True)
    log.write_text("something\nmnpo: scores/0.parquet: 7 rows, expected 8; score it again\n")
    found = status.look(plan)
    assert counts(found) == (JOBS, 0, 0, JOBS - 1, 1)
    message = "mnpo: scores/0.parquet: 7 rows, expected 8; score it again (logs/small/pair/sft.part1.overall.log)"
    assert f"failed  sft part1 overall: {message}" in status.table(found)
    retried = "Trying to restart job 4.\nFinished jobid: 4 (Rule: pair)\n"
    session(time.time() - 10, STATS.format("pair", 1) + error + retried)
    make(output)
    assert counts(status.look(plan)) == (JOBS, 1, 0, JOBS - 1, 0)


def test_a_session_of_another_run_says_nothing_about_this_one(plan: Plan) -> None:
    make_all(plan)
    stats = STATS.format("train", 1)
    session(time.time() - 20, f"{stats}rule train:\n    output: results/other/policies/dpo.1\n")
    assert status.look(plan).count("remaining") == 0
    session(time.time() - 10, f"{stats}rule train:\n    output: results/small/policies/dpo.1\n")
    assert status.look(plan).count("remaining") == 1
    session(time.time(), "Nothing to be done (all requested files are present and up to date).\n")
    assert status.look(plan).count("remaining") == 0


def test_slurm_tells_running_from_queued(plan: Plan, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers as `squeue --noheader --format='%i %T'` does."""
    (here / "bin").mkdir()
    squeue = here / "bin/squeue"
    squeue.write_text("#!/bin/sh\nprintf '17 RUNNING\\n18_2 PENDING\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    mark(plan.files.samples("sft", 1, 0), external="17")
    mark(plan.files.samples("sft", 1, 1), external="18_2")
    mark(plan.files.policy("sft"), external="16")  # ended, unseen: the workflow is not here
    found = status.look(plan)
    assert counts(found) == (JOBS, 0, 1, JOBS - 1, 0)
    assert f"{JOBS - 1} waiting (1 of them in the queue)" in status.line(found)
    assert found.interrupted == 1


# ---------------------------------------------------------------------------------------------- beside a real workflow


@pytest.fixture
def checkout(here: Path) -> Path:
    copy_project(here)
    changes = SMALL | {
        "extends": "configs/demo.yaml",
        "tables": {"targets": ["heldout", "theory"], "win_against": ["sft"]},
    }
    changes["prompts"] = {"demonstrations": 140, "part_size": 14, "heldout": 14}
    (here / "small.yaml").write_text(json.dumps(changes))
    return here


def start(checkout: Path, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--configfile", "small.yaml", "--cores", "1", *options],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def asked(checkout: Path) -> str:
    return subprocess.run(
        [sys.executable, "-m", "mnpo", "status", "-v", "--config", "small.yaml"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_beside_a_real_workflow(checkout: Path) -> None:
    total = JOBS + 1
    workflow = start(checkout, "results/small/tables/theory.csv")
    while "1 running" not in (seen := asked(checkout)):
        assert workflow.poll() is None, seen
    assert f"0 of {total} jobs done, 1 running, {total - 1} waiting, 0 failed" in seen
    assert "      runs    theory, for " in seen
    os.killpg(workflow.pid, signal.SIGKILL)
    workflow.wait()
    seen = asked(checkout)
    assert f"0 of {total} jobs done, 0 running, {total} waiting, 0 failed" in seen
    assert "its workflow was killed, or runs on another machine; interrupted jobs: 1" in seen

    shutil.rmtree(checkout / ".snakemake/locks")
    assert start(checkout, "--rerun-incomplete", "results/small/prompts/demonstrations.parquet").wait() == 0
    assert f"1 of {total} jobs done, 0 running, {total - 1} waiting, 0 failed" in asked(checkout)

    data = checkout / "results/small/prompts/demonstrations.parquet"
    data.write_bytes(data.read_bytes()[:1000])
    assert start(checkout, "results/small/policies/sft").wait() != 0
    seen = asked(checkout)
    assert f"1 of {total} jobs done, 0 running, {total - 2} waiting, 1 failed" in seen
    assert "no workflow is running" in seen
    assert "      failed  sft: mnpo: results/small/prompts/demonstrations.parquet" in seen
