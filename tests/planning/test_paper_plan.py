"""The paper's configuration as a plan: every row of its tables, how many jobs, what is shared, which sources."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.config.sources import Model
from mnpo.planning import job_graph, paper_tables
from mnpo.planning.plan import Plan
from mnpo.storage.hub import Lock

ROWS = ("table2", "table3", "table4", "table5", "table7", "table8")


@pytest.fixture(scope="module")
def plan(root: Path) -> Plan:
    return Plan(load(root / "config.yaml"))


@pytest.fixture(scope="module")
def ablations(root: Path) -> Plan:
    return Plan(load(root / "configs/ablations.yaml"))


def counted(plan: Plan, *targets: str) -> Counter[str]:
    """Jobs by stage behind targets."""
    jobs: Counter[str] = Counter()
    for piece in job_graph.needed(plan, job_graph.files(plan, targets)):
        jobs[piece.stage] += piece.jobs
    return jobs


# --------------------------------------------------------------------------------------------------- rows of the tables


def published(root: Path, table: str) -> list[paper_tables.Row]:
    return paper_tables.TABLES[table].rows(root / "results/paper")


@pytest.mark.parametrize("table", ["table2", "table3", "table4"])
def test_every_row_that_the_paper_trained_is_a_run(root: Path, plan: Plan, table: str) -> None:
    trained = [row.key for row in published(root, table) if row.cells.get("family", "gemma-2-9b-it") == "gemma-2-9b-it"]
    assert list(plan.targets.rows(table)) == trained
    assert [
        plan.policies.label(policies[0]).removesuffix(" 3") for policies in plan.targets.rows(table).values()
    ] == trained


@pytest.mark.parametrize("table", ROWS)
def test_with_the_ablations_every_row_but_other_peoples_models_is_measured(
    root: Path, ablations: Plan, table: str
) -> None:
    theirs = {"open", "closed"}
    wanted = [row.key for row in published(root, table) if row.cells.get("family") not in theirs]
    assert list(ablations.targets.rows(table)) == wanted
    assert len(ablations.targets.evaluations(table)) > 0


def test_table_6_has_a_configuration_of_its_own(root: Path) -> None:
    plan = Plan(load(root / "configs/llama-3-8b.yaml"))
    assert list(plan.targets.rows("table6")) == [row.key for row in published(root, "table6")]
    assert plan.targets.rows("table2") == {}
    assert plan.policies.prepared == {"sft": "llama-3-8b"}
    assert plan.files.root != "results/paper"


def test_other_peoples_models_are_off_until_they_are_named(root: Path) -> None:
    chosen = {"evaluation": {"models": ["smollm3", "gpt-5"]}}
    plan = Plan(load(root / "config.yaml", chosen))
    assert list(plan.targets.rows("table2"))[-2:] == ["SmolLM3-3B", "OpenAI/GPT-5"]
    stages = {piece.stage for piece in job_graph.needed(plan, plan.targets.of("table2")) if piece.policy == "gpt-5"}
    assert stages == {"answer", "judge"}  # no files: nothing to prepare, nothing for the harness
    harness = [piece.policy for piece in job_graph.everything(plan) if piece.stage == "harness"]
    assert "smollm3" in harness and "gpt-5" not in harness


def test_the_players_of_table_5_have_one_opponent_less_than_players(ablations: Plan) -> None:
    runs = {key: policies[0] for key, policies in ablations.targets.rows("table5").items()}
    opponents = {n: [name for name, _ in ablations.policies.fits[policy].opponents] for n, policy in runs.items()}
    # One player has nobody but the reference; at iteration 3 the oldest of three past policies is the reference too.
    assert opponents == {
        "1": ["sft"],
        "2": ["td-mnpo-n2.2"],
        "3": ["td-mnpo.2", "td-mnpo.1"],
        "4": ["td-mnpo-n4.2", "td-mnpo-n4.1", "sft"],
    }


def test_the_two_player_games_of_table_8_are_every_pair_and_both_sides(ablations: Plan) -> None:
    sides = {}
    for run in ablations.config.runs:
        if run.startswith("ht2-"):
            fit = ablations.policies.fits[f"{run}.3"]
            ((opponent, _),) = fit.opponents
            sides[fit.oracle, ablations.policies.fits[opponent].oracle] = opponent
    oracles = ["armorm", "skywork", "athene"]
    assert set(sides) == {(a, b) for a in oracles for b in oracles if a != b}


# ----------------------------------------------------------------------------------------------------------------- jobs


def test_the_jobs_of_tables_2_to_4_counted_by_hand(plan: Plan) -> None:
    """8 runs: DPO and SimPO of one iteration, six of three. Four oracles score the data set's own responses; each of
    the 12 later iterations has samples of its own, scored by one oracle; 8 shards of each."""
    jobs = counted(plan, "table2", "table3", "table4")
    later = 6 * 2
    own = {
        ("part1", "armorm-sppo"),
        ("part1", "armorm"),
        ("part2", "armorm"),
        ("part3", "armorm"),
        ("part1", "skywork"),
        ("part1", "athene"),
    }
    assert jobs["train"] == 2 + 6 * 3
    assert jobs["reuse"] == 3 * 8
    assert jobs["sample"] == later * 8
    assert jobs["score"] == (later + len(own)) * 8
    assert jobs["pair"] == later + len(own)
    # 9 policies; three judged benchmarks of one judge; one harness job each.
    assert (jobs["harness"], jobs["answer"], jobs["judge"]) == (9, 27, 27)
    # 3 models beside the policy, 1 data set of prompts, 14 of benchmarks, 1 of NLTK.
    assert jobs["download"] == 1 + 3 + 1 + 14 + 1
    assert jobs["compare"] == 3


def test_the_log_probabilities_of_tables_2_to_4_counted_by_hand(plan: Plan) -> None:
    """A file is (pairs, scorer). On the data set's pairs only the reference is asked: once per part that somebody needs
    with that oracle. Later iterations ask their opponents, and the reference where it has a share."""
    per_run = {
        "sppo": 2,  # pi_t, at iterations 2 and 3
        "inpo": 2 * 2,  # pi_t and the reference
        "td-mnpo": 2 + 3,  # at iteration 2 pi_2 and the reference, which is the other opponent too; at 3 two and it
        "ht": 3 * (3 + 3),  # two other players and the reference
    }
    dataset = 3 + 1 + 1 + 1  # ArmoRM's pairs of all parts (DPO); of part 1 its as SPPO reads it, Skywork's and Athene's
    assert counted(plan, "table2")["logps"] == sum(per_run.values()) + dataset


def test_a_target_asks_for_nothing_that_it_does_not_show(plan: Plan) -> None:
    assert counted(plan, "table3")["judge"] == 0
    assert counted(plan, "table2")["harness"] == 0
    assert counted(plan, "table2")["assess"] == 0


def test_runs_share_what_they_have_in_common(plan: Plan) -> None:
    """The data set's responses, their ArmoRM scores and pairs are one for DPO, SimPO, INPO and the two MNPOs."""
    needed = job_graph.needed(plan, plan.targets.of("table2"))
    alone = job_graph.by_run(plan, needed)
    shared = {name for name in alone["dpo"] if name in alone["inpo"]}
    assert {"score dataset part1 armorm", "pair dataset part1 armorm", "sft sft"} <= shared
    assert "train inpo.1" in alone["inpo"] - alone["dpo"]
    assert "train ht-athene.2" in alone["ht-armorm"]  # the players need each other
    assert sum(len(names) for names in alone.values()) > len(needed)


