"""Decoding where a prompt's keys and values are held once for all of its responses, and rows come and go.

    begin(prompts) -> their first tokens' logits;  step(tokens) -> the next ones';  keep(rows): the others are done

A step is transformers' own forward pass of one token a row, with an attention function of ours in place of the model's:
a row's query meets its prompt's keys together with those of the prompt's other responses, in one product, and its own
response's keys. Softmax runs over both, so the values are those of attention to a cache of the whole text, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnpo.models.packing import share_width

NAME = "mnpo_shared_prompts"
GROWTH = 32
"""Tokens that there is room for at first; doubled when a response gets there."""
READ_TOKENS = 16_384
"""Of prompts, with their padding, in one pass: what reading them takes is bounded, however many are drawn to."""


class Memory(NamedTuple):
    """What a layer keeps of tokens: ``[prompts, heads, width, d]``, left-padded, or ``[slots, heads, room, d]``."""

    keys: Tensor
    values: Tensor

    def each(self, do: Callable[[Tensor], Tensor]) -> Memory:
        """`do` it to both."""
        return Memory(do(self.keys), do(self.values))


class OtherAttention(Exception):
    """A model's attention is given what `attend` knows nothing of."""


def room_for(tokens: int) -> int:
    """Of a response: what there is room for when it has so many."""
    room = GROWTH
    while room < tokens:
        room *= 2
    return room


def shares_prompts(model: Any) -> bool:
    """Whether the model's attention can be replaced: it is called through transformers' interface, and all of its
    layers' memory of a text are keys and values of its tokens."""
    return bool(getattr(model, "_supports_attention_backend", False)) and share_width(model.config) is not None


