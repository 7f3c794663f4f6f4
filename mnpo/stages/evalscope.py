"""Stage `evalscope`: a policy on benchmarks by the paper's harness, in that one's environment.

The policy is run by the stage `answer`, a process of its own in the environment of that one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.benchmarks import answers, evalscope
from mnpo.benchmarks.result_cache import Measuring, Results
from mnpo.config.blocks import Block
from mnpo.errors import BadInput
from mnpo.models.checkpoints import readable
from mnpo.storage.records import ANSWERS, read, rows_of

ENVIRONMENT = "evalscope"
QUESTIONS = "question.jsonl"
ANSWERED = ".answered"
"""Beside the results: the policy's answers until they are scored."""


class Settings(Block):
    """What this stage reads."""

    evalscope: evalscope.Settings
    answer: dict[str, Any]
    """What the stage `answer` reads, but for the benchmark."""
    code: str = ""
    """The digest of the code behind the results: another one measures anew."""


def run(settings: Settings, policy: Path, data: Mapping[str, Path], output: Path) -> None:
    """Measure a policy on benchmarks by the paper's harness.

    Args:
        policy: the policy's directory.
        data: the directory of each benchmark's data.
        output: the directory of the policy's results: `{benchmark}.json` and `{benchmark}.parquet`.

    Raises:
        BadInput: see mnpo.benchmarks.evalscope.results; the policy did not answer.
    """
    text = settings.model_dump(mode="json", exclude_none=True)
    benchmarks = text["evalscope"].pop("benchmarks")
    policy = readable(policy, settings.answer.get("dtype", "float32"))
    with tempfile.TemporaryDirectory(prefix="evalscope-") as scratch:

        def replies(asked: Mapping[str, Sequence[str]]) -> dict[str, list[dict[str, Any]]]:
            return _answers(settings, asked, policy, output / ANSWERED)

        def measured(names: list[str]) -> Results:
            chosen = {b: c for b, c in settings.evalscope.benchmarks.items() if b in names}
            some = settings.evalscope.model_copy(update={"benchmarks": chosen})
            return evalscope.results(some, data, replies, Path(scratch))

        Measuring("evalscope", text, benchmarks, policy, data, output).run(measured)
    shutil.rmtree(output / ANSWERED, ignore_errors=True)


def _answers(
    settings: Settings, asked: Mapping[str, Sequence[str]], policy: Path, beside: Path
) -> dict[str, list[dict[str, Any]]]:
    """The policy's greedy replies, by one `mnpo answer`, which goes on where an earlier one was interrupted."""
    usual = answers.DECODING["evalscope"].max_new_tokens
    limits = {str(b): c.max_new_tokens or usual for b, c in settings.evalscope.benchmarks.items() if b in asked}
    text = "".join(json.dumps({"benchmark": b, "prompt": p}) + "\n" for b, prompts in asked.items() for p in prompts)
    directory = beside / hashlib.sha256(text.encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "questions").mkdir(exist_ok=True)
    (directory / "questions" / QUESTIONS).write_text(text, encoding="utf-8")
    how = {"asked": {**settings.answer, "benchmark": "evalscope", "limits": limits}}
    command = [sys.executable, "-m", "mnpo", "answer", "--settings", json.dumps(how), "--policy", str(policy)]
    output = directory / "answers.parquet"
    files = ["--data", str(directory / "questions"), "--output", str(output)]
    if code := subprocess.run([*command, *files], check=False).returncode:
        raise BadInput(f"the policy {policy} did not answer EvalScope (mnpo answer ended with {code}, see above)")
    given: dict[str, list[dict[str, Any]]] = {benchmark: [] for benchmark in asked}
    for row in sorted(rows_of(read(ANSWERS, output)), key=lambda row: int(row["item_id"])):
        given[row["category"]].append(row)
    return given
