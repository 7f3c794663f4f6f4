"""Eleven benchmarks by lm-eval: its own task definitions, fed from local files, one load of the policy for all.

What is ours: where the data come from, the programs of HumanEval (mnpo/benchmarks/sandbox.py), and a check of what the
policy is fed: exactly one BOS, and how many prompts and replies were cut. Nothing is downloaded. Seeds are lm-eval's
own, set anew for every benchmark, so that a result is that of its command line for that benchmark alone.
"""

from __future__ import annotations

import json
import logging
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from pydantic import Field

from mnpo.benchmarks.cards import CARDS, Card
from mnpo.benchmarks.data import FORMATS, find_punkt, split_files, subjects
from mnpo.benchmarks.result_cache import Results
from mnpo.benchmarks.sandbox import Outcome, check_sandbox, score_humaneval
from mnpo.config.blocks import Block
from mnpo.config.evaluation import Benchmark, BenchmarkSettings
from mnpo.errors import BadInput
from mnpo.progress import counter, say
from mnpo.storage.records import read_rows

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
            benchmark: prepare(CARDS[benchmark], chosen, data, Path(scratch) / benchmark)
            for benchmark, chosen in settings.benchmarks.items()
        }
        model = _load(settings, policy)
        for benchmark, chosen in settings.benchmarks.items():
            summary, rows = _run(settings, model, CARDS[benchmark], chosen, prepared[benchmark])
            say(f"harness: {settings.policy}, {benchmark}: {summary['value']:.2f} of {summary['items']} items")
            yield benchmark, summary, rows


# ------------------------------------------------------------------------------------------------------------ the tasks


