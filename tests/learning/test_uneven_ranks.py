"""Two ranks whose texts differ in number and length: as many collectives on each, and all of them to the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WAYS = ("ddp", "fsdp", "zero2", "zero3")
CASES = [f"{way}-{kind}" for way in WAYS for kind in ("tied", "untied", "compiled")]
RMSPROP = ("fsdp-rmsprop", "zero2-rmsprop", "zero3-rmsprop")  # SPPO's, not clipped; DeepSpeed asks to be told
FURTHER = ("lora", "bfloat16", "compiled-lora", "compiled-bfloat16")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks found, in one launch."""
    directory = tmp_path_factory.mktemp("uneven")
    done = subprocess.run(
        [sys.executable, *TORCHRUN, str(ROOT / "tests/helpers/uneven_ranks.py"), str(directory)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    (directory / "said").write_text(done.stdout + done.stderr + f"\nexit code {done.returncode}")
    return directory


def of(found: Path, name: str) -> list[Any]:
    """What each rank found; without it, what they said."""
    files = [found / f"{name}-{rank}.json" for rank in (0, 1)]
    assert all(file.exists() for file in files), (found / "said").read_text()[-6000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, *RMSPROP, *(f"zero3-{kind}" for kind in FURTHER)])
def test_ranks_with_other_numbers_of_response_tokens_train_as_one_process_does(found: Path, case: str) -> None:
    """Through heads of several chunks, their number not the same on the ranks. In bfloat16 up to its rounding.

    Where layers are compiled, of rows of any width two kinds are: one row, and several.
    """
    loss, norm, apart = (0.01, 0.01, 0.3) if case.endswith("bfloat16") else (1e-5, 1e-5, 1e-3)
    for ours in of(found, case):
        assert len(ours["one"]) == len(ours["two"]) == 3
        for one, two in zip(ours["one"], ours["two"], strict=True):
            assert two["tokens"] == one["tokens"]
            assert two["loss"] == pytest.approx(one["loss"], rel=loss)
            assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=norm)
        assert ours.get("apart", 0) < apart
        assert bool(ours["graphs"]) == ("compiled" in case)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp", "zero2", "zero3"])
def test_each_rank_answers_for_its_own_files_of_a_checkpoint(found: Path, way: str) -> None:
    """A training goes on from it to the last bit; one damaged file, on the second rank, is enough for none to do so."""
    ours = of(found, f"stopped-{way}")
    for rank, said in enumerate(ours):
        assert "SIGTERM" in said["continued stopped"] or "a signal to another rank" in said["continued stopped"]
        assert said["continued"] and said["damaged"] and said["continued weights"] and said["damaged weights"]
        assert said["continued facts"]["resumed"] == 1 and "resumed" not in said["damaged facts"]
        assert said["continued facts"]["stop_seconds"] > 0 and said["continued facts"]["ranks"] == 2
        assert f"state-{rank}.pt" in said["own"]
    first, second = (set(said["own"]) for said in ours)
    assert not first & second
    weights = {"ddp": [1, 0], "fsdp": [1, 1], "zero2": [2, 1], "zero3": [2, 2]}[way]
    assert [sum(file.endswith(".pt") for file in own) - 1 for own in (first, second)] == weights
    rest = set(ours[0]["files"]) - first - second
    assert {name for name in rest if name.endswith(".pt")} == set()
    assert "state-1.pt" in (found / "said").read_text() or "zero_pp_rank_1" in (found / "said").read_text()


@pytest.mark.slow
def test_no_rank_leaves_before_the_output_is_whole(found: Path) -> None:
    """However long rank 0 writes, and whatever signal the other gets meanwhile: a launcher kills those who stay long
    after the first."""
    assert of(found, "left") == [True, True]


@pytest.mark.slow
def test_all_ranks_end_well(found: Path) -> None:
    assert (found / "said").read_text().endswith("exit code 0")


LEAVES = """
import atexit, ctypes, sys
rank = int(sys.argv[1])
if rank == 0:
    atexit.register(ctypes.PyDLL(None).sleep, 4)  # the last exit handler: keeps Python's lock until the end begins
import os, time
from contextlib import suppress
import torch, torch.distributed as dist
from mnpo.ranks import leaving
os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
with leaving():
    dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
    held = dist.group.WORLD  # as FSDP and DeepSpeed do
    dist.all_reduce(torch.ones(9))
    if rank == 0:
        dist.all_reduce(torch.ones(9), async_op=True)  # only gloo's thread has this tensor
        dist.destroy_process_group()
        sys.exit(5)
    time.sleep(2)
    with suppress(RuntimeError):  # on a busy machine rank 0 may be gone by now
        dist.all_reduce(torch.ones(9))
    time.sleep(4)
"""


def test_a_thread_of_gloo_does_not_abort_a_rank_that_is_done(tmp_path: Path) -> None:
    """One that wants Python's lock in the moment in which the interpreter would end, held open by an exit handler."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LEAVES, str(rank), str(tmp_path / "store")],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in ranks] == [5, 0]
