"""`weights: nash`: which games are played before which training, by which jobs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.reading import read_yaml
from mnpo.planning import job_graph
from mnpo.planning.estimate import forecast, slopes
from mnpo.planning.outline import describe
from mnpo.planning.plan import Plan

Planned = Callable[..., Plan]
SFT_ONLY = {"win_against": ["sft"]}
NASH: dict[str, Any] = {"name": "td-mnpo", "eta": 0.2, "history": 3, "weights": "nash"}


def a_run(iterations: int = 3, **changes: Any) -> dict[str, Any]:
    rounds = [{"parts": [t]} for t in range(1, iterations + 1)]
    return {"objective": NASH, "oracle": "overall", "iterations": rounds} | changes


@pytest.fixture
def plan(planned: Planned) -> Plan:
    return planned(runs={"mine": a_run()}, tables=SFT_ONLY)


def test_the_first_iteration_has_one_opponent_and_no_game(plan: Plan) -> None:
    fit = plan.policies.fits["mine.1"]
    assert fit.games == [] and plan.files.fit_game(fit) == [] and fit.opponents == (("sft", 1.0),)
    assert json.loads(plan.settings("train", policy="mine.1"))["opponents"] == [["sft", 1.0]]


def test_every_two_opponents_play_once_on_the_iterations_prompts(plan: Plan) -> None:
    fit, root = plan.policies.fits["mine.3"], "results/demo"
    assert fit.games == [("mine.1", "mine.2"), ("mine.1", "sft"), ("mine.2", "sft")]
    assert plan.files.fit_game(fit) == [f"{root}/games/mine.3.json"]
    shards = range(plan.files.shards)
    assert plan.files.game_scores(fit) == [
        f"{root}/scores/{first}/part3/overall@{second}/{shard}.parquet"
        for first, second in (("mine.1", "mine.2"), ("mine.1", "sft"), ("mine.2", "sft"))
        for shard in shards
    ]
    assert json.loads(plan.settings("train", policy="mine.3"))["opponents"] == [
        ["mine.2", None], ["mine.1", None], ["sft", None],
    ]  # fmt: skip
    assert json.loads(plan.settings("weigh", policy="mine.3")) == {
        "policy": "mine.3",
        "oracle": "overall",
        "opponents": ["mine.2", "mine.1", "sft"],
        "games": [["mine.1", "mine.2"], ["mine.1", "sft"], ["mine.2", "sft"]],
    }


def test_the_plan_counts_the_samples_and_the_scores_of_the_games(plan: Plan, planned: Planned) -> None:
    """Beside the same run with fixed weights: sft and mine.1 on part 3, sft on part 2; one game and three."""
    fixed = planned(runs={"mine": a_run(objective=NASH | {"weights": [3, 2, 1]})}, tables=SFT_ONLY)
    ours, theirs = ({(w.stage, w.what) for w in job_graph.needed(p, p.targets.of("heldout"))} for p in (plan, fixed))
    assert theirs < ours and ours - theirs == {
        ("sample", "sft part2"), ("score", "mine.1 part2 overall@sft"), ("weigh", "mine.2"),
        ("sample", "sft part3"), ("sample", "mine.1 part3"), ("weigh", "mine.3"),
        *(("score", f"{a} part3 overall@{b}") for a, b in (("mine.1", "mine.2"), ("mine.1", "sft"), ("mine.2", "sft"))),
    }  # fmt: skip
    assert "mine.2, mine.1, sft: 1 by their game" in describe(forecast(plan))


def test_runs_share_the_games_of_the_same_two(planned: Planned) -> None:
    """Three players meet each other: of one's game between the other two no file is named twice in other words."""
    names = ("one", "two", "three")
    objective = {"name": "ht-mnpo", "eta": 0.2, "weights": "nash"}
    runs = {n: a_run(2, objective=objective | {"players": [p for p in names if p != n]}) for n in names}
    plan = planned(runs=runs, tables=SFT_ONLY)
    games = [plan.policies.fits[f"{n}.2"].games for n in names]
    assert games == [[("three.1", "two.1")], [("one.1", "three.1")], [("one.1", "two.1")]]


def test_models_that_oppose_play_each_other(planned: Planned, demo: Path) -> None:
    """EO-MNPO: their samples are drawn from their own files, and computed by them in the plan."""
    models = {**read_yaml(demo)["models"], "other": {"path": "/models/other", "parameters": 1, "strip": "think"}}
    models["third"] = {"path": "/models/third", "parameters": 1}
    objective = {"name": "eo-mnpo", "eta": 0.2, "players": ["other", "third"], "weights": "nash", "nash_tau": 0.1}
    plan = planned(runs={"mine": a_run(1, objective=objective)}, tables=SFT_ONLY, models=models)
    fit = plan.policies.fits["mine.1"]
    assert fit.games == [("other", "third")] and fit.decides == "overall"
    works = {(w.stage, w.what): w for w in job_graph.needed(plan, plan.targets.of("heldout"))}
    drawn = works["sample", "other part1"]
    assert drawn.models == ("other",) and "/models/other" in drawn.inputs
    read = json.loads(plan.settings("score", oracle="overall@third", policy="other"))
    assert (read["strip"], read["strip_against"]) == ("think", "template")
    assert json.loads(plan.settings("weigh", policy="mine.1"))["tau"] == 0.1


def test_the_public_codes_slip_of_equal_weights_plays_no_games(planned: Planned) -> None:
    plan = planned(runs={"mine": a_run(preset="official-code")}, tables=SFT_ONLY)
    assert plan.policies.fits["mine.3"].games == []
    assert [w for _, w in plan.policies.fits["mine.3"].opponents] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"name": "inpo", "eta": 0.2, "weights": "nash"}, "objective inpo does not read weights; td-mnpo does"),
        (NASH | {"weights": [3, 2, 1], "nash_tau": 0.1}, "nash_tau is read by weights: nash"),
        (NASH | {"order": "newest-first"}, "order is of a list of weights, and weights: nash is none"),
        (NASH | {"weights": "Nash"}, "objective: weights: 'Nash' is neither nash nor a list of numbers; did you mean"),
        (NASH | {"nash_tau": 0}, "nash_tau: Input should be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(planned: Planned, objective: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        planned(runs={"mine": a_run(objective=objective)}, tables=SFT_ONLY).policies.fits  # noqa: B018


def test_one_more_player_of_a_game_costs_its_samples_its_games_and_its_log_probabilities(planned: Planned) -> None:
    """The third opponent of iteration 3 is the reference, which plays the other two; iteration 2 has no third."""
    run = a_run(objective=NASH | {"history": 2, "nash_tau": 0.1})
    config = planned(runs={"mine": run}, tables=SFT_ONLY | {"targets": ["heldout"]}).config
    assert slopes(config, "mine")["one more player"].jobs == {"sample": 1, "score": 2, "logps": 1}
