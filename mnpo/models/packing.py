"""Which tokens go through a decoder together: texts -> rows, a prompt and the responses that share it -> hidden states.

A text's states do not depend on its company: alone, padded, or beside others under a shared prompt, they agree to
rounding (mnpo/models/logprobs.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

TAKE_MASKS = ("eager", "sdpa", "flex_attention")
"""Attention implementations that obey a mask of ours."""
PASS = 256
"""What a pass through a model costs beside its tokens, in tokens: a GPU reads the weights meanwhile."""
CACHE = 16 * 2**20
"""Bytes of a layer's widest activations that a CPU's cache is expected to hold."""
CPU_TOKENS = 1024
"""Padded tokens of a batch where it would not hold them (benchmarks/README.md)."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Row, head, the place of a token that asks, and of one that is read -> whether it may: what torch calls a mask_mod."""


class Encoded(Protocol):
    """A text as token ids, such as ``chat.Encoded``."""

    @property
    def prompt(self) -> Sequence[int]:
        """The prompt, with its template and BOS."""

    @property
    def response(self) -> Sequence[int]:
        """The response, with its end of turn."""


@dataclass(frozen=True)
class Row:
    """A prompt and the texts (by index) whose responses follow it, each blind to the others."""

    prompt: list[int]
    members: list[int]
    length: int  # tokens through the decoder; a response's last token is only ever predicted, never read


def shared_rows(texts: Sequence[Encoded], share_width: int | None, max_tokens: float = math.inf) -> list[Row]:
    """Texts in order -> rows in order of their first text; one row a text when ``share_width`` is None.

    A response joins the last row of its prompt when that costs less than a row of its own and the row stays within
    ``max_tokens``. ValueError for an empty prompt or response.
    """
    rows: list[Row] = []
    last: dict[tuple[int, ...], int] = {}
    for i, text in enumerate(texts):
        if not text.response:
            raise ValueError(f"row {i}: the response has no tokens, so it has no log-probability; keep its end of turn")
        if not text.prompt:
            raise ValueError(f"row {i}: the prompt has no tokens, so nothing predicts the response; keep its BOS")
        prompt, reads, key = list(text.prompt), len(text.response) - 1, tuple(text.prompt)
        row = rows[last[key]] if share_width is not None and key in last else None
        if row and row.length + reads <= max_tokens and _worth_sharing(row, reads, share_width or 0):
            rows[last[key]] = Row(prompt, [*row.members, i], row.length + reads)
        else:
            last[key] = len(rows)
            rows.append(Row(prompt, [i], len(prompt) + reads))
    return rows


def _worth_sharing(row: Row, reads: int, width: int) -> bool:
    """Joining saves the prompt's tokens, but widens the square that attention computes.

    A token costs about ``24 width^2`` operations in a layer's products, a cell of the square about ``4 width``.
    """
    saved, others = len(row.prompt), row.length - len(row.prompt)
    return 2 * reads * others - saved**2 <= 6 * width * saved


