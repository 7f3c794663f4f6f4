"""EvalScope 1.0.2, the paper's harness, for all that the paper ran in it: in an environment of its own.

EvalScope renders the prompts, the judge's too, and scores the replies. Policy and judge are run by us, and so are the
programs of HumanEval: EvalScope runs first for what it asks, then with the replies. Its data are local files, its seed
is the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mnpo.benchmarks import arena_hard, judged_common, sandbox
from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.data import prepare_ifeval
from mnpo.benchmarks.evalscope_runs import run_evalscope
from mnpo.benchmarks.evalscope_tasks import (
    NEUTRAL,
    TASKS,
    UNREAD,
    VERDICT_READERS,
    JudgePrompt,
    Row,
    shots_of,
    write_dataset,
)
from mnpo.benchmarks.mended import last_number
from mnpo.benchmarks.questions import read_questions
from mnpo.benchmarks.result_cache import Results
from mnpo.config.blocks import Block
from mnpo.config.evaluation import Benchmark, BenchmarkSettings
from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.prompts import chat
from mnpo.judging.requests import Request
from mnpo.judging.verdicts import judge_decoding, read_verdicts
from mnpo.progress import say

Replies = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Sequence[Mapping[str, Any]]]]
"""Prompts by benchmark -> the policy's replies, each with `response` and `tokens`."""
UNREADABLE = (
    "; EvalScope takes the first letter or label of any reply, but here one that is not as asked is asked again, then "
    "left out"
)


class Settings(Block):
    """What the benchmarks without a judge read."""

    policy: str
    benchmarks: dict[Benchmark, BenchmarkSettings]


def results(settings: Settings, data: Mapping[str, Path], replies: Replies, scratch: Path) -> Results:
    """The name, summary and per-item rows (records.ITEMS) of each benchmark without a judge, as they are done.

    Args:
        data: benchmark -> directory with its files, as for lm-eval.
        replies: asks the policy, greedily, all benchmarks' prompts at once.
        scratch: an empty directory for EvalScope's own files.

    Raises:
        BadInput: EvalScope is not in this environment, data that are missing, no sandbox for HumanEval.
        RuntimeError: EvalScope rendered a prompt the second time that it had not the first.
    """
    asked: dict[str, list[str]] = {}
    for benchmark, chosen in settings.benchmarks.items():
        if benchmark not in TASKS or benchmark in VERDICT_READERS or benchmark not in data:
            known = ", ".join(name for name in TASKS if name not in VERDICT_READERS)
            raise BadInput(f"{benchmark}: no data, or not one that EvalScope scores without a judge; these are {known}")
        if benchmark == "ifeval":
            prepare_ifeval(data)
        if benchmark == "humaneval":
            sandbox.check_sandbox()
        directory = write_dataset(benchmark, chosen, data[benchmark], scratch / benchmark)
        run_evalscope(benchmark, chosen, directory, "asked", _noting(asked.setdefault(benchmark, []), ""))
    answered = replies(asked)
    for benchmark, chosen in settings.benchmarks.items():
        given = answered[benchmark]
        said = _Known(zip(asked[benchmark], (row["response"] for row in given), strict=True))
        reviews = run_evalscope(benchmark, chosen, scratch / benchmark, "scored", said.__getitem__)
        summary, rows = _summary(settings.policy, benchmark, chosen, reviews, given)
        say(f"evalscope: {settings.policy}, {benchmark}: {summary['value']:.2f} of {summary['items']} items")
        yield benchmark, summary, rows


def evaluate(
    benchmark: str,
    settings: judged_common.Settings,
    answers: Iterable[Mapping[str, Any]],
    data: Path,
    judge: Judge,
    store: Path,
) -> tuple[Row, list[Row]]:
    """The policy's summary on a benchmark that asks a judge, and its per-item rows.

    EvalScope makes nothing of a call that failed, and reads a lost game or a wrong answer in a reply without a verdict,
    or whatever letter of it looks like one. Here each answer of the judge is stored, a reply without a verdict as asked
    for is asked again, and then left out and counted.

    Raises:
        BadInput: EvalScope is not in this environment, data or answers that do not fit, too few
            verdicts (judge.max_missing), or an endpoint that fails (see Client).
    """
    chosen = BenchmarkSettings(limit=settings.limit)
    asked = read_questions(benchmark, data, settings.limit)
    given = [rows[0] for rows in judged_common.answered(benchmark, asked, answers).values()]
    said = _Known((row["prompt"], row["response"]) for row in given)
    client = Client(judge, store, progress_name=f"judge {benchmark}, {settings.policy}")
    with TemporaryDirectory(prefix="evalscope-") as scratch:
        directory = write_dataset(benchmark, chosen, data, Path(scratch) / benchmark)
        wanted: list[JudgePrompt] = []
        run_evalscope(benchmark, chosen, directory, "asked", said.__getitem__, _noting(wanted, NEUTRAL))
        wanted.sort()  # EvalScope's order is that of its threads
        decoding = judge_decoding(judge, temperature=0.0, max_tokens=1024)  # EvalScope's own
        requests = [
            Request(f"{benchmark}, question {number}", chat(*question), repeat=settings.repeat, **decoding)
            for number, question in enumerate(wanted)
        ]
        verdicts = read_verdicts(client, benchmark, requests, VERDICT_READERS[benchmark])
        known = _Known(zip(wanted, (text or UNREAD for text in verdicts), strict=True))
        reviews = run_evalscope(benchmark, chosen, directory, "scored", said.__getitem__, known.__getitem__)
    summary, rows = _summary(settings.policy, benchmark, chosen, reviews, given)
    summary |= {
        "judge": judge.model,
        "protocol": summary["protocol"].replace("{judge}", judge.model) + UNREADABLE,
        "missing": verdicts.count(None),
        "refused": client.tally["refused"],
        "judgements": len(verdicts),
        "repeat": settings.repeat,
        "tally": client.tally,
    }
    return summary, rows


