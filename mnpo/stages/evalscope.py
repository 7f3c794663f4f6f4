"""Stage `evalscope`: a policy on benchmarks by the paper's harness, in that one's environment.

The policy is run by the stage `answer`, a process of its own in the environment of that one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.artifacts import artifact
from mnpo.benchmarks import evalscope
from mnpo.config import Block
from mnpo.errors import BadInput
from mnpo.records import ANSWERS, ITEMS, read, rows_of, write

QUESTIONS = "question.jsonl"


class Settings(Block):
    """What this stage reads."""

    evalscope: evalscope.Settings
    answer: dict[str, Any]
    """What the stage `answer` reads, but for the benchmark."""


def run(settings: Settings, policy: Path, data: Mapping[str, Path], output: Path) -> None:
    """Write `{benchmark}.json` and `{benchmark}.parquet` for every benchmark into the directory `output`.

    Raises:
        BadInput: see mnpo.benchmarks.evalscope.results; the policy did not answer.
    """
    text = settings.model_dump(mode="json", exclude_none=True)
    with tempfile.TemporaryDirectory(prefix="evalscope-") as scratch:

        def replies(benchmark: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
            return _answers(settings, benchmark, prompts, policy, Path(scratch) / f"asked-{benchmark}")

        for benchmark, summary, rows in evalscope.results(settings.evalscope, data, replies, Path(scratch)):
            file, inputs = output / f"{benchmark}.json", [policy, data[benchmark]]
            with (
                artifact(file, "evalscope", text, inputs) as made,
                artifact(file.with_suffix(".parquet"), "evalscope", text, inputs) as made_items,
            ):
                write(ITEMS, rows, made_items.path)
                made.path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
                made.facts = made_items.facts = {k: summary[k] for k in ("items", "missing")}


def _answers(
    settings: Settings, benchmark: str, prompts: Sequence[str], policy: Path, directory: Path
) -> list[dict[str, Any]]:
    """The policy's greedy replies, by `mnpo answer`."""
    directory.mkdir()
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
    (directory / QUESTIONS).write_text(text, encoding="utf-8")
    chosen = {str(b): c for b, c in settings.evalscope.benchmarks.items()}[benchmark]
    new = {"max_new_tokens": chosen.max_new_tokens} if chosen.max_new_tokens else {}
    asked = {**settings.answer, "benchmark": "evalscope", "of": benchmark, **new}
    output = directory / "answers.parquet"
    command = [sys.executable, "-m", "mnpo", "answer", "--settings", json.dumps({"asked": asked})]
    files = ["--policy", str(policy), "--data", str(directory), "--output", str(output)]
    if code := subprocess.run([*command, *files], check=False).returncode:
        raise BadInput(f"{benchmark}: the policy {policy} did not answer (mnpo answer ended with {code}, see above)")
    return rows_of(read(ANSWERS, output))
