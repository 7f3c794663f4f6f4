"""On one GPU: log-probabilities, scoring, training and sampling of a random Gemma-2 of 2B, log-probabilities of 9B.

    python -m benchmarks.gpu          # `make bench-gpu`; needs CUDA
    python -m benchmarks.gpu --toy    # a toy model on any device: does it run?

Weights are random, so what is sampled never ends before its limit. The share of the ceiling is that of a measured
product of square matrices; a backward pass counts as two forward ones, recomputation as nothing.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.logprobs import MIB, Text, cpu_name, make_model, make_texts, measure, spread
from mnpo.config.sampling import Sampling
from mnpo.config.training import Training
from mnpo.learning.distributed import engine
from mnpo.learning.training import precision, prepared
from mnpo.models.checkpoints import require_flex
from mnpo.models.logprobs import ScoredTexts, score_texts
from mnpo.oracles.forward import Reader, Shared
from mnpo.samplers import Request


class Shape(NamedTuple):
    """Of a model and of what it reads."""

    hidden: int
    layers: int
    heads: int
    vocabulary: int = 256_000
    prompt: int = 190
    response: int = 400
    pairs: int = 16


class Fast(NamedTuple):
    """What training is measured with and without (docs/training.md)."""

    attention: str
    compile: bool

    def __str__(self) -> str:
        return f"{self.attention}, layers {'' if self.compile else 'not '}compiled"


SMALL, LARGE = Shape(2304, 26, 8), Shape(3584, 42, 16)
TOY = Shape(64, 2, 2, 1_000, 20, 30, 2)
MOST_TOKENS = 1 << 17  # of a micro-batch that is tried


def matmul_ceiling(device: str, dtype: torch.dtype, size: int) -> float:
    """Measured FLOP/s of a square matrix product: the best of ten."""
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    a @ b
    return 2 * size**3 / min(measure(lambda: (a @ b)[:1], device)[0] for _ in range(10))


def useful_flops(model: Any, texts: list[Text], scored: ScoredTexts) -> float:
    """Forward FLOPs that any way must do: products with the body's weights for the needed tokens, attention's causal
    half, the head for the response tokens. Padding and recomputation are not useful and not counted.
    """
    config, head = model.config, model.lm_head.weight.numel()
    body = sum(p.numel() for p in model.parameters()) - head  # the tied head is counted once by parameters()
    cells = sum((len(t.prompt) + len(t.response)) ** 2 / 2 for t in texts)
    attention = 4 * cells * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return 2 * body * scored.needed + 2 * head * int(scored.counts.sum()) + attention


def texts_of(shape: Shape, count: int = 2) -> list[Text]:
    """Prompts with `count` responses each, ragged."""
    lengths = [max(2, round(shape.response * (0.6 + 0.8 * k / max(1, count - 1)))) for k in range(count)]
    return [text for _ in range(shape.pairs) for text in make_texts(shape.vocabulary, shape.prompt, lengths)]


def row(what: str, tokens: int, taken: Sequence[tuple[float, float]], flops: float, ceiling: float) -> str:
    rates, shares = [tokens / s for s, _ in taken], [100 * flops / s / ceiling for s, _ in taken]
    peak = spread([m for _, m in taken], 0)
    return f"| {what} | {spread(rates, 0)} | {f'{spread(shares, 1)} %' if flops else ''} | {peak} |"


def forward(shape: Shape, model: Any, ceiling: float, repeats: int, what: str) -> str:
    texts = texts_of(shape)
    scored = score_texts(model, texts, max_tokens=16_384)  # also warms up
    device = model.device.type
    taken = [measure(lambda: score_texts(model, texts, max_tokens=16_384).sums, device)[:2] for _ in range(repeats)]
    return row(what, scored.needed, taken, useful_flops(model, texts, scored), ceiling)


def scoring(shape: Shape, model: Any, ceiling: float, repeats: int) -> str:
    """By a linear head on the last token's state, five responses a prompt."""
    texts = texts_of(shape, 5)
    groups = [[[*t.prompt, *t.response] for t in texts[i : i + 5]] for i in range(0, len(texts), 5)]
    weight = torch.randn(1, shape.hidden, device=model.device, dtype=model.dtype)
    opened = Shared(model, lambda h: h[:, 0] @ weight.T, lambda ids: [len(ids) - 1])
    read = 0

    def run() -> torch.Tensor:
        nonlocal read
        reader = Reader()
        found = reader.read(lambda: opened, groups, "random")
        read = reader.tokens
        return torch.tensor(found)

    run()
    taken = [measure(run, model.device.type)[:2] for _ in range(repeats)]
    body = sum(p.numel() for p in model.parameters()) - model.lm_head.weight.numel()
    return row("scoring, 5 responses a prompt", read, taken, 2 * body * read, ceiling)


