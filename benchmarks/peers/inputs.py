"""A model and its texts, in the files that both sides read.

model/, classifier/     a policy, and a reward model with the same body
prompts.parquet         of `sampling`: DRAWN prompts
samples.parquet         of `scoring`: K responses to each prompt
pairs.parquet           of `training` and `logps`: two of them
ids.json                the same as token ids, for peers; our batches of pairs; the learning rate
data/, arc.yaml         of `harness`: a task of lm-eval, each item's choices four responses
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.measuring import ROOT
from benchmarks.peers import BATCH, DECODING, DRAWN, NEW_TOKENS, PAIRS, SEED, TEXT, K
from benchmarks.stages import SIZES, TOY, Size, made_up

PROMPTS_OF = ROOT / "examples/instructions/train.jsonl"
CHOICES, SPARE = 4, 8
"""Responses with text that a prompt needs, and prompts that may have fewer."""
PROMPT, MEDIAN, SIGMA = 30, 40, 0.6
"""Of texts for random weights: words of a prompt, and log-normal lengths of responses."""


def prepare(directory: Path, model: Path | None, toy: bool) -> None:
    """Write all of it: of a real model, or of random weights where `model` is None."""
    from mnpo.storage.records import PAIRS as PAIRS_TABLE
    from mnpo.storage.records import PROMPTS, SAMPLES, write

    count, drawn = (2 * BATCH, 4) if toy else (PAIRS, DRAWN)
    if model is None:
        _random_model(directory / "model", TOY["train"] if toy else SIZES["train"], toy)
        rng = random.Random(SEED)
        prompts = _rows(made_up(rng, round(PROMPT * rng.uniform(0.7, 1.3))) for _ in range(count))
        samples = list(_written(prompts))
    else:
        (directory / "model").symlink_to(model.resolve())
        lines = PROMPTS_OF.read_text(encoding="utf-8").splitlines()[: count + SPARE]
        prompts = _rows(json.loads(line)["prompt"] for line in lines)
        samples = _sampled(directory, prompts)
    _classifier(directory)
    responses = _responses(samples)
    prompts = [row for row in prompts if len(responses[row["prompt_id"]]) >= CHOICES][:count]
    if len(prompts) < count:
        raise SystemExit(f"{model}: {len(prompts)} prompts have {CHOICES} responses with text, {count} are needed")
    kept = {row["prompt_id"] for row in prompts}
    samples = [sample for sample in samples if sample["prompt_id"] in kept]
    pairs = [
        {"pair_id": p["prompt_id"], "prompt_id": p["prompt_id"], "prompt": p["prompt"],
         "chosen": responses[p["prompt_id"]][0], "rejected": responses[p["prompt_id"]][1],
         "chosen_score": 1, "rejected_score": 0, "chosen_win": 1, "rejected_win": 0}
        for p in prompts
    ]  # fmt: skip
    write(PROMPTS, prompts[:drawn], directory / "prompts.parquet")
    write(SAMPLES, samples, directory / "samples.parquet")
    write(PAIRS_TABLE, pairs, directory / "pairs.parquet")
    _write_ids(directory, prompts[:drawn], samples, pairs, real=model is not None)
    _task(directory, prompts[:drawn], responses)


def _rows(prompts: Iterable[str]) -> list[dict[str, Any]]:
    return [{"prompt_id": f"p{i:03}", "family": "", "prompt": p, "truth": ""} for i, p in enumerate(prompts)]


def _written(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Responses of log-normal lengths, from a seed."""
    rng = random.Random(SEED + 1)
    for row in rows:
        for k in range(K):
            n = max(4, min(3 * MEDIAN, round(MEDIAN * math.exp(rng.gauss(0, SIGMA)))))
            yield {**row, "k": k, "response": made_up(rng, n), "tokens": n, "finish": "stop", "seed": 0}


