"""Log-probabilities of responses under a causal language model, without ever holding ``[tokens, vocab]`` logits.

    texts -> rows (a prompt and the responses that share it) -> decoder (packing.py) -> hidden states that predict a
    response token -> head, soft-cap and log-sum-exp, a tile of tokens by vocabulary at a time (head.py) -> one number
    per token

Everything is in nats. Values are float32 (float64 for a float64 model) whatever the model's dtype: products are taken
in the model's or autocast's dtype, the soft-cap and the log-sum-exp in float32.

A text's value does not depend on its company: alone, padded, or beside others under a shared prompt, every token's
log-probability agrees to float32 rounding: within 1e-5 nats on the tests' models, and about 1e-6 of the logits' size
on others (with bfloat16 products, their rounding). Not bit for bit: products of other shapes sum in another order.

Sharded models (DDP, FSDP, ZeRO-3) gather their weights in hooks on the wrapped module's ``forward``; wrap
``ResponseLogprobs(model)``, not ``model``, so that those hooks run and the head's weight is whole while it is read.
Every rank then makes the same collectives whatever its texts (tests/learning/test_uneven_ranks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn

from mnpo.models.head import project
from mnpo.models.packing import Batch, Encoded, batches, hidden_states, lay_out, share_width, shared_rows, together

if TYPE_CHECKING:
    from mnpo.storage.journal import Journal

Reduction = Literal["sum", "mean", "none"]


# --- what the stages call -------------------------------------------------------------------------------------------
@overload
def response_logprobs(
    model: Any,
    texts: Sequence[Encoded],
    *,
    pad_id: int = 0,
    chunk_tokens: int = 1024,
    reduction: Literal["sum", "mean"] = "sum",
    share_prompts: bool = True,
) -> Tensor: ...


@overload
def response_logprobs(
    model: Any,
    texts: Sequence[Encoded],
    *,
    pad_id: int = 0,
    chunk_tokens: int = 1024,
    reduction: Literal["none"],
    share_prompts: bool = True,
) -> list[Tensor]: ...


def response_logprobs(
    model: Any,
    texts: Sequence[Encoded],
    *,
    pad_id: int = 0,
    chunk_tokens: int = 1024,
    reduction: Reduction = "sum",
    share_prompts: bool = True,
) -> Tensor | list[Tensor]:
    """Log-probabilities (nats) of the ``n`` responses given their prompts, in one differentiable forward pass.

    Returns float32 ``[n]`` in the order of ``texts``: the sum over a response's tokens, or their mean; with ``none`` a
    list of ``n`` tensors ``[response tokens]``. ``pad_id`` fills rows and never matters. ``share_prompts`` encodes an
    equal prompt once where the attention allows it and it is cheaper. ValueError names the row of an empty response or
    prompt.
    """
    if not texts:
        raise ValueError("no texts to score")
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction must be sum, mean or none, not {reduction!r}")
    rows = shared_rows(texts, share_width(model.config) if share_prompts else None)
    batch = lay_out(texts, rows, pad_id, model.device)
    per_token = _score(model, batch, chunk_tokens)
    if reduction == "none":
        return per_token
    return torch.stack([t.sum() if reduction == "sum" else t.mean() for t in per_token])


def _score(model: Any, batch: Batch, chunk_tokens: int) -> list[Tensor]:
    """Per-token log-probabilities of a batch's texts, in ascending order of their index."""
    hidden = hidden_states(model, batch)[batch.source]
    pieces = torch.split(project(model, hidden, batch.targets, chunk_tokens), batch.lengths)
    return [piece for _, piece in sorted(zip(batch.members, pieces, strict=True), key=lambda pair: pair[0])]


class ResponseLogprobs(nn.Module):
    """``response_logprobs`` as a module's ``forward``: the thing to hand to DDP, FSDP or DeepSpeed (see the top)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, texts: Sequence[Encoded], **settings: Any) -> Tensor | list[Tensor]:
        """``response_logprobs(model, texts, **settings)``."""
        values: Tensor | list[Tensor] = response_logprobs(self.model, texts, **settings)
        return values


@dataclass(frozen=True)
class ScoredTexts:
    """Scores of ``n`` texts in input order, and what they cost in tokens through the decoder body."""

    sums: Tensor  # [n] float32 nats
    counts: Tensor  # [n] int64 response tokens
    computed: int  # padding included
    needed: int  # without padding
    separate: int  # without padding, had every text its own copy of the prompt

    @property
    def means(self) -> Tensor:
        """``[n]`` float32, nats per token."""
        return self.sums / self.counts

    @property
    def padding(self) -> float:
        """Share of the computed tokens that were padding, in [0, 1)."""
        return 1 - self.needed / self.computed

    @property
    def shared(self) -> float:
        """Share of the tokens that sharing prompts saved, in [0, 1)."""
        return 1 - self.needed / self.separate


def score_texts(
    model: Any,
    texts: Sequence[Encoded],
    *,
    max_tokens: int,
    pad_id: int = 0,
    chunk_tokens: int = 1024,
    share_prompts: bool = True,
    progress: Callable[[int, int], None] | None = None,
    journal: Journal | None = None,
) -> ScoredTexts:
    """Score any number of texts without gradients, longest first, in batches of at most ``max_tokens`` padded tokens.

    A longer text is a batch of its own; on a CPU batches may be smaller (``packing.together``). The longest go first,
    so that running out of memory happens at the start. ``progress(done, total)`` is called with counts of texts
    after every batch. The model is put in evaluation mode and back. It must be whole: of a sharded one every pass is a
    collective, and how many there are follows from the texts. ``journal`` keeps every batch that is finished, and has
    those of an earlier session. Errors as in ``response_logprobs``; Interrupted when a signal asked the journal's
    session to stop.
    """
    if not texts:
        raise ValueError("no texts to score")
    rows = shared_rows(texts, share_width(model.config) if share_prompts else None, max_tokens)
    sums = torch.empty(len(texts))
    computed = done = 0
    was_training = model.training
    model.eval()
    try:
        for chosen in batches(rows, together(model, max_tokens)):
            batch = lay_out(texts, chosen, pad_id, model.device)
            do = partial(_sums, model, batch, chunk_tokens)
            members = sorted(batch.members)
            read = [[list(texts[i].prompt), list(texts[i].response)] for i in members]
            sums[members] = torch.tensor(do() if journal is None else journal.once(read, do))
            computed += batch.ids.numel()
            done += len(batch.members)
            if progress:
                progress(done, len(texts))
    finally:
        model.train(was_training)
    return ScoredTexts(
        sums,
        torch.tensor([len(text.response) for text in texts]),
        computed,
        needed=sum(row.length for row in rows),
        separate=sum(len(text.prompt) + len(text.response) - 1 for text in texts),
    )


@torch.no_grad()
def _sums(model: Any, batch: Batch, chunk_tokens: int) -> list[float]:
    """Of each of a batch's texts, in their order."""
    return torch.stack([text.sum() for text in _score(model, batch, chunk_tokens)]).float().tolist()
