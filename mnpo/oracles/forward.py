"""Texts through a model: batches of similar length across prompts, padded on the right; every text once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mnpo.errors import BadInput
from mnpo.learning.batches import SCORING_TOKENS, by_tokens
from mnpo.progress import track
from mnpo.storage.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

    from mnpo.models.packing import Row

Ids = tuple[int, ...]
Forward = Callable[["Tensor", "Tensor", list[int]], "Tensor"]
"""Token ids and mask, ``[texts, width]``, and the texts' lengths -> what is wanted of each, ``[texts, numbers]``."""
Head = Callable[["Tensor"], "Tensor"]
"""Hidden states at a text's places, ``[texts, places, hidden]`` -> what is wanted of each, ``[texts, numbers]``."""
Places = Callable[[Ids], Sequence[int]]
"""Of a text, the tokens whose states a `Head` gets."""


class Whole(NamedTuple):
    """A model in memory that reads texts one by one, and the token that they are padded with."""

    model: Any
    forward: Forward
    pad: int


class Shared(NamedTuple):
    """A causal model in memory, whose decoder transformers finds: what texts begin with in common is read once."""

    model: Any
    head: Head
    places: Places


class Reader:
    """Feeds token ids to a model and counts what was read. No text is read twice, however many calls ask for it.

    What a text gets does not depend on its batch, except for rounding: about 1e-6 of the score's size in float32, 1e-2
    in bfloat16. Equal texts get equal numbers to the last bit.

    Args:
        journal: keeps every batch that is finished, and has those of an earlier session.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal
        self.tokens = self.padding = self.parameters = self.separate = 0
        self._found: dict[Ids, list[float]] = {}

    def read(
        self, opened: Callable[[], Whole | Shared], groups: Sequence[Sequence[Sequence[int]]], what: str
    ) -> list[list[list[float]]]:
        """What the model makes of each text.

        Args:
            opened: loads the model; called only when there is something to be read.
            groups: the texts of one prompt each.
            what: the model's name, for messages and the journal.

        Raises:
            BadInput: a text that is longer than the model can read, or a number that is not finite.
            Interrupted: a signal asked the journal's session to stop.
        """
        unread = [[text for text in map(tuple, group) if text not in self._found] for group in groups]
        if unread := [group for group in unread if group]:
            self._read(opened(), unread, what)
        return [[self._found[tuple(text)] for text in group] for group in groups]

    def _read(self, opened: Whole | Shared, groups: Sequence[Sequence[Ids]], what: str) -> None:
        texts = list(dict.fromkeys(text for group in groups for text in group))
        limit, longest = getattr(opened.model.config, "max_position_embeddings", None) or math.inf, max(map(len, texts))
        if longest > limit:
            raise BadInput(
                f"{what}: a prompt and its response(s) of {longest} tokens, the model reads at most {limit}; "
                "lower sampling.max_new_tokens or leave out the prompt"
            )
        self.parameters = sum(p.numel() for p in opened.model.parameters())
        self.separate += sum(map(len, texts))
        batches = list(_whole(opened, texts) if isinstance(opened, Whole) else _shared(opened, groups))
        for batch in track(batches, len(batches), what, "batches"):
            do = partial(_numbers, batch, what)
            numbers = do() if self.journal is None else self.journal.once([what, batch.texts], do)
            self._found |= zip(batch.texts, numbers, strict=True)
            self.tokens += batch.tokens
            self.padding += batch.padded - batch.tokens

    def facts(self) -> dict[str, Any]:
        """Tokens read without padding, the padding's share of all, what sharing saved, the model's parameters."""
        if not self.tokens:
            return {}
        return {
            "tokens": self.tokens,
            "padding_share": round(self.padding / (self.padding + self.tokens), 4),
            "shared_prompt_share": round(1 - self.tokens / self.separate, 4),
            "parameters": self.parameters,
        }


class _Batch(NamedTuple):
    """Texts that a model reads together; `padded` counts padding too."""

    texts: Sequence[Ids]
    tokens: int
    padded: int
    do: Callable[[], Tensor]


def _numbers(batch: _Batch, what: str) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        numbers = batch.do().float().cpu()
    if not numbers.isfinite().all():
        raise BadInput(f"{what}: the model's output is not a finite number; its weights or its dtype are wrong")
    return numbers.tolist()


def _whole(opened: Whole, texts: Sequence[Ids]) -> Iterator[_Batch]:
    from mnpo.models.packing import together

    for part in by_tokens([len(text) for text in texts], together(opened.model, SCORING_TOKENS)):
        some = [texts[i] for i in part]
        lengths = [len(text) for text in some]
        yield _Batch(some, sum(lengths), max(lengths) * len(some), partial(_of_texts, opened, some, lengths))


def _of_texts(opened: Whole, texts: Sequence[Ids], lengths: list[int]) -> Tensor:
    """What `forward` makes of one batch."""
    import torch

    ids, device = torch.full((len(texts), max(lengths)), opened.pad), opened.model.device
    for i, text in enumerate(texts):
        ids[i, : len(text)] = torch.tensor(text)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return opened.forward(ids.to(device), mask.to(device), lengths)


class _Text(NamedTuple):
    """A text as models/packing.py lays it out: the last token of `response` is not read, so one more follows."""

    prompt: Ids
    response: Ids


def _split(groups: Sequence[Sequence[Sequence[int]]]) -> dict[Ids, _Text]:
    """Every text once, cut behind what its group begins with, and behind its first token at least."""
    found: dict[Ids, _Text] = {}
    for group in groups:
        first, last = min(map(tuple, group)), max(map(tuple, group))  # what these two begin with, all do
        common = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
        for text in map(tuple, group):
            found.setdefault(text, _Text(text[: max(1, common)], (*text[max(1, common) :], text[-1])))
    return found


def _shared(opened: Shared, groups: Sequence[Sequence[Ids]]) -> Iterator[_Batch]:
    from mnpo.models.packing import batches, share_width, shared_rows, together

    texts = _split(groups)
    split, whole = list(texts.values()), list(texts)
    rows = shared_rows(split, share_width(opened.model.config), SCORING_TOKENS)
    for part in batches(rows, together(opened.model, SCORING_TOKENS)):
        some = [whole[i] for row in part for i in row.members]
        do = partial(_of_states, opened, split, part, [opened.places(text) for text in some])
        yield _Batch(some, sum(row.length for row in part), len(part) * part[0].length, do)


def _of_states(opened: Shared, texts: Sequence[_Text], rows: Sequence[Row], places: Sequence[Sequence[int]]) -> Tensor:
    """What `head` makes of one batch's texts, in the order of its rows' members, from their states at `places`."""
    import torch

    from mnpo.models.packing import hidden_states, lay_out

    batch = lay_out(texts, rows, 0, opened.model.device)
    at = []
    for member, source, wanted in zip(
        batch.members, torch.split(batch.source.cpu(), batch.lengths), places, strict=True
    ):
        behind = len(texts[member].prompt) - 1  # the prompt's last token, which source begins with
        at.append([int(source[0]) + i - behind if i < behind else int(source[i - behind]) for i in wanted])
    return opened.head(hidden_states(opened.model, batch)[torch.tensor(at, device=opened.model.device)])
