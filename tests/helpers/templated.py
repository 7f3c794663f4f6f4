"""Policies of random weights with the chat templates of Gemma-2, Llama-3 and Qwen, and what they are made to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENED = QWEN.replace("assistant\n{%", "assistant\n<think>\n{%").replace(
    "{{ m.content }}",
    "{% set parts = m.content.split('</think>') %}{% if m.role == 'assistant' and loop.last %}<think>\n"
    "{{ parts[0].split('<think>')[-1] if parts|length > 1 else '' }}</think>{% endif %}{{ parts[-1] }}",
)
"""Every answer begins in its thinking, which the prompt opens, as Qwen3-Thinking's."""
EMPTIED = QWEN.replace(
    "{{ m.content }}",
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1] }}",
)
"""An earlier answer's thinking is not shown again, and the last one's is shown as empty, as Qwen3's."""
THINKING = {"opened": OPENED, "emptied": EMPTIED}
TEMPLATES = {
    "gemma-2": (GEMMA, "<bos>", ["<start_of_turn>", "<end_of_turn>"]),
    "llama-3": (LLAMA, "<|begin_of_text|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "qwen": (QWEN, None, ["<|im_start|>", "<|im_end|>"]),
}
"""Template, BOS if it has one, and special tokens: the first opens a turn."""


def policy_with(
    directory: Path, template: str, bos: str | None, specials: list[str], adds: bool = True, length: int = 4096
) -> Path:
    """A tiny model of random weights with a byte tokenizer and a template; `adds`: BOS before plain text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", *([bos] if bos else []), *specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos and adds:
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token="<eos>",
        pad_token="<pad>",
        additional_special_tokens=specials,
        chat_template=template,
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=length,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    fast.save_pretrained(directory)
    return directory


def thinking_policy(directory: Path, template: str, special: bool = False, length: int = 4096) -> Path:
    """One whose template knows of thinking; `special`: its tags are special tokens."""
    tags = ["<think>", "</think>"] if special else []
    return policy_with(directory, template, None, ["<|im_start|>", "<|im_end|>", *tags], length=length)


def saying(monkeypatch: pytest.MonkeyPatch, directory: Path, said: Callable[[str], tuple[str, str]]) -> None:
    """Have a policy say to each prompt, as it reads it, what `said` says of it, and end as that says (stop, length)."""
    from mnpo.models.checkpoints import load_tokenizer
    from mnpo.samplers import Request, Response, transformers

    tokenizer = load_tokenizer(directory)

    def draw(model: Any, requests: Sequence[Request], *rest: Any, **others: Any) -> list[Response]:
        drawn = []
        for request in requests:
            text, finish = said(tokenizer.decode(request.prompt))
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            drawn.append(Response(ids + [tokenizer.convert_tokens_to_ids("<|im_end|>")] * (finish == "stop"), finish))
        return drawn

    monkeypatch.setattr(transformers, "draw", draw)
