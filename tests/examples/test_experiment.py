"""configs/smollm2-experiment.yaml, and how its page counts."""

from __future__ import annotations

import re
import string
from pathlib import Path

import numpy as np
import pytest

from benchmarks import smollm2
from examples.instructions import SIZES
from mnpo.config.reading import load

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
    assert tried.training == config.training
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