def training(shape: Shape, model: Any, ceiling: float, repeats: int, how: Fast) -> list[str]:
    """A step in float32 weights and bfloat16 products, with gradient checkpointing; then ever larger micro-batches."""
    optimisation = Training(batch_size=shape.pairs, dtype="bfloat16", gradient_checkpointing=True, compile=how.compile)
    model.set_attn_implementation(how.attention)
    module = prepared(model.float().train(), optimisation)
    moves = engine(module, optimisation)
    texts = texts_of(shape)

    def step(some: list[Text], most: int) -> torch.Tensor:
        """Pairs of `some`, as many together as `most` tokens allow."""
        length = max(len(t.prompt) + 2 * len(t.response) for t in some)
        together = 2 * max(1, most // length)
        for start in range(0, len(some), together):
            with precision(optimisation, module):
                sums = module(some[start : start + together])
            moves.backward(((sums[0::2] - sums[1::2]) / 100).square().sum(), last=start + together >= len(some))
        moves.step(1e-7)
        return torch.zeros(())

    step(texts, 8192)
    taken = [measure(lambda: step(texts, 8192), model.device.type)[:2] for _ in range(repeats)]
    counted = ScoredTexts(torch.zeros(0), torch.tensor([len(t.response) for t in texts]), 0, _tokens(texts), 0)
    lines = [row(f"training step, {how}", counted.needed, taken, 3 * useful_flops(model, texts, counted), ceiling)]
    fits, most = 0, 4096 if shape is not TOY else 64
    while most <= (MOST_TOKENS if shape is not TOY else 256):
        try:
            step(make_texts(shape.vocabulary, shape.prompt, [(most - shape.prompt) // 2] * 2), most)
        except torch.OutOfMemoryError:
            break
        fits, most = most, 2 * most
    largest = f"Largest micro-batch that fits a training step, {how}: {fits:,} tokens (tried: powers of two)"
    return [*lines, f"{largest}; held beside it: {_held(model.device.type == 'cuda')}."]


def _tokens(texts: Sequence[Text]) -> int:
    """Through the decoder, a pair's prompt once."""
    return sum(len(t.response) - 1 + (len(t.prompt) if i % 2 == 0 else 0) for i, t in enumerate(texts))


def sampling(shape: Shape, model: Any, directory: Path) -> str:
    """By vLLM where it is installed, else by transformers."""
    requests = [Request(make_texts(shape.vocabulary, shape.prompt, [1])[0].prompt, k) for k in range(shape.pairs)]
    requests = [r._replace(seed=5 * r.seed + k) for r in requests for k in range(5)]
    asked = Sampling(max_new_tokens=shape.response, temperature=0.8, batch_size=64, dtype="bfloat16")
    run: Callable[[], Any]
    if importlib.util.find_spec("vllm"):
        from mnpo.samplers import vllm

        name, window = "vLLM", shape.prompt + shape.response
        model.save_pretrained(directory)
        run = lambda: vllm.draw(directory, requests, asked, [], window, "sample")  # noqa: E731
    else:
        from mnpo.samplers import transformers as ours

        name = "transformers"
        run = lambda: ours.draw(model, requests, asked, [], 64, "sample")  # noqa: E731
    begun = time.monotonic()
    tokens = sum(len(r.tokens) for r in run())
    return f"Sampling by {name}, start-up included: {tokens / (time.monotonic() - begun):,.0f} tokens/s written."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not o.toy:
        raise SystemExit(
            "make bench-gpu: no CUDA device here; `python -m benchmarks.gpu --toy` shows that the code runs"
        )
    device, repeats = "cuda" if cuda else "cpu", 1 if o.toy else o.repeats
    name = torch.cuda.get_device_name() if cuda else cpu_name()
    print(
        f"{name}; torch {torch.__version__}, transformers {transformers.__version__}{'; TOY SIZE' if o.toy else ''}\n"
    )
    dtype, small = torch.bfloat16, TOY if o.toy else SMALL
    ceiling = matmul_ceiling(device, dtype, 256 if o.toy else 8192)
    print(f"Ceiling: {ceiling / 1e12:.2f} TFLOP/s, bfloat16. Medians [lowest to highest] of {repeats}.\n")
    print("| what | tokens/s | share of the ceiling | peak MiB beyond what was held |\n|---|---|---|---|", flush=True)
    large = TOY if o.toy else LARGE
    model = make_model(large.vocabulary, large.hidden, large.layers, device, dtype, large.heads)
    attentions = ["eager"]
    if cuda:  # on a CPU torch cannot train with it
        require_flex("flex_attention is measured")
        attentions.append("flex_attention")
    for attention in attentions:
        model.set_attn_implementation(attention)
        print(forward(large, model, ceiling, repeats, f"log-probabilities, 9B, {attention}"), flush=True)
    del model
    torch.cuda.empty_cache()
    model = make_model(small.vocabulary, small.hidden, small.layers, device, dtype, small.heads)
    print(forward(small, model, ceiling, repeats, "log-probabilities, 2B"), flush=True)
    print(scoring(small, model, ceiling, repeats), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        sampled = sampling(small, model, Path(directory))
    largest = []
    for how in (Fast(attention, compiled) for attention in attentions for compiled in (False, True)):
        line, most = training(small, copy.deepcopy(model), ceiling, repeats, how)
        print(line, flush=True)
        largest.append(most)
        torch.cuda.empty_cache()
    print("", *largest, sep="\n")
    print(f"\n{sampled}")


def _held(cuda: bool) -> str:
    return f"{torch.cuda.memory_allocated() / MIB:,.0f} MiB" if cuda else "not told on a CPU"


if __name__ == "__main__":
    main()
