"""Blocks `reference` and `training`: how weights are moved."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mnpo.config.blocks import Block, Decay, Name, Positive, Share


class Lora(Block):
    """Low-rank adapters on all linear layers but the head; the policy is saved with them merged in."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


class Optimisation(Block):
    """How weights are moved: AdamW, one learning-rate cycle, batches of whole rows."""

    learning_rate: Positive = 5e-7
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    batch_size: int = Field(128, ge=1)
    """Rows (demonstrations, or pairs) of one optimiser step."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Padded tokens of one forward pass; gradients accumulate over the batch."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: Positive = 1.0
    """Largest gradient norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of products; weights, their optimiser and the loss stay float32."""
    parallel: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """How several processes share a training (docs/training.md); one process needs none of them."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    lora: Lora | None = None
    """Train adapters and leave the weights alone; None trains all weights."""


class SFT(Optimisation):
    """Supervised fine-tuning of the base model on the demonstrations."""

    steps: int = Field(ge=1)


class Training(Optimisation):
    """Preference optimisation of one iteration."""

    epochs: int = Field(1, ge=1)


class Reference(Block):
    """The SFT policy every run starts from: `model`, fine-tuned on the demonstrations when `sft` is given."""

    model: Name
    sft: SFT | None = None
