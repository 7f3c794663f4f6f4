"""What the judged benchmarks share: their settings, whose answer belongs to which question, and their summary."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from mnpo.benchmarks.questions import Question
from mnpo.config.blocks import Block
from mnpo.config.evaluation import RatingReading
from mnpo.errors import BadInput


class Settings(Block):
    """What judging reads beside the answers, the benchmark's data and the judge."""

    policy: str
    judge: str
    """Its name in the configuration."""
    limit: int | None = Field(None, ge=1)
    """The first so many questions only."""
    repeat: int = Field(1, ge=1)
    """Which of several judgements of the same answers."""
    ratings: RatingReading = "stated"
    """How MT-Bench's are read."""
    seed: int = 0


def answered(
    benchmark: str, asked: Sequence[Question], answers: Iterable[Mapping[str, Any]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Each question's answers by its id, turn by turn.

    Raises:
        BadInput: an answer is missing, or belongs to another question: they were made from other data.
    """
    given = {(row["item_id"], row["turn"]): row for row in answers}
    matched: dict[str, list[Mapping[str, Any]]] = {}
    for question in asked:
        for turn, prompt in enumerate(question.turns, 1):
            row = given.pop((question.item_id, turn), None)
            if row is None or row["prompt"] != prompt:
                what = "no answer" if row is None else f"the answer is to {row['prompt'][:60]!r}, not to"
                raise BadInput(
                    f"{benchmark} {question.item_id}, turn {turn}: {what} {prompt[:60]!r}; make the answers anew from "
                    "the data they are judged with"
                )
            matched.setdefault(question.item_id, []).append(row)
    if given:
        item_id, turn = next(iter(given))
        raise BadInput(
            f"{benchmark}: {len(given)} answers to questions that are not asked, such as {item_id}, turn {turn}; "
            "judge with the data and the limit that they were made with"
        )
    return matched


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Mean of `values`, and its standard error over items; 0 for a single item.

    The error is that of a ratio estimator (linearised), as weights vary with the items too; with equal weights it is
    the usual one, s / sqrt(n).
    """
    total, n = math.fsum(weights), len(values)
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    squares = math.fsum((w * (v - mean)) ** 2 for w, v in zip(weights, values, strict=True))
    return mean, math.sqrt(squares * n / (n - 1)) / total if n > 1 else 0.0


def digest(*texts: str) -> str:
    """SHA-256 of the judge's prompts, so that results of different ones are not compared unawares."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def facts(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a summary says of a policy's answers: how many there are, how the empty ones ended, and, where thinking was
    taken off: off how many, how many of these are empty without it, and their mean length without it and with it.

    Args:
        answers: rows with `response`, `tokens`, `finish` and `thinking`, as records.ANSWERS.
    """
    rows = list(answers)
    empty = [row for row in rows if not row["response"].strip()]
    found: dict[str, Any] = {"answers": len(rows), "empty": dict(Counter(row["finish"] for row in empty))}
    if thoughtful := sum(row.get("thinking", 0) > 0 for row in rows):
        tokens, thinking = (math.fsum(row.get(name, 0) for row in rows) for name in ("tokens", "thinking"))
        found["thinking"] = {
            "answers": thoughtful,
            "empty": sum(row.get("thinking", 0) > 0 for row in empty),
            "mean_tokens": tokens / len(rows),
            "mean_tokens_with_thinking": (tokens + thinking) / len(rows),
        }
    return found


def thinking_facts(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`facts`, where thinking was taken off some; without a judge, empty answers are as wrong as others."""
    return facts(answers) if any(row.get("thinking", 0) for row in answers) else {}


def lengths(answers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean length of the answers."""
    rows = list(answers)
    return {
        "mean_characters": math.fsum(len(row["response"]) for row in rows) / len(rows),
        "mean_tokens": math.fsum(row["tokens"] for row in rows) / len(rows),
    }