def test_a_seed_more_repeats_training_and_not_the_reference(root: Path) -> None:
    one, two = (Plan(load(root / "config.yaml", {"seeds": n})) for n in (1, 2))
    first, second = (counted(p, "table2", "table3", "table4") for p in (one, two))
    assert second["train"] == 2 * first["train"]
    assert second["sample"] == 2 * first["sample"]
    assert second["reuse"] == first["reuse"] and second["sft"] == first["sft"]
    assert two.targets.rows("table2")["INPO"] == ["inpo.3", "inpo.s2.3"]
    assert {name for name, _ in two.policies.fits["ht-armorm.s2.2"].opponents} == {"ht-skywork.s2.1", "ht-athene.s2.1"}
    assert two.settings("train", policy="inpo.s2.1") != two.settings("train", policy="inpo.1")
    assert one.settings("train", policy="inpo.1") == two.settings("train", policy="inpo.1")
    assert two.policies.label("inpo.s2.3") == "INPO (seed 2) 3"


def test_policies_that_stand_in_no_table_are_passing_unless_they_are_kept(root: Path, plan: Plan) -> None:
    assert (
        "inpo.1" in plan.policies.passing
        and "inpo.3" not in plan.policies.passing
        and "dpo.1" not in plan.policies.passing
    )
    assert Plan(load(root / "config.yaml", {"checkpoints": "keep"})).policies.passing == []


