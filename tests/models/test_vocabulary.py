"""Embeddings for new tokens: the mean of the known ones, in rows that were spare or are added."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mnpo.models.vocabulary import grow

KNOWN = 20


class Tokenizer:
    """As far as its size goes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def model(rows: int, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=tied, **sizes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [KNOWN, 64])
def test_new_tokens_begin_as_the_mean_of_the_known(tied: bool, rows: int) -> None:
    grown, before = model(rows, tied), model(rows, tied)
    assert grow(grown, Tokenizer(KNOWN + 2), KNOWN) == 2
    embeddings, head = grown.get_input_embeddings().weight, grown.get_output_embeddings().weight
    assert embeddings.shape[0] == head.shape[0] == grown.config.vocab_size == max(rows, KNOWN + 2)
    assert (embeddings.data_ptr() == head.data_ptr()) is tied
    for ours, theirs in ((embeddings, before.get_input_embeddings().weight), (head, before.lm_head.weight)):
        assert torch.equal(ours[:KNOWN], theirs[:KNOWN]) and torch.equal(ours[KNOWN + 2 :], theirs[KNOWN + 2 :])
        for new in ours[KNOWN : KNOWN + 2]:
            assert new.tolist() == pytest.approx(theirs[:KNOWN].mean(0).tolist(), abs=1e-7)
    ids = torch.tensor([[1, KNOWN + 1]])
    assert torch.isfinite(grown(ids).logits).all()


def test_a_tokenizer_that_has_them_changes_nothing() -> None:
    grown = model(64, tied=False)
    assert grow(grown, Tokenizer(KNOWN), KNOWN) == 0
    assert torch.equal(grown.lm_head.weight, model(64, tied=False).lm_head.weight)
