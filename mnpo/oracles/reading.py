"""Texts through a model: batches of similar length across prompts, padded on the right; every text once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mnpo.batches import SCORING_TOKENS, by_tokens
from mnpo.errors import BadInput
from mnpo.progress import track
from mnpo.resume import Journal

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[["Tensor", "Tensor", list[int]], "Tensor"]
"""Token ids and mask, ``[texts, width]``, and the texts' lengths -> what is wanted of each, ``[texts, numbers]``."""


class Opened(NamedTuple):
    """A model in memory, how texts go through it, and the token that they are padded with."""

    model: Any
    forward: Forward
    pad: int


class Reader:
    """Feeds token ids to a model and counts what was read. No text is read twice, however many calls ask for it.

    What a text gets does not depend on its batch, except for rounding: about 1e-6 of the score's size in float32, 1e-2
    in bfloat16. Equal texts get equal numbers to the last bit.

    Args:
        journal: keeps every batch that is finished, and has those of an earlier session.
    """

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal
        self.tokens = self.padding = self.parameters = 0
        self._found: dict[tuple[int, ...], list[float]] = {}

    def read(self, opened: Callable[[], Opened], texts: Sequence[Sequence[int]], what: str) -> list[list[float]]:
        """What the model makes of each text.

        Args:
            opened: loads the model; called only when there is something to be read.
            what: the model's name, for messages and the journal.

        Raises:
            BadInput: a text that is longer than the model can read, or a number that is not finite.
            Interrupted: a signal asked the journal's session to stop.
        """
        unread = [text for text in dict.fromkeys(map(tuple, texts)) if text not in self._found]
        if unread:
            self._read(opened(), unread, what)
        return [self._found[tuple(text)] for text in texts]

    def _read(self, opened: Opened, unread: Sequence[tuple[int, ...]], what: str) -> None:
        limit = getattr(opened.model.config, "max_position_embeddings", None) or math.inf
        self.parameters = sum(p.numel() for p in opened.model.parameters())
        batches = by_tokens([len(text) for text in unread], SCORING_TOKENS)
        for batch in track(batches, len(batches), what, "batches"):
            rows = [unread[i] for i in batch]
            lengths = [len(row) for row in rows]
            if max(lengths) > limit:
                raise BadInput(
                    f"{what}: a prompt and its response(s) of {max(lengths)} tokens, the model reads at most {limit}; "
                    "lower sampling.max_new_tokens or leave out the prompt"
                )
            do = partial(_numbers, opened, rows, what)
            numbers = do() if self.journal is None else self.journal.once([what, rows], do)
            self._found |= zip(rows, numbers, strict=True)
            self.tokens += sum(lengths)
            self.padding += max(lengths) * len(rows) - sum(lengths)

    def facts(self) -> dict[str, Any]:
        """Tokens read without padding, the padding's share of all tokens, the model's parameters."""
        if not self.tokens:
            return {}
        share = self.padding / (self.padding + self.tokens)
        return {"tokens": self.tokens, "padding_share": round(share, 4), "parameters": self.parameters}


def _numbers(opened: Opened, rows: Sequence[Sequence[int]], what: str) -> list[list[float]]:
    """What `forward` makes of one batch."""
    import torch

    lengths = [len(row) for row in rows]
    ids, device = torch.full((len(rows), max(lengths)), opened.pad), opened.model.device
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    with torch.inference_mode():
        numbers = opened.forward(ids.to(device), mask.to(device), lengths).float().cpu()
    if not numbers.isfinite().all():
        raise BadInput(f"{what}: the model's output is not a finite number; its weights or its dtype are wrong")
    return numbers.tolist()
