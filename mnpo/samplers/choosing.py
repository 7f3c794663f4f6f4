"""The next token of each row, from its logits and its uniform number: by inverse transform, likeliest tokens first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mnpo.config.sampling import Decoding
from mnpo.errors import BadInput

LIKELIEST = (32, 256)
"""Tokens that are looked at first, and next."""
SORTED = 4096
"""A vocabulary of so many tokens is sorted at last; of a larger one, the tokens that decide."""
LOOKED_AT = 2**20
"""Tokens of all rows that are looked at together: where the likeliest do not decide, a vocabulary takes memory."""
BUCKETS, DEPTH = 4096, 32.0
"""Of a larger vocabulary: by how many nats its tokens are below the likeliest, as far as this, and all further ones."""


def choose(logits: Tensor, decoding: Decoding, uniform: Tensor | None) -> Tensor:
    """The next token of each row: by inverse transform over the nucleus in order of probability, or greedily.

    The likeliest tokens decide nearly always; a row where they do not is looked at further, and whole at last.

    Args:
        logits: ``[rows, vocabulary]``.
        uniform: ``[rows]`` float64 in [0, 1); None: greedily.

    Returns:
        ``[rows]`` token ids.

    Raises:
        BadInput: logits that are no numbers.
    """
    if uniform is None:
        likeliest = logits.argmax(-1)
        _require_numbers(logits.gather(-1, likeliest[:, None]))
        return likeliest
    vocabulary, scaled = logits.shape[-1], logits.to(torch.promote_types(logits.dtype, torch.float32))
    if decoding.temperature != 1:
        scaled = scaled / decoding.temperature
    highest = scaled.amax(-1, keepdim=True)
    _require_numbers(highest)
    total = (scaled - highest).exp_().sum(-1, keepdim=True)
    rows = _Rows(scaled, highest.double(), total.double(), uniform.to(logits.device)[:, None])
    chosen = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    waiting = torch.arange(len(logits), device=logits.device)
    for size in (*(size for size in LIKELIEST if size < vocabulary), vocabulary):
        found = [_among(some, size, decoding.top_p) for some in rows.slices(max(1, LOOKED_AT // size))]
        chosen[waiting], decided = (torch.cat(parts) for parts in zip(*found, strict=True))
        if decided.all():
            break
        if decided.any():  # else all of the vocabulary would be copied for nothing
            waiting, rows = waiting[~decided], _Rows(*(part[~decided] for part in rows))
    return chosen


def _require_numbers(highest: Tensor) -> None:
    if not highest.isfinite().all():
        raise BadInput(
            "the policy's logits, or these over the temperature, are no finite numbers: nothing can be drawn; look at "
            "its training's loss, and at sampling.temperature"
        )


class _Rows(NamedTuple):
    """Of rows that a token is chosen for."""

    scaled: Tensor
    """``[rows, vocabulary]``: logits over the temperature."""
    highest: Tensor
    total: Tensor
    """``[rows, 1]``: the sum of ``exp(scaled - highest)``."""
    uniform: Tensor

    def slices(self, size: int) -> list[_Rows]:
        """So many at most."""
        return [_Rows(*some) for some in zip(*(torch.split(part, size) for part in self), strict=True)]


def _among(rows: _Rows, size: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The choice among the `size` likeliest tokens of each row, and whether it is the one among all."""
    everything = size == rows.scaled.shape[-1]
    if everything and size > SORTED:
        chosen = _among_all(rows, top_p)
        return chosen, torch.ones_like(chosen, dtype=torch.bool)
    tokens = rows.scaled.topk(size, sorted=False).indices.sort(-1).values  # of equals, the one with the lower number
    weights = (rows.scaled.gather(-1, tokens).double() - rows.highest).exp_()
    probability, order = (weights / rows.total).sort(dim=-1, descending=True, stable=True)
    mass = probability.cumsum(-1)
    nucleus = mass - probability < top_p
    kept = (probability * nucleus).cumsum(-1)
    all_there = (mass[:, -1:] >= top_p) | everything  # of the nucleus
    target = rows.uniform * torch.where(all_there, kept[:, -1:], torch.ones_like(rows.uniform))
    choice = torch.searchsorted(kept, target, right=True).clamp(max=size - 1)
    choice = torch.minimum(choice, nucleus.sum(-1, keepdim=True) - 1)
    # The last of them may be as likely as others that are not among them, and stands for all that are not.
    decided = (all_there | (top_p == 1)) & (probability.gather(-1, choice) > probability[:, -1:])
    return tokens.gather(-1, order.gather(-1, choice))[:, 0], (decided | everything)[:, 0]


def _among_all(rows: _Rows, top_p: float) -> Tensor:
    """The choice among all tokens of each row. They are put into buckets, from the likeliest on; those of two are
    sorted: where the nucleus ends, and which is chosen from."""
    below = rows.highest.to(rows.scaled.dtype) - rows.scaled
    bucket = below.mul_(BUCKETS / DEPTH).clamp_(max=BUCKETS - 1).long()
    probability = (rows.scaled.double() - rows.highest).exp_().div_(rows.total)
    mass = torch.zeros(len(below), BUCKETS, dtype=torch.double, device=below.device)
    until = mass.scatter_add_(1, bucket, probability).cumsum(-1)
    before = torch.nn.functional.pad(until[:, :-1], (1, 0))

    def look(into: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a bucket: the tokens, the likeliest first, the mass up to each, and how many are of the nucleus."""
        row, token = (bucket == into).nonzero(as_tuple=True)
        count = row.bincount(minlength=len(into))
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        tokens = row.new_zeros(len(into), int(count.max()))
        chances = probability.new_zeros(tokens.shape)
        tokens[row, place], chances[row, place] = token, probability[row, token]
        chances, order = chances.sort(dim=-1, descending=True, stable=True)
        reached = before.gather(-1, into) + chances.cumsum(-1)
        inside = (reached - chances < top_p).sum(-1, keepdim=True)
        return tokens.gather(-1, order), reached, torch.minimum(inside, count[:, None])

    kept = until[:, -1:]  # 1, but for rounding
    last = torch.searchsorted(until, kept.clamp(max=top_p))
    if top_p < 1:
        _, reached, inside = look(last)
        kept = torch.where(inside > 0, reached.gather(-1, (inside - 1).clamp(min=0)), before.gather(-1, last))
    target = rows.uniform * kept
    bucket_of_choice = torch.minimum(torch.searchsorted(until, target, right=True), last)
    tokens, reached, inside = look(bucket_of_choice)
    choice = torch.minimum(torch.searchsorted(reached, target, right=True), inside - 1)
    return tokens.gather(-1, choice)[:, 0]
