"""Sampling with transformers: finished responses leave a batch at once and others join it, longest prompts first.

Every response has its own stream of random numbers, from its own seed, so what is drawn does not depend on what else is
in the batch, up to rounding: a probability that batching moves by 1e-7 can tip a draw that lies on its edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnpo.config.sampling import Decoding
from mnpo.progress import track
from mnpo.samplers import Request, Response, kept_or_drawn, longest_first
from mnpo.samplers.shared_prompts import OtherAttention, SharedPrompts, left_padded, shares_prompts
from mnpo.storage.journal import Journal

WAVE = 4
"""How many times a batch's rows are drawn whole or not at all: those who come join those who are left."""
LIKELIEST = (32, 256, 4096)
"""Tokens that are looked at first, and next."""


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
        journal: keeps every wave of a few batches that is finished, and has those of an earlier session. A wave is
            drawn whole or not at all, so who shares one, and what is drawn, does not depend on interruptions.
        logprobs: whether responses come with them.

    Raises:
        Interrupted: a signal asked the journal's session to stop.
    """
    order, size = longest_first(requests), WAVE * batch_size
    waves = [order[i : i + size] for i in range(0, len(order), size)]
    responses: dict[int, Response] = {}

    def draw_wave(chosen: list[Request]) -> list[Response]:
        asked = (chosen, decoding, set(stop_ids), batch_size, logprobs)
        if shares_prompts(model):
            try:
                return _draw_wave(SharedPrompts(model), *asked)
            except OtherAttention:  # at its first step
                pass
        return _draw_wave(OwnPrompts(model), *asked)

    for wave in track(waves, len(waves), what, "waves"):
        drawn = kept_or_drawn([requests[i] for i in wave], draw_wave, journal)
        responses.update(zip(wave, drawn, strict=True))
    return [responses[i] for i in range(len(requests))]


@torch.inference_mode()
def _draw_wave(
    decoder: SharedPrompts | OwnPrompts,
    requests: list[Request],
    decoding: Decoding,
    stop_ids: set[int],
    rows_at_once: int,
    logprobs: bool,
) -> list[Response]:
    uniforms = None if decoding.temperature == 0 else _uniforms(requests, decoding.max_new_tokens)
    tokens: list[list[int]] = [[] for _ in requests]
    chances: list[list[float]] = [[] for _ in requests]
    waiting = deque(_by_prompt(requests, rows_at_once))
    rows: list[int] = []  # which request each row of the batch is
    drawn = torch.empty(0, dtype=torch.long)
    while rows or waiting:
        logits = [decoder.step(drawn)] if rows else []
        if coming := _coming(waiting, rows_at_once, len(rows), decoder.refills):
            prompts = [requests[some[0]].prompt for some in coming]
            logits.append(decoder.begin(prompts, [i for i, some in enumerate(coming) for _ in some]))
            rows = rows + [row for some in coming for row in some]
        following = torch.cat(logits)
        steps = [len(tokens[row]) for row in rows]
        drawn = _choose(following, decoding, None if uniforms is None else uniforms[rows, steps])
        for row, token in zip(rows, drawn.tolist(), strict=True):
            tokens[row].append(token)
        if logprobs:
            values = following.float().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
            for row, value in zip(rows, values.tolist(), strict=True):
                chances[row].append(value)
        going = [i for i, row in enumerate(rows) if not _done(tokens[row], stop_ids, decoding)]
        if len(going) < len(rows):
            kept = torch.tensor(going, dtype=torch.long, device=drawn.device)
            decoder.keep(kept)
            drawn, rows = drawn[kept], [rows[i] for i in going]
    finishes = ("stop" if t[-1] in stop_ids else "length" for t in tokens)
    return [Response(t, f, c or None) for t, f, c in zip(tokens, finishes, chances, strict=True)]


def _done(tokens: list[int], stop_ids: set[int], decoding: Decoding) -> bool:
    return tokens[-1] in stop_ids or len(tokens) == decoding.max_new_tokens


def _by_prompt(requests: Sequence[Request], most: int) -> list[list[int]]:
    """Indices of the requests of each prompt, so many at most."""
    together: dict[tuple[int, ...], list[int]] = {}
    for i, request in enumerate(requests):
        together.setdefault(tuple(request.prompt), []).append(i)
    return [some[i : i + most] for some in together.values() for i in range(0, len(some), most)]


def _coming(waiting: deque[list[int]], most: int, rows: int, refills: bool) -> list[list[int]]:
    """Those who join `rows` others now: as many prompts as there is room for, once a quarter of it is free."""
    free, coming = most - rows, []
    if rows and not (refills and 4 * free >= most):
        return []
    while waiting and len(waiting[0]) <= free:
        coming.append(waiting.popleft())
        free -= len(coming[-1])
    return coming


class OwnPrompts:
    """The same as `SharedPrompts`, of any model: each row has a memory of its own, as transformers keeps it."""

    refills = False

    def __init__(self, model: Any) -> None:
        self._model, self._mask = model, torch.empty(0)
        self._cache: Any = None

    def begin(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """See `SharedPrompts.begin`; there are no other rows."""
        self._cache = None
        ids, self._mask = left_padded(prompts, self._model.device)
        logits, copied = self._forward(ids), torch.tensor(copies, device=ids.device)
        self.keep(copied)
        return logits[copied]

    def step(self, tokens: Tensor) -> Tensor:
        """See `SharedPrompts.step`."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        return self._forward(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        """See `SharedPrompts.keep`."""
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits


def _uniforms(requests: list[Request], steps: int) -> Tensor:
    """Uniform numbers ``[requests, steps]``, each row from its request's seed alone."""

    def stream() -> Iterator[Tensor]:
        for request in requests:
            yield torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(request.seed))

    return torch.stack(list(stream()))


