"""Sampling with transformers: batches with a KV cache that finished responses leave at once, longest prompts first.

Every response has its own stream of random numbers, from its own seed, so what is drawn does not depend on what else is
in the batch, up to rounding: a probability that batching moves by 1e-7 can tip a draw that lies on its edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mnpo.config.sampling import Decoding
from mnpo.progress import track
from mnpo.samplers import Request, Response, kept_or_drawn, longest_first
from mnpo.storage.journal import Journal


def draw(
    model: Any,
    requests: Sequence[Request],
    decoding: Decoding,
    stop_ids: Sequence[int],
    batch_size: int,
    what: str,
    journal: Journal | None = None,
    logprobs: bool = False,
) -> list[Response]:
    """One response for each request, in the requests' order.

    Args:
        model: a causal LM in evaluation mode.
        decoding: temperature (0 is greedy), top_p, max_new_tokens.
        stop_ids: tokens that end a response; the one drawn is kept.
        batch_size: sequences decoded together.
        what: the work's name, for progress.
        journal: keeps every batch that is finished, and has those of an earlier session. A batch is drawn whole or
            not at all, so who shares one, and what is drawn, does not depend on interruptions.
        logprobs: whether responses come with them.

    Raises:
        Interrupted: a signal asked the journal's session to stop.
    """
    order = longest_first(requests)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    responses: dict[int, Response] = {}

    def draw_batch(chosen: list[Request]) -> list[Response]:
        return _draw_batch(model, chosen, decoding, set(stop_ids), logprobs)

    for batch in track(batches, len(batches), what, "batches"):
        drawn = kept_or_drawn([requests[i] for i in batch], draw_batch, journal)
        responses.update(zip(batch, drawn, strict=True))
    return [responses[i] for i in range(len(requests))]


@torch.inference_mode()
def _draw_batch(
    model: Any, requests: list[Request], decoding: Decoding, stop_ids: set[int], logprobs: bool
) -> list[Response]:
    prompts = list(dict.fromkeys(tuple(r.prompt) for r in requests))
    copies = [prompts.index(tuple(r.prompt)) for r in requests]
    ids, mask = _left_padded(prompts, model.device)
    uniforms = None if decoding.temperature == 0 else _uniforms(requests, decoding.max_new_tokens)
    tokens: list[list[int]] = [[] for _ in requests]
    chances: list[list[float]] = [[] for _ in requests]
    rows = list(range(len(requests)))  # which request each row of the batch is
    cache: Any = None
    for step in range(decoding.max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, logits = out.past_key_values, out.logits[:, -1]
        if step == 0:  # a prompt is read once for all of its responses
            copied = torch.tensor(copies, device=ids.device)
            cache.batch_select_indices(copied)
            logits, mask = logits[copied], mask[copied]
        drawn = _choose(logits, decoding, None if uniforms is None else uniforms[rows, step])
        for row, token in zip(rows, drawn.tolist(), strict=True):
            tokens[row].append(token)
        if logprobs:
            values = logits.float().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
            for row, value in zip(rows, values.tolist(), strict=True):
                chances[row].append(value)
        going = [i for i, row in enumerate(rows) if tokens[row][-1] not in stop_ids]
        if not going:
            break
        if len(going) < len(rows):
            kept = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(kept)
            drawn, mask = drawn[kept], mask[kept]
            rows = [rows[i] for i in going]
        ids = drawn[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    finishes = ("stop" if t[-1] in stop_ids else "length" for t in tokens)
    return [Response(t, f, c or None) for t, f, c in zip(tokens, finishes, chances, strict=True)]


def _left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _uniforms(requests: list[Request], steps: int) -> Tensor:
    """Uniform numbers ``[requests, steps]``, each row from its request's seed alone."""

    def stream() -> Iterator[Tensor]:
        for request in requests:
            yield torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(request.seed))

    return torch.stack(list(stream()))


def _choose(logits: Tensor, decoding: Decoding, uniform: Tensor | None) -> Tensor:
    """The next token of each row: by inverse transform over the nucleus in order of probability, or greedily."""
    if uniform is None:
        return logits.argmax(-1)
    probability, token = (logits.double() / decoding.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    mass = probability.cumsum(-1)
    nucleus = mass - probability < decoding.top_p
    kept = (probability * nucleus).cumsum(-1)
    target = uniform.to(logits.device)[:, None] * kept[:, -1:]
    choice = torch.searchsorted(kept, target, right=True).clamp(max=logits.shape[-1] - 1)
    choice = torch.minimum(choice, nucleus.sum(-1, keepdim=True) - 1)
    return token.gather(-1, choice)[:, 0]
