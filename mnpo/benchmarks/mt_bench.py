"""MT-Bench (Zheng et al., 2023, arXiv 2306.05685): two-turn questions, each answer rated alone from 1 to 10.

Questions, references and the judge's prompts are data: github lm-sys/FastChat, fastchat/llm_judge/data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mnpo.benchmarks import judged_common
from mnpo.benchmarks.questions import Question, data_file, read_questions
from mnpo.config.evaluation import RatingReading
from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.labels import is_cut, labels, stated
from mnpo.judging.prompts import Turn, chat, filled
from mnpo.judging.requests import Answer, Request
from mnpo.judging.verdicts import judge_decoding, read_verdicts
from mnpo.storage.records import read_rows

BENCHMARK = "mt-bench"
DATA = "fastchat/llm_judge/data"
WITH_REFERENCE = ("math", "reasoning", "coding")
PROMPTS = {  # (with a reference, turn) -> name in judge_prompts.jsonl
    (False, 1): "single-v1",
    (False, 2): "single-v1-multi-turn",
    (True, 1): "single-math-v1",
    (True, 2): "single-math-v1-multi-turn",
}
NUMBER = r"(\d+(?:\.\d+)?)"
PROTOCOL = (
    "Mean of all ratings of both turns, each answer rated alone from 1 to 10 by {judge}, with reference answers for "
    "math, reasoning and coding; {reading}; a reply without a rating in [1, 10] is asked again, then left out and "
    "counted."
)
READINGS: dict[RatingReading, str] = {
    "stated": "a reply's last rating in double brackets counts, else one in single brackets that it states as its "
    "rating; a reply that was cut has to state one in double brackets",
    "fastchat": "as FastChat reads, a reply's first number in double brackets counts, else its first in single ones",
}


def evaluate(
    settings: judged_common.Settings, answers: Iterable[Mapping[str, Any]], data: Path, judge: Judge, store: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The policy's summary, and one row per question: the mean of its ratings, with how many there are as weight.

    `read_otherwise`: replies of the judge in which the reading that was not chosen finds another rating, or none.

    Raises:
        BadInput: data or answers that do not fit, too few ratings (max_missing), or a failing endpoint (see Client).
    """
    asked = read_questions(BENCHMARK, data, settings.limit)
    given = judged_common.answered(BENCHMARK, asked, answers)
    prompts, references = _prompts(data), _references(data)
    tasks = [(question, turn) for question in asked for turn in (1, 2)]
    decoding = judge_decoding(judge, temperature=0.0, max_tokens=2048)
    requests = [
        Request(
            f"{BENCHMARK} {q.item_id}, turn {turn}",
            _messages(q, turn, [row["response"] for row in given[q.item_id]], prompts, references),
            repeat=settings.repeat,
            **decoding,
        )
        for q, turn in tasks
    ]
    client = Client(judge, store, progress_name=f"judge {BENCHMARK}, {settings.policy}")
    reading = Reading(settings.ratings)
    ratings = {
        (q.item_id, turn): rating
        for (q, turn), rating in zip(tasks, read_verdicts(client, BENCHMARK, requests, reading), strict=True)
        if rating is not None
    }
    items = [_item(q, ratings, given[q.item_id]) for q in asked if {(q.item_id, 1), (q.item_id, 2)} & set(ratings)]
    value, error = judged_common.weighted_mean([item["value"] for item in items], [item["weight"] for item in items])
    summary = {
        "policy": settings.policy,
        "benchmark": BENCHMARK,
        "judge": judge.model,
        "value": value,
        "stderr": error,
        "metric": "rating",
        "items": len(items),
        "metrics": {**_means(asked, ratings), **judged_common.lengths(row for rows in given.values() for row in rows)},
        "protocol": PROTOCOL.format(judge=judge.model, reading=READINGS[settings.ratings]),
        "read_otherwise": reading.otherwise,
        "missing": len(tasks) - len(ratings),
        "refused": client.tally["refused"],
        "judgements": len(tasks),
        "repeat": settings.repeat,
        "prompt_digest": judged_common.digest(*(part for name in PROMPTS.values() for part in prompts[name])),
        "tally": client.tally,
    }
    return summary, items


