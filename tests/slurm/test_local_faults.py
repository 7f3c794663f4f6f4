"""Faults that need no cluster, one by one: the next run completes, repeats nothing finished, reads nothing half-made.

Each test breaks a finished run in which one setting changed, so that one training is left to do. What the fault left
behind must end in the same bytes as a run that nothing happened to. SIGTERM at every step: tests/stages/test_train.py.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable

import pytest
from checkouts import LOCAL, TRAINED, Checkout, held, ran, stage, until

pytestmark = pytest.mark.slow

TRAINING = "train policies/td-mnpo.2"


def test_a_killed_stage_is_named_and_its_training_alone_runs_again(checkout: Checkout, undisturbed: bytes) -> None:
    workflow = checkout.start(TRAINED, on=LOCAL)
    os.kill(held(checkout), signal.SIGKILL)
    said = workflow.wait()
    assert workflow.process.returncode != 0
    assert "Error in rule train" in said
    assert "logs/small/train/td-mnpo.2.log" in said
    assert not (checkout.path / TRAINED).exists()
    assert ran(checkout.run(TRAINED, on=LOCAL)) == [TRAINING]
    assert checkout.trained() == undisturbed


def test_a_killed_workflow_does_not_collide_with_what_it_left_running(checkout: Checkout, undisturbed: bytes) -> None:
    """The workflow dies, its training lives on: another copy of it refuses to start until that has ended."""
    workflow = checkout.start(TRAINED, on=LOCAL)
    orphan = held(checkout)
    workflow.process.kill()
    workflow.process.wait()
    assert "--unlock" in checkout.refused(TRAINED, on=LOCAL)
    checkout.run("--unlock", on=LOCAL)
    said = checkout.refused(TRAINED, on=LOCAL)
    assert re.search(rf"mnpo: {TRAINED}: process {orphan} on \S+ is making it; wait for its end, or end it", said)

    os.kill(orphan, signal.SIGCONT)
    until(lambda: not stage(checkout), "the orphan's end")
    assert (checkout.path / TRAINED / "model.safetensors").read_bytes() == undisturbed
    assert ran(checkout.run(TRAINED, on=LOCAL)) in ([], [TRAINING])
    assert checkout.trained() == undisturbed


def test_two_workflows_at_once_and_the_second_says_so(checkout: Checkout, undisturbed: bytes) -> None:
    first = checkout.start(TRAINED, on=LOCAL)
    pid = held(checkout)
    assert "no other Snakemake process" in checkout.refused(TRAINED, on=LOCAL)
    os.kill(pid, signal.SIGCONT)
    assert ran(first.succeeded()) == [TRAINING]
    assert checkout.trained() == undisturbed


def test_a_full_disk_is_said_and_the_run_continues_when_there_is_space(checkout: Checkout, undisturbed: bytes) -> None:
    policies = checkout.path / "results/small/policies"
    kept = policies.with_name("kept")
    policies.rename(kept)
    shutil.rmtree(kept / "td-mnpo.2")
    used = sum(file.stat().st_size for file in kept.rglob("*"))
    policies.mkdir()
    # Space for what is there and half a policy more.
    size = used + (kept / "td-mnpo.1/model.safetensors").stat().st_size // 2
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(policies)], check=True)
    try:
        subprocess.run(["cp", "-a", f"{kept}/.", str(policies)], check=True)
        assert "No space left on device" in checkout.refused(TRAINED, on=LOCAL)
        assert not list(policies.glob("*td-mnpo.2*"))
        subprocess.run(["mount", "-o", f"remount,size={10 * size}", str(policies)], check=True)
        assert ran(checkout.run(TRAINED, on=LOCAL)) == [TRAINING]
        assert checkout.trained() == undisturbed
    finally:
        subprocess.run(["umount", str(policies)], check=True)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit of the byte at a place is another."""
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "a truncated table": ("logps/td-mnpo.1/part2/overall/chat/sft.parquet", half),
    "a corrupt table": ("pairs/td-mnpo.1/part2/overall.parquet", flipped),
    "a truncated checkpoint": ("policies/td-mnpo.1/model.safetensors", half),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_input_is_refused_by_name_and_remade_when_deleted(
    checkout: Checkout, undisturbed: bytes, damage: str
) -> None:
    name, change = DAMAGE[damage]
    file = checkout.path / "results/small" / name
    content = file.read_bytes()
    file.write_bytes(change(content))
    said = checkout.refused(TRAINED, on=LOCAL)
    made = file.parent if "policies/" in name else file  # a directory is named, and remade, as a whole
    assert re.search(rf"mnpo: {made.relative_to(checkout.path)}: .*delete it to have it remade", said)
    assert "Traceback" not in said

    shutil.rmtree(made) if made.is_dir() else made.unlink()
    jobs = ran(checkout.run(TRAINED, on=LOCAL))
    assert TRAINING in jobs
    assert len(jobs) == len(set(jobs))
    assert file.read_bytes() == content
    assert checkout.trained() == undisturbed


def test_a_corrupt_shard_stops_what_reads_it_and_alone_is_remade(checkout: Checkout) -> None:
    shard = checkout.path / "results/small/samples/td-mnpo.1/part2/0.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    pairs = "results/small/pairs/td-mnpo.1/part2/overall.parquet"
    said = checkout.refused(pairs, on=LOCAL)
    assert "samples/td-mnpo.1/part2/0.parquet: not a readable Parquet file of samples" in said
    assert "delete it to have it remade" in said
    shard.unlink()
    jobs = ran(checkout.run(pairs, on=LOCAL))
    assert shard.read_bytes() == content
    assert "sample samples/td-mnpo.1/part2/0.parquet" in jobs
    assert not any("part2/1.parquet" in job or "part1" in job for job in jobs)
