"""The optimiser loop that SFT and preference optimisation share: batches, gradient accumulation, schedule, metrics."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mnpo.config.training import SFT, Lora, Optimisation, Training
from mnpo.errors import Diverged
from mnpo.learning import batches
from mnpo.learning.distributed import Engine, engine
from mnpo.learning.trackers import watched
from mnpo.models.checkpoints import load_model, save, save_copy
from mnpo.models.logprobs import ResponseLogprobs
from mnpo.progress import say, track
from mnpo.ranks import rank, ranks
from mnpo.ranks import total as summed
from mnpo.storage.resume import Session

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mnpo.learning.heldout import Heldout

METRICS = "metrics.jsonl"
Losses = Callable[[Any, list[int]], tuple[Tensor, Mapping[str, Tensor]]]
"""The module, as it is called in training, and rows -> the loss of each row ``[rows]`` and further per-row metrics."""


def optimise(
    module: torch.nn.Module,
    optimisation: Optimisation,
    losses: Losses,
    lengths: Sequence[int],
    steps: int,
    *,
    weights: Sequence[float] | None = None,
    names: Sequence[str],
    seed: int,
    what: str,
    session: Session | None = None,
    events: Path | None = None,
    heldout: Heldout | None = None,
) -> Trained:
    """Train `module` for `steps` optimiser steps, alone or with the other ranks (mnpo/learning/distributed.py).

    A step minimises the weighted mean of its rows' losses, over micro-batches of similar length.

    Args:
        losses: the loss of rows.
        lengths: tokens of each row, which decide who shares a batch.
        weights: what a row counts in its batch's mean; equal when None.
        names: what to call each row when its loss is not finite.
        session: keeps checkpoints, and takes up what an earlier session kept: the steps, weights and metrics are those
            of an uninterrupted training.
        events: the directory of what TensorBoard shows of it.
        heldout: rows whose loss is taken now and then, and may say which weights are kept.

    Raises:
        Diverged: a loss or a gradient is not finite; names the rows.
        Interrupted: a signal asked the session to stop.
    """
    data = _Data(losses, lengths, [1.0] * len(lengths) if weights is None else weights, names)
    state = _State(engine(module, optimisation), [], heldout)
    if session is not None and (checkpoint := session.latest()):
        state.load(checkpoint)
        say(f"{what}: goes on after step {len(state.history)} of {steps}, from {checkpoint}")
    first, begun = len(state.history), time.monotonic()
    order = islice(drawn(optimisation, lengths, seed), first, steps)
    with watched(what, events, first) as watch:
        for rows in track(order, steps - first, what, "steps"):
            step = len(state.history)
            rate = optimisation.learning_rate * schedule(optimisation, step, steps)
            metrics = _step(state.engine, optimisation, data, rows, rate, f"{what}: step {step}")
            further = heldout.after(state.history, steps, state.engine) if heldout else {}
            state.history.append({"step": step, **metrics, "learning_rate": rate, **further})
            watch(state.history[-1])
            if session is not None:
                done = len(state.history)
                session.left = (time.monotonic() - begun) / (done - first) * (steps - done)
                if session.due:
                    session.keep(done, state.save)
                    session.safe_point(f"step {done} of {steps}")
    last = state.engine.weights()
    return Trained(state.history, heldout.best(last) if heldout else last)


class Trained(NamedTuple):
    """What came of a training: a row of metrics a step, and the weights by name (on several ranks: on rank 0)."""

    history: list[dict[str, float]]
    weights: dict[str, Tensor]


class _Data(NamedTuple):
    losses: Losses
    lengths: Sequence[int]
    weights: Sequence[float]
    names: Sequence[str]


def _step(
    engine: Engine, optimisation: Optimisation, data: _Data, rows: Sequence[int], rate: float, where: str
) -> dict[str, float]:
    """Add up the gradients of this rank's share of a step's rows, in micro-batches, and move the weights.

    Returns the metrics of all of the step's rows.
    """
    lengths = [data.lengths[r] for r in rows]
    total = sum(data.weights[r] for r in rows)
    sums: dict[str, float] = {}
    dealt = batches.dealt(lengths, optimisation.micro_batch_tokens, ranks())
    mine = dealt[rank()]
    for number, part in enumerate(mine, 1):
        micro = [rows[i] for i in part] or [min(rows, key=lambda r: data.lengths[r])]  # counts nothing, when empty
        with precision(optimisation, engine.module):
            loss, metrics = data.losses(engine.module, micro)
        _require_finite(loss, [data.names[r] for r in micro], where)
        shares = [data.weights[r] / total if part else 0.0 for r in micro]
        share = torch.tensor(shares, device=loss.device, dtype=loss.dtype)
        engine.backward((loss * share).sum(), last=number == len(mine))
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float((value.detach().to(share) * share).sum())
    norm = engine.step(rate)
    if not math.isfinite(norm):
        raise Diverged(
            f"{where}: the gradient's norm is {norm}, on rows {_some(data.names[r] for r in rows)}; "
            "lower learning_rate, or look at these rows"
        )
    padded = sum(len(part) * max(lengths[i] for i in part) for parts in dealt for part in parts if part)
    means = dict(zip(sums, summed(list(sums.values())), strict=True))
    return {"tokens": sum(lengths), "padded_tokens": padded, **means, "gradient_norm": norm}


@dataclass
class _State:
    """All that the next step follows from, beside the settings and the data."""

    engine: Engine
    history: list[dict[str, float]]
    heldout: Heldout | None

    def save(self, directory: Path) -> list[Path]:
        file = directory / f"state-{rank()}.pt"
        with open(file, "wb") as stream:
            torch.save({"history": self.history, "random": _random_state()}, stream)
        return [file, *self.engine.save(directory), *(self.heldout.save(directory) if self.heldout else [])]

    def load(self, directory: Path) -> None:
        self.engine.load(directory)
        if self.heldout:
            self.heldout.load(directory)
        saved = torch.load(directory / f"state-{rank()}.pt", weights_only=True)
        self.history = saved["history"]
        _set_random_state(saved["random"])


def _random_state() -> dict[str, Any]:
    """Of the generators that a model draws from (dropout); the order of the data follows from its seed."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, index)


