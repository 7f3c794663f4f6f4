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

from mnpo.benchmarks import evalscope
from mnpo.benchmarks.kept import Measuring, Results
from mnpo.config import Block
from mnpo.errors import BadInput
from mnpo.records import ANSWERS, read, rows_of

QUESTIONS = "question.jsonl"


class Settings(Block):
    """What this stage reads."""

    evalscope: evalscope.Settings
    answer: dict[str, Any]
    """What the stage `answer` reads, but for the benchmark."""
    code: str = ""
    """The digest of the code behind the results: another one measures anew."""


def run(settings: Settings, policy: Path, data: Mapping[str, Path], output: Path) -> None:
    """Write `{benchmark}.json` and `{benchmark}.parquet` for every benchmark into the directory `output`.

    Raises:
        BadInput: see mnpo.benchmarks.evalscope.results; the policy did not answer.
    """
    text = settings.model_dump(mode="json", exclude_none=True)
    benchmarks = text["evalscope"].pop("benchmarks")
    with tempfile.TemporaryDirectory(prefix="evalscope-") as scratch:

        def replies(benchmark: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
            return _answers(settings, benchmark, prompts, policy, Path(scratch) / f"asked-{benchmark}")

        def measured(names: list[str]) -> Results:
            chosen = {b: c for b, c in settings.evalscope.benchmarks.items() if b in names}
            some = settings.evalscope.model_copy(update={"benchmarks": chosen})
            return evalscope.results(some, data, replies, Path(scratch))

        Measuring("evalscope", text, benchmarks, policy, data, output).run(measured)


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
