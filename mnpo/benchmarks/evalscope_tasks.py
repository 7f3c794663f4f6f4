"""The benchmarks as EvalScope has them: their names and data there, and where it reads a judge's verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnpo.benchmarks import alpaca_eval, arena_hard
from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.data import split_rows
from mnpo.benchmarks.questions import read_questions
from mnpo.config.evaluation import BenchmarkSettings
from mnpo.judging.requests import Answer

Row = dict[str, Any]
JudgePrompt = tuple[str | None, str]
"""The system's message, and the user's."""


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
    split: str = ""
    """How its loader calls the items, where not as our files do."""
    metric: str = ""
    """The first of its scores, unless this is what we call it."""


def _problem(row: Row) -> Row:
    """Minerva-Math in the columns of EvalScope's copy; other copies have question and answer."""
    columns = {"problem": row.get("problem", row.get("question")), "solution": row.get("solution", row.get("answer"))}
    return columns | {"type": row.get("type", ""), "idx": row.get("idx", 0)}


TASKS: dict[str, Task] = {
    "alpaca-eval": Task(
        "alpaca_eval",
        "share of outputs that {judge} prefers to the baseline's, which is always shown first: the reply is m or M "
        "alone, and there is no length control",
        "alpaca_eval_gpt4_baseline",
        split="eval",
        metric="win_rate",
    ),
    "arena-hard": Task(
        "arena_hard",
        "win rate against gpt-4-0314, judged by {judge} in two games a question with positions swapped; a reply has "
        "one verdict, a decisive one counts three battles, and there is no style control",
        split="test",
        metric="win_rate",
    ),
    "ifeval": Task(
        "ifeval",
        "share of prompts whose instructions are all followed, strictly; its copy of the checks, "
        "languages by langdetect with a fixed seed",
    ),
    "gpqa": Task("gpqa_diamond", "the letter of a choice after steps, choices shuffled"),
    "mmlu": Task("mmlu", "the letter of a choice after steps, examples in one turn", "all", shots=5),
    "arc": Task("arc", "the letter of a choice, ARC-Easy and ARC-Challenge together", "ARC-Challenge"),
    "hellaswag": Task("hellaswag", "the letter of an ending"),
    "truthfulqa": Task("truthful_qa", "the letter of the one true answer (mc1), choices shuffled", "multiple_choice"),
    "winogrande": Task("winogrande", "the letter of an option"),
    "gsm8k": Task(
        "gsm8k",
        "the last number of the reply, examples in one turn; compared as text, $1,234.00 is not 1234 (by value: "
        "acc_mended in the metrics)",
        "main",
        shots=4,
    ),
    "minerva": Task(
        "minerva_math",
        "{judge} says of each reply whether it is right, by the reference solution, in A or B alone; the 272 problems "
        "of OpenCourseWare",
        convert=_problem,
        split="train",
    ),
    "aime24": Task(
        "aime24",
        "equal in value to the boxed or last number of the reply",
        convert=lambda row: {"problem": row["Problem"], "answer": str(row["Answer"])},
    ),
    "humaneval": Task(
        "humaneval",
        "the whole function, from the reply's first block of code; its tests run in our sandbox",
        "openai_humaneval",
    ),
}


def _alone(verdict: str) -> Callable[[Answer], str | None]:
    """Reads a reply that is a verdict and no more, be there blanks or marks around it."""
    return lambda answer: answer.text if re.fullmatch(rf"\W*(?:{verdict})\W*", answer.text) else None


def _verdict(answer: Answer) -> str | None:
    return answer.text if arena_hard.read_verdict(answer) else None


VERDICT_READERS: dict[str, Callable[[Answer], str | None]] = {
    "alpaca-eval": _alone("m|M"),
    "arena-hard": _verdict,
    "minerva": _alone(r"A(?:\W+CORRECT)?|B(?:\W+INCORRECT)?"),
}
"""Those that ask a judge -> its reply, where it is what EvalScope's prompt asks for.

EvalScope itself searches any reply for the first letter or label: the A of "Answer: B", the m of "I'm sorry". In a
reply that is as asked, that is the verdict.
"""
UNREAD = "..."  # stands for a reply without a verdict, in which no adapter reads one
NEUTRAL = "m [[A=B]]"  # a reply that every adapter can read, for whoever only listens to what it asks


def write_dataset(benchmark: str, chosen: BenchmarkSettings, data: Path, scratch: Path) -> Path:
    """The benchmark's files in EvalScope's columns, `{subset}.{split}.jsonl` in a directory that its loader reads."""
    scratch.mkdir(parents=True)
    head = "---\nconfigs:\n"
    for subset, splits in _subsets(benchmark, chosen, data).items():
        head += f"- config_name: {subset}\n  data_files:\n"
        for name, rows in splits.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (scratch / f"{subset}.{name}.jsonl").write_text(text, encoding="utf-8")
            head += f"  - split: {name}\n    path: {subset}.{name}.jsonl\n"
    (scratch / "README.md").write_text(f"{head}---\n", encoding="utf-8")
    return scratch


def _subsets(benchmark: str, chosen: BenchmarkSettings, data: Path) -> dict[str, dict[str, list[Row]]]:
    """Subset -> split -> rows."""
    task, card = TASKS[benchmark], CARDS[benchmark]
    if benchmark == "alpaca-eval":
        return {task.subset: {task.split: alpaca_eval.baseline_outputs(data)}}
    if benchmark == "arena-hard":
        baseline, asked = arena_hard.baseline_answers(data), read_questions(benchmark, data)
        return {task.subset: {task.split: [{"question": q.turns[0], "prediction": baseline[q.item_id]} for q in asked]}}
    cards = {task.subset: card}
    if benchmark == "arc" and (data / "ARC-Easy").is_dir():
        easy = {name: pattern.replace("Challenge", "Easy") for name, pattern in card.files.items()}
        cards["ARC-Easy"] = replace(card, files=easy)
    wanted = card.splits(shots_of(task, chosen))
    return {
        subset: {task.split or name: list(map(task.convert, split_rows(of, data, name))) for name in wanted}
        for subset, of in cards.items()
    }


def shots_of(task: Task, chosen: BenchmarkSettings) -> int:
    """Examples in a prompt: EvalScope's own number, unless another one is chosen."""
    return task.shots if chosen.shots is None else chosen.shots
