"""The stage `judge` as a process of its own: what it writes and prints never holds the key, whatever goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnpo.benchmarks.questions import read_questions
from mnpo.demo import benchmarks
from mnpo.demo.judge import Loopback, serve
from mnpo.storage.records import ANSWERS, read, rows_of, write

pytestmark = pytest.mark.slow
KEY = "sk-recognisable-0123456789abcdef"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Arena-Hard's small data, and answers to it."""
    benchmarks.make(tmp_path / "data", "arena-hard", 0)
    rows = [
        {"item_id": q.item_id, "turn": 1, "category": q.category, "prompt": q.turns[0], "response": f"cat {i}"}
        for i, q in enumerate(read_questions("arena-hard", tmp_path / "data"))
    ]
    write(ANSWERS, [row | {"tokens": 2, "finish": "stop"} for row in rows], tmp_path / "answers.parquet")
    return tmp_path


def judge(here: Path, server: Loopback, **settings: object) -> subprocess.CompletedProcess[str]:
    """`mnpo judge`, with its log, its store and its outputs below `here`/made."""
    how = {"model": "demo", "endpoint": server.url, "key": "JUDGE_KEY", **settings}
    text = {"benchmark": "arena-hard", "judged": {"policy": "p", "judge": "demo"}, "judge": how}
    made = here / "made"
    command = [sys.executable, "-m", "mnpo", "--log", made / "log", "judge", "--settings", json.dumps(text)]
    files = ["--answers", here / "answers.parquet", "--data", here / "data", "--store", made / "store.sqlite"]
    return subprocess.run(
        [*command, *files, "--output", made / "arena-hard.demo.json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"JUDGE_KEY": KEY, "OPENAI_LOG": "debug"},  # the library writes down its requests
    )


def leaks(here: Path, process: subprocess.CompletedProcess[str]) -> list[str]:
    """Where the key, or a recognisable part of it, is."""
    files = {str(file): file.read_bytes() for file in (here / "made").rglob("*") if file.is_file()}
    assert {"log", "store.sqlite"} <= {Path(name).name for name in files}
    everything = files | {"stdout": process.stdout.encode(), "stderr": process.stderr.encode()}
    return [name for name, content in everything.items() if KEY[3:18].encode() in content]


def test_a_summary_counts_the_empty_answers_that_were_judged(here: Path) -> None:
    rows = rows_of(read(ANSWERS, here / "answers.parquet"))
    rows[1] |= {"response": "", "finish": "length"}
    rows[2] |= {"response": " \n", "finish": "content_filter"}
    write(ANSWERS, rows, here / "answers.parquet")
    with serve() as server:
        process = judge(here, server)
    assert process.returncode == 0, process.stderr
    summary = json.loads((here / "made/arena-hard.demo.json").read_text())
    assert (summary["answers"], summary["empty"]) == (len(rows), {"length": 1, "content_filter": 1})


@pytest.mark.parametrize("fault", ["401", "500", "schema", "reset"])
def test_a_judge_that_fails_leaves_no_trace_of_the_key(here: Path, fault: str) -> None:
    """After five verdicts. A 401 quotes the whole header, as careless servers do."""
    with serve(faults=[f"{fault}@6-999"]) as server:
        process = judge(here, server, retries=0, concurrency=1)
    assert process.returncode == 3 and "Traceback" not in process.stdout and "mnpo: http://127.0.0.1" in process.stdout
    assert ("[key]" in process.stdout) == (fault == "401")
    assert not leaks(here, process) and not (here / "made/arena-hard.demo.json").exists()


def test_a_judge_that_recovers_leaves_none_either(here: Path) -> None:
    with serve(faults=["500@2", "429@4", "unparsable@6"], retry_after=0) as server:
        process = judge(here, server, concurrency=1, price_input=1, max_cost=5)
    assert process.returncode == 0, process.stderr
    assert not leaks(here, process)
    tally = json.loads((here / "made/arena-hard.demo.json.manifest.json").read_text())["tally"]
    assert tally["retried"] == 2 and tally["reasked"] == 1 and tally["cost"] > 0
