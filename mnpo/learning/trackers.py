"""Where a training can be watched: TensorBoard where it is installed, and Weights & Biases when asked.

What is compared and kept is metrics.jsonl, the same bytes each time. Here there are speed and memory too.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from mnpo.errors import BadInput
from mnpo.progress import say
from mnpo.ranks import rank
from mnpo.storage.artifacts import remove

PROJECT = "WANDB_PROJECT"  # asks for Weights & Biases, which reads its key and WANDB_MODE=offline from the environment
Watch = Callable[[Mapping[str, float]], None]


@contextmanager
def watched(what: str, directory: Path | None, first: int) -> Iterator[Watch]:
    """A function that shows a step's metrics, with tokens/s and the process's peak memory in GB; rank 0's alone shows.

    Args:
        what: the training's name.
        directory: for TensorBoard's events; None for none.
        first: the step that comes first. What another training left of it and later steps goes.

    Raises:
        BadInput: Weights & Biases is asked for, but not installed.
    """
    with ExitStack() as stack:
        shows = _shows(stack, what, directory, first) if rank() == 0 else []
        last = time.monotonic()

        def watch(metrics: Mapping[str, float]) -> None:
            nonlocal last
            now = time.monotonic()
            row = {**metrics, "tokens_per_second": metrics["tokens"] / (now - last), "memory_gb": _peak()}
            last = now
            for show in shows:
                show(row)

        yield watch


def _shows(stack: ExitStack, what: str, directory: Path | None, first: int) -> list[Watch]:
    shows: list[Watch] = []
    if directory is not None and find_spec("tensorboard"):
        shows.append(_tensorboard(stack, directory, first))
    elif directory is not None:
        say(f"{what}: tensorboard is not installed here, so there is metrics.jsonl alone")
    if os.environ.get(PROJECT):
        shows.append(_wandb(stack, what))
    return shows


def _tensorboard(stack: ExitStack, directory: Path, first: int) -> Watch:
    from torch.utils.tensorboard import SummaryWriter

    if first == 0:
        remove(directory)
    writer = SummaryWriter(str(directory), purge_step=first)
    stack.callback(writer.close)

    def show(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))

    return show


def _wandb(stack: ExitStack, what: str) -> Watch:
    if find_spec("wandb") is None:
        raise BadInput(f"{PROJECT} is set, which asks for Weights & Biases, but wandb is not installed; pip install it")
    import wandb

    run = wandb.init(project=os.environ[PROJECT], name=what, settings=wandb.Settings(silent=True))
    stack.callback(run.finish)
    return lambda row: run.log({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))


def _peak() -> float:
    """Peak memory of this rank in GB (10^9 bytes): the accelerator's where there is one, else the process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