def _sampled(directory: Path, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The model's own responses, by our stage."""
    from mnpo.stages import sample
    from mnpo.storage.records import PROMPTS, SAMPLES, read, rows_of, write

    asked, drawn_to = directory / "all_prompts.parquet", directory / "all_samples.parquet"
    write(PROMPTS, prompts, asked)
    drawn = {**DECODING, "responses": K, "max_new_tokens": NEW_TOKENS, "batch_size": 64, "dtype": "bfloat16"}
    settings = sample.Settings.model_validate({"sampling": drawn, "text": TEXT, "shard": 0, "seed": SEED})
    sample.run(settings, directory / "model", asked, drawn_to)
    return rows_of(read(SAMPLES, drawn_to))


def _responses(samples: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Prompt -> its responses that are not blank."""
    found: dict[str, list[str]] = {sample["prompt_id"]: [] for sample in samples}
    for sample in samples:
        if sample["response"].strip():
            found[sample["prompt_id"]].append(sample["response"])
    return found


def _random_model(directory: Path, size: Size, toy: bool) -> None:
    """Gemma-2 with a small tokenizer; of the toy, whose samples are texts, no word is beyond it."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from mnpo.demo.model import build
    from mnpo.models.checkpoints import load_tokenizer

    rng, shape = random.Random(SEED), size.shape
    build(directory, [made_up(rng, 20) for _ in range(200)], vocab_size=400, architecture=shape, seed=SEED)
    if not toy:
        tokenizer = load_tokenizer(directory)
        torch.manual_seed(SEED)
        ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
        Gemma2ForCausalLM(Gemma2Config(**shape, vocab_size=size.vocabulary, **ids)).save_pretrained(directory)


def _classifier(directory: Path) -> None:
    """The policy's body with a random head, in the policy's own dtype."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    torch.manual_seed(SEED)
    made = AutoModelForSequenceClassification.from_pretrained(directory / "model", num_labels=1)
    torch.nn.init.normal_(made.score.weight, std=0.02)
    made.config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    made.save_pretrained(directory / "classifier")
    tokenizer.save_pretrained(directory / "classifier")


def _write_ids(directory: Path, rows: Sequence[Any], samples: Sequence[Any], pairs: Sequence[Any], real: bool) -> None:
    from mnpo.config.text import Text
    from mnpo.config.training import Training
    from mnpo.learning.training import drawn
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_tokenizer

    chat = Chat(load_tokenizer(directory / "model"), Text(**TEXT))
    both = [[chat.encode(p["prompt"], p[side]) for side in ("chosen", "rejected")] for p in pairs]
    lengths = [len(chosen) + len(rejected.response) for chosen, rejected in both]  # as the train stage has them
    batches = drawn(Training(batch_size=BATCH), lengths, SEED)
    steps = math.ceil(len(pairs) / BATCH)
    turns = [
        [{"role": "user", "content": s["prompt"]}, {"role": "assistant", "content": s["response"]}] for s in samples
    ]
    content = {
        "pairs": [{"prompt_ids": c.prompt, "chosen_ids": c.response, "rejected_ids": r.response} for c, r in both],
        "batches": [sorted(batch, key=lambda i: -max(map(len, both[i]))) for batch in islice(batches, steps)],
        "prompts": [chat.prompt(row["prompt"]) for row in rows],
        "stops": chat.stop_ids,
        "conversations": [chat.conversation(turn) for turn in turns],
        "learning_rate": 1e-5 if real else 1e-3,
    }
    (directory / "ids.json").write_text(json.dumps(content), encoding="utf-8")


def _task(directory: Path, rows: Sequence[Any], responses: dict[str, list[str]]) -> None:
    """ARC's form: the best of four answers to a question."""
    import pandas as pd

    from mnpo.benchmarks.cards import CARDS
    from mnpo.benchmarks.lm_eval_tasks import write_tasks
    from mnpo.config.evaluation import BenchmarkSettings

    items = [
        {
            "id": row["prompt_id"],
            "question": row["prompt"],
            "choices": {"text": responses[row["prompt_id"]][:CHOICES], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i, row in enumerate(rows)
    ]
    data = directory / "data"
    data.mkdir()
    pd.DataFrame(items).to_parquet(data / "test.parquet")
    (file,) = write_tasks(CARDS["arc"], BenchmarkSettings(), {"arc": data}, directory / "task").values()
    file.rename(directory / "arc.yaml")


def main() -> None:
    """`python -m benchmarks.peers.inputs DIRECTORY MODEL|gemma2|toy`; prints how much there is to do."""
    import torch

    directory, what = Path(sys.argv[1]), sys.argv[2]
    prepare(directory, None if what in ("gemma2", "toy") else Path(what), toy=what == "toy")
    ids = json.loads((directory / "ids.json").read_text())
    read = sum(len(p["prompt_ids"]) + len(p[side]) for p in ids["pairs"] for side in ("chosen_ids", "rejected_ids"))
    scored = sum(map(len, ids["conversations"]))
    work = {"training": len(ids["pairs"]), "lora": len(ids["pairs"]), "logps": read, "scoring": scored}
    print(json.dumps({"work": work, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else ""}))


if __name__ == "__main__":
    main()
