"""Faults that need no cluster, one by one: the next run completes, repeats nothing finished, reads nothing half-made.

Each test breaks a finished run in which one setting changed, so that one training is left to do. What the fault left
behind must end in the same bytes as a run that nothing happened to. SIGTERM at every step: tests/stages/test_train.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess

import pandas as pd
import pytest
from checkouts import LOCAL, TRAINED, Checkout, held, killed_when, stages

from tests.helpers.checkouts import jobs_in, until

pytestmark = pytest.mark.slow

TRAINING = "train policies/inpo.1"


def test_a_training_killed_inside_its_weights_file_is_named_and_alone_runs_again(
    checkout: Checkout, undisturbed: bytes
) -> None:
    """SIGKILL between two system calls, when the file has its size and some of its content: safetensors writes in
    pieces of 1 MiB."""
    policies = checkout.path / "results/small/policies"

    def half_written() -> bool:
        content = next((file.read_bytes() for file in policies.glob(".partial-inpo.1/.tmp*")), b"")
        return len(content) == len(undisturbed) and any(content) and not any(content[2**20 :])

    workflow = checkout.start(TRAINED, on=LOCAL)
    killed_when(half_written, held(checkout))
    said = workflow.wait()
    assert workflow.process.returncode != 0
    assert "Error in rule train" in said
    assert "logs/small/train/inpo.1.log" in said
    assert half_written()  # the dead process left it
    assert not (policies / "inpo.1").exists()
    assert jobs_in(checkout.run(TRAINED, on=LOCAL)) == [TRAINING]
    log = (checkout.path / "logs/small/train/inpo.1.log").read_text()
    assert f"{TRAINED}: a process that was killed left it half written" in log
    assert checkout.trained() == undisturbed


def test_a_killed_workflow_does_not_collide_with_what_it_left_running(checkout: Checkout, undisturbed: bytes) -> None:
    """The workflow dies, its training lives on: another copy of it refuses to start until that has ended."""
    workflow = checkout.start(TRAINED, on=LOCAL)
    orphan = held(checkout)
    assert "no other Snakemake process" in checkout.refused(TRAINED, on=LOCAL)
    workflow.process.kill()
    workflow.process.wait()
    assert "--unlock" in checkout.refused(TRAINED, on=LOCAL)
    checkout.run("--unlock", on=LOCAL)
    said = checkout.refused(TRAINED, on=LOCAL)
    assert re.search(rf"mnpo: {TRAINED}: process {orphan} on \S+ is making it; wait for its end, or end it", said)

    os.kill(orphan, signal.SIGCONT)
    until(lambda: not stages(checkout), "the orphan's end")
    assert (checkout.path / TRAINED / "model.safetensors").read_bytes() == undisturbed
    assert jobs_in(checkout.run(TRAINED, on=LOCAL)) in ([], [TRAINING])
    assert checkout.trained() == undisturbed


def test_a_full_disk_is_said_and_the_run_continues_when_there_is_space(checkout: Checkout, undisturbed: bytes) -> None:
    policies = checkout.path / "results/small/policies"
    kept = policies.with_name("kept")
    policies.rename(kept)
    shutil.rmtree(kept / "inpo.1")
    used = sum(file.stat().st_size for file in kept.rglob("*"))
    policies.mkdir()
    # Space for what is there and half a policy more.
    size = used + (kept / "sft/model.safetensors").stat().st_size // 2
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(policies)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(policies)], check=True)
        assert "No space left on device" in checkout.refused(TRAINED, on=LOCAL)
        assert not list(policies.glob("*inpo.1*"))
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(policies)], check=True)
        assert jobs_in(checkout.run(TRAINED, on=LOCAL)) == [TRAINING]
        assert checkout.trained() == undisturbed
    finally:
        subprocess.run(["umount", str(policies)], check=True)


def flipped(content: bytes) -> bytes:
    """A table with one bit changed that is still a table, of the same pairs."""
    before = pd.read_parquet(io.BytesIO(content))
    for at in range(len(content)):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with contextlib.suppress(Exception):
            table = pd.read_parquet(io.BytesIO(changed))
            if table["pair_id"].equals(before["pair_id"]) and not table.equals(before):
                return changed
    raise AssertionError("every bit of it is guarded")


def test_a_damaged_input_is_refused_by_name_and_alone_remade_when_deleted(
    checkout: Checkout, undisturbed: bytes
) -> None:
    logps = checkout.path / "results/small/logps/sft/part1/overall/chat/sft.parquet"
    content = logps.read_bytes()
    logps.write_bytes(flipped(content))
    said = checkout.refused(TRAINED, on=LOCAL)
    assert re.search(rf"mnpo: {logps.relative_to(checkout.path)}: .*delete it to have it remade", said)
    assert "Traceback" not in said
    logps.unlink()
    jobs = jobs_in(checkout.run(TRAINED, on=LOCAL))
    assert jobs == ["logps logps/sft/part1/overall/chat/sft.parquet", TRAINING]
    assert logps.read_bytes() == content
    assert checkout.trained() == undisturbed


def test_a_corrupt_shard_stops_what_reads_it_and_alone_is_remade(checkout: Checkout) -> None:
    shard = checkout.path / "results/small/samples/sft/part1/0.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    scores = "results/small/scores/sft/part1/overall/0.parquet"
    said = checkout.refused(scores, on=LOCAL)
    assert "samples/sft/part1/0.parquet: not a readable Parquet file of samples" in said
    assert "delete it to have it remade" in said
    shard.unlink()
    assert jobs_in(checkout.run(scores, on=LOCAL)) == [
        "sample samples/sft/part1/0.parquet",
        "score scores/sft/part1/overall/0.parquet",
    ]
    assert shard.read_bytes() == content


def test_truncated_weights_are_refused_by_name(checkout: Checkout) -> None:
    policy = checkout.path / "results/small/policies/sft"
    weights = policy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = checkout.refused(TRAINED, on=LOCAL)
    assert re.search(r"mnpo: results/small/policies/sft: damaged or edited .*; delete it to have it remade", said)
    assert "Traceback" not in said
    assert not (checkout.path / TRAINED).exists()
