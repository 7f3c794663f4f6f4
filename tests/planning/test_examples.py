"""The target `examples` in a plan: whose responses, to which prompts, in one job that costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.reading import load
from mnpo.planning import job_graph
from mnpo.planning.estimate import forecast
from mnpo.planning.plan import Plan

Planned = Callable[..., Plan]
PAGE = "results/demo/tables/examples.html"


def work(plan: Plan) -> Any:
    (piece,) = [piece for piece in job_graph.everything(plan) if piece.stage == "examples"]
    return piece


@pytest.mark.parametrize("file", ["demo", "smollm2"])
def test_demo_and_smollm2_make_the_page_by_default(root: Path, file: str) -> None:
    plan = Plan(load(root / f"configs/{file}.yaml"))
    page = f"results/{file}/tables/examples.html"
    assert plan.targets.of("examples") == [page] and page in job_graph.files(plan, plan.config.tables.targets)


def test_it_is_one_job_of_evaluations_and_prompts_and_changes_no_other(planned: Planned) -> None:
    plan = planned()
    assert work(plan).inputs == (
        *(
            f"results/demo/evals/{policy}/heldout.json"
            for policy in (
                "sft",
                "dpo.1",
                "inpo.3",
                "td-mnpo.3",
                *(f"ht-{o}.2" for o in ("correctness", "brevity", "courtesy")),
            )
        ),
        "results/demo/prompts/heldout.parquet",
    )
    assert (work(plan).outputs, work(plan).jobs) == ((PAGE,), 1)
    without = planned(tables={"targets": [t for t in plan.config.tables.targets if t != "examples"]})
    with_it, others = (
        {piece.name: piece for piece in job_graph.needed(p, job_graph.files(p, p.config.tables.targets))}
        for p in (plan, without)
    )
    assert with_it == others | {"examples examples": work(plan)}  # the price of others does not rest on it, either


def test_it_costs_nothing(planned: Planned) -> None:
    plan = planned()
    cost = {e.work.stage: e for e in forecast(plan, ["examples", "heldout"]).estimates}
    assert (cost["examples"].gpu_hours, cost["examples"].tokens) == (cost["tabulate"].gpu_hours, 0) == (0, 0)


def test_it_shows_the_reference_and_the_last_policy_of_every_run_of_one_seed_or_those_named(planned: Planned) -> None:
    runs = {
        "mine": {
            "objective": {"name": "inpo", "eta": 0.2},
            "oracle": "overall",
            "iterations": [{"parts": [1]}, {"parts": [2]}],
        }
    }
    of = {"runs": runs, "seeds": 2}
    assert planned(**of, tables={"win_against": ["sft"]}).policies.shown == ["sft", "mine.2"]
    named = ["mine.s2.1", "sft", "mine.s2.1"]
    assert planned(**of, tables={"win_against": ["sft"], "examples_of": named}).policies.shown == ["mine.s2.1", "sft"]


def test_name_and_seed_of_the_configuration_draw_the_prompts_and_nothing_else_does(planned: Planned) -> None:
    settings = json.loads(planned().settings("examples"))
    assert (settings["prompts"], settings["scores"]) == (8, ["overall", "correctness", "brevity", "courtesy"])
    assert settings["labels"][:3] == [["sft", "SFT"], ["dpo.1", "DPO"], ["inpo.3", "INPO 3"]]

    def seed(**changes: Any) -> int:
        return int(json.loads(planned(**changes).settings("examples"))["seed"])

    assert seed(name="other") != seed() != seed(seed=1)
    assert seed() == seed(tables={"examples": 3}) == seed(evaluation={"oracle": "correctness"})
    tables = ("tabulate", "players", "plot")
    changed = planned(tables={"examples": 3, "examples_of": ["sft"]})
    assert all(changed.settings(stage) == planned().settings(stage) for stage in tables)


def test_it_needs_who_decides(planned: Planned) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.oracle: required by tables\.targets \(examples\)"):
        planned(evaluation={"oracle": None}, tables={"targets": ["examples"]})
