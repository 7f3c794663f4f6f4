"""How far the sampler's log-probabilities are from those that training computes of the same tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mnpo.learning.batches import SCORING_TOKENS, by_tokens
from mnpo.models.chat import Encoded
from mnpo.progress import say
from mnpo.samplers import Request, Response

COMPARED = 64
"""Responses compared at most, spread evenly over all."""
WORK_BYTES = 20e9
"""Of a GPU's memory, for what a float32 forward pass takes beside the weights: attention of SCORING_TOKENS tokens."""


def mismatch(
    policy: Path, requests: Sequence[Request], responses: Sequence[Response], warning: float
) -> dict[str, Any]:
    """Facts for the manifest: `mean`, `p99` and `max` of the absolute difference per token, in nats.

    On one side are the responses' `logprobs`, on the other what logprobs.py makes of the policy in float32, as the
    stage `logps` does. Two float32 engines differ by about 1e-6; bfloat16, a soft-cap left out or another BOS show here
    before they show in training.

    The sampler, and the GPU memory that it had, should be gone by now. Where there is no room for float32, the policy
    is read in bfloat16, and `dtype` says so; where there is none for that, nothing is compared, which is a warning.

    Args:
        policy: its directory.
        requests: what was asked for; at least one.
        responses: with `logprobs`.
        warning: mean above which there is a warning, in the log and in the facts.
    """
    import numpy as np
    import torch

    from mnpo.models.checkpoints import load_model, parameters
    from mnpo.models.logprobs import response_logprobs
    from mnpo.models.packing import together

    if (dtype := _fitting(parameters(policy))) is None:
        facts: dict[str, Any] = {"warning": "not compared with training's: too little of the GPU's memory is free"}
        say(f"{policy}: the sampler's log-probabilities are {facts['warning']}")
        return facts
    chosen = range(0, len(requests), -(-len(requests) // COMPARED))
    texts = [Encoded(requests[i].prompt, responses[i].tokens) for i in chosen]
    theirs = [responses[i].logprobs for i in chosen]
    model = load_model(policy, dtype=dtype)
    apart: list[float] = []
    with torch.no_grad():
        for batch in by_tokens([len(text) for text in texts], together(model, SCORING_TOKENS)):
            ours = response_logprobs(model, [texts[i] for i in batch], reduction="none")
            for i, values in zip(batch, ours, strict=True):
                apart += (values.double().cpu() - torch.tensor(theirs[i], dtype=torch.float64)).abs().tolist()
    mean = float(np.mean(apart))
    facts = {
        **({} if dtype == "float32" else {"dtype": dtype}),
        "responses": len(texts),
        "tokens": len(apart),
        "mean": mean,
        "p99": float(np.quantile(apart, 0.99)),
        "max": max(apart),
    }
    if not mean <= warning:
        facts["warning"] = (
            f"the sampler's log-probabilities are {mean:.3g} nats per token from training's, above {warning:g} "
            "(sampling.mismatch_warning): what is sampled is not quite what is trained; compare dtype, attention, BOS"
        )
        say(f"{policy}: {facts['warning']}")
    return facts


def _fitting(size: int) -> Literal["float32", "bfloat16"] | None:
    """In which dtype a policy of so many parameters can be read in what is free of the GPU's memory."""
    free = _free_memory()
    if 4 * size + WORK_BYTES <= free:
        return "float32"
    return "bfloat16" if 2 * size + WORK_BYTES / 2 <= free else None


def _free_memory() -> float:
    """Bytes; without a GPU the machine's memory is the job's own care."""
    import torch

    from mnpo.samplers.room import free_on_gpu

    return free_on_gpu() if torch.cuda.is_available() else math.inf
