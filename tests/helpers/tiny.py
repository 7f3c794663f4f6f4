"""Sizes of models and settings of trainings that run in a moment, for tests to add to."""

from __future__ import annotations

from typing import Any

from mnpo.config.text import Text

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
}
GEMMA: dict[str, Any] = SIZES | {
    "query_pre_attn_scalar": 16,
    "initializer_range": 0.04,
    "max_position_embeddings": 128,
    "sliding_window": 128,
}


def first_iteration(text: Text, training: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The train stage's settings of INPO's first iteration, where start, opponent and reference are one policy."""
    return {
        "policy": "inpo.1",
        "start": "sft",
        "objective": {"name": "inpo", "eta": 0.2, "ratio": 1 / 3},
        "opponents": [("sft", 1.0)],
        "scorers": ["sft"],
        "training": training,
        "form": {},
        "text": text.model_dump(),
        "seed": 1,
    } | changes
