"""Questions of the benchmarks that a judge judges, as the benchmarks' own data files have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.data import split_rows
from mnpo.errors import BadInput
from mnpo.storage.records import read_rows

# Where a benchmark's files lie in its repository, and in a plain directory.
QUESTION_FILES = {
    "alpaca-eval": ("alpaca_eval_gpt4_baseline.json", "reference_outputs_gpt4_1106_preview.json"),
    "arena-hard": ("data/arena-hard-v0.1/question.jsonl", "question.jsonl"),
    "mt-bench": ("fastchat/llm_judge/data/mt_bench/question.jsonl", "question.jsonl"),
    "evalscope": ("question.jsonl",),
}
BOXED = "{}\nPlease reason step by step, and put your final answer within \\boxed{{}}."  # EvalScope's for Minerva-Math


class Question(NamedTuple):
    """What a policy is asked, turn by turn."""

    item_id: str
    category: str
    turns: tuple[str, ...]


def read_questions(benchmark: str, directory: Path, limit: int | None = None) -> list[Question]:
    """The benchmark's questions as its own data files in `directory` have them, in their order, at most `limit`.

    AlpacaEval's have no ids: they are numbered from 0, which is the index that its length-controlled fit goes by.

    Raises:
        BadInput: no such file, or rows that are no questions.
    """
    path, rows = _rows(benchmark, directory)
    read = QUESTION_READERS[benchmark]
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(read(number, row))
        except (KeyError, IndexError, TypeError) as error:
            raise BadInput(
                f"{path}: row {number}: no question of {benchmark} ({type(error).__name__}: {error}); fetch it anew"
            ) from None
    if not found:
        raise BadInput(f"{path}: no questions; fetch it anew")
    if len({q.item_id for q in found}) < len(found):
        raise BadInput(f"{path}: a question's id stands twice; fetch it anew")
    return found[:limit]


def _rows(benchmark: str, directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    if benchmark == "minerva":
        card = CARDS[benchmark]
        return directory, split_rows(card, directory, card.split)
    path = data_file(directory, *QUESTION_FILES[benchmark])
    return path, read_json(path) if path.suffix == ".json" else read_rows(path)


def _alpaca(number: int, row: Mapping[str, Any]) -> Question:
    return Question(str(number), row.get("dataset", ""), (row["instruction"],))


def _arena(number: int, row: Mapping[str, Any]) -> Question:
    if "uid" in row:  # its repository's layout since April 2025
        return Question(row["uid"], row["cluster"], (row["prompt"],))
    return Question(row["question_id"], row["cluster"], (row["turns"][0]["content"],))


def _mt(number: int, row: Mapping[str, Any]) -> Question:
    first, second = row["turns"]
    return Question(str(row["question_id"]), row["category"], (first, second))


def _minerva(number: int, row: Mapping[str, Any]) -> Question:
    return Question(str(number), "", (BOXED.format(row["problem"] if "problem" in row else row["question"]),))


def _evalscope(number: int, row: Mapping[str, Any]) -> Question:
    return Question(str(number), row["benchmark"], (row["prompt"],))


QUESTION_READERS: dict[str, Callable[[int, Mapping[str, Any]], Question]] = {
    "alpaca-eval": _alpaca,
    "arena-hard": _arena,
    "mt-bench": _mt,
    "minerva": _minerva,
    "evalscope": _evalscope,
}


def data_file(directory: Path, *names: str) -> Path:
    """The first of `names` that `directory` has. Raises BadInput."""
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise BadInput(f"{directory}: none of {', '.join(names)} is here; fetch the benchmark's data into it")


def read_json(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list. Raises BadInput."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not JSON ({error}); fetch it anew") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadInput(f"{path}: expected a list of objects; fetch it anew")
    return rows
