"""Scores: what the oracle says of every response, and of each against the prompt's others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.demo.world import RULES
from mnpo.errors import BadInput
from mnpo.records import SAMPLES, SCORES, read, write
from mnpo.stages.score import Settings, run


def test_scores_are_the_rules_own_and_wins_are_counted_against_the_others(
    chain: dict[str, Path], manifest_of: Callable[[Path], Any]
) -> None:
    samples, scores = read(SAMPLES, chain["samples"]), read(SCORES, chain["scores"])
    assert scores[["prompt_id", "k"]].equals(samples[["prompt_id", "k"]])
    by_prompt: dict[str, list[float]] = {}
    for row, score in zip(samples.to_dict("records"), scores["score"], strict=True):
        c, b, p = (RULES[name](row["truth"], row["response"]) for name in ("correctness", "brevity", "courtesy"))
        assert score == pytest.approx(c + 0.4 * b + 0.2 * p)
        by_prompt.setdefault(row["prompt_id"], []).append(score)
    for row in scores.to_dict("records"):
        all_ = by_prompt[row["prompt_id"]]
        mine = all_[row["k"]]
        others = [*all_[: row["k"]], *all_[row["k"] + 1 :]]
        assert row["win"] == pytest.approx(sum((mine > o) + 0.5 * (mine == o) for o in others) / 3)
    facts = manifest_of(chain["scores"])
    assert facts["rows"] == 56 and facts["prompts"] == 14 and facts["prompts_with_a_cycle"] == 0
    assert facts["mean_score"] == pytest.approx(scores["score"].mean())


def test_condorcet_cycles_of_a_majority_are_counted(
    tmp_path: Path, oracle_settings: dict[str, Any], manifest_of: Callable[[Path], Any]
) -> None:
    """Right and wordy, nearly right and curt, wrong and polite: each beats the next by two rules of three."""
    truth = '{"answer": "cat cat cat", "family": "repeat"}'
    circle = ["I think it is cat cat cat. I hope this helps.", "cat cat", "Of course: dog, dog, dog."]
    ranked = ["cat cat cat", "cat cat cat.", "cat dog dog dog"]
    rows = [
        {"prompt_id": prompt, "family": "repeat", "prompt": "Say cat 3 times", "truth": truth}
        | {"k": k, "response": r, "tokens": 5, "finish": "stop", "seed": k}
        for prompt, responses in (("circle", circle), ("ranked", ranked))
        for k, r in enumerate(responses)
    ]
    write(SAMPLES, rows, tmp_path / "samples.parquet")
    run(Settings(oracle="majority", oracles=oracle_settings), tmp_path / "samples.parquet", tmp_path / "scores.parquet")
    assert manifest_of(tmp_path / "scores.parquet")["prompts_with_a_cycle"] == 1
    assert read(SCORES, tmp_path / "scores.parquet")["win"].tolist()[:3] == [0.5, 0.5, 0.5]


def test_rules_refuse_prompts_that_are_not_of_their_world(tmp_path: Path, oracle_settings: dict[str, Any]) -> None:
    row = {"prompt_id": "p", "family": "", "prompt": "Who are you?", "truth": ""}
    rows = [row | {"k": k, "response": "me", "tokens": 1, "finish": "stop", "seed": k} for k in range(2)]
    write(SAMPLES, rows, tmp_path / "samples.parquet")
    with pytest.raises(BadInput, match=r"'Who are you\?' has none"):
        run(
            Settings(oracle="overall", oracles=oracle_settings),
            tmp_path / "samples.parquet",
            tmp_path / "scores.parquet",
        )
    assert not (tmp_path / "scores.parquet").exists()