def prepare(card: Card, chosen: BenchmarkSettings, data: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
    """Write lm-eval's task files of a benchmark below `scratch`: subject ('' where there are none) -> YAML file.

    A file includes the stock definition and names local data. `python -m lm_eval --tasks FILE` runs it too, but for
    the chat template, which is a flag there.

    Raises:
        BadInput: not a benchmark of lm-eval, its data are missing, or lack a column.
    """
    import yaml

    if card.harness != "lm-eval":
        raise BadInput(f"{card.name}: not a benchmark of lm-eval; its own harness is {card.harness}")
    if card.name not in data:
        raise BadInput(f"{card.name}: no data; name its directory (datasets.{card.name} in the configuration)")
    shots = card.shots if chosen.shots is None else chosen.shots
    if shots and len(card.files) < 2 and card.shots == 0:
        raise BadInput(f"{card.name}: {shots} shots asked for, and it has no examples to show; leave shots at 0")
    scratch.mkdir(parents=True)
    if card.name == "ifeval":
        find_punkt(data)
    if card.name == "humaneval":
        check_sandbox()
    tasks = {}
    for subject, files in _files(card, data[card.name], card.splits(shots), scratch).items():
        task = _definition(card, chosen, shots, subject, files, scratch / "cache")
        tasks[subject] = scratch / f"{task['task']}.yaml"
        tasks[subject].write_text(yaml.dump(task, Dumper=_dumper(), sort_keys=False), encoding="utf-8")
    return tasks


def _definition(
    card: Card, chosen: BenchmarkSettings, shots: int, subject: str, files: Mapping[str, list[Path]], cache: Path
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    stock = Path(lm_eval.__file__).parent / "tasks" / card.task.format(subject)
    if not stock.is_file():
        raise BadInput(f"{card.name}: no subject {subject!r} ({stock.name} is not among lm-eval's tasks)")
    content = load_yaml(stock, resolve_func=False)
    formats = {FORMATS[file.suffix] for found in files.values() for file in found}
    if len(formats) != 1:
        raise BadInput(f"{card.name}: its files mix the formats {', '.join(sorted(formats))}; convert them to one")
    task: dict[str, Any] = {"include": str(stock)}
    if card.name == "humaneval":  # including it would run its module, which downloads a metric to run code unguarded
        task = {k: v for k, v in content.items() if k not in ("metric_list", "filter_list")} | {
            "filter_list": [{"name": "create_test", "filter": [_function("custom", filter_fn=run_programs)]}],
            "process_results": _Function(passed),
            "metric_list": [{"metric": "pass@1", "aggregation": "mean", "higher_is_better": True}],
        }
    task |= {
        "task": f"{card.name}_{subject}" if subject else card.name,
        "dataset_path": formats.pop(),
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {split: [str(f) for f in found] for split, found in files.items()},
            "cache_dir": str(cache),  # a new one: shuffled choices are remembered in it
        },
        "num_fewshot": shots,
    }
    task |= {
        key: None
        for key in ("training_split", "validation_split", "fewshot_split")
        if content.get(key) is not None and content[key] not in files
    }
    if card.max_new_tokens:
        limit = chosen.max_new_tokens or card.max_new_tokens
        task["generation_kwargs"] = {**content["generation_kwargs"], "max_gen_toks": limit}
    _check_columns(card, task)
    return task


def _files(card: Card, directory: Path, splits: Sequence[str], scratch: Path) -> dict[str, dict[str, list[Path]]]:
    """Subject -> split -> files."""
    if "{}" not in card.task:
        found = {name: split_files(card, directory, name) for name in splits}
        return {"": _as_problems(found, scratch) if card.name == "minerva" else found}
    if several := subjects(card, directory):
        return {s: {name: split_files(card, directory, name, s) for name in splits} for s in several}
    by_subject: dict[str, dict[str, list[Path]]] = {}
    for split in splits:
        rows: dict[str, list[dict[str, Any]]] = {}
        for file in split_files(card, directory, split):
            for number, row in enumerate(read_rows(file)):
                if "subject" not in row:
                    raise BadInput(f"{file}: row {number} has no subject; give the column, or a directory per subject")
                rows.setdefault(row["subject"], []).append(row)
        for subject, own in sorted(rows.items()):
            by_subject.setdefault(subject, {})[split] = [_write(own, scratch / subject / f"{split}.jsonl")]
    return by_subject


def _as_problems(files: dict[str, list[Path]], scratch: Path) -> dict[str, list[Path]]:
    """Rows of question and answer, as some copies of Minerva-Math have them, in the columns of MATH."""
    ((split, found),) = files.items()
    rows = [row for file in found if file.suffix != ".csv" for row in read_rows(file)]
    if not rows or not all({"question", "answer"} <= row.keys() for row in rows):
        return files
    made = [{"problem": row["question"], "solution": f"\\boxed{{{row['answer']}}}"} for row in rows]
    return {split: [_write(made, scratch / f"{split}.jsonl")]}


def _write(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _check_columns(card: Card, task: Mapping[str, Any]) -> None:
    import datasets

    kwargs = task["dataset_kwargs"]
    try:
        loaded = datasets.load_dataset(task["dataset_path"], **kwargs)
    except Exception as error:  # whatever datasets and the libraries below it raise for files that are none
        reason = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"
        raise BadInput(f"{card.name}: {kwargs['data_files']}: not readable ({reason})") from None
    for split, rows in loaded.items():
        where = f"{card.name}, {', '.join(kwargs['data_files'][split])}"
        if missing := [c for c in card.columns if c not in rows.column_names]:
            raise BadInput(f"{where}: no column {missing[0]}; it has {', '.join(rows.column_names)}")
        if not len(rows):
            raise BadInput(f"{where}: no rows")
        if card.name == "minerva" and (unboxed := [i for i, s in enumerate(rows["solution"]) if "\\boxed" not in s]):
            raise BadInput(f"{where}: the solution of row {unboxed[0]} has no \\boxed answer; add it")


class _Function:
    """A function of an importable module, in a task's YAML."""

    def __init__(self, function: Any) -> None:
        self.name = f"{function.__module__}.{function.__name__}"


def _function(name: str, **functions: Any) -> dict[str, Any]:
    return {"function": name} | {key: _Function(value) for key, value in functions.items()}


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_representer(_Function, lambda dumper, f: dumper.represent_scalar("!function", f.name))
    return Dumper


# ------------------------------------------------------------------------------------------------------------ HumanEval


def run_programs(replies: Sequence[Sequence[str]], problems: Sequence[Mapping[str, Any]]) -> list[list[Outcome]]:
    """lm-eval's filter: every reply up to its closing fence, run in the sandbox after its prompt."""
    completions = [reply[0].split("```")[0] for reply in replies]
    return [[outcome] for outcome in score_humaneval(problems, completions)]


def passed(problem: Mapping[str, Any], outcomes: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """lm-eval's metric: whether the one program passed."""
    return {"pass@1": float(outcomes[0][0].passed)}


# ------------------------------------------------------------------------------------------------------------ the model


def _load(settings: Settings, policy: Path) -> Any:
    from mnpo.models.checkpoints import load_model, load_tokenizer

    tokenizer = load_tokenizer(policy)
    if settings.backend == "vllm":
        if find_spec("vllm") is None:
            raise BadInput("evaluation.backend: vllm is not installed here; use its environment, or transformers")
        import torch

        from mnpo.samplers.vllm import without_compiler

        without_compiler()
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(policy),
            dtype=settings.dtype,
            batch_size="auto",
            max_length=settings.max_length,
            seed=SEED,
            enforce_eager=not torch.cuda.is_available(),  # compiling takes a CPU longer than it saves
        )
    from lm_eval.models.huggingface import HFLM

    model = load_model(policy, dtype=settings.dtype)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_size, max_length=settings.max_length)


class Watched:
    """lm-eval's model, with an eye on what it is fed.

    Refuses a prompt without exactly one BOS where the policy's template has one; shortens replies rather than prompts
    where both do not fit; counts the prompts and replies that are cut all the same; shows progress.
    """

    def __init__(self, model: Any, what: str) -> None:
        self._model = model
        self._what = what
        self._bos = _template_bos(model.tokenizer)
        self.prompts_cut = 0
        self.replies_cut = 0
        self.max_new_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        cut = set()
        for request in requests:
            context, continuation = self._model._encode_pair(*request.args)
            self._check(context + continuation, request)
            if len(continuation) > self._model.max_length:
                raise BadInput(
                    f"{self._what}, item {request.doc_id}: a choice of {len(continuation)} tokens, and the policy "
                    f"takes {self._model.max_length}; raise max_length or leave this benchmark out"
                )
            if len(context) + len(continuation) > self._model.max_length + 1:
                cut.add((request.task_name, request.doc_id))
        self.prompts_cut = len(cut)
        self._count(len(requests))
        return self._model.loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A reply to each prompt."""
        lengths = [self._check(self._prompt_ids(request.args[0]), request) for request in requests]
        most = self._model.max_length
        asked = requests[0].args[1]["max_gen_toks"]
        self.max_new_tokens = min(asked, max(most - max(lengths), most // 4))
        for request in requests:
            request.args[1]["max_gen_toks"] = self.max_new_tokens
        self.prompts_cut = sum(length > most - self.max_new_tokens for length in lengths)
        self._count(len(requests))
        replies: list[str] = self._model.generate_until(requests, disable_tqdm=True)
        self.replies_cut = sum(self.tokens(reply) >= self.max_new_tokens for reply in replies)
        return replies

    def tokens(self, text: str) -> int:
        """Tokens of a reply, its text encoded anew: lm-eval does not hand on the policy's own."""
        return len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_ids(self, prompt: str) -> list[int]:
        if hasattr(self._model, "tok_batch_encode"):
            return self._model.tok_batch_encode([prompt])[0][0].tolist()  # type: ignore[no-any-return]
        return self._model.tok_encode(prompt)  # type: ignore[no-any-return]

    def _check(self, ids: list[int], request: Any) -> int:
        if self._bos is not None and (ids[:1] != [self._bos] or self._bos in ids[1:2]):
            n = 0 if ids[:1] != [self._bos] else 2
            raise BadInput(
                f"{self._what}, item {request.doc_id}: {n} BOS before the prompt where the policy's chat template has "
                "one; mend bos_token, add_bos_token or the template in its tokenizer"
            )
        return len(ids)

    def _count(self, total: int) -> None:
        show = counter(self._what, "requests")
        self._model.set_cache_hook(_Finished(lambda done: show(done, total)))


class _Finished:
    """lm-eval tells its cache of every answer; this one only counts them."""

    def __init__(self, show: Any) -> None:
        self._done, self._show = 0, show

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self._done += 1
        self._show(self._done)


def _template_bos(tokenizer: Any) -> int | None:
    """The BOS with which the tokenizer's chat template begins, if it does."""
    bos = tokenizer.bos_token_id
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bos if bos is not None and ids[:1] == [bos] else None


# -------------------------------------------------------------------------------------------------------------- results


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
    watched = Watched(model, f"harness: {settings.policy}, {card.name}")
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