def schedule(optimisation: Optimisation, step: int, steps: int) -> float:
    """The learning rate at `step` as a share of its peak: a rise, then a fall to zero, or none (eq. 20).

    From zero the rise is transformers' own: `step / W`, with W rounded up.
    """
    zero = bool(optimisation.warmup_from_zero)
    rise = math.ceil(optimisation.warmup * steps) if zero else round(optimisation.warmup * steps)
    if step < rise:
        return (step + (not zero)) / rise
    fallen = 0.0 if optimisation.schedule == "constant" else (step - rise) / max(1, steps - rise)
    return 1 - fallen if optimisation.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * fallen))


def steps_of(rows: int, training: Training | SFT) -> int:
    """Of a training on so many rows."""
    if training.epochs is None:
        assert isinstance(training, SFT) and training.steps is not None
        return training.steps
    return batches.steps(rows, training.batch_size, training.epochs, fill=training.last_batch != "drop")


def drawn(optimisation: Optimisation, lengths: Sequence[int], seed: int) -> Iterator[list[int]]:
    """The rows of each step, without end."""
    windows, fill = optimisation.batches == "windows", optimisation.last_batch != "drop"
    return batches.shuffled(lengths, optimisation.batch_size, seed, windows=windows, fill=fill)


def summary(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What a manifest says of a training: steps, tokens, the share of padding in what was computed, the last loss."""
    tokens, padded = (sum(step[k] for step in history) for k in ("tokens", "padded_tokens"))
    return {
        "steps": len(history),
        "tokens": tokens,
        "padding_share": round(1 - tokens / padded, 4),
        "final_loss": history[-1]["loss"],
    }


def prepared(model: PreTrainedModel, optimisation: Optimisation) -> ResponseLogprobs:
    """What is trained of `model`, in place: its log-probabilities, with adapters and checkpointing as asked."""
    if optimisation.lora is not None:
        from peft import LoraConfig, inject_adapter_in_model

        lora = optimisation.lora
        inject_adapter_in_model(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear"), model)
        _hold_frozen(model, optimisation)
    if optimisation.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return ResponseLogprobs(model)


def _hold_frozen(model: PreTrainedModel, optimisation: Optimisation) -> None:
    """Hold what adapters leave alone in the type that it is computed in: no float32 beside a copy in every pass.

    FSDP and ZeRO want weights of one type; there they stay float32.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if optimisation.dtype != "float32" and optimisation.parallel == "ddp":
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.get_base_layer().to(getattr(torch, optimisation.dtype))


def write(
    trained: Trained, model: PreTrainedModel, tokenizer: Any, directory: Path, optimisation: Optimisation, start: Path
) -> None:
    """Rank 0 writes the policy, which any tool can load, its copy where one is asked for, and its metrics.

    `start` is what training started from: of it are the frozen weights beside adapters, whole.
    """
    if rank() == 0:
        weights = {name.removeprefix("model."): weight for name, weight in trained.weights.items()}
        if optimisation.lora is not None:
            weights = _merged(weights, optimisation.lora, start)
        save(model, tokenizer, directory, weights)
        if optimisation.bfloat16_copy:
            save_copy(directory)
        write_metrics(trained.history, directory / METRICS)


def _merged(weights: dict[str, Tensor], lora: Lora, start: Path) -> dict[str, Tensor]:
    """The weights of the plain model: ``W + alpha / rank * B A`` where there is an adapter (LoRA, arXiv 2106.09685)."""
    plain = {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}
    if any(weight.dtype != torch.float32 for weight in plain.values()):
        whole = load_model(start, on_cpu=True).state_dict()
        plain = {name: whole[name] if w.dtype != torch.float32 else w for name, w in plain.items()}
    for name, a in weights.items():
        if name.endswith(".lora_A.default.weight"):
            b = weights[name.replace(".lora_A.", ".lora_B.")]
            merged = name.replace(".lora_A.default.", ".")
            plain[merged] = plain[merged] + (lora.alpha / lora.rank * (b @ a)).to(plain[merged].device)
    return plain


def write_metrics(history: Iterable[Mapping[str, float]], path: Path) -> None:
    """One JSON object a step."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")


def precision(optimisation: Optimisation, model: Any) -> torch.autocast:
    """The context that forward passes of a training run in: autocast, unless it is float32.

    Its cache would keep every weight's copy in `dtype` until the context ends, and saves nothing: a forward pass reads
    a weight once. (DeepSpeed enters an autocast of its own within, which goes by this one's cache.)
    """
    dtype, device = getattr(torch, optimisation.dtype), next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False)


def _require_finite(loss: Tensor, names: Sequence[str], where: str) -> None:
    bad = [name for name, ok in zip(names, torch.isfinite(loss).tolist(), strict=True) if not ok]
    if bad:
        raise Diverged(
            f"{where}: the loss is not finite on {len(bad)} rows: {_some(bad)}; "
            "lower learning_rate or beta, or look at these rows"
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
