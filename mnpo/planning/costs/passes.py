"""What models read, write and learn in each stage, in tokens, and how many seconds that takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from mnpo.config.blocks import REFERENCE, ConfigError
from mnpo.config.configuration import Config
from mnpo.config.sampling import WIDEST
from mnpo.planning.costs.assumptions import (
    CHOICE_TOKENS,
    GAME,
    OCCUPANCY,
    QUEUE_OCCUPANCY,
    READ_EFFICIENCY,
    READ_FLOPS,
    TRAIN_EFFICIENCY,
    TRAIN_FLOPS,
    WEIGHT_BYTES,
    WIDEST_ROWS,
    WRITE_EFFICIENCY,
)
from mnpo.planning.costs.hardware import Device
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.fits import AGAINST
from mnpo.planning.registry import Work


@dataclass(frozen=True)
class Pass:
    """A model reads, writes or learns tokens."""

    kind: Literal["read", "write", "train"]
    parameters: float
    tokens: float
    batch: int = 1
    """Texts written together."""
    occupancy: float = OCCUPANCY
    """Mean share of the batch that is still writing."""
    counted: bool = True
    """Whether a manifest's `tokens` are these."""
    again: bool = False
    """Whether the forward pass of a training is computed again (gradient checkpointing)."""


def passes(q: Quantities, work: Work) -> list[Pass]:
    """What models do for a piece of work; nothing, when it needs none."""
    make = PASSES.get(work.stage)
    return make(q, work) if make is not None and all(q.size(m) for m in work.models) else []


def _sft(q: Quantities, work: Work) -> list[Pass]:
    sft = q.plan.config.reference.sft
    if sft is None or work.policy != REFERENCE:
        return []
    rows = sft.steps * sft.batch_size if sft.steps else q.demonstrations * (sft.epochs or 1)
    if not rows:
        raise ConfigError(
            "reference.sft.data: the plan needs rows, or expected (about how many conversations there are)"
        )
    return [Pass("train", q.size(work.models[0]), rows * q.text, again=sft.gradient_checkpointing)]


def _sample(q: Quantities, work: Work) -> list[Pass]:
    n, drawn = q.size(work.models[0]), q.prompts(work) * q.k
    occupancy = QUEUE_OCCUPANCY if q.plan.config.sampling.sampler == "vllm" else OCCUPANCY
    return [
        Pass("read", n, q.prompts(work) * q.prompt, counted=False),
        Pass("write", n, drawn * q.sampled, _rows(q), occupancy),
    ]


def _rows(q: Quantities) -> int:
    """Responses drawn at once."""
    asked = q.plan.config.sampling.batch_size
    return WIDEST_ROWS if asked == WIDEST else asked


def _score(q: Quantities, work: Work) -> list[Pass]:
    """Pair models read two responses at a time; others a prompt once, for all of its responses."""
    steps = []
    for oracle, share in judged(q.plan.config, work.oracle or "").items():
        spec = q.plan.config.oracles[oracle]
        if spec.model is not None:
            alone = q.prompt + _responses(q, work) * q.response
            tokens = games_a_prompt(q, work, spec.comparisons) * q.pair if spec.kind == "pair-model" else alone
            steps.append(Pass("read", q.size(spec.model), share * q.prompts(work) * tokens))
    return steps


def judged(config: Config, oracle: str, share: float = 1.0) -> dict[str, float]:
    """An oracle and all that it is made of -> of how many of the prompts each judges the responses."""
    spec = config.oracles[oracle.partition(AGAINST)[0]]
    each = share / len(spec.members()) if spec.kind == "annotator" else share
    found = {oracle.partition(AGAINST)[0]: share}
    for member in spec.members():
        for name, part in judged(config, member, each).items():
            found[name] = max(part, found.get(name, 0.0))  # what several are made of answers once
    return found


def _responses(q: Quantities, work: Work) -> int:
    """To a prompt, those that they are compared with included."""
    return q.k * (2 if AGAINST in (work.oracle or "") else 1)


