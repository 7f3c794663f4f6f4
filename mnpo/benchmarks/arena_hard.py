"""Arena-Hard v0.1 (Li et al., 2024, arXiv 2406.11939): 500 questions, each answer against gpt-4-0314's in two games.

Questions, baseline answers and the judge's prompts are data: github lmarena/arena-hard-auto, at a commit before April
2025, when the judge's system prompt left config/judge_config.yaml for the code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnpo.benchmarks import judged_common
from mnpo.benchmarks.questions import data_file, read_questions
from mnpo.config.oracles import Judge
from mnpo.config.reading import read_yaml
from mnpo.errors import BadInput
from mnpo.judging import prompts
from mnpo.judging.client import Client
from mnpo.judging.labels import find, labels
from mnpo.judging.requests import Answer, Request
from mnpo.judging.verdicts import judge_decoding, read_verdicts
from mnpo.seeds import derive
from mnpo.storage.records import read_rows

BENCHMARK = "arena-hard"
BASELINE = "gpt-4-0314"
WINS = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}  # of the answer shown as A
LABEL = r"([AB<>=]+)"
DECISIVE = 3  # battles that a `>>` counts
RESAMPLES = 100
PROTOCOL = (
    f"Win rate against {BASELINE}, judged by {{judge}} in two games a question with positions swapped; a decisive "
    f"verdict counts {DECISIVE} battles, a tie half a win, an unreadable one, or one that a reply cut "
    f"at its length only mentions, drops its game; no style control; the "
    f"interval is the 2.5 and 97.5 percentiles of {RESAMPLES} bootstraps over battles."
)


def evaluate(
    settings: judged_common.Settings, answers: Iterable[Mapping[str, Any]], data: Path, judge: Judge, store: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The policy's summary, and one row per question: the share of its battles won, with their number as weight.

    Raises:
        BadInput: data or answers that do not fit, too few verdicts (max_missing), or a failing endpoint (see Client).
    """
    asked = read_questions(BENCHMARK, data, settings.limit)
    given = {item_id: rows[0] for item_id, rows in judged_common.answered(BENCHMARK, asked, answers).items()}
    system, template = _prompt(data)
    baseline = baseline_answers(data)
    decoding = judge_decoding(judge, temperature=0.0, max_tokens=4096)
    requests = []
    for question in asked:
        if question.item_id not in baseline:
            raise BadInput(f"{BENCHMARK} {question.item_id}: {BASELINE} has no answer to it; fetch the data anew")
        pair = baseline[question.item_id], given[question.item_id]["response"]
        for game, (a, b) in enumerate((pair, pair[::-1]), 1):
            name = f"{BENCHMARK} {question.item_id}, game {game}"
            user = prompts.filled(template, name, _fields(question.turns[0], a, b))
            requests.append(Request(name, prompts.chat(system, user), repeat=settings.repeat, **decoding))
    client = Client(judge, store, progress_name=f"judge {BENCHMARK}, {settings.policy}")
    verdicts = read_verdicts(client, BENCHMARK, requests, read_verdict)

    battles = {
        question.item_id: [*battles_of(first, as_a=False), *battles_of(second, as_a=True)]
        for question, first, second in zip(asked, verdicts[::2], verdicts[1::2], strict=True)
    }
    items = [_item(item_id, won, given[item_id]) for item_id, won in battles.items() if won]
    value, error = judged_common.weighted_mean([item["value"] for item in items], [item["weight"] for item in items])
    seed = derive(settings.seed, BENCHMARK, settings.policy, settings.judge, settings.repeat)
    low, high = interval([w for won in battles.values() for w in won], seed)
    summary = {
        "policy": settings.policy,
        "benchmark": BENCHMARK,
        "judge": judge.model,
        "value": 100 * value,
        "stderr": 100 * error,
        "metric": "win_rate",
        "items": len(items),
        "metrics": {
            "win_rate": 100 * value,
            "low": 100 * low,
            "high": 100 * high,
            "battles": float(sum(map(len, battles.values()))),
            **judged_common.lengths(given.values()),
        },
        "protocol": PROTOCOL.format(judge=judge.model),
        "missing": verdicts.count(None),
        "refused": client.tally["refused"],
        "judgements": len(requests),
        "repeat": settings.repeat,
        "prompt_digest": judged_common.digest(system, template),
        "tally": client.tally,
    }
    return summary, items


def read_verdict(answer: Answer) -> str | None:
    """The verdict that a reply gives in double brackets; None without one, or when it gives different ones.

    So does the benchmark's own reader. A reply that was cut has to state its verdict too (see labels.stated): what it
    has only mentioned by then need not be how it would have ended.
    """
    found = set(find(answer.text, LABEL))
    verdict = found.pop() if len(found) == 1 else None
    return verdict if verdict in WINS and verdict in labels(answer, LABEL, "verdict") else None


def battles_of(verdict: str | None, *, as_a: bool) -> list[float]:
    """What a game adds: the policy's wins (0, 1/2 or 1), one for each battle that the verdict, if it is one, counts."""
    if verdict not in WINS:
        return []
    won = WINS[verdict] if as_a else 1 - WINS[verdict]
    return [won] * (DECISIVE if ">>" in verdict else 1)


def interval(battles: Sequence[float], seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the win rate, a share, resampling battles.

    A win rate is that of the unpenalised logistic model without intercept, r = 400 log10(p / (1 - p)); with a single
    opponent its maximum-likelihood p is the mean of the battles.
    """
    won, rng = np.array(battles), np.random.default_rng(seed)
    rates = [won[rng.integers(0, len(won), len(won))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def _item(item_id: str, won: Sequence[float], row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "item_id": item_id,
        "value": sum(won) / len(won),
        "weight": float(len(won)),
        "response": row["response"],
        "tokens": row["tokens"],
    }


def _prompt(data: Path) -> tuple[str, str]:
    """The judge's system prompt and the template of a game."""
    path = data_file(data, "config/judge_config.yaml", "config/arena-hard-v0.1.yaml", "judge_config.yaml")
    config = read_yaml(path)
    system, template = config.get("system_prompt"), config.get("prompt_template")
    template = template[0] if isinstance(template, list) and template else template
    if not isinstance(system, str) or not isinstance(template, str):
        raise BadInput(
            f"{path}: no {'prompt_template' if isinstance(system, str) else 'system_prompt'}; fetch "
            "lmarena/arena-hard-auto at a commit before April 2025, or write one there"
        )
    return system, template


def _fields(question: str, a: str, b: str) -> dict[str, str]:
    """The template's parts, under both names that the repository has had for them."""
    return {"question_1": question, "answer_1": a, "answer_2": b, "QUESTION": question, "ANSWER_A": a, "ANSWER_B": b}


def baseline_answers(data: Path) -> dict[str, str]:
    """The baseline's answers by question."""
    name = f"model_answer/{BASELINE}.jsonl"
    path = data_file(data, f"data/arena-hard-v0.1/{name}", name)
    try:
        return dict(_baseline_answer(row) for row in read_rows(path))
    except (KeyError, IndexError, TypeError) as error:
        raise BadInput(f"{path}: no answers of {BASELINE} ({type(error).__name__}: {error}); fetch it anew") from None


def _baseline_answer(row: Mapping[str, Any]) -> tuple[str, str]:
    if "uid" in row:  # the repository's layout since April 2025
        return row["uid"], row["messages"][-1]["content"]["answer"]
    return row["question_id"], row["choices"][0]["turns"][0]["content"]
