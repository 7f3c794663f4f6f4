"""configs/smollm2-experiment.yaml, and how its page counts."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import nash, smollm2, smollm2_public
from examples.instructions import SIZES
from mnpo.config.reading import load
from mnpo.storage.records import ANSWERS, ITEMS, JUDGED, SAMPLED, write

ROOT = Path(__file__).parents[2]


def test_the_majority_wins_where_two_of_three_scores_are_higher() -> None:
    """One prompt; two responses against one. The first wins under two oracles of three; the second wins one, ties one
    and loses one, which is one half."""
    mine, theirs = np.array([[[2.0, 1.0]], [[0.0, 0.5]], [[-1.0, -3.0]]]), np.array([[[1.0]], [[0.2]], [[-2.0]]])
    assert smollm2.majority_wins(mine, theirs) == pytest.approx([0.75])
    assert smollm2.majority_wins(theirs, mine) == pytest.approx([0.25])


def test_the_compared_methods_have_three_seeds_of_one_objective() -> None:
    results = smollm2.results_of(smollm2.CONFIG)
    for method in smollm2.COMPARED:
        runs = [results.config.runs[policy.rpartition(".")[0]] for policy in results.methods[method]]
        assert len(runs) == 3 and len({str(run.objective) + str(run.training) for run in runs}) == 1
    assert set(smollm2.IFBENCH) <= set(results.methods)


def test_what_was_tuned_is_what_runs() -> None:
    """Each strength of the experiment is one of those that were tried, and on prompts that are not reported."""
    config, tried = load(ROOT / smollm2.CONFIG), load(ROOT / smollm2.TUNING)
    strengths = {(run.objective.name, run.objective.beta or run.objective.eta) for run in tried.runs.values()}
    strengths |= {(name, eta) for name in ("td-mnpo", "ht-mnpo") for kind, eta in strengths if kind == "inpo"}
    assert {(run.objective.name, run.objective.beta or run.objective.eta) for run in config.runs.values()} <= strengths
    assert (tried.prompts.heldout_split, config.prompts.heldout_split) == ("validation", "test")
    rates = {run.training.get("learning_rate", tried.training.learning_rate) for run in tried.runs.values()}
    assert config.training.learning_rate in rates
    same = {"learning_rate": 1.0}
    assert tried.training.model_copy(update=same) == config.training.model_copy(update=same)
    assert config.prompts.heldout <= SIZES["test"] and config.prompts.parts * (config.prompts.part_size or 0) <= 480


def test_the_page_fills_every_field_and_keeps_what_was_written_by_hand() -> None:
    text = smollm2.TEMPLATE.read_text(encoding="utf-8")
    fields = {name for _, name, _, _ in string.Formatter().parse(text) if name}
    page = text.format(**dict.fromkeys(fields, "x"))
    assert (
        smollm2.written(page.replace("## The answer\n\nx", "## The answer\n\nNo: .51.\n\nBut ..."))
        == "No: .51.\n\nBut ..."
    )
    assert smollm2.written("") == smollm2.UNWRITTEN
    assert fields <= set(re.findall(r"(\w+)=", Path(smollm2.__file__).read_text(encoding="utf-8")))


def evaluated(found: smollm2.Results, **scores: float) -> None:
    """As if every policy had been evaluated: its score under every oracle is its place in the configuration, SFT's is
    0, or what is given."""
    policies = [policy for seeds in found.methods.values() for policy in seeds]
    for place, policy in enumerate(policies):
        keys = [(f"p{p}", k, voter) for p in range(5) for k in range(found.responses) for voter in found.voters]
        rows = [
            {"prompt_id": p, "family": "", "mode": SAMPLED, "k": k, "response": "r", "tokens": 1, "oracle": v}
            | {"score": scores.get(policy, float(place))}
            for p, k, v in keys
        ]
        directory = found.root / "evals" / policy
        directory.mkdir(parents=True)
        write(JUDGED, rows, directory / "heldout.parquet")
        summary = {"tokens": {"sampled": 30 + place}, "kl_to_reference": place / 10, "prompts_with_a_cycle": 0}
        (directory / "heldout.json").write_text(json.dumps(summary))


@pytest.fixture
def results(tmp_path: Path) -> smollm2.Results:
    """As if the experiment had run; the last seed of TD-MNPO 2 is below SFT."""
    found = smollm2.Results(load(ROOT / smollm2.CONFIG), tmp_path)
    evaluated(found, **{"td-mnpo-2-s3.3": -1.0})
    (tmp_path / "ifbench").mkdir()
    for method in smollm2.IFBENCH:
        table = pd.DataFrame({"all": [True, method != "SFT"], "met": [2, 0], "of": [2, 1]})
        table.to_csv(smollm2.ifbench_file(found, found.methods[method][0]), index=False)
    (tmp_path / "tables").mkdir()
    gaps = {
        "policy": ["INPO 3"] * 2,
        "iterations": [0, 1],
        "gap": [0.0, 0.1],
        "gap_low": [0, 0.05],
        "gap_high": [0, 0.2],
    }
    pd.DataFrame(gaps).to_csv(tmp_path / "tables/exploitability.csv", index=False)
    return found


def test_the_page_of_a_whole_run(results: smollm2.Results) -> None:
    page = smollm2.page(results, [{"objective": "dpo"}], "No.", 12.3)
    assert page.count("\n| DPO ") == 3  # of results, who beats whom, IFBench
    main = {row["method"]: row for row in smollm2.main_table(results)}
    assert main["DPO"]["win over SFT, majority"] == "1.000 [1.000, 1.000]"
    assert main["TD-MNPO 2"]["win over SFT, majority"] == "0.667 [0.667, 0.667]"  # two of three seeds
    assert [main[m]["seeds"] for m in ("SFT", "INPO", "ONPO", "HT fluency")] == ["1", "3", "1", "1"]
    claim = {row["method"]: row for row in smollm2.claim_table(results)}
    assert claim["TD-MNPO 2"]["win over SFT, minus INPO's"] == "-0.333 [-0.333, -0.333]"
    assert claim["TD-MNPO 2"]["the same, seed by seed"] == "+0.000, +0.000, -1.000"
    assert claim["TD-MNPO 2"]["verdict"] == "apart" and list(claim) == ["TD-MNPO 2"]
    assert smollm2.circles(results) == 0  # places are an order
    assert [row["prompts, strict"][:5] for row in smollm2.ifbench_table(results)] == ["0.500"] + ["1.000"] * 4
    assert "12 minutes" in page and "0.100 [0.050, 0.200]" in page and "\n\nNo.\n\n" in page


def test_public_benchmarks_stand_on_the_page_once_they_are_measured(results: smollm2.Results) -> None:
    """Two items, one right; answers of one word and of three, and a second turn that does not count."""
    assert "--public DIR" in next(smollm2.public_table(results))["policy"]
    for method in smollm2.PUBLIC:
        directory = smollm2_public.directory(results, results.methods[method][0])
        directory.mkdir(parents=True)
        for name in smollm2_public.SCORED:
            items = [{"item_id": str(i), "value": i, "weight": 1, "response": "r", "tokens": 1} for i in (0, 1)]
            write(ITEMS, items, directory / f"{name}.parquet")
        for name in smollm2_public.ANSWERED:
            said = [("1", 1, "one"), ("1", 2, "not this one"), ("2", 1, "here are three")]
            rows = [{"item_id": i, "turn": t, "response": r} for i, t, r in said]
            more = {"category": "", "prompt": "p", "tokens": 1, "finish": "stop"}
            write(ANSWERS, [row | more for row in rows], directory / f"{name}.parquet")
    rows = list(smollm2.public_table(results))
    assert [row["policy"] for row in rows] == list(smollm2.PUBLIC)
    assert rows[0]["gsm8k, 2 items"].startswith("0.500 [") and rows[0]["mt-bench, words"].startswith("2.000 [")


def test_methods_that_weigh_by_games_are_compared_over_all_seeds(tmp_path: Path) -> None:
    """Places in the configuration decide: of two methods the later one wins with all its seeds."""
    found = smollm2.Results(load(ROOT / nash.DEMO), tmp_path)
    evaluated(found)
    assert found.methods["TD Nash"] == ["td-nash.4", "td-nash.s2.4", "td-nash.s3.4"]
    (tmp_path / "games").mkdir()
    game = {"policy": "td-nash.s2.2", "wins": [[0.5, 0.6], [0.4, 0.5]], "weights": {"td-nash.s2.1": 1.0, "sft": 0.0}}
    (tmp_path / "games/td-nash.s2.2.json").write_text(json.dumps(game))
    (tmp_path / "games/td-nash.s2.2.json.manifest.json").write_text("{}")
    rows = {row["method"]: row for row in nash.last(found, "INPO")}
    assert rows["TD Nash"]["win over SFT"] == "1.000 [1.000, 1.000]" and rows["TD Nash"]["seeds"] == "3"
    assert rows["INPO"]["win over INPO"] == "" and "SFT" not in rows and "HT brevity" not in rows
    by_oracle = {row["player"]: row for row in nash.players(found)}
    told = by_oracle["brevity"]
    assert told["by the game, over counting the same"] == "1.000 [1.000, 1.000]"
    assert told["the same, seed by seed"] == "1.000, 1.000, 1.000"
    assert list(nash.found(found)) == [
        {"method": "TD Nash", "iteration": "2", "the first opponent wins over the others": "0.600",
         "weights, seed by seed": "1.00, 0.00"}
    ]  # fmt: skip
