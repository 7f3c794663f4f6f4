"""The table of benchmarks: a cell is a summary's figure, and the footnotes say what each figure is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.stages.benchmarks import Settings, run


def summary(root: Path, policy: str, name: str, **changes: Any) -> Path:
    path = root / policy / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    of = {"value": 50.0, "stderr": 1.25, "metric": "acc,none", "items": 8, "missing": 0, "metrics": {}}
    path.write_text(json.dumps({**of, "protocol": "likelihood of each ending per character", **changes}))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Both have run HellaSwag alike and AIME-24 differently; one has Arena-Hard, neither GSM8K."""
    paths = [summary(tmp_path, policy, "hellaswag") for policy in ("sft", "mine")]
    paths.append(summary(tmp_path, "sft", "aime24", protocol="<boxed> by lm-eval"))
    paths.append(summary(tmp_path, "mine", "aime24", protocol="by EvalScope", items=3))
    paths.append(summary(tmp_path, "mine", "arena-hard.demo", protocol="Two games a question.", missing=2))
    benchmarks = ["hellaswag", "aime24", "arena-hard.demo", "gsm8k"]
    run(
        Settings(labels={"sft": "SFT", "mine": "Mine"}, benchmarks=benchmarks),
        tmp_path / "benchmarks",
        evaluations=paths,
    )
    return tmp_path / "benchmarks"


def test_what_has_not_run_says_so(table: Path) -> None:
    frame = pd.read_csv(table.with_suffix(".csv"), keep_default_na=False).set_index("benchmark")
    hellaswag = ["acc", "8", "50.00 ± 1.25", "50.00 ± 1.25", "likelihood of each ending per character"]
    assert frame.loc["HellaSwag"].tolist() == hellaswag and frame.loc["GSM8K"].tolist() == ["n/a"] * 5
    assert frame.loc["AIME-24", ["items", "protocol"]].tolist() == ["3 to 8", "<boxed> by lm-eval / by EvalScope"]
    assert frame.loc["Arena-Hard v0.1", ["SFT", "Mine"]].tolist() == ["n/a", "50.00 ± 1.25"]


def test_a_footnote_counts_the_ratings_that_the_other_reading_takes_otherwise(tmp_path: Path) -> None:
    paths = [summary(tmp_path, p, "mt-bench.demo", read_otherwise=n) for p, n in (("sft", 0), ("mine", 3))]
    settings = Settings(labels={"sft": "SFT", "mine": "Mine"}, benchmarks=["mt-bench.demo"])
    run(settings, tmp_path / "benchmarks", evaluations=paths)
    notes = (tmp_path / "benchmarks.md").read_text()
    assert notes.count("MT-Bench, Mine: 3 replies of the judge hold another rating, or none, in the reading that") == 1
    assert "MT-Bench, SFT: " not in notes


def test_a_footnote_counts_empty_answers_and_how_they_ended(tmp_path: Path) -> None:
    of = {"sft": {"answers": 16, "empty": {}}, "mine": {"answers": 16, "empty": {"length": 2, "content_filter": 1}}}
    paths = [summary(tmp_path, policy, "mt-bench.demo", **counts) for policy, counts in of.items()]
    settings = Settings(labels={"sft": "SFT", "mine": "Mine"}, benchmarks=["mt-bench.demo"])
    run(settings, tmp_path / "benchmarks", evaluations=paths)
    notes = (tmp_path / "benchmarks.md").read_text()
    said = "- MT-Bench, Mine: 3 of 16 answers are empty (1 content_filter, 2 length), and count as such.\n"
    assert notes.count(said) == notes.count("empty") == 1


def test_a_footnote_tells_both_lengths_where_thinking_was_taken_off(tmp_path: Path) -> None:
    lengths = {"mean_tokens": 120.4, "mean_tokens_with_thinking": 900.0}
    of = {"sft": {"answers": 16, "empty": {}}, "mine": {"answers": 16, "empty": {"length": 2}}}
    of["mine"]["thinking"] = {"answers": 15, "empty": 2, **lengths}
    paths = [summary(tmp_path, policy, "gsm8k", **counts) for policy, counts in of.items()]
    run(Settings(labels={"sft": "SFT", "mine": "Mine"}, benchmarks=["gsm8k"]), tmp_path / "b", evaluations=paths)
    notes = (tmp_path / "b.md").read_text()
    assert "- GSM8K, Mine: 2 of 16 answers are empty (2 length), and count as such.\n" in notes
    said = (
        "GSM8K, Mine: thinking was taken off 15 of 16 answers (2 of them have nothing after it); mean length 120 tokens"
    )
    assert f"- {said}, with thinking 900.\n" in notes and "SFT: thinking" not in notes


def test_footnotes_say_what_each_benchmark_computes(table: Path) -> None:
    """Once where policies agree, else for each, with a warning; escaped in HTML; none of what has not run."""
    notes = [
        "± standard error over items. n/a: has not run.",
        "HellaSwag: likelihood of each ending per character.",
        "AIME-24, SFT: <boxed> by lm-eval.",
        "AIME-24, Mine: by EvalScope.",
        "AIME-24: measured in different ways, policies do not compare.",
        "Arena-Hard v0.1, Mine: 2 verdicts, ratings or checks missing, not counted.",
        "Arena-Hard v0.1: Two games a question.",
    ]
    markdown = table.with_suffix(".md").read_text().splitlines()
    assert [line.removeprefix("- ") for line in markdown if line.startswith("- ")] == notes
    assert "protocol" not in markdown[0]  # which the CSV has instead of footnotes
    page = table.with_suffix(".html").read_text()
    assert page.count("<li>") == len(notes) and "<li>AIME-24, SFT: &lt;boxed&gt; by lm-eval.</li>" in page
    assert all(f"<li>{note}</li>" in page for note in notes if "<" not in note)
