"""Rows that are never learnt: their loss every so many steps, and the weights with which it was least."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnpo.config.training import Optimisation
from mnpo.learning import batches
from mnpo.learning.distributed import Engine
from mnpo.learning.training import Losses, precision
from mnpo.ranks import barrier, rank, ranks, total
from mnpo.storage.artifacts import remove

LOSS = "heldout_loss"
BEST = "best.pt"


class Heldout:
    """What `optimise` asks after each step; all ranks do.

    Args:
        losses: the loss of rows, as in `optimise`.
        lengths: tokens of each row.
        weights: what a row counts in the mean.
        every: steps from one loss to the next; None: after the last alone.
        kept: where the best weights lie meanwhile; None: they are not kept.
    """

    def __init__(
        self,
        losses: Losses,
        lengths: Sequence[int],
        weights: Sequence[float],
        optimisation: Optimisation,
        every: int | None,
        kept: Path | None,
    ) -> None:
        self._losses, self._lengths, self._weights = losses, lengths, weights
        self._optimisation, self._every = optimisation, every
        self._kept = kept

    def after(self, history: Sequence[dict[str, float]], steps: int, engine: Engine) -> dict[str, float]:
        """The loss after the step that follows `history`, if it is due; the weights are kept if there was no lower."""
        step = len(history) + 1
        if step != steps and not (self._every and step % self._every == 0):
            return {}
        loss = self.loss(engine)
        earlier = [row[LOSS] for row in history if LOSS in row]
        if self._kept is not None and all(loss < other for other in earlier):
            weights = engine.weights()
            if rank() == 0:
                self._write(weights)
            barrier()
        return {LOSS: loss}

    @torch.no_grad()
    def loss(self, engine: Engine) -> float:
        """The weighted mean of all rows."""
        mine = batches.dealt(self._lengths, self._optimisation.micro_batch_tokens, ranks())[rank()]
        shortest = min(range(len(self._lengths)), key=lambda i: self._lengths[i])
        summed = 0.0
        engine.module.eval()
        for rows in mine:
            with precision(self._optimisation, engine.module):
                losses, _ = self._losses(engine.module, rows or [shortest])  # a forward pass is everyone's
            for row, loss in zip(rows, losses.tolist(), strict=False):
                summed += self._weights[row] * loss
        engine.module.train()
        return total([summed])[0] / sum(self._weights)

    def best(self, last: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights to keep, on rank 0, of a training that ended with `last`."""
        if self._kept is None or rank():
            return last
        return dict(torch.load(self._kept, map_location="cpu", mmap=True, weights_only=True))

    def save(self, directory: Path) -> list[Path]:
        """Put the best weights so far into a checkpoint, and name this rank's files of it."""
        if rank() or self._kept is None or not self._kept.exists():
            return []
        os.link(self._kept, directory / BEST)
        return [directory / BEST]

    def load(self, directory: Path) -> None:
        """Take them up from there; what came later is forgotten."""
        if rank() == 0 and self._kept is not None:
            remove(self._kept)
            if (directory / BEST).exists():
                os.link(directory / BEST, self._kept)

    def _write(self, weights: dict[str, Tensor]) -> None:
        assert self._kept is not None
        new = self._kept.with_name(f"{BEST}.new")
        once: dict[int, Tensor] = {}  # a tied head is one with the embeddings, here too
        for weight in weights.values():
            if weight.data_ptr() not in once:
                once[weight.data_ptr()] = weight.cpu()
        with open(new, "wb") as stream:  # a full disk is an OSError so
            torch.save({name: once[weight.data_ptr()] for name, weight in weights.items()}, stream)
        os.replace(new, self._kept)


def least(history: Sequence[dict[str, float]], best: bool) -> dict[str, float]:
    """What a manifest says of it: the loss of the weights that were kept, and after how many steps they were."""
    known = [row for row in history if LOSS in row]
    if not known:
        return {}
    kept: Callable[..., Any] = min if best else max
    row = kept(known, key=lambda row: row[LOSS] if best else row["step"])
    return {LOSS: row[LOSS], "kept_step": int(row["step"]) + 1}