# -------------------------------------------------------------------------------------------------------------- sources


def test_a_source_is_where_the_configuration_says(root: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNPO_CACHE", "/scratch/cache")
    assert plan.files.source("models", "gemma") == "/scratch/cache/models/google--gemma-2-9b-it/main"
    assert plan.files.source("datasets", "mt-bench").startswith("/scratch/cache/github/lm-sys--FastChat/0e6d3e4")
    mirrored = {name: spec.model_dump(exclude_none=True) for name, spec in plan.config.models.items()}
    mirrored["gemma"] |= {"mirror": "/data/gemma"}
    other = Plan(load(root / "config.yaml", {"models": mirrored}))
    assert other.files.source("models", "gemma") == "/data/gemma"
    assert other.files.downloads("/data/gemma") == {}
    assert list(plan.files.downloads("/scratch/cache/models/google--gemma-2-9b-it/main")) == ["models.gemma"]


def test_the_lock_moves_a_source_to_its_commit(plan: Plan) -> None:
    commit = "a" * 40
    lock = Lock.model_validate({"models": {"google/gemma-2-9b-it": {"main": {"commit": commit, "files": {}}}}})
    pinned = Plan(plan.config, lock)
    assert pinned.files.source("models", "gemma").endswith(f"google--gemma-2-9b-it/{commit}")
    assert pinned.files.source("models", "armorm") == plan.files.source("models", "armorm")


def test_a_reward_models_revision_reaches_its_scores_and_no_others(root: Path, plan: Plan) -> None:
    models: dict[str, Any] = {n: m.model_dump(exclude_none=True) for n, m in plan.config.models.items()}
    models["skywork"] |= {"revision": "b" * 40}
    moved = Plan(load(root / "config.yaml", {"models": models}))
    assert plan.settings("score", oracle="skywork") != moved.settings("score", oracle="skywork")
    assert plan.settings("score", oracle="armorm") == moved.settings("score", oracle="armorm")


def test_what_only_the_plan_reads_reruns_nothing(root: Path, plan: Plan) -> None:
    models: dict[str, Any] = {n: m.model_dump(exclude_none=True) for n, m in plan.config.models.items()}
    models["armorm"] |= {"parameters": 8.0, "gigabytes": 16.0}
    other = Plan(load(root / "config.yaml", {"models": models}))
    assert plan.settings("score", oracle="armorm") == other.settings("score", oracle="armorm")


def test_entries_of_one_repository_are_fetched_together(configured: Any) -> None:
    datasets = {
        "arc": {"hub": "allenai/ai2_arc", "files": ["ARC-Challenge/*"]},
        "gsm8k": {"hub": "allenai/ai2_arc", "files": ["ARC-Easy/*"]},
    }
    plan = Plan(configured(datasets=datasets, evaluation={"benchmarks": ["arc", "gsm8k"], "judges": []}, judges={}))
    directory = plan.files.source("datasets", "arc")
    assert directory == plan.files.source("datasets", "gsm8k")
    assert '"files": ["ARC-Challenge/*", "ARC-Easy/*"]' in plan.settings("download", directory=directory)


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(root: Path, changes: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        Plan(load(root / "config.yaml", changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"judges": ["gpt5"]}}, "evaluation.judges: unknown judge 'gpt5'; did you mean 'gpt-5-mini'?"),
        ({"evaluation": {"benchmarks": ["gpka"]}}, "evaluation.benchmarks.0: Input should be"),
        ({"evaluation": {"models": ["smollm"]}}, "evaluation.models: unknown model 'smollm'; did you mean 'smollm3'?"),
        ({"tables": {"rows": {"table2": {"DPO": "dop"}}}}, "tables.rows.table2.DPO: unknown run or model 'dop'; did"),
        ({"prompts": {"dataset": "ultrafedback"}}, "prompts.dataset: unknown dataset 'ultrafedback'; did you mean"),
        ({"evaluation": {"judges": []}}, "evaluation.judges: alpaca-eval, arena-hard, mt-bench need a judge"),
        ({"resources": {"stages": {"trian": {"gpus": 8}}}}, "resources.stages.trian"),
        (
            {"models": {"x": {"hub": "a/b", "api": "c"}}},
            "give exactly one of hub, github, path, architecture, miniature, api",
        ),
        (
            {"models": {"x": {"path": "a", "mirror": "b"}}},
            "mirror stands in for hub or github, and this source is a path",
        ),
    ],
)
def test_a_mistake_is_one_message_with_its_place_and_the_nearest_name(
    root: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(root, changes)


def test_what_is_added_stands_beside_and_a_name_is_not_given_twice(tmp_path: Path, root: Path) -> None:
    overlay = tmp_path / "more.yaml"
    base = f"extends: {root / 'configs/demo.yaml'}\n"
    overlay.write_text(base + "add:\n  models: {other: {path: somewhere}}\n")
    config: Config = load(overlay)
    assert list(config.models) == ["tiny", "other"]
    assert isinstance(config.models["other"], Model)
    overlay.write_text(base + "add:\n  models: {tiny: {path: somewhere}}\n")
    with pytest.raises(ConfigError, match=r"add\.models\.tiny: the configuration it extends has one"):
        load(overlay)
    overlay.write_text(base + "add:\n  sampling: {responses: 3}\n")
    with pytest.raises(ConfigError, match=r"add\.sampling: not entries of one of runs, oracles, models"):
        load(overlay)


def test_each_slip_of_the_papers_size_is_its_td_mnpo_with_one_thing_changed(root: Path) -> None:
    """Each run is td-mnpo but for one field of the protocol, the order of the weights, or the whole preset."""
    plan = Plan(load(root / "configs/paper-slips.yaml"))
    slips = {name: run for name, run in plan.config.runs.items() if name.startswith("slip-")}
    paper = plan.config.runs["td-mnpo"]
    changed = {}
    for name, run in slips.items():
        fields = {field.split("_")[-1] for field in run.protocol}  # both texts are one slip
        fields |= {"iterations"} if run.iterations != paper.iterations else set()
        fields |= {"preset"} if run.preset != "paper" else set()
        changed[name.removeprefix("slip-")] = fields
        assert (run.objective, run.oracle) == (paper.objective, paper.oracle)
    assert {name: len(fields) for name, fields in changed.items()} == dict.fromkeys(changed, 1)
    assert len(slips) == 10 and changed["oldest-first"] == {"iterations"} and changed["all"] == {"preset"}
    orders = [i.objective["order"] for i in slips["slip-oldest-first"].iterations[1:] if i.objective]
    assert orders == ["oldest-first", "oldest-first"]
    made = plan.targets.of("benchmarks")
    assert {f"{name}.3" for name in slips} <= set(plan.policies.finals) and made


def test_the_baselines_are_those_of_their_authors(root: Path) -> None:
    """SimPO's published settings for gemma-2-9b-it and SPPO's for Gemma-2-9B-It (docs/ledger.md, points 39 and 48)."""
    plan = Plan(load(root / "config.yaml"))
    simpo = json.loads(plan.settings("train", policy="simpo.1"))
    assert simpo["objective"]["name"] == "simpo"
    assert (simpo["objective"]["beta"], simpo["objective"]["margin"]) == (10, 5)  # gamma / beta is 0.5
    assert simpo["training"]["learning_rate"] == 8e-7
    assert plan.config.runs["simpo"].iterations[0].parts == [1]
    for iteration in (1, 2, 3):
        sppo = json.loads(plan.settings("train", policy=f"sppo.{iteration}"))
        assert sppo["objective"] == {"name": "sppo", "eta": 0.001}
        assert (sppo["training"]["batch_size"], sppo["training"]["learning_rate"]) == (64, 5e-7)
        assert (sppo["training"]["optimiser"], sppo["training"]["schedule"]) == ("rmsprop", "linear")
        assert sppo["training"]["clip"] == 0
    oracle = plan.config.oracles["armorm-sppo"]
    assert oracle.model == "armorm" and oracle.own_response


@pytest.mark.parametrize("name", ["variants", "thirds", "slips", "zephyr-sft", "exploitability", "seeds"])
def test_the_configurations_beside_the_papers_plan(root: Path, name: str) -> None:
    plan = Plan(load(root / f"configs/{name}.yaml"))
    assert all(plan.targets.of(target) for target in plan.config.tables.targets)
    assert name != "thirds" or plan.config.prompts.parts == 9
