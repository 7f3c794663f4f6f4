"""Every number of the cost model that is neither configured nor measured (docs/costs.md)."""

from __future__ import annotations

from dataclasses import dataclass

READ_EFFICIENCY = 0.35
"""Share of the peak that reading texts reaches: scoring, log-probabilities, prompts."""
TRAIN_EFFICIENCY = 0.25
"""Share of the peak that training reaches, recomputation counted as work."""
WRITE_EFFICIENCY = 0.25
"""Share of the memory's bandwidth that writing token by token reaches, with nothing but the weights counted."""
OCCUPANCY = 0.5
"""Mean share of a batch that is still writing: a batch ends with its longest response."""
QUEUE_OCCUPANCY = 0.85
"""The same where thousands of requests wait in one queue (vLLM's of `sample`): the batch is full but for the end."""
WIDEST_ROWS = 256
"""Responses drawn at once where memory decides (`sampling.batch_size: widest`): vLLM's own, without a GPU's size."""
READ_FLOPS = 2
"""Per parameter and token: a forward pass."""
TRAIN_FLOPS = 6
"""Per parameter and token: a forward pass and a backward pass. With gradient checkpointing READ_FLOPS more."""
WEIGHT_BYTES = 2
"""Per parameter, where it computes (bfloat16)."""
SAVED_BYTES = 4
"""Per parameter of a policy on disk: float32, as it is trained (mnpo/models/checkpoints.py)."""
CHECKPOINT_BYTES = 12
"""Per parameter of a training's own checkpoint: weights and two moments of AdamW in float32 (storage/resume.py)."""
TRAIN_BYTES = 16
"""Per parameter in the GPUs' memory while training, activations left out: weights, gradients, moments in float32."""
START = {"gpu": 20.0, "cpu": 8.0, "small": 2.0}
"""Seconds until a job begins, with a model on a GPU, with one on a CPU, or with none: Python and its libraries."""
LOADING = 1e9
"""Bytes/s at which weights come from disk."""
STORING = 1e9
"""Bytes/s at which weights go to disk, all ranks together."""
HASHING = 1e9
"""Bytes/s of SHA-256, on one core."""
FILE_BYTES = 5e9
"""Of one file of a large checkpoint, which one core hashes: transformers' own limit is 5 GB."""
COMPILING = 60.0
"""Seconds in which vLLM compiles, warms up and captures graphs when it starts on a GPU."""
CHECKPOINT_SECONDS = 600.0
"""Between two checkpoints of a training (MNPO_CHECKPOINT_MINUTES)."""
DOWNLOADING = 50e6
"""Bytes/s."""
SMALL_JOB = 30.0
"""Seconds of a job without a model."""
LATENCY = 10.0
"""Seconds of one call."""
CONCURRENCY = 8
"""Calls of a policy behind an endpoint at once."""
TOKEN_BYTES = 4.5
"""Text of one token."""
ROW_BYTES = 100
"""Of a row without text: ids and numbers."""
CHOICE_TOKENS = 120
"""Of a reply to a multiple choice, where it is read from one (EvalScope): a letter, or steps before it."""
DEMO_ITEMS = 14
"""Of a benchmark's small version, at most (mnpo/demo/judged_items.py)."""
DATASET_BYTES = 0.1e9
"""Of a data set whose configuration does not say `gigabytes`."""


@dataclass(frozen=True)
class Judging:
    """How a benchmark asks its judge."""

    calls: int
    """Per item."""
    frame: int
    """Tokens of a call around question and answers: system prompt, template, reference answer."""
    answers: float
    """Answers shown in a call, the baseline's included."""
    output: int
    """Tokens of a verdict."""


GAME = Judging(calls=2, frame=150, answers=2, output=150)
"""How an oracle asks of two responses (mnpo/oracles/judges.py): in both orders, for a few sentences and a verdict."""
JUDGING = {
    "alpaca-eval": Judging(calls=1, frame=300, answers=2, output=16),
    "arena-hard": Judging(calls=2, frame=450, answers=2, output=700),
    "mt-bench": Judging(calls=2, frame=400, answers=1.5, output=200),
    "minerva": Judging(calls=1, frame=150, answers=2, output=1),  # EvalScope's; the reference solution is an answer
}
