"""Published models in miniature, for a rehearsal: their architecture and files, random weights, few of them.

What is kept: config.json's keys and values but for sizes, the names and dtypes of weights, several files of weights
with an index, which weights are absent (Gemma-2's tied head), the tokens that are special, the kind of chat template,
and the width of attention heads, for which kernels are made. Written from memory of the published config.json's;
Athene's was not at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnpo.config.sources import Miniature
from mnpo.demo import world
from mnpo.demo.model import train_tokenizer

TOKENS = 384
"""Of the tokenizers, at most."""
FILE_SIZE = "100KB"
"""At most, of a file of weights: several, as published."""
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
GEMMA_2: dict[str, Any] = SIZES | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "cache_implementation": "hybrid",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
LLAMA_3: dict[str, Any] = SIZES | {
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
LLAMA_3_1 = LLAMA_3 | {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
OBJECTIVES, GATE_WIDTH, GATE_DEPTH = 19, 32, 3
LLAMA_NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
LLAMA_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_1|>")
LLAMA_TEMPLATE = """\
{%- for message in messages -%}
{{- bos_token if loop.first else '' -}}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""


def build(directory: Path, model: Miniature, seed: int) -> None:
    """Write a small model with the architecture and the files of a published one: the same seed writes the same bytes.

    `seed` is that of the demo's world, on whose texts its tokenizer is trained, and of its weights.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        directory.mkdir(parents=True, exist_ok=True)
        MAKERS[model](directory, _texts(seed))


def _texts(seed: int) -> list[str]:
    rows = world.make_world(seed, demonstrations=500, parts=0, part_size=0, heldout=0).demonstrations
    return [f"{prompt} {response}" for prompt, response in zip(rows["prompt"], rows["response"], strict=True)]


def _gemma_2(directory: Path, texts: list[str]) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GenerationConfig

    tokenizer = train_tokenizer(texts, TOKENS)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = GEMMA_2 | ids | {"vocab_size": len(tokenizer)}
    weights = Gemma2ForCausalLM(Gemma2Config(**config)).state_dict()
    _save(directory, config, tokenizer, {n: w.bfloat16() for n, w in weights.items() if n != "lm_head.weight"})
    GenerationConfig(**{**ids, "eos_token_id": [1, turn]}).save_pretrained(directory)


def _armorm(directory: Path, texts: list[str]) -> None:
    import torch

    sizes = [SIZES["hidden_size"], *[GATE_WIDTH] * GATE_DEPTH, OBJECTIVES]
    head = {
        f"gating.layers.{i}.{name}": torch.randn(shape) * 0.7
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        for name, shape in (("weight", (b, a)), ("bias", (b,)))
    } | {
        "gating.logit_scale": torch.tensor([1.7]),
        "regression_layer.weight": torch.randn(OBJECTIVES, sizes[0]),
        "reward_transform_matrix": torch.eye(OBJECTIVES) - 0.3 * torch.rand(OBJECTIVES, OBJECTIVES),
    }
    settings = {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
        "num_objectives": OBJECTIVES,
        "gating_temperature": 10,
        "gating_hidden_dim": GATE_WIDTH,
        "gating_n_hidden": GATE_DEPTH,
    }
    _on_llama(directory, texts, LLAMA_3 | settings, head)


def _skywork(directory: Path, texts: list[str]) -> None:
    import torch

    settings = {"architectures": ["LlamaForSequenceClassification"], **ONE_LABEL}
    head = {"score.weight": torch.randn(1, SIZES["hidden_size"]).bfloat16()}
    _on_llama(directory, texts, LLAMA_3_1 | settings, head)


def _athene(directory: Path, texts: list[str]) -> None:
    import torch

    settings = {"architectures": ["CustomAutoModelForSequenceClassification"]}
    head = {"v_head.weight": torch.randn(1, SIZES["hidden_size"]).bfloat16()}
    _on_llama(directory, texts, LLAMA_3 | settings, head, cls_token=LLAMA_TOKENS[-1])


def _on_llama(directory: Path, texts: list[str], config: dict[str, Any], head: dict[str, Any], **names: str) -> None:
    """A reward model: Llama 3's tokens, a backbone in bfloat16, and a head."""
    from transformers import LlamaConfig, LlamaModel

    tokenizer = train_tokenizer(texts, TOKENS, LLAMA_NAMES | names, LLAMA_TOKENS, LLAMA_TEMPLATE)
    bos, eos = tokenizer.convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>"])
    config = config | {"vocab_size": len(tokenizer), "bos_token_id": bos, "eos_token_id": eos}
    backbone = LlamaModel(LlamaConfig(**{k: v for k, v in config.items() if k not in ("id2label", "label2id")}))
    weights = {f"model.{name}": weight.bfloat16() for name, weight in backbone.state_dict().items()}
    _save(directory, config, tokenizer, weights | head)


def _save(directory: Path, config: dict[str, Any], tokenizer: Any, weights: dict[str, Any]) -> None:
    from huggingface_hub import save_torch_state_dict

    stored = {name: weight.contiguous() for name, weight in weights.items()}
    save_torch_state_dict(stored, directory, max_shard_size=FILE_SIZE, metadata={"format": "pt"})
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


MAKERS: dict[Miniature, Callable[[Path, list[str]], None]] = {
    "gemma-2": _gemma_2,
    "armorm": _armorm,
    "skywork": _skywork,
    "athene": _athene,
}
