"""Sampling with transformers: finished responses leave a batch at once and others join it, longest prompts first.

Every response has its own stream of random numbers, from its own seed, so what is drawn does not depend on what else is
in the batch, up to rounding: a probability that batching moves by 1e-7 can tip a draw that lies on its edge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mnpo.config.sampling import WIDEST, AtOnce, Decoding
from mnpo.progress import say, track
from mnpo.samplers import Request, Response, kept_or_drawn, longest_first
from mnpo.samplers.choosing import choose
from mnpo.samplers.room import widest
from mnpo.samplers.shared_prompts import READ_TOKENS, OtherAttention, SharedPrompts, left_padded, shares_prompts
from mnpo.storage.journal import Journal

WAVE = 4
"""How many times a batch's rows are drawn whole or not at all: those who come join those who are left."""


def draw(
    model: Any,
    requests: Sequence[Request],
    decoding: Decoding,
    stop_ids: Sequence[int],
    batch_size: AtOnce,
    what: str,
    journal: Journal | None = None,
    logprobs: bool = False,
) -> list[Response]:
    """One response for each request, in the requests' order.

    Args:
        model: a causal LM in evaluation mode.
        decoding: temperature (0 is greedy), top_p, max_new_tokens.
        stop_ids: tokens that end a response; the one drawn is kept.
        batch_size: sequences decoded together; `widest`: as many as memory has room for (mnpo/samplers/room.py).
        what: the work's name, for progress.
        journal: keeps every wave of a few batches that is finished, and has those of an earlier session. A wave is
            drawn whole or not at all, so who shares one, and what is drawn, does not depend on interruptions.
        logprobs: whether responses come with them.

    Raises:
        Interrupted: a signal asked the journal's session to stop.
    """
    rows = at_once(model, requests, decoding, batch_size, what)
    order, size = longest_first(requests), WAVE * rows
    waves = [order[i : i + size] for i in range(0, len(order), size)]
    responses: dict[int, Response] = {}

    def draw_wave(chosen: list[Request]) -> list[Response]:
        asked = (chosen, decoding, set(stop_ids), rows, logprobs)
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


def at_once(model: Any, requests: Sequence[Request], decoding: Decoding, batch_size: AtOnce, what: str) -> int:
    """How many sequences are decoded together; where memory decides it, that is said."""
    if batch_size != WIDEST:
        return batch_size
    rows = widest(model, requests, decoding.max_new_tokens)
    say(f"{what}: {rows} responses at once, as memory allows")
    return rows


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
        coming = _coming(waiting, rows_at_once, len(rows), decoder.refills)
        for read in _read_together(coming, requests, decoder.refills):
            prompts = [requests[some[0]].prompt for some in read]
            logits.append(decoder.begin(prompts, [i for i, some in enumerate(read) for _ in some]))
            rows = rows + [row for some in read for row in some]
        following = torch.cat(logits)
        steps = [len(tokens[row]) for row in rows]
        drawn = choose(following, decoding, None if uniforms is None else uniforms[rows, steps])
        for row, token in zip(rows, drawn.tolist(), strict=True):
            tokens[row].append(token)
        if logprobs:
            values = following.float().log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
            for row, value in zip(rows, values.tolist(), strict=True):
                chances[row].append(value)
        del logits, following  # before there are new ones
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


def _read_together(coming: list[list[int]], requests: Sequence[Request], refills: bool) -> list[list[list[int]]]:
    """Those whose prompts one pass reads: the longest come first. All of them, where nobody can join others."""
    longest = max((len(requests[some[0]].prompt) for some in coming), default=1)
    size = max(1, READ_TOKENS // longest if refills else len(coming))
    return [coming[i : i + size] for i in range(0, len(coming), size)]


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
