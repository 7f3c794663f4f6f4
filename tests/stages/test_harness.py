"""The stage `harness`: what is measured stays measured, for a killed job and for one that is asked for more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.benchmarks.result_cache import KEPT
from mnpo.demo import benchmarks
from mnpo.stages import harness
from mnpo.stages.harness import Settings, run
from mnpo.storage.records import ITEMS, read

pytestmark = pytest.mark.slow

Manifest = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("data")
    for name in ("arc", "gpqa"):
        benchmarks.make(directory / name, name, 0)
    return {name: directory / name for name in ("arc", "gpqa")}


def settings(*names: str, **changes: Any) -> Settings:
    how = {"policy": "sft", "max_length": 80, "benchmarks": {name: {} for name in names}}
    return Settings.model_validate({"harness": how, "code": "1"} | changes)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The benchmarks of every call of the harness itself."""
    calls: list[list[str]] = []
    real = harness.lm_eval.results

    def results(some: Any, *arguments: Any) -> Any:
        calls.append(list(some.benchmarks))
        return real(some, *arguments)

    monkeypatch.setattr(harness.lm_eval, "results", results)
    return calls


def test_a_further_benchmark_is_measured_alone(
    sft_policy: Path, data: dict[str, Path], tmp_path: Path, asked: list[list[str]], manifest_of: Manifest
) -> None:
    run(settings("arc"), sft_policy, data, tmp_path)
    first = (tmp_path / "arc.json").read_bytes()
    (tmp_path / "arc.json").unlink()  # as Snakemake does with the outputs of a job that runs again
    run(settings("arc", "gpqa"), sft_policy, data, tmp_path)
    assert asked == [["arc"], ["gpqa"]]
    assert (tmp_path / "arc.json").read_bytes() == first
    summary = json.loads((tmp_path / "gpqa.json").read_text())
    assert summary["items"] == len(read(ITEMS, tmp_path / "gpqa.parquet"))
    assert (
        manifest_of(tmp_path / "gpqa.json")["seconds"]
        >= manifest_of(next((tmp_path / KEPT / "harness").glob("gpqa-*")))["seconds"]
    )
    facts = manifest_of(tmp_path / "gpqa.json")
    assert 0 < facts["loading_seconds"] < facts["seconds"]


def test_other_code_measures_anew_and_leaves_nothing_old(
    sft_policy: Path, data: dict[str, Path], tmp_path: Path, asked: list[list[str]]
) -> None:
    run(settings("arc"), sft_policy, data, tmp_path)
    run(settings("arc"), sft_policy, data, tmp_path)
    assert asked == [["arc"]]
    run(settings("arc", code="2"), sft_policy, data, tmp_path)
    assert asked == [["arc"], ["arc"]]
    assert len(list((tmp_path / KEPT / "harness").iterdir())) == 1


def test_what_was_done_before_a_failure_is_kept(
    sft_policy: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]
) -> None:
    real = harness.lm_eval.results

    def killed(*arguments: Any) -> Any:
        for number, result in enumerate(real(*arguments)):
            if number == 1:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patched:
        patched.setattr(harness.lm_eval, "results", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings("arc", "gpqa"), sft_policy, data, tmp_path)
    assert not (tmp_path / "arc.json").exists()
    run(settings("arc", "gpqa"), sft_policy, data, tmp_path)
    assert asked[-1] == ["gpqa"]
    assert (tmp_path / "arc.json").exists() and (tmp_path / "gpqa.json").exists()
