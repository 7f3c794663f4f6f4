"""lm-eval's own task definitions, fed from local files, and the programs of HumanEval run in our sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.benchmarks import mended
from mnpo.benchmarks.cards import Card
from mnpo.benchmarks.data import FORMATS, prepare_ifeval, split_files, subjects
from mnpo.benchmarks.sandbox import Outcome, check_sandbox, score_humaneval
from mnpo.config.evaluation import BenchmarkSettings
from mnpo.errors import BadInput
from mnpo.storage.records import read_rows

FENCE = "\n```\n"
"""Ends a reply to HumanEval."""


def write_tasks(card: Card, chosen: BenchmarkSettings, data: Mapping[str, Path], scratch: Path) -> dict[str, Path]:
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
        prepare_ifeval(data)
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
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in ("pass@1", "pass@1_mended")
            ],
        }
    if card.name == "gsm8k":
        by_value = [_function("custom", filter_fn=mended.last_numbers), {"function": "take_first"}]
        task["filter_list"] = [*content["filter_list"], {"name": "mended", "filter": by_value}]
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
    if card.name == "humaneval":
        task["generation_kwargs"]["until"] = [FENCE]  # the stock ones, applied later, cut off fenced code
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


def run_programs(replies: Sequence[Sequence[str]], problems: Sequence[Mapping[str, Any]]) -> list[list[Outcome]]:
    """lm-eval's filter: each reply's stock completion, run in the sandbox after its prompt, and its mended one."""
    stock = [mended.stock_completion(reply[0]) for reply in replies]
    whole = [mended.completion(reply[0]) for reply in replies]
    differing = [i for i, completion in enumerate(whole) if completion != stock[i]]
    outcomes = score_humaneval(problems, stock)
    others = score_humaneval([problems[i] for i in differing], [whole[i] for i in differing]) if differing else []
    other = dict(zip(differing, others, strict=True))
    return [[outcome, other.get(i, outcome)] for i, outcome in enumerate(outcomes)]


def passed(problem: Mapping[str, Any], outcomes: Sequence[Sequence[Outcome]]) -> dict[str, float]:
    """lm-eval's metrics: whether the stock program passed, and whether the mended one did."""
    stock, whole = outcomes[0]
    return {"pass@1": float(stock.passed), "pass@1_mended": float(whole.passed)}