def games_a_prompt(q: Quantities, work: Work, comparisons: int | None) -> int:
    """Of a prompt, between two responses, in both orders."""
    return games_of(_responses(q, work), comparisons)


def games_of(responses: int, comparisons: int | None) -> int:
    """Of so many responses, between two of them, in both orders."""
    pairs = math.comb(responses, 2)
    return GAME.calls * min(comparisons or pairs, pairs)


def _logps(q: Quantities, work: Work) -> list[Pass]:
    if not work.models:
        return []  # the sampler's own
    return [Pass("read", q.size(work.models[0]), q.pairs_of(work.oracle or "") * q.pair)]


def _train(q: Quantities, work: Work) -> list[Pass]:
    fit = q.plan.policies.fits[work.policy or ""]
    tokens = q.pairs_of(fit.oracle) * len(fit.parts) * fit.training.epochs * q.pair
    return [Pass("train", q.size(work.models[0]), tokens, again=fit.training.gradient_checkpointing)]


def _assess(q: Quantities, work: Work) -> list[Pass]:
    """A greedy response, sampled ones and one for the divergence; their scores by every oracle; the divergence."""
    policy, *oracles = work.models
    drawn, n = 1 + q.plan.config.evaluation.responses, q.size(policy)
    return [
        Pass("read", n, q.heldout * (3 * q.prompt + 2 * q.text), counted=False),
        Pass("write", n, q.heldout * (drawn + 1) * q.sampled, _rows(q)),
        *(
            Pass("read", q.size(oracle), q.heldout * (2 * q.prompt + drawn * q.response), counted=False)
            for oracle in oracles
        ),
    ]


def _answer(q: Quantities, work: Work) -> list[Pass]:
    return _asked(q, work, [work.benchmark or ""], reading_counts=False)


def _harness(q: Quantities, work: Work) -> list[Pass]:
    return _asked(q, work, q.plan.measurements.harness, reading_counts=True)


def _evalscope(q: Quantities, work: Work) -> list[Pass]:
    """Every item is asked once and replied to, choices too."""
    n, batch = q.size(work.models[0]), q.plan.config.evaluation.batch_size
    read = sum(q.items(b) * q.asked(b) for b in q.plan.measurements.evalscope)
    written = sum(q.items(b) * (q.generated(b) or CHOICE_TOKENS) for b in q.plan.measurements.evalscope)
    return [Pass("read", n, read, counted=False), Pass("write", n, written, batch)]


def _asked(q: Quantities, work: Work, benchmarks: Iterable[str], reading_counts: bool) -> list[Pass]:
    n, batch = q.size(work.models[0]), q.plan.config.evaluation.batch_size
    read = {b: q.requests(b) * q.asked(b) for b in benchmarks}
    written = {b: q.requests(b) * q.generated(b) for b in read}
    return [
        Pass("read", n, sum(read.values()), counted=reading_counts),
        *(Pass("write", n, tokens, batch) for tokens in [sum(written.values())] if tokens),
    ]


PASSES: dict[str, Callable[[Quantities, Work], list[Pass]]] = {
    "sft": _sft,
    "sample": _sample,
    "score": _score,
    "logps": _logps,
    "train": _train,
    "assess": _assess,
    "answer": _answer,
    "harness": _harness,
    "evalscope": _evalscope,
}


def seconds(step: Pass, on: Device, gpus: int = 1) -> float:
    """How long a pass takes by default, on `gpus` GPUs that share it evenly."""
    n = step.parameters
    if step.kind == "train":
        rate = on.flops * TRAIN_EFFICIENCY / ((TRAIN_FLOPS + READ_FLOPS * step.again) * n)
    elif step.kind == "read":
        rate = on.flops * READ_EFFICIENCY / (READ_FLOPS * n)
    else:
        weights = WEIGHT_BYTES * n / (on.bandwidth * WRITE_EFFICIENCY)
        products = READ_FLOPS * n * step.batch / (on.flops * READ_EFFICIENCY)
        rate = step.batch * step.occupancy / max(weights, products)
    return step.tokens / (rate * gpus)
