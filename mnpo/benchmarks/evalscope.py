"""EvalScope 1.0.2, the paper's harness, for benchmarks that it scores without a judge: in an environment of its own.

EvalScope renders the prompts and scores the replies; the policy is run by us. It runs twice: first for the prompts
alone, then with the policy's replies to them. Its data are local files, its seed the same both times.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.harness import split_files
from mnpo.config import Benchmark, BenchmarkSettings, Block
from mnpo.errors import BadInput
from mnpo.progress import say
from mnpo.records import read_rows

Row = dict[str, Any]
Replies = Callable[[str, Sequence[str]], Sequence[Mapping[str, Any]]]
"""Benchmark and prompts -> the policy's replies, each with `response` and `tokens`."""


@dataclass(frozen=True)
class Task:
    """A benchmark as EvalScope has it."""

    name: str
    protocol: str
    subset: str = "default"
    """How its loader calls what it reads."""
    convert: Callable[[Row], Row] = lambda row: row
    """Our files' columns -> its own, where they differ."""
    shots: int = 0


TASKS: dict[str, Task] = {
    "gpqa": Task("gpqa_diamond", "the letter of a choice after steps, choices shuffled"),
    "mmlu": Task("mmlu", "the letter of a choice after steps, examples in one turn", "all", shots=5),
    "arc": Task("arc", "the letter of a choice; ARC-Challenge only, the paper has ARC-Easy too", "ARC-Challenge"),
    "hellaswag": Task("hellaswag", "the letter of an ending"),
    "truthfulqa": Task("truthful_qa", "the letter of the one true answer (mc1), choices shuffled", "multiple_choice"),
    "winogrande": Task("winogrande", "the letter of an option"),
    "gsm8k": Task("gsm8k", "the last number of the reply, examples in one turn", "main", shots=4),
    "aime24": Task(
        "aime24",
        "equal in value to the boxed or last number of the reply",
        convert=lambda row: {"problem": row["Problem"], "answer": str(row["Answer"])},
    ),
}
"""Without those that ask a judge (AlpacaEval 2, Arena-Hard, minerva_math), IFEval, which downloads, and HumanEval,
which runs the policy's programs unguarded."""


class Settings(Block):
    """What these benchmarks read."""

    policy: str
    benchmarks: dict[Benchmark, BenchmarkSettings]