def read_rating(answer: Answer) -> float | None:
    """The last [[n]] of a reply, else the last [n] that it states as its rating (see labels.stated).

    A reply that was cut has to state a [[n]] too. None without a rating, or when it is outside of 1 to 10.
    """
    found = labels(answer, NUMBER, "rating")
    if not found and not is_cut(answer):
        found = stated(answer.text, rf"\[{NUMBER}\]", "rating")
    return _in_range(found[-1] if found else None)


def read_as_fastchat(answer: Answer) -> float | None:
    """FastChat's reading: the first [[n]] of a reply, else its first [n], be it in code; None outside of 1 to 10."""
    found = re.search(rf"\[\[{NUMBER}\]\]", answer.text) or re.search(rf"\[{NUMBER}\]", answer.text)
    return _in_range(found.group(1) if found else None)


def _in_range(number: str | None) -> float | None:
    rating = None if number is None else float(number)
    return rating if rating is not None and 1 <= rating <= 10 else None


class Reading:
    """Reads a reply as the setting says, and counts the replies that the other reading takes otherwise."""

    def __init__(self, ratings: RatingReading) -> None:
        self.by_fastchat = ratings == "fastchat"
        self.otherwise = 0

    def __call__(self, answer: Answer) -> float | None:
        """The rating; None without one."""
        stated, fastchat = read_rating(answer), read_as_fastchat(answer)
        self.otherwise += stated != fastchat
        return fastchat if self.by_fastchat else stated


def _messages(
    question: Question,
    turn: int,
    responses: Sequence[str],
    prompts: Mapping[str, tuple[str, str]],
    references: Mapping[str, Sequence[str]],
) -> tuple[Turn, ...]:
    needed = question.category in WITH_REFERENCE
    if needed and question.item_id not in references:
        raise BadInput(
            f"{BENCHMARK} {question.item_id}: a question of {question.category} without a reference answer; fetch "
            "reference_answer/gpt-4.jsonl anew"
        )
    system, template = prompts[PROMPTS[needed, turn]]
    fields = {"question": question.turns[0], "answer": responses[0]}
    for n in (1, 2):
        fields |= {f"question_{n}": question.turns[n - 1], f"answer_{n}": responses[n - 1]}
        if needed:
            fields[f"ref_answer_{n}"] = references[question.item_id][n - 1]
    return chat(system, filled(template, f"{BENCHMARK} {question.item_id}, turn {turn}", fields))


def _prompts(data: Path) -> dict[str, tuple[str, str]]:
    """System prompt and template by name."""
    path = data_file(data, f"{DATA}/judge_prompts.jsonl", "judge_prompts.jsonl")
    found = {row.get("name"): row for row in read_rows(path)}
    try:
        return {name: (found[name]["system_prompt"], found[name]["prompt_template"]) for name in PROMPTS.values()}
    except KeyError as error:
        raise BadInput(f"{path}: {error} is missing; fetch it anew") from None


def _references(data: Path) -> dict[str, Sequence[str]]:
    """Reference answers of both turns by question."""
    path = data_file(data, f"{DATA}/mt_bench/reference_answer/gpt-4.jsonl", "reference_answer/gpt-4.jsonl")
    try:
        return {str(row["question_id"]): row["choices"][0]["turns"] for row in read_rows(path)}
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"{path}: no reference answers ({type(error).__name__}: {error}); fetch it anew") from None


def _item(
    question: Question, ratings: Mapping[tuple[str, int], float], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    own = [ratings[question.item_id, turn] for turn in (1, 2) if (question.item_id, turn) in ratings]
    return {
        "item_id": question.item_id,
        "value": fmean(own),
        "weight": float(len(own)),
        "response": "\n\n".join(row["response"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
    }


def _means(asked: Sequence[Question], ratings: Mapping[tuple[str, int], float]) -> dict[str, float]:
    """By turn and by category, where there are ratings."""
    groups: dict[str, list[float]] = {}
    for question in asked:
        for turn in (1, 2):
            if (question.item_id, turn) in ratings:
                for name in (f"turn {turn}", question.category):
                    groups.setdefault(name, []).append(ratings[question.item_id, turn])
    return {name: fmean(values) for name, values in groups.items()}
