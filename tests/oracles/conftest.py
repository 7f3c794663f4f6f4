"""Reward models in miniature: published weights' names and settings, random weights, Llama 3's special tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaModel

from mnpo.models.checkpoints import load_tokenizer
from mnpo.oracles import Question
from tests.helpers.tiny import SIZES

TINY = SIZES | {"max_position_embeddings": 256, "initializer_range": 0.2}
LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""
OBJECTIVES, INNER, DEPTH = 19, 24, 3


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    long = "Sure: cat, dog, and a very long list of other animals such as cows and pigs."
    return [
        Question("Say cat 3 times", "", ["cat cat cat", "cat", ""], "p1"),
        Question("List 3 animals", "", [long], "p2"),
        Question("Opposite of hot?", "", ["cold", "Happy to help: cold.", "warm"], "p3"),
    ]


Save = Callable[..., Path]


@pytest.fixture(scope="session")
def save_llama(random_policy: Path) -> Save:
    """Write a Llama backbone, `extra` weights and settings, and a Llama-3-like tokenizer; returns the directory."""

    def save(directory: Path, extra: dict[str, torch.Tensor], **settings: Any) -> Path:
        tokenizer = load_tokenizer(random_policy)
        special = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_1|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": special})
        tokenizer.chat_template = LLAMA_3
        tokenizer.cls_token = special[-1]
        tokenizer.save_pretrained(directory)
        config = LlamaConfig(vocab_size=len(tokenizer), **TINY)
        torch.manual_seed(1)
        backbone = {f"model.{name}": weight.clone() for name, weight in LlamaModel(config).state_dict().items()}
        save_file(backbone | extra, directory / "model.safetensors", metadata={"format": "pt"})
        content = config.to_dict() | settings
        (directory / "config.json").write_text(json.dumps(content, default=str), encoding="utf-8")
        return directory

    return save


def armorm_weights() -> dict[str, torch.Tensor]:
    """The heads' weights by the names of RLHFlow/ArmoRM-Llama3-8B-v0.1, float32 as there."""
    torch.manual_seed(2)
    sizes = [TINY["hidden_size"], *[INNER] * DEPTH, OBJECTIVES]
    layers = {
        f"gating.layers.{i}.{kind}": torch.randn(shape) * 0.7
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))
        for kind, shape in (("weight", (b, a)), ("bias", (b,)))
    }
    return layers | {
        "gating.logit_scale": torch.tensor([1.7]),
        "regression_layer.weight": torch.randn(OBJECTIVES, TINY["hidden_size"]),
        "reward_transform_matrix": torch.eye(OBJECTIVES) - 0.3 * torch.rand(OBJECTIVES, OBJECTIVES),
    }


ARMORM = {
    "architectures": ["LlamaForRewardModelWithGating"],
    "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    "num_objectives": OBJECTIVES,
    "gating_temperature": 10,
    "gating_hidden_dim": INNER,
    "gating_n_hidden": DEPTH,
}


@pytest.fixture(scope="session")
def armorm(save_llama: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("armorm"), armorm_weights(), **ARMORM)


@pytest.fixture(scope="session")
def armorm_parts() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Its heads' weights and its settings, to be spoilt."""
    return armorm_weights(), dict(ARMORM)


@pytest.fixture(scope="session")
def athene(save_llama: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    head = {"v_head.weight": torch.randn(1, TINY["hidden_size"])}
    architectures = ["CustomAutoModelForSequenceClassification"]
    return save_llama(tmp_path_factory.mktemp("athene"), head, architectures=architectures)


@pytest.fixture(scope="session")
def skywork(save_llama: Save, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    head = {"score.weight": torch.randn(1, TINY["hidden_size"])}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return save_llama(
        tmp_path_factory.mktemp("skywork"), head, architectures=["LlamaForSequenceClassification"], **labels
    )
