"""What uniform batches cost beside batches of similar length (`training.batches`): padding, and tokens a second.

python -m benchmarks.batches    # two minutes of one core
"""

from __future__ import annotations

import math
import time
from itertools import islice
from random import Random
from statistics import fmean, median, pstdev

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from benchmarks.measuring import told
from mnpo.config.training import Training
from mnpo.learning.batches import dealt, shuffled
from mnpo.learning.training import optimise, prepared
from mnpo.models.chat import Encoded

BATCH, BUDGET, PAIRS = 128, 8192, 20_000  # of config.yaml
WAYS = ("uniform", "windows")


def lengths(count: int, scale: float = 1.0) -> list[tuple[int, int, int]]:
    """Tokens of prompt, chosen and rejected: log-normal, with the means of config.yaml's `resources`."""
    rng = Random(0)

    def drawn(mean: float, sigma: float, most: int) -> int:
        return max(1, min(most, round(scale * mean * math.exp(rng.gauss(0, sigma) - sigma**2 / 2))))

    return [(drawn(190, 0.9, 1800), drawn(400, 0.6, 1024), drawn(400, 0.6, 1024)) for _ in range(count)]


def counted() -> None:
    """Of the paper's batches: how unlike they are, and how much of a step's time is its tokens."""
    rows = [sum(row) for row in lengths(PAIRS)]
    print("| batches | ranks | sd of means | sd within | padding | tokens a step pays for |")
    print("|---|---|---|---|---|---|")
    for way in WAYS:
        steps = list(islice(shuffled(rows, BATCH, 0, windows=way == "windows"), PAIRS // BATCH))
        means = pstdev(fmean(rows[i] for i in step) for step in steps)
        within = fmean(pstdev(rows[i] for i in step) for step in steps)
        for ranks in (1, 2, 8):
            tokens = padded = waited = 0
            for step in steps:
                here = [rows[i] for i in step]
                shares = dealt(here, BUDGET, ranks)
                rounds = [[len(p) * max(here[i] for i in p) if p else 0 for p in parts] for parts in shares]
                tokens, padded = tokens + sum(here), padded + sum(map(sum, rounds))
                waited += ranks * sum(map(max, zip(*rounds, strict=True)))  # everyone waits for the slowest
            print(
                f"| {way} | {ranks} | {means:.0f} | {within:.0f} | {1 - tokens / padded:.1%} | {tokens / waited:.1%} |"
            )


def measured(steps: int = 8, repeats: int = 3) -> None:
    """Tokens a second of one process' core, for a small model."""
    texts, rng = lengths(BATCH * steps, 0.1), Random(1)  # an epoch: the same rows either way
    ids = [[[rng.randrange(3, 500) for _ in range(n)] for n in row] for row in texts]
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 16}
    config = Gemma2Config(**sizes, vocab_size=512, num_attention_heads=4, num_key_value_heads=2)
    config._attn_implementation = "eager"

    def losses(module: torch.nn.Module, rows: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        both = [Encoded(ids[r][0], ids[r][side]) for side in (1, 2) for r in rows]
        found = module(both, reduction="sum")
        return (found[: len(rows)] - found[len(rows) :] - 1).square(), {}

    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            torch.manual_seed(0)
            settings = Training(batch_size=BATCH, batches=way, micro_batch_tokens=round(BUDGET * 0.1))
            module = prepared(Gemma2ForCausalLM(config).train(), settings)
            started = time.process_time()
            done = optimise(
                module, settings, losses, [sum(row) for row in texts], steps, names=[""] * len(texts), seed=0, what=way
            )
            tokens = sum(step["tokens"] for step in done.history)
            speeds[way].append(tokens / (time.process_time() - started))
    print("\n| batches | tokens a CPU second, median [lowest to highest] |\n|---|---|")
    for way, found in speeds.items():
        print(f"| {way} | {median(found):,.0f} [{min(found):,.0f} to {max(found):,.0f}] |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with told("Batches", "Counted at the paper's size; measured with lengths and budget a tenth of these."):
        counted()
        measured()
