"""The optimiser loop that SFT and preference optimisation share: batches, gradient accumulation, schedule, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnpo import batches
from mnpo.config import Optimisation
from mnpo.errors import Diverged
from mnpo.progress import track

Losses = Callable[[list[int]], tuple[Tensor, Mapping[str, Tensor]]]
"""Rows -> the loss of each row ``[rows]`` and further per-row metrics."""


def optimise(
    model: torch.nn.Module,
    optimisation: Optimisation,
    losses: Losses,
    lengths: Sequence[int],
    steps: int,
    *,
    weights: Sequence[float] | None = None,
    names: Sequence[str],
    seed: int,
    what: str,
) -> list[dict[str, float]]:
    """Train `model` in place for `steps` optimiser steps; returns one row of metrics a step.

    A step minimises the weighted mean of its rows' losses, over micro-batches of similar length.

    Args:
        losses: the loss of rows.
        lengths: tokens of each row, which decide who shares a batch.
        weights: what a row counts in its batch's mean; equal when None.
        names: what to call each row when its loss is not finite.

    Raises:
        Diverged: a loss or a gradient is not finite; names the rows.
    """
    weight = [1.0] * len(lengths) if weights is None else list(weights)
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=optimisation.learning_rate,
        betas=optimisation.betas,
        weight_decay=optimisation.weight_decay,
        foreach=True,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(optimisation, step, steps))
    history: list[dict[str, float]] = []
    order = islice(batches.shuffled(lengths, optimisation.batch_size, seed), steps)
    for rows in track(order, steps, what, "steps"):
        total = sum(weight[r] for r in rows)
        sums: dict[str, float] = {}
        padded = 0
        for part in batches.by_tokens([lengths[r] for r in rows], optimisation.micro_batch_tokens):
            micro = [rows[i] for i in part]
            padded += len(micro) * max(lengths[r] for r in micro)
            with precision(optimisation, model):
                loss, metrics = losses(micro)
            _require_finite(loss, [names[r] for r in micro], what, len(history))
            share = torch.tensor([weight[r] / total for r in micro], device=loss.device, dtype=loss.dtype)
            (loss * share).sum().backward()  # type: ignore[no-untyped-call]
            for name, value in {"loss": loss, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + float((value.detach().to(share) * share).sum())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), optimisation.clip))
        if not math.isfinite(norm):
            raise Diverged(
                f"{what}: step {len(history)}: the gradient's norm is {norm}, on rows {_some(names[r] for r in rows)}; "
                "lower learning_rate, or look at these rows"
            )
        history.append(
            {
                "step": len(history),
                "tokens": sum(lengths[r] for r in rows),
                "padded_tokens": padded,
                **sums,
                "gradient_norm": norm,
                "learning_rate": float(rate.get_last_lr()[0]),
            }
        )
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        rate.step()
    return history


def schedule(optimisation: Optimisation, step: int, steps: int) -> float:
    """The learning rate at `step` as a share of its peak: a rise, then a cosine to zero (eq. 20), or constant."""
    rise = round(optimisation.warmup * steps)
    if step < rise:
        return (step + 1) / rise
    if optimisation.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a manifest says of a training: steps, tokens, the share of padding in what was computed, the last loss."""
    tokens, padded = (sum(step[k] for step in history) for k in ("tokens", "padded_tokens"))
    return {
        "steps": len(history),
        "tokens": tokens,
        "padding_share": round(1 - tokens / padded, 4),
        "final_loss": history[-1]["loss"],
    }


def write_metrics(history: Iterable[Mapping[str, float]], path: Path) -> None:
    """One JSON object a step."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def precision(optimisation: Optimisation, model: Any) -> torch.autocast:
    """The context that forward passes of a training run in: autocast, unless it is float32."""
    dtype = getattr(torch, optimisation.dtype)
    return torch.autocast(next(model.parameters()).device.type, dtype=dtype, enabled=dtype != torch.float32)


def _require_finite(loss: Tensor, names: Sequence[str], what: str, step: int) -> None:
    bad = [name for name, ok in zip(names, torch.isfinite(loss).tolist(), strict=True) if not ok]
    if bad:
        raise Diverged(
            f"{what}: step {step}: the loss is not finite on {len(bad)} rows: {_some(bad)}; "
            "lower learning_rate or beta, or look at these rows"
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
