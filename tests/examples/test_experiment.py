"""configs/smollm2-experiment.yaml, and how its page counts."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import smollm2
from examples.instructions import SIZES
from mnpo.config.reading import load
from mnpo.storage.records import JUDGED, SAMPLED, write

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


@pytest.fixture
def results(tmp_path: Path) -> smollm2.Results:
    """As if the experiment had run: a policy's score under every oracle is its place in the configuration, SFT's is 0;
    the last seed of TD-MNPO 2 is below SFT."""
    found = smollm2.Results(load(ROOT / smollm2.CONFIG), tmp_path)
    policies = [policy for seeds in found.methods.values() for policy in seeds]
    for place, policy in enumerate(policies):
        score = -1.0 if policy == "td-mnpo-2-s3.3" else float(place)
        keys = [(f"p{p}", k, voter) for p in range(5) for k in range(2) for voter in smollm2.VOTERS]
        rows = [
            {"prompt_id": p, "family": "", "mode": SAMPLED, "k": k, "response": "r", "tokens": 1, "oracle": v}
            | {"score": score}
            for p, k, v in keys
        ]
        (tmp_path / "evals" / policy).mkdir(parents=True)
        write(JUDGED, rows, tmp_path / "evals" / policy / "heldout.parquet")
        summary = {"tokens": {"sampled": 30 + place}, "kl_to_reference": place / 10, "prompts_with_a_cycle": 0}
        (tmp_path / "evals" / policy / "heldout.json").write_text(json.dumps(summary))
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
