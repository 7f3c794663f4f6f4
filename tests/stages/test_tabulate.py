"""Tables by hand: win rates of three prompts, their intervals, accuracy by family, costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages.tabulate import Settings, costs, run
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import JUDGED, write

# Policy -> prompt -> scores of its two sampled responses.
SCORES = {
    "sft": {"p1": [0.0, 0.0], "p2": [0.3, 0.3], "p3": [1.0, 1.0]},
    "run.1": {"p1": [1.0, 0.0], "p2": [0.2, 0.4], "p3": [0.0, 0.0]},
    "run.2": {"p1": [1.0, 1.0], "p2": [0.4, 0.4], "p3": [1.0, 2.0]},
}
FAMILIES = {"p1": "sort", "p2": "count", "p3": "sort"}


def evaluation(directory: Path, policy: str, scores: dict[str, list[float]]) -> Path:
    """What the assess stage would have written."""
    path = directory / policy / "heldout.json"
    path.parent.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for prompt, sampled in scores.items():
        for mode, values in (("sampled", sampled), ("greedy", [100 * max(sampled)])):  # greedy must not enter the wins
            for k, score in enumerate(values):
                row = {
                    "prompt_id": prompt,
                    "family": FAMILIES[prompt],
                    "mode": mode,
                    "k": k,
                    "response": "r",
                    "tokens": 3,
                }
                rows.append(row | {"oracle": "overall", "score": score})
                rows.append(row | {"oracle": "exact", "score": 1.0 if score >= 1 else 0.99})
    write(JUDGED, rows, path.with_suffix(".parquet"))
    summary = {
        "policy": policy,
        "prompts": len(scores),
        "scores": {"overall": {"sampled": 0.125, "greedy": 9.0}, "exact": {"sampled": 0.75, "greedy": 9.0}},
        "tokens": {"sampled": 3.5, "greedy": 9.0},
        "prompts_with_a_cycle": 2,
        "kl_to_reference": 0.25,
    }
    path.write_text(json.dumps(summary))
    return path


@pytest.fixture
def settings() -> Settings:
    return Settings(
        labels={"sft": "SFT", "run.1": "Run 1", "run.2": "Run 2"},
        win_against=["sft", "run.1"],
        oracle="overall",
        scores=["exact"],
        accuracy="exact",
        bootstrap=500,
        confidence=0.95,
        seed=0,
    )


@pytest.fixture
def tables(tmp_path: Path, settings: Settings) -> Path:
    paths = [evaluation(tmp_path, policy, scores) for policy, scores in SCORES.items()]
    run(settings, paths[::-1], tmp_path / "tables")  # in any order
    return tmp_path / "tables"


def test_win_rates_are_means_over_prompts_of_all_pairs_of_responses_ties_half(tables: Path) -> None:
    """Run 1 against SFT: p1 wins 2 of 4 and ties 2, .75; p2 wins 2 of 4, .5; p3 none: (.75 + .5 + 0) / 3 = 5/12.

    Run 2 against SFT: 1, 1, and of p3 2 wins and 2 ties, .75: 11/12. Against run 1: .75 (2 wins, 2 ties),
    .75 (2 wins, 2 ties), 1: 10/12.
    """
    wins = pd.read_csv(tables / "wins.csv").set_index(["policy", "opponent"])
    assert len(wins) == 6 and set(wins["prompts"]) == {3}
    expected = {("Run 1", "SFT"): 5 / 12, ("Run 2", "SFT"): 11 / 12, ("Run 2", "Run 1"): 10 / 12}
    for (policy, opponent), rate in expected.items():
        assert wins.loc[(policy, opponent), "win_rate"] == pytest.approx(rate)
        assert wins.loc[(opponent, policy), "win_rate"] == pytest.approx(1 - rate)
        assert wins.loc[(opponent, policy), "win_rate_low"] == pytest.approx(
            1 - wins.loc[(policy, opponent), "win_rate_high"]
        )
    assert ((wins["win_rate_low"] <= wins["win_rate"]) & (wins["win_rate"] <= wins["win_rate_high"])).all()
    assert ((wins["win_rate_low"] >= 0) & (wins["win_rate_high"] <= 1)).all()


def test_under_an_oracle_that_compares_the_score_is_the_win_over_the_reference(
    tmp_path: Path, settings: Settings
) -> None:
    """Run 1: p1 wins one of two, p2 one half each, p3 none: (.5 + .5 + 0) / 3. Nobody compared run 1 with run 2."""
    scores = {
        "sft": {"p1": [0.5, 0.5], "p2": [0.5, 0.5], "p3": [0.5, 0.5]},
        "run.1": {"p1": [1.0, 0.0], "p2": [0.5, 0.5], "p3": [0.0, 0.0]},
        "run.2": {"p1": [1.0, 1.0], "p2": [1.0, 0.5], "p3": [1.0, 0.0]},
    }
    paths = [evaluation(tmp_path, policy, of) for policy, of in scores.items()]
    for path, undecided in zip(paths[1:], (2, 1), strict=True):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"undecided": {"overall": undecided}}))
    run(settings.model_copy(update={"over_reference": ["overall"]}), paths, tmp_path / "tables")
    wins = pd.read_csv(tmp_path / "tables/wins.csv").set_index(["policy", "opponent"])["win_rate"]
    assert wins["Run 1", "SFT"] == pytest.approx(1 / 3) and wins["SFT", "Run 1"] == pytest.approx(2 / 3)
    assert wins["Run 2", "SFT"] == pytest.approx((1 + 0.75 + 0.5) / 3)
    assert np.isnan(wins["Run 1", "Run 2"]) and np.isnan(wins["Run 2", "Run 1"])
    main = pd.read_csv(tmp_path / "tables/main.csv").set_index("policy")
    assert main.loc["Run 1", "win_vs_sft"] == pytest.approx(1 / 3) and np.isnan(main.loc["Run 2", "win_vs_run.1"])
    shown = (tmp_path / "tables/main.md").read_text()
    assert "- overall compares: its scores are win rates over SFT, each response beside SFT's" in shown
    assert "- overall: 3 comparisons without a verdict count one half" in shown
    assert shown.count("| n/a") == 3 and "nan" not in shown.lower()
    assert "overall compares, and has compared policies with SFT only" in (tmp_path / "tables/wins.md").read_text()


def test_the_main_table_has_a_row_a_policy_in_the_order_of_labels(tables: Path) -> None:
    main = pd.read_csv(tables / "main.csv").set_index("policy")
    assert list(main.index) == ["SFT", "Run 1", "Run 2"]
    assert main["win_vs_sft"].isna().tolist() == [True, False, False]
    assert main.loc["Run 1", "win_vs_sft"] == pytest.approx(5 / 12)
    assert main.loc["SFT", "win_vs_run.1"] == pytest.approx(7 / 12)
    # Exactly right is a score of 1 and nothing less: 2 of 6, 1 of 6, 4 of 6 responses; greedily 1 of 1, or what a
    # hundred times the best score is: p2 of SFT has 30.
    assert main["accuracy_sampled"].tolist() == pytest.approx([2 / 6, 1 / 6, 4 / 6])
    assert main["score_overall"].tolist() == [0.125] * 3 and main["score_exact"].tolist() == [0.75] * 3
    assert main["tokens"].tolist() == [3.5] * 3
    assert main["kl_to_reference"].tolist() == [0.25] * 3
    assert main["prompts_with_a_cycle"].tolist() == [2] * 3 and main["prompts"].tolist() == [3] * 3


def test_families_are_averaged_by_themselves(tables: Path) -> None:
    families = pd.read_csv(tables / "families.csv").set_index("policy")
    assert list(families.columns) == ["count", "sort"]
    assert families["sort"].tolist() == pytest.approx([2 / 4, 1 / 4, 4 / 4])
    assert families["count"].tolist() == [0.0, 0.0, 0.0]


def test_markdown_says_the_same_rounded(tables: Path) -> None:
    text = (tables / "main.md").read_text()
    lines = text.splitlines()
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| SFT") and "n/a" in lines[2]
    assert "0.417" in lines[3] and "nan" not in text


def test_the_same_evaluations_give_the_same_bytes(tables: Path, tmp_path: Path, settings: Settings) -> None:
    run(settings, [tmp_path / policy / "heldout.json" for policy in SCORES], tmp_path / "again")
    for name in ("main", "families", "wins"):
        for ending in ("csv", "md", "html"):
            file = f"{name}.{ending}"
            assert (tables / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_missing_evaluation_is_named(tmp_path: Path, settings: Settings) -> None:
    paths = [evaluation(tmp_path, policy, SCORES[policy]) for policy in ("sft", "run.2")]
    with pytest.raises(BadInput, match=r"no evaluation of run\.1 among 2 files"):
        run(settings, paths, tmp_path / "tables")


def test_policies_evaluated_on_different_prompts_are_refused(tmp_path: Path, settings: Settings) -> None:
    scores = {**SCORES, "run.2": {p: s for p, s in SCORES["run.2"].items() if p != "p3"}}
    paths = [evaluation(tmp_path, policy, s) for policy, s in scores.items()]
    with pytest.raises(BadInput, match=r"sft and run\.2 were evaluated on different prompts"):
        run(settings, paths, tmp_path / "tables")


def test_an_oracle_that_did_not_judge_is_named(tmp_path: Path, settings: Settings) -> None:
    paths = [evaluation(tmp_path, policy, s) for policy, s in SCORES.items()]
    with pytest.raises(BadInput, match="has no sampled responses scored by courtesy"):
        run(settings.model_copy(update={"oracle": "courtesy"}), paths, tmp_path / "tables")


# ---------------------------------------------------------------------------------------------------------------- costs


def test_costs_add_up_manifests_by_stage(tmp_path: Path) -> None:
    given = [("sample", 2.0, 100), ("sample", 3.0, 400), ("pair", 1.0, None)]
    for i, (stage, _, tokens) in enumerate(given):
        with artifact(tmp_path / str(i), stage, {}) as made:
            made.path.write_text("x")
            made.facts = {} if tokens is None else {"tokens": tokens}
    for i, (_, seconds, _) in enumerate(given):
        path = tmp_path / f"{i}.manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": seconds}))
    (tmp_path / "made-elsewhere").write_text("x")
    costs([*(tmp_path / str(i) for i in range(3)), tmp_path / "made-elsewhere"], tmp_path / "costs")
    table = pd.read_csv(tmp_path / "costs.csv").set_index("stage")
    assert table.loc["sample"].to_dict() == {"jobs": 2, "seconds": 5.0, "tokens": 500, "tokens_per_second": 100.0}
    assert table.loc["pair", "jobs"] == 1 and np.isnan(table.loc["pair", "tokens_per_second"])
    assert (tmp_path / "costs.md").read_text().count("\n") == 4


def test_real_evaluations_make_tables(
    tmp_path: Path, settings: Settings, sft_policy: Path, prompts_directory: Path, oracle_settings: Any, text: Any
) -> None:
    """The columns that tabulate reads are those that assess writes."""
    from mnpo.stages import assess

    asked = {
        "oracle": "overall",
        "scores": ["correctness"],
        "oracles": oracle_settings,
        "responses": 2,
        "decoding": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 6},
        "batch_size": 16,
        "text": text.model_dump(),
        "seed": 9,
    }
    paths = []
    for policy in ("sft", "run.1"):  # one policy under two names: they draw the same numbers, so they tie or share wins
        paths.append(tmp_path / policy / "heldout.json")
        assess.run(
            {**asked, "policy": policy}, sft_policy, sft_policy, prompts_directory / "heldout.parquet", paths[-1]
        )
    real = settings.model_copy(
        update={
            "labels": {"sft": "SFT", "run.1": "Run"},
            "win_against": ["sft"],
            "scores": ["correctness"],
            "accuracy": "correctness",
        }
    )
    run(real, paths, tmp_path / "tables")
    assert pd.read_csv(tmp_path / "tables" / "wins.csv")["win_rate"].tolist() == [0.5, 0.5]
    assert len(pd.read_csv(tmp_path / "tables" / "families.csv").columns) == 1 + 7


def test_both_lengths_are_shown_where_thinking_was_taken_off(settings: Settings, tmp_path: Path) -> None:
    paths = [evaluation(tmp_path / "evals", policy, scores) for policy, scores in SCORES.items()]
    summary = json.loads(paths[1].read_text())
    paths[1].write_text(json.dumps(summary | {"tokens_with_thinking": {"sampled": 40.5, "greedy": 9.0}}))
    run(settings, paths, tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables/main.csv")
    assert table["tokens"].tolist() == [3.5, 3.5, 3.5] and table["tokens_with_thinking"].tolist() == [3.5, 40.5, 3.5]