class _Known(dict[Any, str]):
    """Replies by what was asked."""

    def __missing__(self, asked: Any) -> str:
        raise RuntimeError(f"EvalScope asks the second time what it did not the first, or renders otherwise: {asked!r}")


def _noting(asked: list[Any], reply: str) -> Callable[[Any], str]:
    """Whoever always says `reply`, and remembers what was asked, once."""

    def answer(question: Any) -> str:
        if question not in seen:
            seen.add(question)
            asked.append(question)
        return reply

    seen: set[Any] = set()
    return answer


def _summary(
    policy: str,
    benchmark: str,
    chosen: BenchmarkSettings,
    reviews: Sequence[Row],
    given: Sequence[Mapping[str, Any]],
) -> tuple[Row, list[Row]]:
    task, card = TASKS[benchmark], CARDS[benchmark]
    tokens = {row["response"]: row["tokens"] for row in given}
    rows = [row for review in reviews if (row := _item(benchmark, review, tokens))]
    if not rows:
        raise BadInput(f"{benchmark}: EvalScope scored none of its {len(reviews)} items (see its log)")
    mean, error = judged_common.weighted_mean([row["value"] for row in rows], [row["weight"] for row in rows])
    metric = task.metric or next(name for review in reviews for name in review["sample_score"]["score"]["value"])
    shots, items = shots_of(task, chosen), card.evalscope_items or card.items
    changes = [f"{shots} shots instead of {task.shots}"] if shots != task.shots else []
    changes += [f"{len(reviews)} items, the benchmark has {items:,}"] if len(reviews) != items else []
    changes += [f"at most {chosen.max_new_tokens} new tokens"] if chosen.max_new_tokens else []
    changed = f"; CHANGED: {'; '.join(changes)}" if changes else ""
    summary = {
        "policy": policy,
        "benchmark": benchmark,
        "harness": "evalscope",
        "value": 100 * mean,
        "stderr": 100 * error,
        "metric": metric,
        "items": len(rows),
        "missing": len(reviews) - len(rows),
        "metrics": _means(reviews) | _mended(benchmark, reviews) | judged_common.lengths(given),
        "protocol": f"{task.protocol} (EvalScope {version('evalscope')}, {shots} shots, chat template){changed}",
        "shots": shots,
        **judged_common.thinking_facts(given),
    }
    return summary, rows


def _item(benchmark: str, review: Row, tokens: Mapping[str, int]) -> Row | None:
    """A row of records.ITEMS; None where EvalScope's check failed, or no verdict could be read."""
    score = review["sample_score"]["score"]
    if benchmark == "arena-hard":
        second, first = score["metadata"]["battle_result"]["games"]  # by where the policy is shown
        battles = [
            *arena_hard.battles_of(second["score"], as_a=False),
            *arena_hard.battles_of(first["score"], as_a=True),
        ]
    else:
        unread = benchmark in VERDICT_READERS and score["explanation"] == f"LLM judge: {UNREAD}"
        battles = [] if unread else [float(value) for value in score["value"].values()][:1]
    if not battles:
        return None
    return {
        "item_id": f"{review['subset']}/{review['index']}",
        "value": sum(battles) / len(battles),
        "weight": float(len(battles)),
        "response": score["prediction"],
        "tokens": tokens[score["prediction"]],
    }


def _mended(benchmark: str, reviews: Sequence[Row]) -> dict[str, float]:
    """Beside its scores, those that its faults do not touch."""
    if benchmark != "gsm8k":
        return {}
    pairs = [(review["sample_score"]["score"]["prediction"], review["target"]) for review in reviews]
    right = [last_number(reply) == last_number(target) for reply, target in pairs]
    return {"acc_mended": sum(right) / len(right)}


def _means(reviews: Sequence[Row]) -> dict[str, float]:
    """The mean of each of EvalScope's scores over the items that have it, as fractions."""
    values: dict[str, list[float]] = {}
    for review in reviews:
        for name, value in review["sample_score"]["score"]["value"].items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(several) / len(several) for name, several in values.items()}
