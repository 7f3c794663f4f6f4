"""The page of a rehearsal, from manifests written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.stages import rehearsal

ROOT = Path(__file__).resolve().parents[2]


def made(directory: Path, name: str, stage: str, **facts: Any) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    content = {"stage": stage, "settings": {}, "device": "cpu", "versions": {}, "peak_memory_mb": 1024, **facts}
    file.with_name(f"{file.name}.manifest.json").write_text(json.dumps(content))
    return file


@pytest.fixture
def page(tmp_path: Path) -> tuple[pd.DataFrame, str]:
    training = {"training": {"parallel": "zero3", "dtype": "bfloat16"}}
    answering = {"harness": {"backend": "vllm"}}
    h100 = {"device": "NVIDIA H100 80GB HBM3", "peak_gpu_memory_mb": 2048}
    artifacts = [
        made(
            tmp_path, "s/0.parquet", "sample", seconds=10, loading_seconds=6, tokens=400, versions={"vllm": "1"}, **h100
        ),
        made(
            tmp_path,
            "s/1.parquet",
            "sample",
            seconds=30,
            loading_seconds=24,
            tokens=600,
            versions={"vllm": "1"},
            **h100,
        ),
        made(tmp_path, "t/a.jsonl", "train", seconds=20, loading_seconds=10, tokens=80, ranks=8, settings=training),
        # one job of the harness makes the results of all benchmarks
        made(tmp_path, "e/a/arc.json", "harness", seconds=4, loading_seconds=2, tokens=10, settings=answering),
        made(tmp_path, "e/a/gpqa.json", "harness", seconds=6, tokens=30, settings=answering),
        made(tmp_path, "p.parquet", "pair", seconds=1),
    ]
    rehearsal.run(rehearsal.Settings(of=str(ROOT / "config.yaml")), artifacts, tmp_path / "page")
    return pd.read_csv(tmp_path / "page.csv").set_index("stage"), (tmp_path / "page.md").read_text()


def test_what_ran_is_said_stage_by_stage(page: tuple[pd.DataFrame, str]) -> None:
    table, _ = page
    sample, train, harness, pair = (table.loc[stage] for stage in ("sample", "train", "harness", "pair"))
    assert (sample["engine"], sample["device"], sample["jobs"]) == ("vllm", "NVIDIA H100 80GB HBM3", 2)
    assert sample["tokens_per_second"] == 1000 / (40 - 30) and sample["overhead_share"] == 30 / 40
    assert (sample["seconds_a_job"], sample["peak_gpu_memory_gb"], sample["peak_memory_gb"]) == (20, 2, 1)
    assert (train["engine"], train["ranks"], train["overhead_share"]) == ("zero3, bfloat16", 8, 0.5)
    assert (harness["engine"], harness["jobs"], harness["seconds_a_job"]) == ("lm-eval, vllm", 1, 10)
    assert harness["tokens_per_second"] == 40 / (10 - 2)
    assert pd.isna(pair["tokens"]) and pd.isna(pair["peak_gpu_memory_gb"])


def test_fixed_costs_are_carried_over_to_the_jobs_of_the_real_plan(page: tuple[pd.DataFrame, str]) -> None:
    """96 sample jobs on a GPU each, 20 trainings on eight (docs/costs.md); medians of 6 and 24 s, and of 10 s."""
    table, text = page
    assert (table.loc["sample", "paper_jobs"], table.loc["train", "paper_jobs"]) == (96, 20)
    assert table.loc["sample", "paper_gpu_hours_of_overhead"] == pytest.approx(96 * 15 / 3600)
    assert table.loc["train", "paper_gpu_hours_of_overhead"] == pytest.approx(20 * 8 * 10 / 3600)
    assert pd.isna(table.loc["pair", "paper_gpu_hours"])
    assert "paper: 427 jobs" in text and "none is carried over to paper" in text


def test_what_has_no_manifest_is_no_job(tmp_path: Path) -> None:
    (tmp_path / "made-elsewhere.json").write_text("{}")
    rehearsal.run(
        rehearsal.Settings(of=str(ROOT / "config.yaml")), [tmp_path / "made-elsewhere.json"], tmp_path / "page"
    )
    assert "paper: 427 jobs" in (tmp_path / "page.md").read_text()
