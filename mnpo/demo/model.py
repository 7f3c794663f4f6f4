"""A tokenizer and a tiny Gemma-2 with random weights, saved as any pretrained checkpoint is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.models.checkpoints import save

GEMMA = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
TURNS = ("<start_of_turn>", "<end_of_turn>")

# Gemma-2's, but that answers stay as they were drawn: what is trained is then what was sampled, to the last space.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ('user', 'model', 'assistant') -%}
{{- raise_exception('there is no turn for the role ' + message['role'] + ': use user and assistant') -}}
{%- endif -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('turns must alternate, user first') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '<start_of_turn>user\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- else -%}
{{- '<start_of_turn>model\\n' + message['content'] + '<end_of_turn>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def build(directory: Path, texts: Iterable[str], *, vocab_size: int, architecture: dict[str, Any], seed: int) -> None:
    """Write into `directory` a tokenizer trained on `texts` and a Gemma-2 with random float32 weights.

    `vocab_size` counts the special tokens and the 256 bytes, and is reached only when the texts have as many merges;
    `architecture` holds keyword arguments of Gemma2Config. The same arguments give the same bytes.
    The tokenizer adds BOS to plain text, as Gemma's does, and the chat template renders one too: encode rendered text
    with `add_special_tokens=False`. Raises ValueError when `vocab_size` leaves no room for merges or `texts` is empty.
    """
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig

    tokenizer = train_tokenizer(texts, vocab_size)
    bos, eos, pad, turn = tokenizer.convert_tokens_to_ids(["<bos>", "<eos>", "<pad>", "<end_of_turn>"])
    ids = {"bos_token_id": bos, "eos_token_id": [eos, turn], "pad_token_id": pad}
    config = Gemma2Config(vocab_size=len(tokenizer), **ids, dtype="float32", **architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(**ids)
    save(model, tokenizer, directory)


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    special: Mapping[str, str] = GEMMA,
    further: Sequence[str] = TURNS,
    chat_template: str = CHAT_TEMPLATE,
) -> Any:
    """A byte-level tokenizer of at most `vocab_size` tokens that begins plain text with BOS.

    `special` names its special tokens as transformers does (bos_token, ...); they and then `further` ones are its first
    tokens, in that order. Raises ValueError when there is no room for merges, or no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    texts, first = list(texts), list(dict.fromkeys([*special.values(), *further]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if not texts:
        raise ValueError("build: no texts to train the tokenizer on")
    if vocab_size <= len(first) + len(alphabet):
        raise ValueError(f"build: vocab_size must be above {len(first) + len(alphabet)}, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    # The roles are in every sequence, so they are worth a token each.
    tokenizer.train_from_iterator([*texts, *["user\nmodel\n"] * len(texts)], trainer)
    bos = special["bos_token"]
    begin = [(bos, tokenizer.token_to_id(bos))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=begin)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        additional_special_tokens=list(further),
        padding_side="right",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
