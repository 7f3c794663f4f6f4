"""Our side: stages, with the settings that both sides have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.peers import BATCH, BETA, DECODING, GREEDY_TOKENS, NEW_TOKENS, SEED, TEXT, K
from benchmarks.peers.sides import Clock, Made
from mnpo.stages import logps, sample, score, train
from mnpo.storage.records import LOGPS, SAMPLES, SCORES, read


def training(directory: Path, dtype: str, tokens: int, lora: dict[str, int] | None = None) -> Made:
    """`tokens`: of a micro-batch, padding included. `lora`: adapters alone are trained."""
    model, pairs, reference = directory / "model", directory / "pairs.parquet", directory / "reference.parquet"
    rate = json.loads((directory / "ids.json").read_text())["learning_rate"]
    optimisation = {"batch_size": BATCH, "micro_batch_tokens": tokens, "learning_rate": rate, "dtype": dtype}
    optimisation |= {"lora": lora} if lora else {}
    settings = train.Settings.model_validate(
        {
            "policy": "dpo.1", "start": "sft", "objective": {"name": "dpo", "beta": BETA},
            "opponents": [["sft", 1.0]], "scorers": ["sft"], "form": {}, "text": TEXT, "seed": SEED,
            "training": optimisation | {"schedule": "constant", "warmup": 0.0},
        }
    )  # fmt: skip
    whole, scoring = Clock(), Clock()
    with whole:
        with scoring:
            logps.run(_logps(dtype), model, pairs, reference)
        train.run(settings, model, [pairs], directory / "ours", [reference])
    history = (directory / "ours" / train.METRICS).read_text().splitlines()
    return Made(
        {"training": whole.spent - scoring.spent, "training and its reference": whole.spent},
        len(read(LOGPS, reference)),
        [json.loads(line)["loss"] for line in history],
    )


def log_probabilities(directory: Path, dtype: str, opponents: int) -> Made:
    clock = Clock()
    outputs = [directory / f"ours-{i}.parquet" for i in range(opponents)]
    with clock:
        for output in outputs:
            logps.run(_logps(dtype), directory / "model", directory / "pairs.parquet", output)
    tables = [read(LOGPS, output) for output in outputs]
    sums = [
        value for table in tables for pair in zip(table["chosen"], table["rejected"], strict=True) for value in pair
    ]
    return Made({"": clock.spent}, 0, sums)


def _logps(dtype: str) -> Any:
    return logps.Settings.model_validate({"form": {}, "text": TEXT, "dtype": dtype})


def sampling(directory: Path, dtype: str, rows: int, greedy: bool = False) -> Made:
    """`rows`: decoded together; 0: as many as memory has room for."""
    how = {"temperature": 0, "max_new_tokens": GREEDY_TOKENS} if greedy else {"max_new_tokens": NEW_TOKENS}
    asked = {**DECODING, "responses": 2 if greedy else K, "batch_size": rows or "widest", "dtype": dtype, **how}
    settings = sample.Settings.model_validate({"sampling": asked, "text": TEXT, "shard": 0, "seed": SEED})
    prompts, output, clock = directory / "prompts.parquet", directory / "ours.parquet", Clock()
    with clock:
        sample.run(settings, directory / "model", prompts, output)
    table = read(SAMPLES, output)
    texts = table[table["k"] == 0]["response"].tolist() if greedy else []
    return Made({"": clock.spent}, int(table["tokens"].sum()), texts)


def scoring(directory: Path, dtype: str) -> Made:
    oracle = {"kind": "reward-model", "model": "rm", "dtype": dtype}
    models = {"rm": {"path": str(directory / "classifier")}}
    settings = score.Settings.model_validate({"oracle": "rm", "oracles": {"rm": oracle}, "models": models})
    output, clock = directory / "ours.parquet", Clock()
    with clock:
        score.run(settings, directory / "samples.parquet", output)
    return Made({"": clock.spent}, 0, read(SCORES, output)["score"].tolist())
