"""Which rank of a launched group of processes this one is: torchrun and accelerate launch say so in the environment.

A stage run by plain Python is rank 0 of 1. Nothing here imports torch before there is a second rank.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

PATIENCE = timedelta(hours=2)  # rank 0 hashes inputs and writes outputs while the others wait for it


def rank() -> int:
    """0 is the one that writes outputs, manifests and logs."""
    return int(os.environ.get("RANK", "0"))


def ranks() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other ranks, on this rank's own accelerator: NCCL between GPUs, else gloo.

    Nothing happens alone, or within another of these.
    """
    if ranks() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def leaving(forked: bool = False) -> Iterator[None]:
    """The whole life of a process; one of several ranks ends with it, past the end of the interpreter.

    So does a fork of a warm process (mnpo/warm/): to take hundreds of libraries apart, which it shares with others,
    would take longer than many a job.

    FSDP and DeepSpeed hold on to a process group that is destroyed, and so to gloo's threads. One of these that lets go
    of a tensor asks for Python's lock. If the interpreter has just begun to end, Python (before 3.14) ends the thread,
    and C++ then aborts the process: "terminate called without an active exception", after all work is done.
    """
    code = 0
    try:
        yield
    except SystemExit as end:
        if (ranks() == 1 and not forked) or not isinstance(end.code, int | None):
            raise
        code = end.code or 0
    if forked:  # as the end of the interpreter would: threads are waited for, and what nobody needs is closed
        threading._shutdown()  # type: ignore[attr-defined]
        gc.collect()
    if ranks() > 1 or forked:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def barrier() -> None:
    """Wait until all ranks are here."""
    highest(0)


def highest(value: int) -> int:
    """The highest of all ranks' values, by every rank."""
    return int(_reduced([value], "MAX")[0])


def total(values: list[float]) -> list[float]:
    """The sum over the ranks of each value, by every rank."""
    return _reduced(values, "SUM")


def _reduced(values: list[float], how: str) -> list[float]:
    if ranks() == 1:
        return values
    import torch
    import torch.distributed as dist

    numbers = torch.tensor(values, dtype=torch.float64)  # on the CPU: gloo carries it on any machine
    dist.all_reduce(numbers, op=getattr(dist.ReduceOp, how))
    return list(numbers.tolist())
