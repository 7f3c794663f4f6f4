"""A model's vocabulary, grown by control tokens that its new chat template is made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def known_tokens(path: str | Path) -> int:
    """How many tokens the tokenizer in `path` has by itself."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(path, local_files_only=True))


def grow(model: PreTrainedModel, tokenizer: Any, known: int) -> int:
    """Give `model` embeddings for the tokens of `tokenizer` from number `known` on; how many these are.

    A new token begins as the mean of those that were known, in the embeddings and, where it is another matrix, in the
    head: it is as likely as any at first, and nothing is drawn at random. Rows that a model has to spare are taken
    before there are more.
    """
    import torch

    new = len(tokenizer) - known
    if new <= 0:
        return 0
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):  # a tied head twice is no matter
            for name in ("weight", "bias"):
                if (rows := getattr(layer, name, None)) is not None:
                    rows[known : len(tokenizer)] = rows[:known].float().mean(0).to(rows.dtype)
    return new


def set_ends(model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Write into generation_config.json the tokens at which whoever samples from `model` stops."""
    model.generation_config.eos_token_id = list(ends)
