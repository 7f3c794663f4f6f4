"""EvalScope 1.0.2, the paper's harness, for all that the paper ran in it: in an environment of its own.

EvalScope renders the prompts, the judge's too, and scores the replies. Policy and judge are run by us, and so are the
programs of HumanEval: EvalScope runs first for what it asks, then with the replies. Its data are local files, its seed
is the same every time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from mnpo.benchmarks import alpaca_eval, arena_hard, judged_common, sandbox
from mnpo.benchmarks.answers import questions
from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.data import find_punkt, split_rows
from mnpo.benchmarks.result_cache import Results
from mnpo.config.blocks import Block
from mnpo.config.evaluation import Benchmark, BenchmarkSettings
from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.requests import Answer, Request
from mnpo.judging.verdicts import judge_decoding, require_verdicts
from mnpo.progress import say
from mnpo.storage.records import read_rows

Row = dict[str, Any]
Replies = Callable[[Mapping[str, Sequence[str]]], Mapping[str, Sequence[Mapping[str, Any]]]]
"""Prompts by benchmark -> the policy's replies, each with `response` and `tokens`."""
Question = tuple[str | None, str]
"""To a judge: the system's message, and the user's."""


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
        "share of outputs that {judge} prefers to the baseline's, which is always shown first: the first m or M of the "
        "reply decides, and there is no length control",
        "alpaca_eval_gpt4_baseline",
        split="eval",
        metric="win_rate",
    ),
    "arena-hard": Task(
        "arena_hard",
        "win rate against gpt-4-0314, judged by {judge} in two games a question with positions swapped; the first "
        "verdict of a reply counts, a decisive one three battles, and there is no style control",
        split="test",
        metric="win_rate",
    ),
    "ifeval": Task("ifeval", "share of prompts whose instructions are all followed, strictly; its copy of the checks"),
    "gpqa": Task("gpqa_diamond", "the letter of a choice after steps, choices shuffled"),
    "mmlu": Task("mmlu", "the letter of a choice after steps, examples in one turn", "all", shots=5),
    "arc": Task("arc", "the letter of a choice, ARC-Easy and ARC-Challenge together", "ARC-Challenge"),
    "hellaswag": Task("hellaswag", "the letter of an ending"),
    "truthfulqa": Task("truthful_qa", "the letter of the one true answer (mc1), choices shuffled", "multiple_choice"),
    "winogrande": Task("winogrande", "the letter of an option"),
    "gsm8k": Task("gsm8k", "the last number of the reply, examples in one turn", "main", shots=4),
    "minerva": Task(
        "minerva_math",
        "{judge} says of each reply whether it is right, by the reference solution; the 272 problems of OpenCourseWare",
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


def _found(pattern: str) -> Callable[[Answer], str | None]:
    return lambda answer: answer.text if re.search(pattern, answer.text) else None


def _verdict(answer: Answer) -> str | None:
    found = re.findall(r"\[\[([AB<>=]+)\]\]", answer.text)
    return answer.text if found and found[0] in arena_hard.WINS else None


READ: dict[str, Callable[[Answer], str | None]] = {
    "alpaca-eval": _found("m|M"),
    "arena-hard": _verdict,
    "minerva": _found("A|B"),
}
"""Those that ask a judge -> its reply, where EvalScope reads a verdict in it."""
UNREADABLE = "; a reply without a verdict is asked again, then left out"
UNREAD = "..."  # stands for a reply without a verdict, in which no adapter reads one
NEUTRAL = "m [[A=B]]"  # a reply that every adapter can read, for whoever only listens to what it asks


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
        if benchmark not in TASKS or benchmark in READ or benchmark not in data:
            known = ", ".join(name for name in TASKS if name not in READ)
            raise BadInput(f"{benchmark}: no data, or not one that EvalScope scores without a judge; these are {known}")
        if benchmark == "ifeval":
            find_punkt(data)
        if benchmark == "humaneval":
            sandbox.check_sandbox()
        directory = _dataset(benchmark, chosen, data[benchmark], scratch / benchmark)
        _run(benchmark, chosen, directory, "asked", _noting(asked.setdefault(benchmark, []), ""))
    answered = replies(asked)
    for benchmark, chosen in settings.benchmarks.items():
        given = answered[benchmark]
        said = _Known(zip(asked[benchmark], (row["response"] for row in given), strict=True))
        reviews = _run(benchmark, chosen, scratch / benchmark, "scored", said.__getitem__)
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

    EvalScope makes nothing of a call that failed, and reads a lost game or a wrong answer in a reply without a verdict.
    Here each answer of the judge is stored, a reply without a verdict is asked again, and then left out and counted.

    Raises:
        BadInput: EvalScope is not in this environment, data or answers that do not fit, no verdict at all, or an
            endpoint that fails (see Client).
    """
    chosen = BenchmarkSettings(limit=settings.limit)
    asked = questions(benchmark, data, settings.limit)
    given = [rows[0] for rows in judged_common.answered(benchmark, asked, answers).values()]
    said = _Known((row["prompt"], row["response"]) for row in given)
    client = Client(judge, store, progress_name=f"judge {benchmark}, {settings.policy}")
    with TemporaryDirectory(prefix="evalscope-") as scratch:
        directory = _dataset(benchmark, chosen, data, Path(scratch) / benchmark)
        wanted: list[Question] = []
        _run(benchmark, chosen, directory, "asked", said.__getitem__, _noting(wanted, NEUTRAL))
        wanted.sort()  # EvalScope's order is that of its threads
        decoding = judge_decoding(judge, temperature=0.0, max_tokens=1024)  # EvalScope's own
        requests = [
            Request(f"{benchmark}, question {number}", _messages(question), repeat=settings.repeat, **decoding)
            for number, question in enumerate(wanted)
        ]
        verdicts = client.verdicts(requests, READ[benchmark])
        require_verdicts(benchmark, judge, len(verdicts) - verdicts.count(None), len(verdicts))
        known = _Known(zip(wanted, (text or UNREAD for text in verdicts), strict=True))
        reviews = _run(benchmark, chosen, directory, "scored", said.__getitem__, known.__getitem__)
    summary, rows = _summary(settings.policy, benchmark, chosen, reviews, given)
    summary |= {
        "judge": judge.model,
        "protocol": summary["protocol"].replace("{judge}", judge.model) + UNREADABLE,
        "missing": verdicts.count(None),
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


def _messages(question: Question) -> tuple[dict[str, str], ...]:
    system, user = question
    first = ({"role": "system", "content": system},) if system else ()
    return (*first, {"role": "user", "content": user})


# ------------------------------------------------------------------------------------------------------------ EvalScope


def _dataset(benchmark: str, chosen: BenchmarkSettings, data: Path, scratch: Path) -> Path:
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
        baseline, asked = arena_hard.baseline_answers(data), questions(benchmark, data)
        return {task.subset: {task.split: [{"question": q.turns[0], "prediction": baseline[q.item_id]} for q in asked]}}
    cards = {task.subset: card}
    if benchmark == "arc" and (data / "ARC-Easy").is_dir():
        easy = {name: pattern.replace("Challenge", "Easy") for name, pattern in card.files.items()}
        cards["ARC-Easy"] = replace(card, files=easy)
    wanted = card.splits(_shots(task, chosen))
    return {
        subset: {task.split or name: list(map(task.convert, split_rows(of, data, name))) for name in wanted}
        for subset, of in cards.items()
    }


def _shots(task: Task, chosen: BenchmarkSettings) -> int:
    return task.shots if chosen.shots is None else chosen.shots


def _run(
    benchmark: str,
    chosen: BenchmarkSettings,
    directory: Path,
    stage: str,
    reply: Callable[[str], str],
    judge: Callable[[Question], str] | None = None,
) -> list[Row]:
    """EvalScope's reviews of all items, in their order, with our policy, our judge and our sandbox in its place."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        from evalscope import TaskConfig, run_task
        from evalscope.api.mixin import llm_judge_mixin
        from evalscope.benchmarks.humaneval.humaneval_adapter import HumanevalAdapter
    except ImportError as error:
        raise BadInput(f"evalscope is not in this environment ({error}); it has its own, envs/evalscope.txt") from None
    import numpy as np

    task = TASKS[benchmark]
    subsets = {file.name.split(".")[0] for file in directory.glob("*.jsonl")}
    if benchmark == "mmlu":
        subsets = {row["subject"] for row in read_rows(directory / f"{task.subset}.test.jsonl")}
    of: Row = {"dataset_id": str(directory), "subset_list": sorted(subsets)}
    if chosen.shots is not None:
        of["few_shot_num"] = chosen.shots
    work = directory / stage
    config = TaskConfig(
        model=_policy(reply),
        model_id="policy",
        eval_type="llm_ckpt",
        datasets=[task.name],
        dataset_args={task.name: of},
        limit=chosen.limit,
        work_dir=str(work),
        judge_strategy="llm" if judge else "rule",
    )
    programs = _run_in_sandbox if stage == "scored" else _run_nothing
    with (
        mock.patch.object(llm_judge_mixin, "LLMJudge", _judge(judge)),
        mock.patch.object(HumanevalAdapter, "match_score", programs),
        mock.patch.object(np, "NAN", np.nan, create=True),  # its Arena-Hard is older than NumPy 2
    ):
        run_task(config)
    files = sorted(work.rglob("reviews/policy/*.jsonl"))
    return [row | {"subset": file.stem} for file in files for row in sorted(read_rows(file), key=lambda r: r["index"])]


def _policy(reply: Callable[[str], str]) -> Any:
    from evalscope.api.model import ModelAPI, ModelOutput

    class Policy(ModelAPI):  # type: ignore[misc]
        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            return ModelOutput.from_content("policy", reply("\n\n".join(message.text for message in input)))

    return Policy("policy")


def _judge(reply: Callable[[Question], str] | None) -> Any:
    """EvalScope's judge without its endpoint: it has no key, and a call of it cannot fail."""
    from evalscope.metrics import LLMJudge

    class Judged(LLMJudge):  # type: ignore[misc]
        def _init_server_adapter(self) -> None:
            pass

        def judge(self, prompt: str = "", system_prompt: str | None = None, messages: Any = None) -> str:
            assert reply is not None and messages is None
            return reply((system_prompt, prompt))

    return Judged


def _run_in_sandbox(
    adapter: Any, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
) -> Any:
    """HumanEval's score, by our sandbox instead of EvalScope's own processes."""
    outcome = sandbox.run(sandbox.humaneval_program(task_state.metadata, filtered_prediction))
    return _passed(original_prediction, filtered_prediction, outcome.passed, outcome.reason)


def _run_nothing(
    adapter: Any, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
) -> Any:
    return _passed(original_prediction, filtered_prediction, False, "not run")


def _passed(original_prediction: str, filtered_prediction: str, passed: bool, reason: str) -> Any:
    from evalscope.api.metric import Score

    return Score(
        prediction=original_prediction,
        extracted_prediction=filtered_prediction,
        value={"pass": float(passed)},
        metadata={"reason": reason},
    )


# -------------------------------------------------------------------------------------------------------------- results


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
    shots, items = _shots(task, chosen), card.evalscope_items or card.items
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
        "metrics": _means(reviews) | judged_common.lengths(given),
        "protocol": f"{task.protocol} (EvalScope {version('evalscope')}, {shots} shots, chat template){changed}",
        "shots": shots,
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
        unread = benchmark in READ and score["explanation"] == f"LLM judge: {UNREAD}"
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


def _means(reviews: Sequence[Row]) -> dict[str, float]:
    """The mean of each of EvalScope's scores over the items that have it, as fractions."""
    values: dict[str, list[float]] = {}
    for review in reviews:
        for name, value in review["sample_score"]["score"]["value"].items():
            values.setdefault(name, []).append(float(value))
    return {name: sum(several) / len(several) for name, several in values.items()}
