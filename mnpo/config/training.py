"""Blocks `reference` and `training`: how weights are moved."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from mnpo.config.blocks import Block, Decay, Name, Positive, Share

Schedule = Literal["cosine", "linear", "constant"]
Optimiser = Literal["adamw", "rmsprop"]
Batches = Literal["uniform", "windows"]
LastBatch = Literal["fill", "drop"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flex_attention"]
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
    attention: Attention | None = None
    """How attention is computed, by transformers' name (docs/training.md); None: as the model asks."""
    compile: bool | None = None
    """true: decoder layers are compiled, which fuses their elementwise parts (docs/training.md)."""
    lora: Lora | None = None
    """Train adapters and leave the weights alone; None trains all weights."""
    bfloat16_copy: bool | None = None
    """true: the policy is saved in bfloat16 too, which is what readers in bfloat16 load (docs/training.md)."""


class Demonstrations(Block):
    """Where demonstrations come from: conversations, or prompts with a response (docs/data.md)."""

    file: str | None = None
    """A JSONL or Parquet file."""
    dataset: Name | None = None
    """Or an entry of `datasets`."""
    split: str = "train"
    """For `dataset`: the split to read."""
    column: str = "prompt"
    """The column that holds the conversation, or the prompt. Rows without a `prompt`, or without an answer beside it,
    are read by the columns `messages`, `conversations` or `instruction`."""
    rows: int | None = Field(None, ge=1)
    """At most so many, drawn at random; None: all."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learnt. Those of the system and the user never are."""
    heldout: Decay | Annotated[int, Field(ge=2)] = 0
    """Conversations kept aside: their loss says how far to go. Below 1 a share, from 2 on a number."""
    heldout_split: str | None = None
    """For `dataset`: the split that these come from; None: `split`."""
    unusable: Literal["refuse", "drop"] = "refuse"
    """A row that is no such conversation: an error, or left out and counted."""
    expected: int | None = Field(None, ge=1)
    """About how many conversations there are, for the plan (where `rows` does not say it)."""

    def kept_aside(self, there: int) -> int:
        """How many of the conversations that are there."""
        return round(self.heldout * there) if self.heldout < 1 else int(self.heldout)

    @model_validator(mode="after")
    def _one_source(self) -> Demonstrations:
        if (self.file is None) == (self.dataset is None):
            raise ValueError("give one of file and dataset")
        if self.file is not None and (self.split != "train" or self.heldout_split):
            raise ValueError(f"split and heldout_split are for a dataset, and {self.file} is a file")
        if self.heldout_split is not None and not self.heldout:
            raise ValueError("heldout_split needs heldout: how many conversations of it, or which share")
        return self


class SFT(Optimisation):
    """Supervised fine-tuning of the base model on the demonstrations."""

    data: Demonstrations | None = None
    """None: the demo's own."""
    steps: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    """Instead of `steps`."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps from one held-out loss to the next; None: after the last step alone."""
    keep: Literal["last", "best"] | None = None
    """Which weights become the policy: the last (None), or those of the least held-out loss."""

    @model_validator(mode="after")
    def _complete(self) -> SFT:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of steps and epochs")
        return self


class Training(Optimisation):
    """Preference optimisation of one iteration."""

    epochs: int = Field(1, ge=1)


class Reference(Block):
    """The SFT policy every run starts from: `model`, fine-tuned on the demonstrations when `sft` is given."""

    model: Name
    sft: SFT | None = None
