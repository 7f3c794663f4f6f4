"""Response log-probabilities: ``mnpo.models.logprobs`` against the straightforward way, in time and peak memory.

    python -m benchmarks.logprobs                     # one pair, vocabulary 256,000, hidden size 2304; prints a table
    python -m benchmarks.logprobs --quick             # seconds instead of minutes: does it run?

The straightforward way is the usual code: one padded pair a batch, the model's own logits in float32, ``log_softmax``,
``gather``. Both ways run alternately in one process on one random one-layer Gemma-2, on the same pair.

Peak memory is what a way needs beyond what was held before it: the model's weights are not in it, gradients made on the
way are. On Linux it is the peak resident set (``VmHWM``, reset before each run), on CUDA the allocator's own peak.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks import baseline
from mnpo.models.head import token_logprobs
from mnpo.models.logprobs import response_logprobs

MIB = 2**20


@dataclass(frozen=True)
class Text:
    prompt: list[int]
    response: list[int]


def make_texts(vocab: int, prompt: int, responses: list[int]) -> list[Text]:
    def ids(n: int) -> list[int]:
        return torch.randint(2, vocab, (n,)).tolist()

    shared = ids(prompt)
    return [Text(shared, ids(n)) for n in responses]


def make_model(vocab: int, hidden: int, layers: int, device: str, dtype: torch.dtype, heads: int = 8) -> Any:
    """A random Gemma-2 in the proportions of its 2B and 9B members (tied head, soft-caps, head size 256)."""
    config = transformers.Gemma2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        head_dim=256,
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager")
    return model.eval()


# --- the two ways ---------------------------------------------------------------------------------------------------


def plain_head(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    logits = softcap * torch.tanh(hidden @ weight.T / softcap)
    return logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]


# --- measuring ------------------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` the peak since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(run: Callable[[], Tensor], device: str) -> tuple[float, float, Tensor]:
    """Seconds, peak MiB beyond what was held before, and the values."""
    cuda = device == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory freed earlier and kept would hide what is used now
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    start = time.perf_counter()
    values = run()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM")
    return seconds, (peak - before) / MIB, values


def spread(xs: list[float], digits: int) -> str:
    return f"{statistics.median(xs):.{digits}f} [{min(xs):.{digits}f} to {max(xs):.{digits}f}]"


def compare(name: str, ways: dict[str, Callable[[], Tensor]], repeats: int, device: str) -> str:
    """One line of the table. ``ways``: the plain one, then ours; run alternately, their values compared."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, list[float]] = {way: [] for way in ways}
    difference = 0.0  # relative
    for _ in range(repeats):
        values = []
        for way, run in ways.items():
            took, peak, value = measure(run, device)
            seconds[way].append(took)
            peaks[way].append(peak)
            values.append(value)
        difference = max(difference, (values[1] / values[0] - 1).abs().max().item())
    (a, b), (c, d) = ([statistics.median(x) for x in table.values()] for table in (seconds, peaks))
    columns = [spread(x, 2) for x in seconds.values()] + [f"{b / a:.2f}"]
    columns += [spread(x, 0) for x in peaks.values()] + [f"{d / c:.2f}" if c else "", f"{difference:.0e}"]
    return f"| {name} | " + " | ".join(columns) + " |"


Ways = dict[str, Callable[[], Tensor]]


def cases(model: Any, texts: list[Text], all_weights: bool) -> dict[str, Ways]:
    """What is compared: the whole model on a pair, and the head alone on the same hidden states."""
    weight, softcap = model.lm_head.weight, model.config.final_logit_softcapping
    targets = torch.tensor(texts[0].response + texts[1].response, device=model.device)
    hidden = torch.randn(len(targets), weight.shape[1], device=model.device, dtype=weight.dtype, requires_grad=True)

    def head_sums(per_token: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in per_token.split([len(t.response) for t in texts])])

    def forward(way: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return torch.no_grad()(way)

    def both(way: Callable[[], Tensor], train_head: bool) -> Callable[[], Tensor]:
        """Gradients of the body exist beforehand, as in every micro-batch but the first; the head's are made anew."""

        def run() -> Tensor:
            weight.requires_grad_(train_head)
            sums = way()
            (sums[0] - sums[1] - 1).square().backward()
            weight.grad = None
            return sums.detach()

        return run

    pair: Ways = {"plain": lambda: baseline.sums(model, texts), "ours": lambda: response_logprobs(model, texts)}
    head: Ways = {
        "plain": lambda: head_sums(plain_head(hidden, weight, targets, softcap)),
        "ours": lambda: head_sums(token_logprobs(hidden, weight, targets, softcap=softcap)),
    }
    found = {
        "forward (scoring)": {k: forward(way) for k, way in pair.items()},
        "forward + backward, embedding and head frozen": {k: both(way, False) for k, way in pair.items()},
        "head alone: forward": {k: forward(way) for k, way in head.items()},
        "head alone: forward + backward, head frozen": {k: both(way, False) for k, way in head.items()},
        "head alone: forward + backward": {k: both(way, True) for k, way in head.items()},
    }
    if all_weights:
        found["forward + backward, all weights"] = {k: both(way, True) for k, way in pair.items()}
    return found


# --- command line ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--vocab", type=int, default=256_000)
    parser.add_argument("--hidden", type=int, default=2304)
    parser.add_argument("--prompt", type=int, default=24, help="tokens of the pair's prompt")
    parser.add_argument("--responses", type=int, nargs=2, default=[48, 32], help="tokens of the pair's responses")
    parser.add_argument("--all-weights", action="store_true", help="also train the tied embedding: slow, and 10 GB")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="vocabulary 8,000, hidden 256")
    args = parser.parse_args()
    if args.quick:
        args.vocab, args.hidden = 8_000, 256
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"{cpu_name()}, {args.threads} thread(s)"
    python, versions = platform.python_version(), f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{name}; Python {python}, {versions}")
    print(
        f"vocabulary {args.vocab:,}, hidden {args.hidden}, float32; a pair: prompt {args.prompt}, "
        f"responses {args.responses} tokens; "
        f"medians [lowest to highest] of {args.repeats}\n"
    )
    print("| what | plain s | ours s | ratio | plain peak MiB | ours peak MiB | ratio | largest relative difference |")
    print("|---|---|---|---|---|---|---|---|")
    model = make_model(args.vocab, args.hidden, 1, args.device, torch.float32)
    texts = make_texts(args.vocab, args.prompt, args.responses)
    for what, ways in cases(model, texts, args.all_weights).items():
        ways["ours"]()  # warm up, and leave the body's gradients behind
        print(compare(what, ways, args.repeats, args.device), flush=True)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