def share_width(config: Any) -> int | None:
    """The hidden size, if rows may share a prompt; else None.

    Sharing needs every path from token to token to obey our mask and positions: rotary positions, and attention that
    takes a mask as it is given. Flash attention takes no such mask, and other kinds of layers carry their own state.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    honoured = config._attn_implementation in TAKE_MASKS and kinds <= {"full_attention", "sliding_attention"}
    return config.hidden_size if honoured and getattr(config, "rope_parameters", None) else None


@dataclass(frozen=True)
class Batch:
    """Right-padded rows, and where in them each response token is predicted."""

    ids: Tensor  # [rows, width]
    positions: Tensor  # [rows, width], restarting after the prompt for every response
    segment: Tensor  # [rows, width]: 0 prompt, k the row's k-th response, -1 padding
    source: Tensor  # [tokens] index into the flattened rows of the state that predicts each counted response token
    targets: Tensor  # [tokens] these tokens themselves
    members: list[int]  # the texts, in the order of their tokens in source and targets
    lengths: list[int]  # counted response tokens of each member
    shared: bool  # whether any row holds more than one response


def lay_out(texts: Sequence[Encoded], rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """One batch of rows on `device`; `pad_id` fills them and never matters."""
    width = max(row.length for row in rows)
    ids, positions, segment, source, targets = [], [], [], [], []
    for base, row in zip(range(0, width * len(rows), width), rows, strict=True):
        p = len(row.prompt)
        row_ids, row_positions, row_segment = list(row.prompt), list(range(p)), [0] * p
        for k, i in enumerate(row.members, 1):
            response = list(texts[i].response)
            start, reads = base + len(row_ids), len(response) - 1
            predicted_at = [base + p - 1, *range(start, start + reads)]
            source += [predicted_at[j] for j in counted(texts[i])]
            targets += [response[j] for j in counted(texts[i])]
            row_ids += response[:-1]
            row_positions += range(p, p + reads)
            row_segment += [k] * reads
        pad = width - row.length
        ids.append(row_ids + [pad_id] * pad)
        positions.append(row_positions + [0] * pad)
        segment.append(row_segment + [-1] * pad)
    members = [i for row in rows for i in row.members]
    return Batch(
        ids=torch.tensor(ids, device=device),
        positions=torch.tensor(positions, device=device),
        segment=torch.tensor(segment, device=device),
        source=torch.tensor(source, device=device),
        targets=torch.tensor(targets, device=device),
        members=members,
        lengths=[len(counted(texts[i])) for i in members],
        shared=len(members) > len(rows),
    )


def counted(text: Encoded) -> Sequence[int]:
    """Which of a response's tokens count: those at `text.learnt`, where it says so (learning/lessons.py), else all."""
    learnt: Sequence[int] | None = getattr(text, "learnt", None)
    return range(len(text.response)) if learnt is None else learnt


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states ``[rows * width, d]`` of a batch.

    Unshared rows need no mask: the padding is on the right, where causal attention never looks. flex_attention gets one
    nevertheless: transformers would make its own by another function in every pass, and each is compiled for.
    """
    config = model.config.get_text_config()
    extra = {}
    if batch.shared or (config._attn_implementation == "flex_attention" and share_width(config)):
        extra = {"attention_mask": _masks(model, batch), "position_ids": batch.positions}
    states: Tensor = model.get_decoder()(input_ids=batch.ids, use_cache=False, **extra).last_hidden_state
    return states.flatten(0, 1)


def _masks(model: Any, batch: Batch) -> Any:
    """Who attends to whom, in the form that the model takes.

    transformers passes a 4-dimensional mask on as it is, and models with several kinds of layers a dictionary of them.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window is None:
        return _as_attention_takes_it(_rule(batch, None), model, config, batch)
    sliding = _as_attention_takes_it(_rule(batch, window), model, config, batch)
    if getattr(config, "layer_types", None) is None:  # as in Mistral: every layer slides
        return sliding
    full = _as_attention_takes_it(_rule(batch, None), model, config, batch)
    return {"full_attention": full, "sliding_attention": sliding}


def _rule(batch: Batch, window: int | None) -> Rule:
    """A token reads what comes before it of the prompt and of its own response.

    Sliding layers measure the window in positions: coming later in its row, a response must not see less of the prompt.
    """
    segment, positions = batch.segment, batch.positions

    def reads(row: Tensor, _head: Tensor, asks: Tensor, key: Tensor) -> Tensor:
        before = (asks >= key) & ((segment[row, key] == 0) | (segment[row, key] == segment[row, asks]))
        return before if window is None else before & (positions[row, asks] - positions[row, key] < window)

    return reads


def _as_attention_takes_it(rule: Rule, model: Any, config: Any, batch: Batch) -> Any:
    """Blocks for flex_attention; else ``[rows, 1, width, width]``: booleans for sdpa, numbers to add for eager."""
    (rows, width), device = batch.ids.shape, batch.ids.device
    if config._attn_implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(rule, rows, None, width, width, device=device)
    row, column = torch.arange(rows, device=device), torch.arange(width, device=device)
    allowed = rule(row[:, None, None], row, column[:, None], column)[:, None]
    if config._attn_implementation == "sdpa":
        return allowed
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=device).masked_fill_(~allowed, lowest)


def together(model: Any, max_tokens: int) -> int:
    """Padded tokens of a batch without gradients: on a CPU fewer, where the activations of so many leave its cache."""
    config = model.config.get_text_config()
    width = getattr(config, "intermediate_size", None)
    widest = width if isinstance(width, int) else 4 * config.hidden_size
    cached = max_tokens * widest * model.dtype.itemsize <= CACHE
    return max_tokens if cached or model.device.type != "cpu" else min(max_tokens, CPU_TOKENS)


def batches(rows: list[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Rows by falling length, cut so that ``rows * longest`` stays within the budget, and where padding would cost more
    than another pass."""
    batch: list[Row] = []
    padding = 0
    for row in sorted(rows, key=lambda row: -row.length):
        if batch:
            longest = batch[0].length
            padding += longest - row.length
            if (len(batch) + 1) * longest > max_tokens or padding > PASS:
                yield batch
                batch, padding = [], 0
        batch.append(row)
    if batch:
        yield batch
