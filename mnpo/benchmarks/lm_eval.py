"""Eleven benchmarks by lm-eval: its own task definitions, fed from local files, one load of the policy for all.

What is ours: where the data come from, the programs of HumanEval (mnpo/benchmarks/sandbox.py), and a check of what the
policy is fed: exactly one BOS, and how many prompts and replies were cut. Nothing is downloaded. Seeds are lm-eval's
own, set anew for every benchmark, so that a result is that of its command line for that benchmark alone.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from pydantic import Field

from mnpo.benchmarks.cards import CARDS, Card
from mnpo.benchmarks.judged_common import thinking_facts
from mnpo.benchmarks.lm_eval_model import Watched, load_policy
from mnpo.benchmarks.lm_eval_tasks import write_tasks
from mnpo.benchmarks.result_cache import Results
from mnpo.config.blocks import Block
from mnpo.config.evaluation import Benchmark, BenchmarkSettings
from mnpo.config.sources import Strip
from mnpo.config.text import Reading
from mnpo.progress import say

SEED, NUMPY_SEED, TORCH_SEED, FEWSHOT_SEED = 0, 1234, 1234, 1234  # lm-eval's defaults
Result = tuple[dict[str, Any], list[dict[str, Any]]]


class Settings(Block):
    """What these benchmarks read."""

    policy: str
    """Its name, for the summaries."""
    benchmarks: dict[Benchmark, BenchmarkSettings]
    backend: Literal["transformers", "vllm"] = "transformers"
    batch_size: int = Field(16, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int | None = Field(None, ge=16)
    """Tokens of prompt and reply together; None: what the policy can."""
    strip: Strip | None = None
    """What is taken off the replies (see Model)."""
    text: Reading | None = None
    """What is said about the policy's template; None: nothing."""


def evaluate(settings: Settings, policy: Path, data: Mapping[str, Path]) -> dict[str, Result]:
    """`results` as a mapping: benchmark -> summary and rows."""
    return {benchmark: (summary, rows) for benchmark, summary, rows in results(settings, policy, data)}


def results(settings: Settings, policy: Path, data: Mapping[str, Path]) -> Results:
    """Each benchmark's name, summary and per-item rows (records.ITEMS), as they are done.

    Args:
        settings: which benchmarks, and what of their cards is changed.
        policy: a checkpoint with a tokenizer that has a chat template.
        data: benchmark -> directory with its files: as in its card's repository, or `{split}.jsonl`, `.parquet` or
            `.csv`; for IFEval also `nltk`.

    Raises:
        BadInput: no such benchmark, data that are missing or lack a column, a prompt with no or two BOS, a backend
            that is not installed, no sandbox for HumanEval. Data are looked at before the policy is loaded.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with _quiet(), tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared = {
            benchmark: write_tasks(CARDS[benchmark], chosen, data, Path(scratch) / benchmark)
            for benchmark, chosen in settings.benchmarks.items()
        }
        model = load_policy(
            policy,
            settings.backend,
            dtype=settings.dtype,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            seed=SEED,
            reading=settings.text,
        )
        for benchmark, chosen in settings.benchmarks.items():
            summary, rows = _run(settings, model, CARDS[benchmark], chosen, prepared[benchmark])
            say(f"harness: {settings.policy}, {benchmark}: {summary['value']:.2f} of {summary['items']} items")
            yield benchmark, summary, rows


def _run(settings: Settings, model: Any, card: Card, chosen: BenchmarkSettings, files: Mapping[str, Path]) -> Result:
    import numpy as np
    from lm_eval.evaluator import evaluate as run_tasks
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import set_torch_seed

    random.seed(SEED)
    np.random.seed(NUMPY_SEED)
    set_torch_seed(TORCH_SEED)
    tasks = TaskManager(include_defaults=False).load([str(file) for file in files.values()])["tasks"]
    for task in tasks.values():
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    wanted = _first(chosen.limit, {name: len(task.eval_docs) for name, task in tasks.items()})
    watched = Watched(model, f"harness: {settings.policy}, {card.name}", card.chat, settings.strip)
    found = run_tasks(
        watched,
        {"tasks": {name: tasks[name] for name in wanted}},
        samples={name: list(range(n)) for name, n in wanted.items()} if chosen.limit else None,
        apply_chat_template=card.chat,
        fewshot_as_multiturn=card.chat,
        confirm_run_unsafe_code=True,
    )
    rows = [row for name in wanted for row in _rows(card, tasks[name], found["samples"][name], watched)]
    value, stderr, metrics = _aggregated(card, [found["results"][name] for name in wanted])
    shots = next(iter(tasks.values())).config.num_fewshot
    summary = {
        "policy": settings.policy,
        "benchmark": card.name,
        "value": 100 * value,
        "stderr": 100 * stderr,
        "metric": card.metric,
        "items": len(rows),
        "missing": 0,
        "metrics": metrics,
        "protocol": _protocol(card, chosen, shots, len(rows), watched),
        "shots": shots,
        "prompts_cut": watched.prompts_cut,
        "replies_cut": watched.replies_cut,
        **thinking_facts(watched.replies),
    }
    return summary, rows


def _first(limit: int | None, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many items of each task make up the first `limit` of a benchmark, spread evenly over its subjects."""
    if limit is None:
        return dict(sizes)
    taken = dict.fromkeys(sizes, 0)
    while sum(taken.values()) < min(limit, sum(sizes.values())):
        for name in sizes:
            if taken[name] < sizes[name] and sum(taken.values()) < limit:
                taken[name] += 1
    return {name: n for name, n in taken.items() if n}


