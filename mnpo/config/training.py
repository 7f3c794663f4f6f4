"""Blocks `reference` and `training`: how weights are moved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from mnpo.config.blocks import Block, Decay, Name, Positive, Share

Schedule = Literal["cosine", "linear", "constant"]
Optimiser = Literal["adamw", "rmsprop"]
Batches = Literal["uniform", "windows"]
LastBatch = Literal["fill", "drop"]
# null is 0, and off: canonical settings leave null out, and a default would take its place
NullIsOff = BeforeValidator(lambda value: 0.0 if value is None else value)
Clip = Annotated[
    float,
    NullIsOff,
    Field(ge=0, allow_inf_nan=False),
    WithJsonSchema({"type": ["number", "null"], "minimum": 0}),
]


class Lora(Block):
    """Low-rank adapters on all linear layers but the head; the policy is saved with them merged in."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


class Optimisation(Block):
    """How weights are moved: an optimiser, one learning-rate cycle, batches of whole rows."""

    learning_rate: Positive = 5e-7
    schedule: Schedule = "cosine"
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises."""
    warmup_from_zero: bool | None = None
    """true: the first step's rate is zero, as transformers has it (docs/ledger.md, point 46)."""
    batch_size: int = Field(128, ge=1)
    """Rows (demonstrations, or pairs) of one optimiser step."""
    batches: Batches | None = None
    """Which rows make a batch. `uniform` (None): any; `windows`: rows of similar length, which pads little and makes
    batches unlike each other (point 45)."""
    last_batch: LastBatch | None = None
    """Of an epoch, when incomplete. `fill` (None): with the next epoch's first rows; `drop`: its rows are left out
    (point 47)."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Padded tokens of one forward pass; gradients accumulate over the batch."""
    optimiser: Optimiser | None = None
    """`adamw` (None), or `rmsprop` with torch's own constants, which SPPO's authors use."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(0.0, ge=0)
    clip: Clip = 1.0
    """Largest gradient norm; null or 0: gradients are not clipped (point 43)."""
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
