"""Benchmarks on vLLM give what they give on transformers: in the environment of `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.reading import load

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment; `make test-vllm` has one"
    ),
]

ROOT = Path(__file__).parents[2]
TINY = load(ROOT / "configs/demo.yaml").models["tiny"].architecture or {}
ARCHITECTURE = {
    **TINY,
    "initializer_range": 0.3,  # logits far enough apart for choices that rounding does not move
}


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, prompts_directory: Path) -> Path:
    """A Gemma-2 of random weights with a tokenizer and a chat template, as the demo's."""
    from mnpo.demo.model import build
    from mnpo.storage.records import DEMONSTRATIONS, read

    rows = read(DEMONSTRATIONS, prompts_directory / "demonstrations.parquet")
    texts = [f"{p} {r}" for p, r in zip(rows["prompt"], rows["response"], strict=True)]
    directory = tmp_path_factory.mktemp("policies") / "tiny"
    build(directory, texts, vocab_size=340, architecture=ARCHITECTURE, seed=0)
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prompts_directory: Path, sft_settings: dict[str, Any]) -> Path:
    """The demo's policy after forty steps of the sft stage: it answers in words."""
    from mnpo.stages import sft

    directory = tmp_path_factory.mktemp("trained") / "sft"
    settings = {**sft_settings, "model": {"architecture": dict(TINY), "vocab_size": 340}}
    sft.run(sft.Settings.model_validate(settings), prompts_directory / "demonstrations.parquet", directory)
    return directory


@pytest.fixture
def harness_with_vllm() -> None:
    """lm-eval asks for the version of the package `vllm`, which is called vllm-cpu here; vLLM itself is not told."""
    from vllm.platforms import current_platform

    assert current_platform.is_cpu()
    version = metadata.version
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: version("vllm-cpu" if name == "vllm" else name))
        import lm_eval.models.vllm_causallms  # noqa: F401


def data(directory: Path, *names: str) -> dict[str, Path]:
    from mnpo.demo import benchmarks

    for name in names:
        benchmarks.make(directory / name, name, seed=0)
    return {name: directory / name for name in names}


def test_greedy_answers_are_those_of_transformers(trained: Path, tmp_path: Path) -> None:
    """A benchmark whose answers are all greedy, and MT-Bench's greedy categories through both of their turns."""
    from mnpo.benchmarks import answers
    from mnpo.benchmarks.questions import read_questions

    found = data(tmp_path, "arena-hard", "mt-bench")
    for benchmark in found:
        asked = read_questions(benchmark, found[benchmark])
        greedy = [q for q in asked if benchmark != "mt-bench" or answers.TEMPERATURES[q.category] == 0]
        assert len(greedy) >= 4
        rows: list[Any] = []
        for backend in ("transformers", "vllm"):
            settings = answers.Settings.model_validate(
                {"policy": "tiny", "benchmark": benchmark, "max_new_tokens": 24, "backend": backend, "seed": 0}
            )
            rows.append(answers.of_policy(settings, trained, greedy))
        assert rows[0] == rows[1]
        assert len({row["response"] for row in rows[0][0]}) >= 3  # there is something to get wrong


def test_the_harness_measures_the_same_on_vllm(policy: Path, tmp_path: Path, harness_with_vllm: None) -> None:
    """Choices by likelihood, and replies: per item, and so in every metric."""
    from mnpo.benchmarks import lm_eval

    names = ("arc", "hellaswag", "winogrande", "gsm8k")
    found = data(tmp_path, *names)
    chosen = {name: {"shots": 0, "max_new_tokens": 16} if name == "gsm8k" else {} for name in names}
    results: list[Any] = []
    for backend in ("transformers", "vllm"):
        asked = {"policy": "tiny", "benchmarks": chosen, "backend": backend, "max_length": 128}
        results.append(lm_eval.evaluate(lm_eval.Settings.model_validate(asked), policy, found))
    for name in names:
        (summary, rows), (by_vllm, rows_by_vllm) = results[0][name], results[1][name]
        print(name, summary["value"], by_vllm["value"], json.dumps(by_vllm["metrics"]))
        assert by_vllm["metrics"] == pytest.approx(summary["metrics"], abs=1e-6)
        assert [r["response"] for r in rows] == [r["response"] for r in rows_by_vllm]
        assert (summary["prompts_cut"], summary["protocol"]) == (by_vllm["prompts_cut"], by_vllm["protocol"])