def results(
    settings: Settings, data: Mapping[str, Path], replies: Replies, scratch: Path
) -> Iterator[tuple[str, Row, list[Row]]]:
    """Each benchmark's name, summary and per-item rows (records.ITEMS), as they are done.

    Args:
        data: benchmark -> directory with its files, as for lm-eval.
        replies: asks the policy; greedy.
        scratch: an empty directory for EvalScope's own files.

    Raises:
        BadInput: EvalScope is not in this environment, data that are missing.
        RuntimeError: EvalScope rendered a prompt the second time that it had not the first.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    for benchmark, chosen in settings.benchmarks.items():
        directory = _dataset(benchmark, chosen, data, scratch / benchmark)
        prompts: list[str] = []
        _run(benchmark, chosen, directory, "asked", _noting(prompts))
        given = replies(benchmark, prompts)
        responses = [reply["response"] for reply in given]
        reviews = _run(benchmark, chosen, directory, "scored", dict(zip(prompts, responses, strict=True)).__getitem__)
        tokens = dict(zip(responses, (reply["tokens"] for reply in given), strict=True))
        summary, rows = _summary(settings.policy, benchmark, chosen, reviews, tokens)
        say(f"evalscope: {settings.policy}, {benchmark}: {summary['value']:.2f} of {summary['items']} items")
        yield benchmark, summary, rows


def _noting(prompts: list[str]) -> Callable[[str], str]:
    """A policy that says nothing, and remembers what it was asked, once."""

    def reply(prompt: str) -> str:
        if prompt not in prompts:
            prompts.append(prompt)
        return ""

    return reply


def _dataset(benchmark: str, chosen: BenchmarkSettings, data: Mapping[str, Path], scratch: Path) -> Path:
    """The benchmark's files in EvalScope's columns, in a directory that its loader reads."""
    if benchmark not in TASKS or benchmark not in data:
        raise BadInput(f"{benchmark}: no data, or not one of EvalScope's here; known: {', '.join(TASKS)}")
    task, card = TASKS[benchmark], CARDS[benchmark]
    scratch.mkdir(parents=True)
    wanted = card.splits(task.shots if chosen.shots is None else chosen.shots)
    for split in wanted:
        files = split_files(card, data[benchmark], split)
        rows = [task.convert(row) | ({"subject": s} if s else {}) for s, file in files for row in _rows(file)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (scratch / f"{split}.jsonl").write_text(text, encoding="utf-8")
    listed = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in wanted)
    head = f"---\nconfigs:\n- config_name: {task.subset}\n  data_files:\n{listed}---\n"
    (scratch / "README.md").write_text(head, encoding="utf-8")
    return scratch


def _rows(file: Path) -> list[Row]:
    if file.suffix != ".csv":
        return read_rows(file)
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _run(
    benchmark: str, chosen: BenchmarkSettings, directory: Path, stage: str, reply: Callable[[str], str]
) -> list[Row]:
    """EvalScope's reviews of all items, in their order."""
    try:
        from evalscope import TaskConfig, run_task
        from evalscope.api.model import ModelAPI, ModelOutput
    except ImportError as error:
        raise BadInput(f"evalscope is not in this environment ({error}); it has its own, envs/evalscope.txt") from None

    class Policy(ModelAPI):  # type: ignore[misc]
        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            return ModelOutput.from_content("policy", reply("\n\n".join(message.text for message in input)))

    task = TASKS[benchmark]
    of: Row = {"dataset_id": str(directory), "subset_list": [task.subset]}
    if benchmark == "mmlu":
        of["subset_list"] = sorted({row["subject"] for row in read_rows(directory / "test.jsonl")})
    if chosen.shots is not None:
        of["few_shot_num"] = chosen.shots
    work = directory / stage
    run_task(
        TaskConfig(
            model=Policy("policy"),
            model_id="policy",
            eval_type="llm_ckpt",
            datasets=[task.name],
            dataset_args={task.name: of},
            limit=chosen.limit,
            work_dir=str(work),
            judge_strategy="rule",
        )
    )
    files = sorted(work.rglob("reviews/policy/*.jsonl"))
    return [row | {"subset": file.stem} for file in files for row in sorted(read_rows(file), key=lambda r: r["index"])]


def _summary(
    policy: str, benchmark: str, chosen: BenchmarkSettings, reviews: Sequence[Row], tokens: Mapping[str, int]
) -> tuple[Row, list[Row]]:
    task, card = TASKS[benchmark], CARDS[benchmark]
    rows = []
    for review in reviews:
        score = review["sample_score"]["score"]
        (metric, value), *_ = score["value"].items()
        rows.append(
            {
                "item_id": f"{review['subset']}/{review['index']}",
                "value": float(value),
                "weight": 1.0,
                "response": score["prediction"],
                "tokens": tokens[score["prediction"]],
            }
        )
    n = len(rows)
    mean = math.fsum(row["value"] for row in rows) / n
    deviation = math.sqrt(math.fsum((row["value"] - mean) ** 2 for row in rows) / (n - 1)) if n > 1 else 0.0
    shots = task.shots if chosen.shots is None else chosen.shots
    changes = [f"{shots} shots instead of {task.shots}"] if shots != task.shots else []
    changes += [f"{n} items, the benchmark has {card.items:,}"] if n != card.items else []
    changes += [f"at most {chosen.max_new_tokens} new tokens"] if chosen.max_new_tokens else []
    changed = f"; CHANGED: {'; '.join(changes)}" if changes else ""
    summary = {
        "policy": policy,
        "benchmark": benchmark,
        "value": 100 * mean,
        "stderr": 100 * deviation / math.sqrt(n),
        "metric": metric,
        "items": n,
        "missing": 0,
        "metrics": {metric: mean},
        "protocol": f"{task.protocol} (EvalScope {version('evalscope')}, {shots} shots, chat template){changed}",
        "shots": shots,
    }
    return summary, rows