def _rows(card: Card, task: Any, samples: Sequence[Mapping[str, Any]], watched: Watched) -> Iterator[dict[str, Any]]:
    metric, rule = card.metric.split(",")
    subject = task.config.task.removeprefix(card.name).lstrip("_")
    for sample in samples:
        if sample["filter"] != rule:
            continue
        if card.max_new_tokens:
            response = sample["resps"][0][0]
        else:
            choices = task.doc_to_choice(sample["doc"])
            likelihoods = [likelihood for likelihood, _ in sample["filtered_resps"]]
            lengths = [len(choice) if metric == "acc_norm" else 1 for choice in choices]
            scores = [one / length for one, length in zip(likelihoods, lengths, strict=True)]
            response = choices[scores.index(max(scores))]
        yield {
            "item_id": f"{subject}/{sample['doc_id']}" if subject else str(sample["doc_id"]),
            "value": float(sample[metric]),
            "weight": 1.0,
            "response": response,
            "tokens": watched.tokens(response) if card.max_new_tokens else 0,
        }


def _aggregated(card: Card, tasks: Sequence[Mapping[str, Any]]) -> tuple[float, float, dict[str, float]]:
    """Value, standard error (0 for a single item) and all metrics, as fractions; subjects weighted by size."""
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr

    sizes = [task["sample_len"] for task in tasks]
    metrics = {
        key: float(aggregate_subtask_metrics([task[key] for task in tasks], sizes))
        for key in tasks[0]
        if "," in key and "_stderr," not in key
    }
    errors = [task[card.metric.replace(",", "_stderr,")] for task in tasks]
    known = [(error, size) for error, size in zip(errors, sizes, strict=True) if not isinstance(error, str)]
    if not known:
        return metrics[card.metric], 0.0, metrics
    stderr = known[0][0] if len(tasks) == 1 else pooled_sample_stderr(*map(list, zip(*known, strict=True)))
    return metrics[card.metric], float(stderr), metrics


def _protocol(card: Card, chosen: BenchmarkSettings, shots: int, items: int, watched: Watched) -> str:
    from importlib.metadata import version

    parts = [f"lm-eval {version('lm_eval')}", f"{shots} shots", "chat template" if card.chat else "no chat template"]
    text = f"{card.protocol} ({', '.join(parts)})"
    changes = []
    if shots != card.shots:
        changes.append(f"{shots} shots instead of {card.shots}")
    if chosen.limit is not None:
        changes.append(f"only the first {items} items")
    elif items != card.items:
        changes.append(f"{items} items, the benchmark has {card.items:,}")
    if watched.max_new_tokens != card.max_new_tokens:
        changes.append(f"at most {watched.max_new_tokens} new tokens instead of {card.max_new_tokens}")
    if watched.prompts_cut:
        changes.append(f"{watched.prompts_cut} prompts cut at their start")
    return (f"{text}; CHANGED: {'; '.join(changes)}" if changes else text) + card.differs


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' bars and per-item warnings out of the log; what they warn of is counted here."""
    import datasets
    import lm_eval.api.task

    logger, bars = logging.getLogger("lm_eval"), datasets.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        with mock.patch.object(lm_eval.api.task, "tqdm", lambda items, **_: items):
            yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
