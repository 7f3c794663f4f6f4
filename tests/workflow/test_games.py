"""The workflow where opponents are weighed by the game between them: who plays, who wins, and what reruns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mnpo.storage.records import SAMPLES, read
from tests.helpers.checkouts import Checkout

pytestmark = pytest.mark.slow

TRAINED = "results/small/policies/mine.2"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, random_policy: Path) -> Checkout:
    """A run of two iterations, the second against a policy and the reference, which play each other first."""
    checkout = Checkout.of_project(tmp_path_factory.mktemp("games") / "checkout", "own.yaml")
    objective = {"name": "td-mnpo", "eta": 0.2, "history": 2, "weights": "nash", "nash_tau": 0.1}
    config: dict[str, Any] = {
        "name": "small",
        "prompts": {"source": "file", "path": "rows.jsonl", "parts": 2, "heldout": 2},
        "models": {"base": {"path": str(random_policy)}},
        "text": {"max_length": 80, "max_prompt_length": 48},
        "reference": {"model": "base"},
        "oracles": {"short": {"kind": "function", "file": "rewards.py", "function": "brevity"}},
        "sampling": {"responses": 3, "max_new_tokens": 8, "shards": 2, "prompts_a_job": 1},
        "training": {"batch_size": 4, "learning_rate": 1e-3},
        "runs": {"mine": {"objective": objective, "oracle": "short", "iterations": [{"parts": [1]}, {"parts": [2]}]}},
        "evaluation": {"oracle": "short"},
        "tables": {"targets": ["preferences"]},
    }
    (checkout.path / "own.yaml").write_text(yaml.safe_dump(config))
    (checkout.path / "rewards.py").write_text(
        "def brevity(responses):\n    return [-len(text) for text in responses]\n"
    )
    rows = [{"prompt": f"Say {word} {n} times."} for word in ("cat", "dog", "cow") for n in range(6)]
    (checkout.path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkout.made("--", TRAINED)
    return checkout


def test_the_weights_follow_from_who_wins_on_the_iterations_prompts(checkout: Checkout) -> None:
    """Shorter wins, of every pair of responses to one prompt: counted from the samples, without the oracle's code."""
    results = checkout.path / "results/small"
    lengths = [
        read(SAMPLES, *sorted((results / f"samples/{policy}/part2").glob("?.parquet")))
        .assign(length=lambda rows: rows["response"].str.len())
        .groupby("prompt_id")["length"]
        .apply(np.array)
        for policy in ("mine.1", "sft")
    ]
    differences = [theirs[None, :] - mine[:, None] for mine, theirs in zip(*lengths, strict=True)]
    won = float(np.mean([(d > 0).mean() + (d == 0).mean() / 2 for d in differences]))
    game = json.loads((results / "games/mine.2.json").read_text())
    assert game["opponents"] == ["mine.1", "sft"] and game["prompts"] == 8
    assert game["wins"][0] == pytest.approx([0.5, won])
    assert game["weights"]["mine.1"] == pytest.approx(1 / (1 + np.exp(-(won - 0.5) / 0.1)))
    manifest = json.loads((checkout.path / TRAINED / "manifest.json").read_text())
    assert manifest["weights"] == pytest.approx(game["weights"])


def test_another_strength_weighs_and_trains_again_and_plays_no_game(checkout: Checkout) -> None:
    assert checkout.planned("--", TRAINED) == set()
    checkout.edit("own.yaml", "nash_tau: 0.1", "nash_tau: 0.2")
    assert checkout.planned("--", TRAINED) == {"weigh games/mine.2.json", "train policies/mine.2"}
