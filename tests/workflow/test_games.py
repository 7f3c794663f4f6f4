"""The workflow where opponents are weighed by the game between them: who plays, who wins, and what reruns."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mnpo.storage.records import SAMPLES, read
from tests.helpers.checkouts import Checkout
from tests.helpers.own import configuration, project

pytestmark = pytest.mark.slow

TRAINED = "results/small/policies/mine.2"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, random_policy: Path) -> Checkout:
    """A run of two iterations, the second against a policy and the reference, which play each other first."""
    objective = {"name": "td-mnpo", "eta": 0.2, "history": 2, "weights": "nash", "nash_tau": 0.1}
    run = {"objective": objective, "oracle": "short", "iterations": [{"parts": [1]}, {"parts": [2]}]}
    config = configuration(random_policy)
    config["prompts"]["parts"] = 2
    config["sampling"] = {"responses": 3, "max_new_tokens": 8, "shards": 2, "prompts_a_job": 1}
    rows = [{"prompt": f"Say {word} {n} times."} for word in ("cat", "dog", "cow") for n in range(6)]
    checkout = project(tmp_path_factory.mktemp("games") / "checkout", config | {"runs": {"mine": run}}, rows)
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
