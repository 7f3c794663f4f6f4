"""Runs whose pairs the data prefer: which files, which jobs, and what is refused before any of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.reading import load
from mnpo.planning import job_graph
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.estimate import forecast, slopes
from mnpo.planning.outline import describe
from mnpo.planning.plan import Plan

Planned = Callable[..., Plan]
FILE = {"source": "file", "path": "rows.jsonl", "demonstrations": 0}
OWN_ORACLE = {
    "reference": {"sft": None},
    "oracles": {"overall": {"kind": "reward-model", "model": "tiny"}},
    "evaluation": {"oracle": "overall", "scores": [], "accuracy": None, "majority": None},
}
DPO = {"name": "dpo", "beta": 0.1}


def asked(objective: dict[str, Any] = DPO, samples: str = "dataset", prompts: Any = None, **run: Any) -> dict[str, Any]:
    iterations = [{"parts": [1], "samples": samples}, {"parts": [2], "samples": samples}]
    runs = {"mine": {"objective": objective, "iterations": iterations} | run}
    return OWN_ORACLE | {"prompts": FILE | (prompts or {}), "runs": runs, "tables": {"win_against": ["sft"]}}


def stages(plan: Plan) -> list[str]:
    files = job_graph.files(plan, ["preferences"]) + [plan.files.policy("mine.2")]
    return [f"{work.stage} {work.what}" for work in job_graph.needed(plan, files)]


def test_chosen_and_rejected_of_the_data_need_no_samples_and_no_oracle(planned: Planned) -> None:
    plan = planned(**asked())
    assert stages(plan) == [
        "prompts all parts",
        "prefer dataset part1",
        "prefer dataset part2",
        "preferences preferences",
        "sft sft",
        "logps dataset part1 dataset chat under sft",
        "train mine.1",
        "logps dataset part2 dataset chat under sft",
        "train mine.2",
    ]
    assert plan.files.fit_pairs(plan.policies.fits["mine.1"]) == ["results/demo/pairs/dataset/part1/dataset.parquet"]
    rows = json.loads(plan.settings("preferences"))["rows"]
    assert rows == [["data set", 1, "dataset"], ["data set", 2, "dataset"]]


def test_policies_are_a_target_that_needs_no_oracle(planned: Planned) -> None:
    """The last policy of every run, of every seed; the reference too, where it is fine-tuned."""
    nobody = {"evaluation": {"oracle": None, "scores": [], "accuracy": None, "majority": None}}
    plan = planned(**asked() | nobody | {"seeds": 2, "tables": {"targets": ["policies"], "win_against": ["sft"]}})
    assert plan.targets.of("policies") == [plan.files.policy("mine.2"), plan.files.policy("mine.s2.2")]
    assert "policies" in plan.targets.names  # a rule of its own
    trained = [work.what for work in job_graph.needed(plan, plan.targets.of("policies")) if work.stage == "train"]
    assert trained == ["mine.1", "mine.2", "mine.s2.1", "mine.s2.2"]
    tuned = planned(tables={"targets": ["policies"]})
    assert tuned.targets.of("policies")[0] == tuned.files.policy("sft")
    with pytest.raises(ConfigError, match=r"tables\.targets \(heldout\).* and ask for `policies` instead"):
        planned(**asked() | nobody | {"tables": {"targets": ["heldout"], "win_against": ["sft"]}})


@pytest.mark.parametrize(
    ("name", "rows", "jobs"),
    [
        ("lessons", "conversations", ["demonstrations", "sft"]),
        ("pairs", "pairs", ["prompts", "prefer", "sft", "logps", "train", "preferences"]),
    ],
)
def test_the_pages_examples_are_complete(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: str, jobs: list[str]
) -> None:
    """Written to a file as they stand, `mnpo plan` prices them, and they train."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```yaml\n(.*?)^```", (root / "docs/data.md").read_text(), re.M | re.S)
    (text,) = [block for block in blocks if f"\nname: {name}\n" in block]
    (tmp_path / f"{name}.yaml").write_text(text)
    row = {"prompt": "Say", "chosen": "one", "rejected": "two", "response": "three"}
    lines = [json.dumps(row | {"prompt": f"Say {n}"}) + "\n" for n in range(160)]
    (tmp_path / f"{rows}.jsonl").write_text("".join(lines))
    plan = Plan(load(tmp_path / f"{name}.yaml"))
    made = job_graph.needed(plan, job_graph.files(plan, plan.config.tables.targets))
    assert sorted({work.stage for work in made} - {"download"}) == sorted(jobs)
    assert {e.work.stage for e in forecast(plan).estimates} >= {jobs[1]}


