"""Players by hand: opponents' mixtures, the best reply, and that luck is no gap."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages.players import Settings, best_reply_gain, run
from mnpo.storage.records import JUDGED, write

# Policy -> oracle -> the score of its one response to each of four prompts.
SCORES = {
    "a.1": {"short": [1.0, 1.0, 1.0, 1.0], "kind": [0.0, 0.0, 0.0, 0.0]},
    "b.1": {"short": [0.0, 0.0, 1.0, 1.0], "kind": [1.0, 1.0, 1.0, 1.0]},
    "c.1": {"short": [0.5, 0.5, 0.5, 0.5], "kind": [0.5, 0.5, 1.0, 0.5]},
}


@pytest.fixture
def settings() -> Settings:
    return Settings(
        labels={"a.1": "A", "b.1": "B", "c.1": "C"},
        players={
            "a.1": {"oracle": "short", "opponents": {"b.1": 0.75, "c.1": 0.25}},
            "b.1": {"oracle": "short", "opponents": {"b.1": 1.0}},
            "c.1": {"oracle": "majority", "opponents": {"a.1": 1.0}},
        },
        scores=["short", "kind"],
        bootstrap=200,
        confidence=0.95,
        seed=0,
    )


@pytest.fixture
def evaluations(tmp_path: Path) -> list[Path]:
    """What the evaluate stage would have written."""
    paths = []
    for policy, by_oracle in SCORES.items():
        path = tmp_path / policy / "heldout.json"
        path.parent.mkdir()
        rows = [
            {"prompt_id": f"p{i}", "family": "", "mode": "sampled", "k": 0, "response": "r", "tokens": 1}
            | {"oracle": oracle, "score": score}
            for oracle, values in by_oracle.items()
            for i, score in enumerate(values)
        ]
        write(JUDGED, rows, path.with_suffix(".parquet"))
        means = {oracle: {"sampled": sum(values) / 4} for oracle, values in by_oracle.items()}
        path.write_text(json.dumps({"policy": policy, "scores": means}))
        paths.append(path)
    return paths


def test_under_an_oracle_that_compares_there_is_no_gap(
    tmp_path: Path, settings: Settings, evaluations: list[Path]
) -> None:
    run(settings.model_copy(update={"over_reference": ["short"]}), evaluations, tmp_path / "players")
    table = pd.read_csv(tmp_path / "players.csv")
    assert table[["win_rate", "gap"]].isna().all(axis=None) and table["score_short"].tolist() == [1.0, 0.5, 0.5]
    assert "- short compares: its scores are win rates over sft" in (tmp_path / "players.md").read_text()


def test_players_meet_their_opponents_under_their_own_oracle(
    tmp_path: Path, settings: Settings, evaluations: list[Path]
) -> None:
    """A against 3/4 B and 1/4 C: B is beaten twice and equalled twice, .75, C always: .75 * .75 + .25 = .8125; nobody
    does better. B plays itself, .5; A in its place wins 1, 1, .5, .5. Nobody scored by C's majority."""
    run(settings, evaluations[::-1], tmp_path / "players")
    a, b, c = pd.read_csv(tmp_path / "players.csv").to_dict("records")
    assert (a["player"], a["oracle"], a["opponents"], a["best_reply"]) == ("A", "short", "B, C", "A")
    assert a["win_rate"] == pytest.approx(0.8125) and a["gap"] == 0.0
    assert (b["opponents"], b["win_rate"], b["best_reply"]) == ("itself", 0.5, "A")
    assert b["gap"] == pytest.approx(0.25) and 0 <= b["gap_low"] < 0.25 < b["gap_high"] <= 0.5
    assert (c["opponents"], c["score_kind"]) == ("A", 0.625) and np.isnan(c["win_rate"]) and np.isnan(c["gap"])
    assert [row["score_short"] for row in (a, b, c)] == [1.0, 0.5, 0.5]


def test_a_best_reply_is_chosen_where_it_is_not_measured() -> None:
    """Lucky wins on the first and third prompt alone: chosen by these it is measured on the others, and loses."""
    against = {"player": np.array([0.5, 0.5, 0.5, 0.5]), "lucky": np.array([1.0, 0.2, 1.0, 0.2])}
    gained, best = best_reply_gain(against, "player")
    assert gained.tolist() == pytest.approx([0.0, -0.3, 0.0, -0.3]) and best == "lucky"
    noise = np.random.default_rng(0).normal(0.5, 0.1, (30, 4000))
    gained, _ = best_reply_gain(dict(enumerate(noise)), 0)  # thirty equal policies; the best of them all seems better
    assert abs(gained.mean()) < 3 * gained.std() / 4000**0.5 < noise.mean(axis=1).max() - noise[0].mean() + 0.01


def test_an_evaluation_that_is_missing_is_named(tmp_path: Path, settings: Settings, evaluations: list[Path]) -> None:
    with pytest.raises(BadInput, match=r"no evaluation of b\.1 among 2 files"):
        run(settings, [evaluations[0], evaluations[2]], tmp_path / "players")
