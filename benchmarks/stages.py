"""The plain pipeline (benchmarks/baseline) against ours, stage by stage, on the same files in one run.

    python -m benchmarks.stages                      # all four stages; minutes
    python -m benchmarks.stages --only logps --repeats 3
    python -m benchmarks.stages --toy                # seconds a stage: does it run?

Each side of each repetition is a process of its own, run alternately: its seconds and CPU seconds are those of the
stage without Python's imports (the model's loading is in them), its peak is the process's largest resident set, imports
and weights included; the last ratio is of what comes on top of these. Tokens are the same for both sides: of all texts,
each with its prompt, no padding.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measuring import last_json, run, spread, told

SIDES = ("plain", "ours")
MEDIAN, SIGMA = 80, 0.6  # of the log-normal lengths of responses, in words
PROMPT, K = 150, 5


class Size(NamedTuple):
    """Of a stage's work."""

    prompts: int
    vocabulary: int
    hidden: int
    layers: int

    @property
    def heads(self) -> int:
        return max(4, self.hidden // 128)

    @property
    def shape(self) -> dict[str, int]:
        """As transformers' configurations of Gemma-2 and Llama have it."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "intermediate_size": 4 * self.hidden,
            "max_position_embeddings": 2048,
        }


SIZES = {
    "logps": Size(6, 256_000, 64, 2),
    "train": Size(4, 256_000, 64, 2),
    "score": Size(12, 1_000, 2048, 1),  # the paper's reward models have 4,096
    "sample": Size(12, 1_000, 128, 4),
}
TOY = {stage: Size(4, 1_000, 32, 2) for stage in SIZES}
TARGETS = {
    "logps": "at least 3 times the tokens/s, at most 1/4 of the peak",
    "score": "at least 2 times the tokens/s",
    "train": "at least 1.5 times the pairs/s, at most 1/2 of the peak",
    "sample": "none stated",
}


WORDS = [a + b for a in ("ka", "to", "mi", "su", "re", "no") for b in ("la", "ni", "po", "ve", "du", "zi")]


def made_up(rng: random.Random, count: int) -> str:
    """A text of so many words that mean nothing."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


# -------------------------------------------------------------------------------------- in processes of their own


def prepare(directory: Path, stage: str, size: Size) -> None:
    """A model of random weights, and the stage's input: prompts of one length, responses of ragged lengths."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForSequenceClassification

    from mnpo.demo.model import build
    from mnpo.models.checkpoints import load_tokenizer
    from mnpo.storage.records import PAIRS, PROMPTS, SAMPLES, write

    rng, shape = random.Random(0), size.shape
    said = partial(made_up, rng)
    build(directory / "tokenizer", [said(20) for _ in range(200)], vocab_size=400, architecture=shape, seed=0)
    tokenizer = load_tokenizer(directory / "tokenizer")
    torch.manual_seed(0)
    if stage == "score":  # as Skywork-Reward-V2's
        config = LlamaConfig(**shape, vocab_size=size.vocabulary, num_labels=1, pad_token_id=0)
        model = LlamaForSequenceClassification(config)
    else:  # samples come to an end where the vocabulary is small
        vocabulary = len(tokenizer) if stage == "sample" else size.vocabulary
        config = Gemma2Config(**shape, vocab_size=vocabulary, sliding_window=2048, attn_implementation="eager")
        model = Gemma2ForCausalLM(config)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    prompts = [
        {"prompt_id": f"p{i:03}", "family": "", "prompt": said(round(PROMPT * rng.uniform(0.7, 1.3))), "truth": ""}
        for i in range(size.prompts)
    ]
    lengths = [[round(MEDIAN * math.exp(rng.gauss(0, SIGMA))) for _ in range(K)] for _ in prompts]
    samples = [
        {**prompt, "k": k, "response": said(n), "tokens": n, "finish": "stop", "seed": 0}
        for prompt, some in zip(prompts, lengths, strict=True)
        for k, n in enumerate(some)
    ]
    pairs = [
        {"pair_id": p["prompt_id"], "prompt_id": p["prompt_id"], "prompt": p["prompt"], "chosen": said(n[0]),
         "rejected": said(n[1]), "chosen_score": 1, "rejected_score": 0, "chosen_win": 1, "rejected_win": 0}
        for p, n in zip(prompts, lengths, strict=True)
    ]  # fmt: skip
    write(PROMPTS, prompts, directory / "prompts.parquet")
    write(SAMPLES, samples, directory / "samples.parquet")
    write(PAIRS, pairs, directory / "pairs.parquet")
    if stage == "train":
        from mnpo.stages import logps

        logps.run(_logps(), directory / "model", directory / "pairs.parquet", directory / "logps.parquet")
    print(json.dumps({"tokens": _tokens(directory, stage)}))


TEXT = {"max_length": 1024, "max_prompt_length": 512}


def _logps() -> Any:
    from mnpo.stages import logps

    return logps.Settings(form={}, text=TEXT)


def _tokens(directory: Path, stage: str) -> int:
    """Of all texts of the stage's input, each with its prompt."""
    from mnpo.config.text import Text
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_tokenizer
    from mnpo.storage.records import PAIRS, SAMPLES, read, rows_of

    chat = Chat(load_tokenizer(directory / "model"), Text(**TEXT))
    if stage in ("logps", "train"):
        rows = rows_of(read(PAIRS, directory / "pairs.parquet"))
        return sum(len(chat.encode(r["prompt"], r[side])) for r in rows for side in ("chosen", "rejected"))
    rows = rows_of(read(SAMPLES, directory / "samples.parquet"))
    return sum(len(chat.encode(r["prompt"], r["response"])) for r in rows)


def work(directory: Path, stage: str, side: str) -> None:
    """One side's run of a stage; prints seconds, CPU seconds, the peak before it and, of samples, the tokens."""
    from importlib import import_module

    import torch

    from benchmarks import baseline
    from mnpo.models.checkpoints import load_model

    ours = import_module(f"mnpo.stages.{stage}")
    do = baseline.STAGES[stage] if side == "plain" else ours.run
    model, output = directory / "model", directory / side
    pairs, logps = directory / "pairs.parquet", directory / "logps.parquet"
    inputs: dict[str, dict[str, Any]] = {
        "logps": {"policy": model, "pairs": pairs},
        "score": {"samples": directory / "samples.parquet"},
        "sample": {"policy": model, "prompts": directory / "prompts.parquet"},
        "train": {"start": model, "pairs": [pairs], "logps": [logps]},
    }
    settings: dict[str, dict[str, Any]] = {
        "logps": {"form": {}, "text": TEXT},
        "score": {
            "oracle": "rm",
            "oracles": {"rm": {"kind": "reward-model", "model": "rm"}},
            "models": {"rm": {"path": str(model)}},
        },
        "sample": {
            "sampling": {"responses": K, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 96, "batch_size": 64},
            "text": TEXT, "shard": 0, "seed": 0,
        },
        "train": {
            "policy": "x.1", "start": "sft", "objective": {"name": "inpo", "eta": 0.2, "ratio": 0.5},
            "opponents": [["sft", 1.0]], "scorers": ["sft"], "form": {}, "text": TEXT, "seed": 0,
            "training": {"batch_size": 4, "micro_batch_tokens": 1024, "learning_rate": 1e-4},
        },
    }  # fmt: skip
    asked = ours.Settings.model_validate(settings[stage])
    load_model(model, "classifier" if stage == "score" else "causal")  # imports what is imported late
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun, cpu = time.monotonic(), time.process_time()
    do(asked, **inputs[stage], output=output)
    found = {"seconds": time.monotonic() - begun, "cpu": time.process_time() - cpu, "before": before}
    if stage == "sample":
        from mnpo.storage.records import SAMPLES, read

        rows = read(SAMPLES, output)
        found["tokens"] = int(rows["tokens"].sum())
    print(json.dumps(found | {"threads": torch.get_num_threads()}))


# ---------------------------------------------------------------------------------------------------------- the table


def compare(stage: str, size: Size, repeats: int, threads: int) -> str:
    """One line: both sides, alternately."""
    me = ["-m", "benchmarks.stages"]
    with tempfile.TemporaryDirectory() as directory:
        asked = ["--in", directory, "--stage", stage]
        _, output = run([*me, *asked, "--size", *map(str, size)], threads)
        tokens = last_json(output)["tokens"]
        rates, cpus, peaks, beyond = measured = [{side: list[float]() for side in SIDES} for _ in range(4)]
        for _ in range(repeats):
            for side in SIDES:
                cost, output = run([*me, *asked, "--side", side], threads)
                found = last_json(output)
                done = size.prompts if stage == "train" else found.get("tokens", tokens)
                rates[side].append(done / found["seconds"])
                cpus[side].append(found["cpu"])
                peaks[side].append(cost.peak)
                beyond[side].append(cost.peak - found["before"])
    rate, cpu, peak, further = (statistics.median(of["ours"]) / statistics.median(of["plain"]) for of in measured)
    unit, digits = ("pairs/s", 2) if stage == "train" else ("tokens/s", 0)
    columns = [spread(rates[side], digits) for side in SIDES] + [f"**{rate:.2f}**"]
    columns += [spread(cpus[side]) for side in SIDES] + [f"{cpu:.2f}"]
    columns += [spread(peaks[side], 0) for side in SIDES] + [f"**{peak:.2f}**", f"{further:.2f}"]
    return f"| {stage} ({unit}) | " + " | ".join([*columns, TARGETS[stage]]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--toy", action="store_true", help="tiny models, one repetition")
    for hidden in ("--in", "--stage", "--side"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if directory := getattr(options, "in"):
        if options.side:
            work(Path(directory), options.stage, options.side)
        else:
            prepare(Path(directory), options.stage, Size(*options.size))
        return
    sizes, repeats = (TOY, 1) if options.toy else (SIZES, options.repeats)
    with told("Stages", f"{repeats} repetitions, {options.threads} thread(s)."):
        print(
            "| stage | plain | ours | ratio | plain CPU s | ours | ratio | plain peak MiB | ours | ratio "
            "| beyond libraries and weights | target |\n" + "|---" * 12 + "|",
            flush=True,
        )
        for stage in options.only:
            print(compare(stage, sizes[stage], repeats, options.threads), flush=True)


if __name__ == "__main__":
    main()
