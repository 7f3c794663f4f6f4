"""A small cut of the rehearsal, to the last table: vLLM, ZeRO-3 on two ranks, three reward models, under SLURM."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cluster import Cluster
from rehearsal import CONFIGS, VLLM, Rehearsal

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (VLLM / "bin/python").exists(), reason="no vLLM for CPUs; `make rehearsal-small` has one"),
]
TABLES = ("table2", "table3", "table4", "preferences", "costs", "rehearsal")


@pytest.fixture(scope="module")
def results(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    rehearsal = Rehearsal(tmp_path_factory.mktemp("rehearsal") / "checkout", cluster)
    rehearsal.check_out()
    try:
        rehearsal.run("--configfile", CONFIGS["small"], timeout=3000)
        yield rehearsal.path / "results/rehearsal-small"
    finally:
        rehearsal.abandon()


def manifests(results: Path, pattern: str) -> list[dict[str, Any]]:
    found = [json.loads(file.read_text()) for file in results.glob(pattern)]
    assert found, pattern
    return found


def test_every_table_is_made(results: Path) -> None:
    assert {f"{name}.csv" for name in TABLES} <= {path.name for path in (results / "tables").iterdir()}
    table = pd.read_csv(results / "tables/table3.csv")
    assert {"SFT", "TD-MNPO", "HT-MNPO (ArmoRM-Llama3)", "HT-MNPO (Skywork-Reward-V2)"} <= set(table.iloc[:, 0])


def test_policies_are_trained_by_zero3_on_two_ranks_in_bfloat16(results: Path) -> None:
    trained = manifests(results, "training/*.jsonl.manifest.json")
    assert len(trained) == 6
    for facts in trained:
        assert facts["ranks"] == 2
        assert (facts["settings"]["training"]["parallel"], facts["settings"]["training"]["dtype"]) == (
            "zero3",
            "bfloat16",
        )


def test_vllm_samples_in_bfloat16_and_training_agrees_about_the_log_probabilities(results: Path) -> None:
    for facts in manifests(results, "samples/[!d]*/*/*.parquet.manifest.json"):  # not the data set's own
        assert "vllm" in facts["versions"] and facts["settings"]["sampling"]["dtype"] == "bfloat16"
        assert 0 < facts["mismatch"]["mean"] < 0.05


def test_the_page_says_what_ran(results: Path) -> None:
    page = pd.read_csv(results / "tables/rehearsal.csv").set_index("stage")
    assert (page.loc["train", "engine"], page.loc["train", "ranks"]) == ("zero3, bfloat16", 2)
    assert page.loc["sample", "engine"] == "vllm"
    assert page.loc["harness", "engine"] == "lm-eval, vllm"
    assert {"sample", "score", "logps", "train", "answer", "harness", "judge"} <= set(page.index)
    assert (page.loc[["sample", "score", "logps", "train"], "tokens_per_second"] > 0).all()