def _choose(logits: Tensor, decoding: Decoding, uniform: Tensor | None) -> Tensor:
    """The next token of each row: by inverse transform over the nucleus in order of probability, or greedily.

    The likeliest tokens decide nearly always; a row where they do not is looked at further, and whole at last.
    """
    if uniform is None:
        return logits.argmax(-1)
    vocabulary, scaled = logits.shape[-1], logits.to(torch.promote_types(logits.dtype, torch.float32))
    if decoding.temperature != 1:
        scaled = scaled / decoding.temperature
    highest = scaled.amax(-1, keepdim=True)
    total = (scaled - highest).exp_().sum(-1, keepdim=True)
    rows = _Rows(scaled, highest.double(), total.double(), uniform.to(logits.device)[:, None])
    chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    waiting = torch.arange(len(logits), device=logits.device)
    for size in (*(size for size in LIKELIEST if size < vocabulary), vocabulary):
        chosen[waiting], decided = _inverse(rows, size, decoding.top_p)
        if decided.all():
            break
        waiting, rows = waiting[~decided], _Rows(*(part[~decided] for part in rows))
    return chosen


class _Rows(NamedTuple):
    """Of rows that a token is chosen for."""

    scaled: Tensor
    """``[rows, vocabulary]``: logits over the temperature."""
    highest: Tensor
    total: Tensor
    """``[rows, 1]``: the sum of ``exp(scaled - highest)``."""
    uniform: Tensor


def _inverse(rows: _Rows, size: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The choice among the `size` likeliest tokens of each row, and whether it is the one among all."""
    tokens = rows.scaled.topk(size, sorted=False).indices.sort(-1).values  # of equals, the one with the lower number
    weights = (rows.scaled.gather(-1, tokens).double() - rows.highest).exp_()
    probability, order = (weights / rows.total).sort(dim=-1, descending=True, stable=True)
    mass = probability.cumsum(-1)
    nucleus = mass - probability < top_p
    kept = (probability * nucleus).cumsum(-1)
    everything = size == rows.scaled.shape[-1]
    all_there = (mass[:, -1:] >= top_p) | everything  # of the nucleus
    target = rows.uniform * torch.where(all_there, kept[:, -1:], torch.ones_like(rows.uniform))
    choice = torch.searchsorted(kept, target, right=True).clamp(max=size - 1)
    choice = torch.minimum(choice, nucleus.sum(-1, keepdim=True) - 1)
    # The last of them may be as likely as others that are not among them, and stands for all that are not.
    decided = (all_there | (top_p == 1)) & (probability.gather(-1, choice) > probability[:, -1:])
    return tokens.gather(-1, order.gather(-1, choice))[:, 0], (decided | everything)[:, 0]
