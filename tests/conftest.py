"""A tiny world, a tiny policy of random weights, and everything the stages make of them: real code, seconds in all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.config.sampling import Sampling
from mnpo.config.text import Text
from mnpo.planning.plan import Plan
from tests.helpers import tiny
from tests.helpers.loopback_hub import LoopbackHub, loopback_hub

ROOT = Path(__file__).resolve().parents[1]
ORACLES: dict[str, dict[str, Any]] = {
    "correctness": {"kind": "rule", "rule": "correctness"},
    "brevity": {"kind": "rule", "rule": "brevity"},
    "courtesy": {"kind": "rule", "rule": "courtesy"},
    "overall": {"kind": "weighted", "weights": {"correctness": 1.0, "brevity": 0.4, "courtesy": 0.2}},
    "majority": {"kind": "majority", "of": ["correctness", "brevity", "courtesy"]},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with most slow tests first, so that of two workers (`make test`) none ends with a long one alone."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


# ------------------------------------------------------------------------------------------------------- configurations


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def demo() -> Path:
    return ROOT / "configs" / "demo.yaml"


@pytest.fixture
def configured(demo: Path) -> Callable[..., Config]:
    """The demo's configuration with changes on top: nested mappings merge, `runs` and the like are replaced."""
    return lambda **changes: load(demo, changes)


@pytest.fixture
def planned(configured: Callable[..., Config]) -> Callable[..., Plan]:
    return lambda **changes: Plan(configured(**changes))


# --------------------------------------------------------------------------------------------------- the tiny artifacts


@pytest.fixture(scope="session")
def architecture() -> dict[str, Any]:
    return tiny.GEMMA


@pytest.fixture(scope="session")
def oracle_settings() -> dict[str, dict[str, Any]]:
    return ORACLES


@pytest.fixture(scope="session")
def text() -> Text:
    return Text(max_length=80, max_prompt_length=48)


@pytest.fixture(scope="session")
def sampling() -> Sampling:
    return Sampling(responses=4, temperature=1.0, top_p=0.95, max_new_tokens=12, batch_size=16)


@pytest.fixture(scope="session")
def prompts_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """part1, part2, heldout and demonstrations, as the prompts stage makes them."""
    from mnpo.stages import prompts

    directory = tmp_path_factory.mktemp("prompts")
    asked = {"source": "demo", "demonstrations": 140, "parts": 2, "part_size": 14, "heldout": 7}
    prompts.run(prompts.Settings(prompts=asked, seed=0), directory)
    return directory


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory, prompts_directory: Path) -> Path:
    """A policy of random weights."""
    from mnpo.demo.model import build
    from mnpo.storage.records import DEMONSTRATIONS, read

    rows = read(DEMONSTRATIONS, prompts_directory / "demonstrations.parquet")
    directory = tmp_path_factory.mktemp("policies") / "random"
    texts = [f"{p} {r}" for p, r in zip(rows["prompt"], rows["response"], strict=True)]
    build(directory, texts, vocab_size=340, architecture=tiny.GEMMA, seed=0)
    return directory


@pytest.fixture(scope="session")
def sft_settings(text: Text) -> dict[str, Any]:
    return {
        "policy": "sft",
        "model": {"architecture": tiny.GEMMA, "vocab_size": 340},
        "sft": {"steps": 40, "batch_size": 16, "learning_rate": 1e-2, "warmup": 0.1, "betas": (0.9, 0.98)},
        "text": text.model_dump(),
        "seed": 3,
    }


@pytest.fixture(scope="session")
def sft_policy(tmp_path_factory: pytest.TempPathFactory, prompts_directory: Path, sft_settings: dict[str, Any]) -> Path:
    """A policy after forty steps of the sft stage: its responses are wrong, short, and end."""
    from mnpo.stages import sft

    directory = tmp_path_factory.mktemp("policies") / "sft"
    sft.run(sft.Settings.model_validate(sft_settings), prompts_directory / "demonstrations.parquet", directory)
    return directory


@pytest.fixture(scope="session")
def chain(
    tmp_path_factory: pytest.TempPathFactory,
    prompts_directory: Path,
    sft_policy: Path,
    text: Text,
    sampling: Sampling,
) -> dict[str, Path]:
    """From part1's prompts to the pairs' log-probabilities under the policy itself: each file by its noun."""
    from mnpo.stages import logps, pair, sample, score

    directory = tmp_path_factory.mktemp("chain")
    files = {noun: directory / f"{noun}.parquet" for noun in ("samples", "scores", "pairs", "logps")}
    files |= {"prompts": prompts_directory / "part1.parquet", "policy": sft_policy}
    sample.run(
        sample.Settings(sampling=sampling, text=text, shard=0, seed=5), sft_policy, files["prompts"], files["samples"]
    )
    score.run(score.Settings(oracle="overall", oracles=ORACLES), files["samples"], files["scores"])
    pair.run(pair.Settings(pairing={}), [files["samples"]], [files["scores"]], files["pairs"])
    logps.run(logps.Settings(form={}, text=text), sft_policy, files["pairs"], files["logps"])
    return files


# -------------------------------------------------------------------------------------------------------------- helpers


@pytest.fixture
def manifest_of() -> Callable[[Path], dict[str, Any]]:
    from mnpo.storage.artifacts import manifest_path

    return lambda path: json.loads(manifest_path(path).read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A loopback hub that mnpo talks to, without any token."""
    with loopback_hub() as running:
        for name, value in running.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        yield running