def test_the_plan_counts_what_a_local_file_has(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """25 rows of 21 different prompts, 5 held out, in two parts; demonstrations: 25 rows, 20 % kept aside."""
    monkeypatch.chdir(tmp_path)
    answer = {"chosen": "one", "rejected": "two", "response": "three"}
    lines = [json.dumps({"prompt": f"Say {n}", **answer}) + "\n" for n in (*range(21), *range(4))]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    sft = {"data": {"file": "rows.jsonl", "heldout": 0.2}, "steps": None, "epochs": 1}
    prompts = {"parts": 2, "part_size": None, "heldout": 5}

    def of(**changed: Any) -> Quantities:
        return Quantities(planned(**asked(prompts=prompts | changed) | {"reference": {"sft": sft}}))

    assert (of().part, of().demonstrations) == (8, 20)
    assert of(expected=100).part == 50  # what is said comes first
    counted, said = (
        slopes(
            planned(**asked({"name": "td-mnpo", "eta": 1, "history": 1}, prompts=prompts | {"part_size": size})).config,
            "mine",
        )
        for size in (None, 8)
    )
    assert counted["twice the prompts"] == said["twice the prompts"] and said["twice the prompts"].tokens
    with pytest.raises(ConfigError, match=r"rows\.jsonl has 21 different prompts, too few for heldout 20 and 2 parts"):
        of(heldout=20)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"part_size, or expected .*; rows\.jsonl, to count them in, is not there"):
        of()


def test_with_responses_and_an_oracle_these_are_scored(planned: Planned) -> None:
    plan = planned(**asked(oracle="overall", prompts={"responses": "answers"}))
    assert plan.policies.fits["mine.1"].oracle == "overall"
    assert "reuse part1" in stages(plan) and "pair dataset part1 overall" in stages(plan)
    without = planned(**asked(oracle="overall"))  # an oracle for other iterations
    assert without.policies.fits["mine.1"].oracle == "dataset"


def test_demonstrations_are_paired_with_the_policys_own_samples(planned: Planned) -> None:
    plan = planned(**asked({"name": "spin", "beta": 0.1}, "demonstrations"))
    of_pairs = ("sample", "reuse", "score", "pair", "prefer", "logps")
    assert {name for name in stages(plan) if name.split()[0] in of_pairs} == {
        "sample sft part1",
        "prefer sft part1",
        "sample mine.1 part2",
        "prefer mine.1 part2",
        "logps sft part1 dataset chat under sft",
        "logps mine.1 part2 dataset chat under mine.1",
    }
    second = plan.policies.fits["mine.2"]
    assert (second.start, second.sampler, second.opponents) == ("mine.1", "mine.1", (("mine.1", 1.0),))


def test_the_names_of_scores_are_no_reason_to_cut_the_prompts_again(planned: Planned) -> None:
    settings = [planned(**asked(prompts={"scores": s})).settings("prompts") for s in (None, ["a", "b"])]
    assert settings[0] == settings[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            asked(samples="policy"),
            "runs.mine, iteration 1: learns from sft's responses, and nothing says which are bet",
        ),
        (asked({"name": "egpo", "eta": 1}), "learns from mine.1-half's responses, and nothing says which are better"),
        (asked({"name": "distill-dpo"}), "objective distill-dpo reads scores of chosen and rejected; name the columns"),
        (
            asked({"name": "td-mnpo", "reward_scale": 1}, "demonstrations"),
            "objective td-mnpo reads scores of chosen and rejected; demonstrations have none",
        ),
        (
            asked({"name": "td-mnpo", "eta": 1, "weights": "nash"}),
            "iteration 1: weights: nash lets opponents play each other, and nothing says which response is better",
        ),
        (asked({"name": "spin"}), "spin prefers demonstrations to its own responses; set samples: demonstrations"),
        (asked(prompts={"source": "demo", "path": None}), "samples: dataset, and the demo's prompts come with neither"),
        (asked(prompts={"scores": ["a"]}), "prompts.scores: List should have at least 2 items"),
        (asked(oracle="overal"), "runs.mine.oracle: unknown oracle 'overal'; did you mean 'overall'?"),
        (asked() | {"oracles": {"dataset": {"kind": "rule", "rule": "brevity"}}}, "nothing here can be called dataset"),
        (asked() | {"exploitability": {}}, "exploitability.oracle: mine.2 was trained for none; name one"),
    ],
)
def test_what_cannot_be_is_refused(planned: Planned, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(**changes)
    assert said in str(caught.value)


def test_objectives_on_scores_are_taken_where_their_columns_are_named(planned: Planned) -> None:
    plan = planned(**asked({"name": "distill-dpo"}, prompts={"scores": ["score_chosen", "score_rejected"]}))
    assert json.loads(plan.settings("prefer"))["prompts"]["scores"] == ["score_chosen", "score_rejected"]


def test_a_player_without_an_oracle_is_judged_by_the_evaluations(planned: Planned) -> None:
    players = json.loads(planned(**asked()).settings("players"))["players"]
    assert [(name, player["oracle"]) for name, player in players] == [("mine.2", "overall")]


def test_a_pair_a_prompt_is_priced_and_shown(planned: Planned) -> None:
    from mnpo.planning.costs.quantities import Quantities
    from mnpo.planning.estimate import forecast

    plan = planned(**asked(), pairing={"form": "all"})
    quantities = Quantities(plan)
    assert (quantities.pairs_of("overall"), quantities.pairs_of("dataset")) == (500 * 10, 500)  # 5 responses: 10 pairs
    assert "the data set" in describe(forecast(plan, ["preferences", "heldout"]))