class SharedPrompts:
    """The keys and values of the responses that are being drawn, ``rows`` of them, and of their prompts.

    Raises:
        OtherAttention: from `step`.
    """

    refills = True

    def __init__(self, model: Any) -> None:
        from transformers import AttentionInterface

        AttentionInterface.register(NAME, attend)
        self._model, self._config = model, model.config.get_text_config()
        self._windows = _windows(self._config)
        self._prompts: list[Memory] = []  # of each layer
        self._own: list[Memory] = []  # of responses, each in a slot
        none = torch.empty(0, dtype=torch.long, device=model.device)
        self._lengths = none  # of prompts, in tokens
        self._prompt, self._place = none, none  # of each row: which prompt it answers, and as its how-manieth response
        self._slot, self._drawn = none, none  # where its own keys are, and how many
        self._most = self._newest = 0  # in this step: a prompt's responses and a response's tokens, at most
        self._seen: dict[int | None, Tensor] = {}  # in this step: sliding window -> what rows may look at

    @property
    def rows(self) -> int:
        """Responses that are being drawn."""
        return len(self._prompt)

    def begin(self, prompts: Sequence[Sequence[int]], copies: Sequence[int]) -> Tensor:
        """Read prompts, add a row for each of `copies` (which prompt it answers), and give its first token's logits.

        Returns:
            ``[len(copies), vocabulary]``.
        """
        from transformers import DynamicCache

        ids, mask = left_padded(prompts, self._model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache()  # without the model's configuration it keeps all of a sliding layer's keys
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits: Tensor = self._model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
        self._forget()
        copied = torch.tensor(copies, device=ids.device)
        self._add([Memory(layer.keys, layer.values) for layer in cache.layers], mask.sum(-1), copied)
        return logits[copied]

    def step(self, tokens: Tensor) -> Tensor:
        """The logits ``[rows, vocabulary]`` that follow these tokens, ``[rows]``, one of each row."""
        self._make_room()
        positions = (self._lengths[self._prompt] + self._drawn)[:, None]
        self._most, self._newest = int(self._place.max()) + 1, int(self._drawn.max()) + 1
        self._seen = {window: self._seen_within(window) for window in {*self._windows}}
        before, self._config._attn_implementation = self._config._attn_implementation, NAME
        try:
            out = self._model(
                input_ids=tokens[:, None],
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
                shared_prompts=self,
            )
        finally:
            self._config._attn_implementation = before
        self._drawn = self._drawn + 1
        logits: Tensor = out.logits[:, -1]
        return logits

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._prompt, self._place = self._prompt[rows], self._place[rows]
        self._slot, self._drawn = self._slot[rows], self._drawn[rows]
        if 2 * len(set(self._prompt.tolist())) <= len(self._lengths):
            self._forget()

    # ------------------------------------------------------------------------------------------------- who holds what
    def _forget(self) -> None:
        """Drop prompts that no row answers any more, and their padding."""
        alive = torch.tensor(sorted({*self._prompt.tolist()}), dtype=torch.long, device=self._prompt.device)
        if len(alive) < len(self._lengths):
            self._lengths = self._lengths[alive]
            width = int(self._lengths.max()) if len(alive) else 0
            _replace(self._prompts, lambda part: _wide(part[alive], width))
            self._prompt = torch.searchsorted(alive, self._prompt)

    def _add(self, memories: list[Memory], lengths: Tensor, copies: Tensor) -> None:
        if self.rows:
            width = max(memories[0].keys.shape[2], self._prompts[0].keys.shape[2])
            for i, (old, new) in enumerate(zip(self._prompts, memories, strict=True)):
                self._prompts[i] = memories[i] = Memory(
                    *(torch.cat([_wide(a, width), _wide(b, width)]) for a, b in zip(old, new, strict=True))
                )
            copies, lengths = copies + len(self._lengths), torch.cat([self._lengths, lengths])
        self._prompts, self._lengths = memories, lengths
        self._own = self._own or [memory.each(lambda part: part[:0, :, :0]) for memory in memories]
        taken = set(self._slot.tolist())
        free = [slot for slot in range(len(taken) + len(copies)) if slot not in taken][: len(copies)]
        self._prompt = torch.cat([self._prompt, copies])
        self._slot = torch.cat([self._slot, torch.tensor(free, device=copies.device)])
        self._drawn = torch.cat([self._drawn, torch.zeros_like(copies)])
        self._place = _places(self._prompt)

    def _make_room(self) -> None:
        """For one token more of each row; and give room back where most of it is of responses that are done."""
        if 2 * self.rows < len(self._own[0].keys):
            _replace(self._own, lambda part: part[self._slot])
            self._slot = torch.arange(self.rows, device=self._slot.device)
        slots, _, room, _ = self._own[0].keys.shape
        needed = int(self._slot.max()) + 1, int(self._drawn.max()) + 1
        if needed[0] > slots or needed[1] > room:
            size = max(slots, needed[0]), max(room, room_for(needed[1]))
            _replace(self._own, lambda part: _grown(part, *size))

    # ------------------------------------------------------------------------------------------------------- attention
    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, cap: float | None
    ) -> Tensor:
        """Of one new token a row: its query ``[rows, heads, 1, d]``, and its key and value, which are kept.

        Returns:
            ``[rows, 1, heads, d]``.
        """
        rows, heads, _, width = query.shape
        (keys, values), (own_keys, own_values) = self._prompts[layer], self._own[layer]
        own_keys[self._slot, :, self._drawn] = key[:, :, 0]
        own_values[self._slot, :, self._drawn] = value[:, :, 0]
        own_keys, own_values = own_keys[:, :, : self._newest], own_values[:, :, : self._newest]
        asked = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
        scores = torch.cat([self._by_prompt(asked, keys.mT), self._by_slot(asked, own_keys.mT)], -1).float() * scaling
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        scores.masked_fill_(~self._seen[self._windows[layer]], float("-inf"))
        shares = scores.softmax(-1).to(value.dtype)
        read = self._by_prompt(shares[..., : keys.shape[2]], values)
        read = read + self._by_slot(shares[..., keys.shape[2] :], own_values)
        return read.reshape(rows, 1, heads, -1)

    def _by_prompt(self, of_rows: Tensor, of_prompts: Tensor) -> Tensor:
        """``[rows, heads, queries, a]`` times ``[prompts, heads, a, b]`` of its prompt; a prompt's rows at once."""
        _, heads, queries, a = of_rows.shape
        together = of_rows.new_zeros(len(of_prompts), heads, self._most, queries, a)
        together[self._prompt, :, self._place] = of_rows
        product = (together.flatten(2, 3) @ of_prompts).view(len(of_prompts), heads, self._most, queries, -1)
        return product[self._prompt, :, self._place]

    def _by_slot(self, of_rows: Tensor, of_slots: Tensor) -> Tensor:
        """``[rows, heads, queries, a]`` times each row's own of ``[slots, heads, a, b]``, which are not moved."""
        if self.rows == len(of_slots):
            together = torch.empty_like(of_rows)
        else:
            together = of_rows.new_zeros(len(of_slots), *of_rows.shape[1:])
        together[self._slot] = of_rows
        return (together @ of_slots)[self._slot]

    def _seen_within(self, window: int | None) -> Tensor:
        """``[rows, 1, 1, prompt's width + tokens drawn]``: what is no padding, no other's, and within the window."""
        width, lengths = self._prompts[0].keys.shape[2], self._lengths[self._prompt][:, None]
        place = torch.arange(width, device=lengths.device) - (width - lengths)  # negative: padding
        own, now = torch.arange(self._newest, device=lengths.device), self._drawn[:, None]
        seen = torch.cat([place >= 0, own <= now], -1)
        if window is not None:
            seen &= lengths + now - torch.cat([place, lengths + own], -1) < window
        return seen[:, None, None]


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Any,
    *,
    shared_prompts: SharedPrompts,
    scaling: float,
    softcap: float | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in place of a model's attention while `SharedPrompts` decodes."""
    if strange := sorted(name for name in FURTHER if further.get(name) is not None):
        raise OtherAttention(f"{type(module).__name__} gives its attention {', '.join(strange)}")
    return shared_prompts.attention(module.layer_idx, query, key, value, scaling, softcap), None


FURTHER = ("s_aux", "position_bias", "head_mask", "cache")
"""What some models give their attention that changes it."""


def left_padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are no padding, ``[prompts, width]``."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def _windows(config: Any) -> list[int | None]:
    """Of each layer, how far back its tokens look; None: to the beginning."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _replace(memories: list[Memory], do: Callable[[Tensor], Tensor]) -> None:
    """`do` it to each layer's, one after another: of one only, there is what was and what is."""
    for i, memory in enumerate(memories):
        memories[i] = memory.each(do)


def _places(prompt: Tensor) -> Tensor:
    """Of each row, how many before it answer the same prompt."""
    same = prompt[:, None] == prompt
    return same.tril(-1).sum(-1)


def _wide(part: Tensor, width: int) -> Tensor:
    """With padding on the left, or less of it."""
    return torch.nn.functional.pad(part, (0, 0, width - part.shape[2], 0))


def _grown(part: Tensor, slots: int, room: int) -> Tensor:
    """Zeros where nothing is yet: its share is 0, and 0 times what memory happens to hold may be no number."""
    grown = part.new_zeros(slots, part.shape[1], room, part.shape[3])
    grown[: len(part), :, : part.shape[2]] = part
    return grown
