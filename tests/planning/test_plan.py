"""The plan: who exists, who starts from whom, against whom, in which files, and what each job's settings contain."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnpo.config.blocks import ConfigError, validated
from mnpo.config.configuration import Config
from mnpo.config.reading import load, read_yaml
from mnpo.method import games
from mnpo.method.play import play
from mnpo.planning import job_graph
from mnpo.planning.files import HELDOUT
from mnpo.planning.plan import Plan

Planned = Callable[..., Plan]


@pytest.fixture
def plan(demo: Path) -> Plan:
    return Plan(load(demo))


@pytest.fixture
def runs(demo: Path) -> dict[str, Any]:
    """The demo's `runs`, to be changed by a test."""
    return deepcopy(read_yaml(demo)["runs"])


def artifacts(plan: Plan) -> list[str]:
    """Everything that the held-out tables rest on, in the order in which it can be made."""
    made = [file for piece in job_graph.needed(plan, plan.targets.of("heldout")) for file in piece.outputs]
    return [file for file in made if "/prompts/" not in file and "/tables/" not in file and "/training/" not in file]


def a_run(iterations: int = 3, preset: str = "paper", **objective: Any) -> dict[str, Any]:
    rounds = [{"parts": [t]} for t in range(1, iterations + 1)]
    return {"objective": objective, "oracle": "overall", "iterations": rounds, "preset": preset}


SFT_ONLY = {"win_against": ["sft"]}
PLAYERS = ("correctness", "brevity", "courtesy")  # of the demo's HT-MNPO, called as their oracles


def jobs(plan: Plan) -> dict[str, str]:
    """What every job of the plan makes -> the settings it reads."""
    c = plan.config
    made = {"prompts": plan.settings("prompts"), "tables": plan.settings("tabulate"), "figures": plan.settings("plot")}
    for policy in plan.policies.prepared:
        made[plan.files.policy(policy)] = plan.settings("sft", policy=policy)
    for policy, fit in plan.policies.fits.items():
        for part in map(str, fit.parts):
            for shard in map(str, range(c.sampling.shards)):
                made[plan.files.samples(fit.sampler, part, shard)] = plan.settings(
                    "sample", policy=fit.sampler, part=part, shard=shard
                )
                made[plan.files.scores(fit.sampler, part, fit.oracle, shard)] = plan.settings(
                    "score", oracle=fit.oracle
                )
            made[plan.files.pairs(fit.sampler, part, fit.oracle)] = plan.settings("pair", oracle=fit.oracle)
        for file in plan.files.fit_logps(plan.policies.fits[policy]):
            made[file] = plan.settings("logps", text=fit.protocol.opponent_text.tag())
        made[plan.files.policy(policy)] = plan.settings("train", policy=policy)
    for policy in plan.policies.evaluated:
        made[plan.files.evaluation(policy, HELDOUT)] = plan.settings("assess", policy=policy)
    return made


def changed(before: Plan, after: Plan) -> set[str]:
    """Which jobs' settings differ; both plans have the same jobs."""
    one, other = jobs(before), jobs(after)
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def changed_nouns(before: Plan, after: Plan) -> set[str]:
    """The same by noun: sft for the reference, policies for trained ones."""

    def noun(name: str) -> str:
        parts = name.split("/")
        if len(parts) == 1:
            return name
        return "sft" if parts[2:] == ["policies", "sft"] else parts[2]

    return {noun(name) for name in changed(before, after)}


# ------------------------------------------------------------------------------------------------------ the demo's plan


def test_the_demos_policies_start_from_whom_they_should(plan: Plan) -> None:
    assert plan.policies.prepared == {"sft": "tiny"}
    assert {p: (fit.start, fit.sampler, fit.parts) for p, fit in plan.policies.fits.items()} == {
        "dpo.1": ("sft", "sft", (1, 2, 3)),
        "inpo.1": ("sft", "sft", (1,)),
        "inpo.2": ("inpo.1", "inpo.1", (2,)),
        "inpo.3": ("inpo.2", "inpo.2", (3,)),
        "td-mnpo.1": ("sft", "sft", (1,)),
        "td-mnpo.2": ("td-mnpo.1", "td-mnpo.1", (2,)),
        "td-mnpo.3": ("td-mnpo.2", "td-mnpo.2", (3,)),
        **{f"ht-{name}.1": ("sft", "sft", (1,)) for name in PLAYERS},
        **{f"ht-{name}.2": (f"ht-{name}.1", f"ht-{name}.1", (2,)) for name in PLAYERS},
    }
    assert plan.policies.evaluated == [
        "sft",
        *(p for p in plan.policies.fits if p not in [f"ht-{name}.1" for name in PLAYERS]),
    ]


def test_the_demos_opponents_are_those_that_exist_newest_first(plan: Plan) -> None:
    opponents = {p: dict(fit.opponents) for p, fit in plan.policies.fits.items()}
    third = pytest.approx(1 / 3)
    assert opponents == {
        "dpo.1": {"sft": 1.0},
        "inpo.1": {"sft": 1.0},
        "inpo.2": {"inpo.1": 1.0},
        "inpo.3": {"inpo.2": 1.0},
        "td-mnpo.1": {"sft": 1.0},
        "td-mnpo.2": {"td-mnpo.1": pytest.approx(2 / 3), "sft": third},
        "td-mnpo.3": {"td-mnpo.2": pytest.approx(2 / 3), "td-mnpo.1": third},
        **{f"ht-{name}.1": {"sft": 1.0} for name in PLAYERS},
        **{f"ht-{name}.2": {f"ht-{other}.1": 0.5 for other in PLAYERS if other != name} for name in PLAYERS},
    }
    assert [name for name, _ in plan.policies.fits["td-mnpo.3"].opponents] == ["td-mnpo.2", "td-mnpo.1"]
    assert plan.policies.fits["td-mnpo.3"].scorers == [
        "td-mnpo.2",
        "td-mnpo.1",
        "sft",
    ]  # the reference has a share beside them
    assert plan.policies.fits["td-mnpo.2"].scorers == ["td-mnpo.1", "sft"]  # opponent and reference: one file
    assert plan.policies.fits["dpo.1"].scorers == ["sft"]


def test_file_names_say_what_files_are(plan: Plan) -> None:
    root = "results/demo"
    assert plan.files.prompts(2) == f"{root}/prompts/part2.parquet"
    assert plan.files.prompts("heldout") == f"{root}/prompts/heldout.parquet"
    assert plan.files.demonstrations == f"{root}/prompts/demonstrations.parquet"
    assert plan.files.policy("inpo.2") == f"{root}/policies/inpo.2"
    assert plan.files.sample_shards("inpo.1", 2) == [f"{root}/samples/inpo.1/part2/0.parquet"]
    assert plan.files.score_shards("inpo.1", 2, "overall") == [f"{root}/scores/inpo.1/part2/overall/0.parquet"]
    assert plan.files.fit_pairs(plan.policies.fits["td-mnpo.3"]) == [f"{root}/pairs/td-mnpo.2/part3/overall.parquet"]
    assert plan.files.fit_logps(plan.policies.fits["td-mnpo.3"]) == [
        f"{root}/logps/td-mnpo.2/part3/overall/chat/{scorer}.parquet" for scorer in ("td-mnpo.2", "td-mnpo.1", "sft")
    ]
    assert plan.files.fit_logps(plan.policies.fits["dpo.1"]) == [
        f"{root}/logps/sft/part{t}/overall/chat/sft.parquet" for t in (1, 2, 3)
    ]
    assert plan.files.evaluation("sft", "heldout") == f"{root}/evals/sft/heldout.json"
    assert plan.files.evaluation_items("sft", "heldout") == f"{root}/evals/sft/heldout.parquet"
    assert plan.targets.heldout == [
        f"{root}/tables/{t}.{e}" for t in ("main", "families", "wins") for e in ("csv", "md", "html")
    ]


def test_runs_share_what_they_have_in_common(plan: Plan) -> None:
    assert (
        plan.files.fit_pairs(plan.policies.fits["inpo.1"])
        == plan.files.fit_pairs(plan.policies.fits["td-mnpo.1"])
        == plan.files.fit_pairs(plan.policies.fits["dpo.1"])[:1]
    )
    assert (
        plan.files.fit_logps(plan.policies.fits["inpo.1"])
        == plan.files.fit_logps(plan.policies.fits["td-mnpo.1"])
        == plan.files.fit_logps(plan.policies.fits["dpo.1"])[:1]
    )
    nouns = [file.split("/")[2] for file in artifacts(plan)]
    # Samples of sft on 3 parts, and of iterations 1 and 2 of two runs; log-probabilities: 3 of sft on sft's,
    # 2 + 2 for inpo.2 and inpo.3, 2 for td-mnpo.2 (whose second opponent is the reference), 3 for td-mnpo.3.
    # Three players: each its own scores and pairs of sft's samples, opposed by sft, and of its first policy's samples,
    # opposed by two.
    expected = {"samples": 7 + 3, "scores": 7 + 6, "pairs": 7 + 6, "logps": 12 + 3 + 6, "policies": 14, "evals": 11}
    assert {noun: nouns.count(noun) for noun in set(nouns)} == expected
    assert len(set(artifacts(plan))) == len(artifacts(plan))


def test_artifacts_come_after_what_they_are_made_from(plan: Plan) -> None:
    order = {file: i for i, file in enumerate(artifacts(plan))}
    for policy, fit in plan.policies.fits.items():
        for part in fit.parts:
            chain = [
                plan.files.policy(fit.sampler),
                plan.files.samples(fit.sampler, part, 0),
                plan.files.scores(fit.sampler, part, fit.oracle, 0),
                plan.files.pairs(fit.sampler, part, fit.oracle),
                plan.files.policy(policy),
            ]
            assert [order[file] for file in chain] == sorted(order[file] for file in chain)
        assert all(
            order[plan.files.policy(s)] < order[f]
            for s, f in zip(fit.scorers, plan.files.fit_logps(plan.policies.fits[policy]), strict=False)
        )


@pytest.mark.parametrize(("least", "shards"), [(1, 8), (100, 6), (300, 2), (1000, 1)])
def test_a_job_that_samples_gets_a_minimum_of_prompts(planned: Planned, least: int, shards: int) -> None:
    plan = planned(prompts={"part_size": 600}, sampling={"shards": 8, "prompts_a_job": least})
    assert len(plan.files.sample_shards("inpo.1", 2)) == len(plan.files.score_shards("inpo.1", 2, "overall")) == shards
    sampling = json.loads(plan.settings("sample", policy="inpo.1", part="part2", shard="0"))["sampling"]
    assert (sampling["shards"], sampling["prompts_a_job"]) == (shards, 1)


def test_a_copy_in_bfloat16_is_asked_for_by_a_setting_of_its_own(planned: Planned) -> None:
    """What readers compute in decides no training, so nothing is trained again where that changes."""

    def trained(**changes: Any) -> str:
        return planned(**changes).settings("train", policy="inpo.1")

    assert "bfloat16_copy" not in trained() + planned().settings("sft", policy="sft")
    assert trained(sampling={"dtype": "bfloat16"}, evaluation={"dtype": "bfloat16"}) == trained()
    asked = {"training": {"bfloat16_copy": True}}
    assert json.loads(trained(**asked))["training"]["bfloat16_copy"] is True
    assert planned(**asked).settings("logps", text="chat") == planned().settings("logps", text="chat")


def test_whose_log_probabilities_the_sampler_says_is_no_matter_of_sampling(planned: Planned) -> None:
    plan, reusing = planned(sampling={"logprobs": True}), planned(sampling={"logprobs": True, "reuse_logprobs": True})
    job = {"policy": "inpo.1", "part": "part2", "shard": "0"}
    assert plan.settings("sample", **job) == reusing.settings("sample", **job)
    assert reusing.files.reused_logprobs("inpo.1", 2, "chat", "inpo.1") == [
        f"{reusing.files.root}/logps/inpo.1/part2/sampler/0.parquet"
    ]
    assert reusing.files.reused_logprobs("inpo.1", 2, "chat", "sft") == []
    assert plan.files.reused_logprobs("inpo.1", 2, "chat", "inpo.1") == []
    assert (
        reusing.files.reused_logprobs("inpo.1", 2, "chat-uncapped", "inpo.1") == []
    )  # the sampler's model has its cap


def test_shards_multiply_samples_and_scores_alone(planned: Planned) -> None:
    plan = planned(sampling={"shards": 3})
    nouns = [file.split("/")[2] for file in artifacts(plan)]
    assert (nouns.count("samples"), nouns.count("scores"), nouns.count("pairs")) == (30, 39, 13)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_one_more_player_costs_one_more_log_probability_file(planned: Planned, history: int) -> None:
    plan = planned(runs={"mine": a_run(name="td-mnpo", eta=0.2, history=history)}, tables=SFT_ONLY)
    assert len(plan.files.fit_logps(plan.policies.fits["mine.3"])) == history
    assert [name for name, _ in plan.policies.fits["mine.3"].opponents] == ["mine.2", "mine.1", "sft"][:history]
    files = {f for f in artifacts(plan) if "/logps/" not in f}
    assert files == {
        f for f in artifacts(planned(runs={"mine": a_run(name="inpo", eta=0.2)}, tables=SFT_ONLY)) if "/logps/" not in f
    }


def test_weights_are_scaled_over_the_opponents_that_exist(planned: Planned) -> None:
    run = a_run(name="td-mnpo", eta=0.2, history=3, weights=[2, 1, 1])
    fits = planned(runs={"mine": run}, tables=SFT_ONLY).policies.fits
    assert fits["mine.1"].opponents == (("sft", 1.0),)
    assert fits["mine.2"].opponents == (("mine.1", pytest.approx(2 / 3)), ("sft", pytest.approx(1 / 3)))
    assert fits["mine.3"].opponents == (("mine.2", 0.5), ("mine.1", 0.25), ("sft", 0.25))


def test_weights_left_out_are_equal(planned: Planned) -> None:
    fits = planned(runs={"mine": a_run(name="td-mnpo", eta=0.2, history=3)}, tables=SFT_ONLY).policies.fits
    assert [w for _, w in fits["mine.3"].opponents] == pytest.approx([1 / 3] * 3)


def test_members_without_opponents_read_no_log_probabilities(planned: Planned) -> None:
    plan = planned(runs={"mine": a_run(1, name="simpo", beta=2.0, margin=0.5)}, tables=SFT_ONLY)
    assert plan.policies.fits["mine.1"].opponents == () and plan.files.fit_logps(plan.policies.fits["mine.1"]) == []


# -------------------------------------------------------------------------------------------------- presets and schemes


def test_the_official_code_preset_reads_texts_raw_and_ignores_weights(planned: Planned) -> None:
    settings: dict[str, Any] = {"name": "td-mnpo", "eta": 0.2, "history": 2, "weights": [0.9, 0.1]}
    paper = planned(runs={"mine": a_run(**settings)}, tables=SFT_ONLY)
    code = planned(runs={"mine": a_run(preset="official-code", **settings)}, tables=SFT_ONLY)
    assert paper.policies.fits["mine.2"].opponents == (("mine.1", pytest.approx(0.9)), ("sft", pytest.approx(0.1)))
    assert code.policies.fits["mine.2"].opponents == (("mine.1", 0.5), ("sft", 0.5))
    assert (
        code.files.fit_logps(code.policies.fits["mine.2"])[0]
        == "results/demo/logps/mine.1/part2/overall/raw-nobos-uncapped/mine.1.parquet"
    )
    read = json.loads(code.settings("logps", text="raw-nobos-uncapped"))
    assert read["form"] == {"render": "raw", "bos": False} and read["soft_cap"] is False
    one, other = (json.loads(p.settings("train", policy="mine.2")) for p in (paper, code))
    differing = {"length_normalised", "form", "opponent_form", "opponents", "training", "opponent_soft_cap"}
    assert {k for k in other if one.get(k) != other[k]} == differing
    assert other["length_normalised"] is True and other["form"] == {"render": "raw", "bos": True}
    assert other["training"] == one["training"] | {"clip": 0.0, "warmup_from_zero": True, "last_batch": "drop"}


# One field of `protocol` beside the preset -> the keys of train's settings that it changes, and the values there.
SLIPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mean": ({"length_normalised": True}, {"length_normalised": True}),
    "opponents raw": (
        {"opponent_text": {"render": "raw"}},
        {"opponent_form": {"render": "raw", "bos": True}},
    ),
    "policy without a BOS": ({"policy_text": {"bos": False}}, {"form": {"render": "chat", "bos": False}}),
    "uniform": ({"uniform_weights": True}, {"opponents": [["mine.1", 0.5], ["sft", 0.5]]}),
    "no soft-cap": ({"opponent_soft_cap": False}, {"opponent_soft_cap": False}),
    "no clipping": ({"clip": None}, {"training": {"clip": 0.0}}),
    "clipping elsewhere": ({"clip": 2}, {"training": {"clip": 2.0}}),
    "transformers' warm-up": ({"warmup_from_zero": True}, {"training": {"warmup_from_zero": True}}),
    "last batch dropped": ({"last_batch": "drop"}, {"training": {"last_batch": "drop"}}),
    "windows": ({"batches": "windows"}, {"training": {"batches": "windows"}}),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_each_field_of_the_protocol_is_switched_by_itself(planned: Planned, slip: str) -> None:
    fields, wanted = SLIPS[slip]
    settings: dict[str, Any] = {"name": "td-mnpo", "eta": 0.2, "history": 2, "weights": [0.9, 0.1]}
    paper, other = (
        json.loads(planned(runs={"mine": run}, tables=SFT_ONLY).settings("train", policy="mine.2"))
        for run in (a_run(**settings), a_run(**settings) | {"protocol": fields})
    )
    changed = {k: v for k, v in other.items() if paper.get(k) != v}
    if "training" in wanted:
        wanted = {"training": paper["training"] | wanted["training"]}
    assert changed == wanted and set(paper) <= set(other)


def test_a_field_of_the_official_code_can_be_taken_back(planned: Planned) -> None:
    run = a_run(preset="official-code", name="inpo", eta=0.2)
    taken = run | {"protocol": {"clip": 1.0, "length_normalised": False, "opponent_soft_cap": True}}
    protocol = planned(runs={"mine": taken}, tables=SFT_ONLY).policies.fits["mine.1"].protocol
    assert (protocol.clip, protocol.length_normalised, protocol.opponent_soft_cap) == (1.0, False, True)
    assert protocol.warmup_from_zero and protocol.opponent_text.tag() == "raw-nobos"


def test_a_runs_own_training_comes_after_its_preset(planned: Planned) -> None:
    run = a_run(preset="official-code", name="inpo", eta=0.2) | {"training": {"clip": 0.5}}
    training = planned(runs={"mine": run}, tables=SFT_ONLY).policies.fits["mine.1"].training
    assert (training.clip, training.last_batch) == (0.5, "drop")


def test_an_unknown_field_of_the_protocol_is_named(planned: Planned) -> None:
    run = a_run(name="inpo", eta=0.2) | {"protocol": {"clipp": None}}
    with pytest.raises(ConfigError, match=r"runs.mine, iteration 1, protocol: clipp: unknown key; did you mean 'clip'"):
        planned(runs={"mine": run}, tables=SFT_ONLY).policies.fits  # noqa: B018


def test_the_public_codes_opponents_oldest_first_put_the_later_weight_on_the_newest(planned: Planned) -> None:
    """Ledger, point 41: run2.sh at 6ec8c8d passes stage 1, then stage 2, with weights .25 and .75."""
    settings: dict[str, Any] = {"name": "td-mnpo", "eta": 0.2, "history": 2, "weights": [0.25, 0.75]}

    def third(**more: Any) -> dict[str, float]:
        run = a_run(**settings, **more)
        return dict(planned(runs={"mine": run}, tables=SFT_ONLY).policies.fits["mine.3"].opponents)

    assert third() == third(order="newest-first") == {"mine.2": 0.25, "mine.1": 0.75}
    assert third(order="oldest-first") == {"mine.2": 0.75, "mine.1": 0.25}


def test_players_are_weighted_by_name_whatever_their_order(planned: Planned) -> None:
    def opponents(weights: Any) -> dict[str, float]:
        ours = a_run(2, name="ht-mnpo", eta=0.2, players=["b", "c"], weights=weights)
        others = {n: a_run(2, name="ht-mnpo", eta=0.2, players=["a"]) for n in "bc"}
        return dict(planned(runs={"a": ours, **others}, tables=SFT_ONLY).policies.fits["a.2"].opponents)

    assert opponents({"c": 3, "b": 1}) == opponents([0.25, 0.75]) == {"b.1": 0.25, "c.1": 0.75}
    with pytest.raises(ConfigError, match="weights leave out the player 'c'"):
        opponents({"b": 1})
    with pytest.raises(ConfigError, match="weights name 'd', which is no player"):
        opponents({"b": 1, "c": 1, "d": 1})


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "td-mnpo", "weights": {"mine": 1}}, "weights have names, but td-mnpo has no players; give a list"),
        ({"name": "inpo", "order": "oldest-first"}, "objective inpo does not read order; td-mnpo does"),
    ],
)
def test_weights_that_nobody_can_read_are_refused(planned: Planned, objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(runs={"mine": a_run(eta=0.2, **objective)}, tables=SFT_ONLY).policies.fits  # noqa: B018


def test_sppos_preset_needs_preferences_read_as_its_authors_do(planned: Planned, demo: Path) -> None:
    sppo = a_run(1, preset="official", name="sppo", eta=0.001)
    oracles = deepcopy(read_yaml(demo)["oracles"])
    oracles["overall"] |= {"temperature": 1, "own_response": True}
    training = planned(runs={"mine": sppo}, oracles=oracles, tables=SFT_ONLY).policies.fits["mine.1"].training
    assert (training.optimiser, training.schedule, training.clip) == ("rmsprop", "linear", 0.0)
    assert (training.warmup_from_zero, training.last_batch) == (True, "drop")
    with pytest.raises(ConfigError, match="give oracles.overall a temperature, and own_response: true"):
        planned(runs={"mine": sppo}, tables=SFT_ONLY).policies.fits  # noqa: B018
    with pytest.raises(ConfigError, match="preset official is that of sppo's authors; of MNPO's it is official-code"):
        planned(runs={"mine": sppo | {"objective": {"name": "inpo", "eta": 0.2}}}, tables=SFT_ONLY).policies.fits  # noqa: B018


def test_onpo_fits_an_anchor_and_then_the_policy_on_the_same_pairs(planned: Planned) -> None:
    plan = planned(runs={"mine": a_run(2, name="onpo", eta_rate=2.0)}, tables=SFT_ONLY)
    fits = [(f.policy, f.start, f.sampler, f.opponents, f.parts) for f in plan.policies.fits.values()]
    assert fits == [
        ("mine.1-anchor", "sft", "sft", (("sft", 1.0),), (1,)),
        ("mine.1", "mine.1-anchor", "sft", (("mine.1-anchor", 1.0),), (1,)),
        ("mine.2-anchor", "mine.1-anchor", "mine.1", (("mine.1-anchor", 1.0),), (2,)),
        ("mine.2", "mine.2-anchor", "mine.1", (("mine.2-anchor", 1.0),), (2,)),
    ]
    assert plan.policies.evaluated == ["sft", "mine.1", "mine.2"]
    assert len([f for f in artifacts(plan) if "/pairs/" in f]) == 2


def test_egpo_takes_a_half_step_and_then_a_full_one_from_the_same_start(planned: Planned) -> None:
    plan = planned(runs={"mine": a_run(2, name="egpo", eta=0.2, ratio=0.25)}, tables=SFT_ONLY)
    fits = [(f.policy, f.start, f.sampler, f.opponents, f.scorers) for f in plan.policies.fits.values()]
    assert fits == [
        ("mine.1-half", "sft", "sft", (("sft", 1.0),), ["sft"]),
        ("mine.1", "sft", "mine.1-half", (("sft", 1.0),), ["sft"]),
        ("mine.2-half", "mine.1", "mine.1", (("mine.1", 1.0),), ["mine.1", "sft"]),
        ("mine.2", "mine.1", "mine.2-half", (("mine.1", 1.0),), ["mine.1", "sft"]),
    ]
    assert plan.policies.evaluated == ["sft", "mine.1", "mine.2"]
    assert len([f for f in artifacts(plan) if "/pairs/" in f]) == 4


def three_players(iterations: int = 2, **objective: Any) -> dict[str, Any]:
    names = ["one", "two", "three"]
    oracles = ["correctness", "brevity", "courtesy"]
    asked = {"name": "ht-mnpo", "eta": 0.2, "weights": [3, 1], **objective}
    runs = {n: a_run(iterations, **asked, players=[p for p in names if p != n]) for n in names}
    return {n: run | {"oracle": oracle} for (n, run), oracle in zip(runs.items(), oracles, strict=True)}


def test_ht_mnpo_is_opposed_by_the_other_players_current_policies(planned: Planned) -> None:
    plan = planned(runs=three_players(), tables=SFT_ONLY)
    assert plan.policies.fits["two.1"].opponents == (("sft", 1.0),)
    assert plan.policies.fits["two.2"].opponents == (("one.1", 0.75), ("three.1", 0.25))
    assert plan.policies.fits["two.2"].start == plan.policies.fits["two.2"].sampler == "two.1"
    assert plan.files.fit_logps(plan.policies.fits["two.2"]) == [
        f"results/demo/logps/two.1/part2/brevity/chat/{p}.1.parquet" for p in ("one", "three")
    ]
    assert [plan.policies.fits[f"{p}.1"].oracle for p in ("one", "two", "three")] == [
        "correctness",
        "brevity",
        "courtesy",
    ]


def test_alternating_players_meet_the_new_policies_of_those_before_them(planned: Planned) -> None:
    fits = planned(runs=three_players(updates="alternating"), tables=SFT_ONLY).policies.fits
    assert fits["one.1"].opponents == (("sft", 1.0),)
    assert fits["two.1"].opponents == (("one.1", 0.75), ("sft", 0.25))
    assert fits["three.1"].opponents == (("one.1", 0.75), ("two.1", 0.25))
    assert fits["one.2"].opponents == (("two.1", 0.75), ("three.1", 0.25))
    assert fits["two.2"].opponents == (("one.2", 0.75), ("three.1", 0.25))
    assert fits["three.2"].opponents == (("one.2", 0.75), ("two.2", 0.25))
    assert all(f.start == f.sampler == ("sft" if f.iteration == 1 else f"{f.run}.1") for f in fits.values())


@pytest.mark.parametrize(
    ("runs", "algorithm"),
    [
        (three_players(3, weights=None), "ht-mnpo"),
        (three_players(3, weights=None, updates="simultaneous"), "ht-mnpo"),
        (three_players(3, weights=None, updates="alternating"), "ht-mnpo-alternating"),
        ({"one": a_run(3, name="td-mnpo", eta=0.2, ratio=0.5, history=2, weights=[3, 1])}, "td-mnpo"),
        ({"one": a_run(3, name="inpo", eta=0.2, ratio=0.5)}, "inpo"),
    ],
    ids=["players", "simultaneous", "alternating", "history", "inpo"],
)
def test_the_plans_fits_solved_exactly_are_the_game_that_is_played(
    planned: Planned, runs: dict[str, Any], algorithm: str
) -> None:
    """Each fit by its minimiser, eq. 15: `pi_ref^ratio (prod_j pi_j^lambda_j)^(1 - ratio) exp(P(y > pi_t) / eta)`."""
    ratio = runs["one"]["objective"].get("ratio", 0.0)
    game = games.preset("condorcet", players=len(runs), tau=0.2 * ratio)
    fits = planned(runs=runs, tables=SFT_ONLY).policies.fits
    own = {"correctness": 0, "brevity": 1, "courtesy": 2, "overall": 0}

    def solved(policy: str) -> np.ndarray:
        if policy == "sft":
            return game.reference
        fit = fits[policy]
        anchor = ratio * game.reference + (1 - ratio) * sum(w * solved(name) for name, w in fit.opponents)
        return games.log_softmax(anchor + game.preferences[own[fit.oracle]] @ np.exp(solved(fit.sampler)) / 0.2)

    weights = [0.75, 0.25] if algorithm == "td-mnpo" else None
    trace = play(game, algorithm, 3, learning_rate=1 / 0.2, weights=weights, record=[1, 2, 3])
    np.testing.assert_allclose([np.exp(solved(f"{name}.3")) for name in runs], trace.last, rtol=1e-9)


def test_one_more_player_costs_its_own_chain_and_a_log_probability_file_for_each_it_meets(planned: Planned) -> None:
    """Two iterations on two parts. At iteration 1 every player's pairs are of sft's samples and sft opposes."""

    def nouns(runs: dict[str, Any]) -> dict[str, int]:
        made = [file.split("/")[2] for file in artifacts(planned(runs=runs, tables=SFT_ONLY))]
        return {noun: made.count(noun) for noun in ("samples", "scores", "pairs", "logps", "policies", "evals")}

    pair = three_players(weights=None)
    del pair["three"]
    for run, other in (("one", "two"), ("two", "one")):
        pair[run] = pair[run] | {"objective": pair[run]["objective"] | {"players": [other]}}
    # samples of sft, one.1, two.1; log-probabilities of each player's pairs: under sft, then under the other
    assert nouns(pair) == {"samples": 3, "scores": 4, "pairs": 4, "logps": 2 + 2, "policies": 5, "evals": 5}
    # a third: one more sampler; in iteration 2 each of three meets two
    third = {"samples": 4, "scores": 6, "pairs": 6, "logps": 3 + 3 * 2, "policies": 7, "evals": 7}
    assert nouns(three_players()) == third
    assert nouns(three_players(ratio=1 / 3)) == third | {"logps": 3 + 3 * 3}  # and the reference


def test_a_players_opponents_are_the_others_last_policies(planned: Planned) -> None:
    plan = planned(runs=three_players() | {"alone": a_run(2, name="inpo", eta=0.2)}, tables=SFT_ONLY, seeds=2)
    assert plan.policies.opponents("two.2") == {"one.2": 0.75, "three.2": 0.25}
    assert plan.policies.opponents("two.s2.2") == {"one.s2.2": 0.75, "three.s2.2": 0.25}
    assert plan.policies.opponents("alone.2") == {"alone.2": 1.0}


# ------------------------------------------------------------------------------------------------------ best responses


def test_a_best_response_starts_as_the_fixed_policy_and_is_judged_against_it(planned: Planned) -> None:
    asked = {"policies": ["inpo.2"], "oracle": "majority", "parts": [[1], [2, 3]], "rate": 4.0}
    plan = planned(exploitability=asked)
    fits = [plan.policies.fits[f"inpo.2.exploiter.{t}"] for t in (1, 2)]
    assert [(f.start, f.sampler, f.opponents, f.parts) for f in fits] == [
        ("inpo.2", "inpo.2", (("inpo.2", 1.0),), (1,)),
        ("inpo.2.exploiter.1", "inpo.2.exploiter.1", (("inpo.2.exploiter.1", 1.0),), (2, 3)),
    ]
    root, name = "results/demo", "inpo.2.exploiter.1"
    assert plan.files.fit_pairs(plan.policies.fits["inpo.2.exploiter.2"]) == [
        f"{root}/pairs/{name}/part{t}/majority@inpo.2.parquet" for t in (2, 3)
    ]
    assert plan.files.against(2, "majority@inpo.2", 0) == [f"{root}/samples/inpo.2/part2/0.parquet"]
    assert plan.files.against(2, "majority", 0) == []
    settings = json.loads(plan.settings("train", policy="inpo.2.exploiter.2"))
    assert settings["objective"] == {"name": "td-mnpo", "reward_scale": 4.0} and settings["scorers"] == [name]
    assert json.loads(plan.settings("score", oracle="majority@inpo.2"))["oracle"] == "majority"


def test_the_work_of_exploitability_is_its_own(planned: Planned, plan: Plan) -> None:
    """One policy, two iterations: samples of it on parts 1 and 2 (there for part 2 already) and of the first exploiter
    on part 2; of all three on held-out prompts. Scores: two to train on, three held out."""
    after = planned(exploitability={"policies": ["inpo.1"], "oracle": "overall", "parts": [[1], [2]]})
    assert (
        artifacts(after) == artifacts(plan)
        and after.policies.evaluated == plan.policies.evaluated
        and after.policies.finals == plan.policies.finals
    )
    assert after.targets.of("figures") == plan.targets.of("figures") and after.policies.of_runs == list(
        plan.policies.fits
    )
    there = {piece.name for piece in job_graph.needed(plan, job_graph.files(plan, plan.config.tables.targets))}
    more = [w for w in job_graph.needed(after, after.targets.of("exploitability")) if w.name not in there]
    stages = [piece.stage for piece in more]
    expected = {"sample": 2 + 3, "score": 2 + 3, "pair": 2, "logps": 2, "train": 2, "exploitability": 1}
    assert {stage: stages.count(stage) for stage in stages} == expected
    assert "score inpo.1.exploiter.2 heldout overall@inpo.1" in {piece.name for piece in more}
    changed_settings = [n for n, text in jobs(plan).items() if jobs(after)[n] != text]
    assert changed_settings == []


def test_without_a_list_the_last_policy_of_every_run_is_exploited_under_its_own_oracle(planned: Planned) -> None:
    plan = planned(runs=three_players(), tables=SFT_ONLY, exploitability={})
    assert plan.policies.exploited == {"one.2": "correctness", "two.2": "brevity", "three.2": "courtesy"}
    assert plan.policies.exploiters["two.2"] == [
        "two.2",
        *(f"two.2.exploiter.{t}" for t in (1, 2, 3)),
    ]  # one on each part


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"policies": ["inpo.4"]}, r"exploitability\.policies: unknown policy 'inpo\.4'; did you mean 'inpo\.3'"),
        ({"policies": ["sft"]}, r"exploitability\.oracle: sft was trained for none; name one"),
        ({"oracle": "overal"}, r"exploitability\.oracle: unknown oracle 'overal'; did you mean 'overall'"),
        ({"parts": [[4]]}, r"exploitability\.parts: no part 4; prompts\.parts is 3"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(planned: Planned, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(exploitability=asked)


def test_exploitability_that_nothing_configures_is_refused(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="exploitability: whose.*configs/exploitability.yaml"):
        _ = plan.targets.exploit_scores


def test_a_run_can_be_measured_on_held_out_prompts_alone_or_at_its_end(planned: Planned, runs: dict[str, Any]) -> None:
    assert planned().policies.finals == ["sft", "dpo.1", "inpo.3", "td-mnpo.3"]  # without the players
    runs["inpo"]["measured"] = "heldout"
    runs["td-mnpo"]["measured"] = "last"
    plan = planned(runs=runs, checkpoints="temporary")
    assert plan.policies.finals == ["sft", "dpo.1"]
    assert plan.policies.evaluated[:6] == ["sft", "dpo.1", "inpo.1", "inpo.2", "inpo.3", "td-mnpo.3"]
    assert not [f for f in plan.measurements.evaluations if "inpo" in f]
    assert "inpo.3" not in plan.policies.passing and {"inpo.2", "td-mnpo.2"} <= set(plan.policies.passing)


def test_a_player_that_no_run_makes_is_refused(planned: Planned) -> None:
    runs = three_players()
    runs["one"]["objective"]["players"] = ["too", "three"]
    with pytest.raises(
        ConfigError, match=r"runs\.one, iteration 1: player 'too' is not another run; did you mean 'two'"
    ):
        planned(runs=runs, tables=SFT_ONLY)


def test_a_player_that_stops_early_is_refused(planned: Planned) -> None:
    runs = three_players()
    for name in ("one", "two"):
        runs[name]["iterations"].append({"parts": [3]})
    with pytest.raises(ConfigError, match=r"runs\.one, iteration 3: opposed by three\.2|opposed by three"):
        planned(runs={**runs, "three": a_run(1, name="inpo", eta=1.0)}, tables=SFT_ONLY)


def test_eo_mnpo_is_opposed_by_other_models_whose_files_are_used_where_they_are(planned: Planned) -> None:
    changes = {"models": {"tiny": {"path": "a"}, "big": {"path": "b"}}, "tables": SFT_ONLY}
    plan = planned(runs={"mine": a_run(2, name="eo-mnpo", eta=0.2, players=["big"])}, **changes)
    assert plan.policies.prepared == {"sft": "tiny"}
    assert plan.policies.fits["mine.2"].opponents == (("big", 1.0),)
    assert plan.files.policy("big") == "b"


def test_a_model_of_random_weights_that_is_evaluated_is_made_first(planned: Planned) -> None:
    models = {"tiny": {"architecture": {}}, "other": {"architecture": {}}, "given": {"path": "g"}}
    plan = planned(models=models, evaluation={"models": ["other", "given"]})
    assert plan.policies.prepared == {"sft": "tiny", "other": "other"}
    assert plan.files.policy("other") == "results/demo/policies/other" and plan.files.policy("given") == "g"
    assert plan.policies.finals == ["sft", "dpo.1", "inpo.3", "td-mnpo.3", "other", "given"]
    alone = planned(models=models, evaluation={"models": ["given"]}, runs={}, tables={"win_against": ["sft"]})
    assert alone.policies.finals == ["given"]


def test_players_are_needed_by_some_and_read_by_no_other(planned: Planned) -> None:
    with pytest.raises(ConfigError, match="objective ht-mnpo needs players"):
        planned(runs={"mine": a_run(name="ht-mnpo", eta=0.2)}, tables=SFT_ONLY)
    with pytest.raises(ConfigError, match="objective inpo does not read players"):
        planned(runs={"mine": a_run(name="inpo", eta=0.2, players=["other"])}, tables=SFT_ONLY)


def test_a_table_against_an_unknown_policy_is_refused(planned: Planned) -> None:
    with pytest.raises(ConfigError, match=r"tables\.win_against: unknown policy 'inpo\.4'; did you mean 'inpo\.3'"):
        planned(tables={"win_against": ["inpo.4"]})
    with pytest.raises(ConfigError, match=r"tables\.examples_of: unknown policy 'inpo\.4'; did you mean 'inpo\.3'"):
        planned(tables={"examples_of": ["sft", "inpo.4"]})


def test_labels_name_runs_and_iterations_and_must_differ(plan: Plan, planned: Planned, runs: dict[str, Any]) -> None:
    assert [plan.policies.label(p) for p in ("sft", "dpo.1", "inpo.2", "td-mnpo.3")] == [
        "SFT",
        "DPO",
        "INPO 2",
        "TD-MNPO 3",
    ]
    runs["td-mnpo"]["label"] = "INPO"
    with pytest.raises(ConfigError, match="inpo.*td-mnpo.*label"):
        planned(runs=runs)


# -------------------------------------------------------------------------------------------------- settings and reruns


def test_settings_are_canonical_json(plan: Plan) -> None:
    for text in jobs(plan).values():
        assert text == json.dumps(json.loads(text), sort_keys=True)


def test_every_jobs_settings_are_what_its_stage_accepts(plan: Plan) -> None:
    stages = {"prompts": "prompts", "tables": "tabulate", "figures": "plot"}
    nouns = {"samples": "sample", "scores": "score", "pairs": "pair", "logps": "logps", "policies": "train"}
    seen = set()
    for name, text in jobs(plan).items():
        noun = name.split("/")[2] if "/" in name else name
        stage = "sft" if name.endswith("policies/sft") else stages.get(noun) or nouns.get(noun) or "assess"
        seen.add(stage)
        module = import_module("mnpo.benchmarks.heldout" if stage == "assess" else f"mnpo.stages.{stage}")
        validated(module.Settings, json.loads(text), name)
    assert len(seen) == 10


def test_tables_and_figures_keep_the_configurations_order(plan: Plan) -> None:
    from mnpo.stages import plot, tabulate

    for stage, module in (("tabulate", tabulate), ("plot", plot)):
        settings = module.Settings.model_validate_json(plan.settings(stage))
        assert list(settings.labels) == plan.policies.evaluated
    figures = plot.Settings.model_validate_json(plan.settings("plot"))
    assert list(figures.runs.items()) == [
        ("dpo", ["dpo.1"]),
        ("inpo", ["inpo.1", "inpo.2", "inpo.3"]),
        ("td-mnpo", ["td-mnpo.1", "td-mnpo.2", "td-mnpo.3"]),
        *((f"ht-{name}", [f"ht-{name}.2"]) for name in PLAYERS),
    ]


def test_changing_iteration_2s_eta_changes_that_training_alone(
    planned: Planned, plan: Plan, runs: dict[str, Any]
) -> None:
    runs["td-mnpo"]["iterations"][1]["objective"] = {"eta": 0.1}
    assert changed(plan, planned(runs=runs)) == {"results/demo/policies/td-mnpo.2"}


def test_changing_a_runs_weights_changes_its_trainings_that_weigh_more_than_one(
    planned: Planned, plan: Plan, runs: dict[str, Any]
) -> None:
    runs["td-mnpo"]["objective"]["weights"] = [0.5, 0.5]
    assert changed(plan, planned(runs=runs)) == {f"results/demo/policies/td-mnpo.{t}" for t in (2, 3)}


@pytest.mark.parametrize(
    ("changes", "nouns"),
    [
        ({"sampling": {"temperature": 0.7}}, {"samples", "evals"}),
        ({"evaluation": {"scores": ["correctness", "brevity"]}}, {"evals", "tables", "figures"}),
        ({"evaluation": {"bootstrap": 200}}, {"tables"}),
        ({"tables": {"win_against": ["sft"]}}, {"tables"}),
        ({"pairing": {"min_gap": 0.1}}, {"pairs"}),
        ({"training": {"epochs": 1}}, {"policies"}),
        ({"reference": {"sft": {"steps": 10}}}, {"sft"}),
        ({"prompts": {"part_size": 400}}, {"prompts"}),
        ({"text": {"max_length": 70}}, {"sft", "samples", "logps", "policies", "evals"}),
        ({"seed": 1}, {"prompts", "sft", "samples", "policies", "evals", "tables"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_reaches_the_settings_of_those_who_read_it(
    planned: Planned, plan: Plan, changes: dict[str, Any], nouns: set[str]
) -> None:
    assert changed_nouns(plan, planned(**changes)) == nouns


def test_a_change_of_an_oracle_reaches_those_who_ask_it(planned: Planned, plan: Plan, demo: Path) -> None:
    oracles = deepcopy(read_yaml(demo)["oracles"])
    oracles["overall"]["weights"]["brevity"] = 0.5
    assert changed_nouns(plan, planned(oracles=oracles)) == {"scores", "evals"}
    oracles = deepcopy(read_yaml(demo)["oracles"])
    oracles["unused"] = {"kind": "rule", "rule": "courtesy"}
    assert changed(plan, planned(oracles=oracles)) == set()


def test_how_ratings_are_read_reaches_mt_bench_alone(planned: Planned, plan: Plan) -> None:
    other = planned(evaluation={"ratings": "fastchat"})
    of = {"policy": "sft", "judge": "demo", "repeat": ""}
    arena = [p.settings("judge", benchmark="arena-hard", **of) for p in (plan, other)]
    assert arena[0] == arena[1]
    before, after = (json.loads(p.settings("judge", benchmark="mt-bench", **of)) for p in (plan, other))
    assert "ratings" not in before["judged"] and after["judged"] == {**before["judged"], "ratings": "fastchat"}


def test_what_is_said_of_the_template_reaches_all_who_render_it_and_nobody_where_nothing_is_said(
    planned: Planned, plan: Plan
) -> None:
    said = {"system": "Be brief.", "template_options": {"enable_thinking": False}}
    models = {"tiny": {"architecture": {}}, "given": {"path": "g"}}
    other = planned(text=said, models=models, evaluation={"models": ["given"]})
    assert {"sft", "samples", "logps", "policies", "evals"} <= changed_nouns(plan, other)
    for stage, part, of in (
        ("harness", "harness", {}),
        ("answer", "asked", {"benchmark": "arena-hard"}),
        ("evalscope", "answer", {}),
    ):
        before, after, external = (
            json.loads(p.settings(stage, policy=policy, **of))[part]
            for p, policy in ((plan, "sft"), (other, "sft"), (other, "given"))
        )
        assert after == {**before, "text": said}
        assert "text" not in external  # a model that is only measured is read by its own template


def test_a_new_label_changes_tables_and_figures_alone(planned: Planned, plan: Plan, runs: dict[str, Any]) -> None:
    runs["inpo"]["label"] = "Mine"
    assert changed(plan, planned(runs=runs)) == {"tables", "figures"}


def test_seeds_depend_on_names_and_not_on_who_else_runs(planned: Planned, plan: Plan, runs: dict[str, Any]) -> None:
    alone = planned(runs={"inpo": runs["inpo"]}, tables=SFT_ONLY)
    backwards = planned(runs=dict(reversed(runs.items())))
    everything = jobs(plan)
    for other in (alone, backwards):
        for name, text in jobs(other).items():
            assert name in ("tables", "figures") or everything[name] == text


def test_seeds_differ_between_policies_parts_and_runs_seeds(planned: Planned, plan: Plan) -> None:
    def seeds(of: Plan) -> list[int]:
        texts = {n: json.loads(t) for n, t in jobs(of).items()}
        return [t["seed"] for n, t in texts.items() if "seed" in t and "/evals/" not in n and n != "prompts"]

    assert len(seeds(plan)) == 10 + 14 + 1  # samples, policies, tables
    assert len({*seeds(plan), *seeds(planned(seed=1))}) == 2 * len(seeds(plan))
    assert all(0 <= seed < 2**63 for seed in seeds(plan))


def test_all_policies_are_evaluated_with_the_same_random_numbers(plan: Plan) -> None:
    texts = [json.loads(plan.settings("assess", policy=p)) for p in plan.policies.evaluated]
    assert len({t.pop("policy") for t in texts}) == 11
    assert all(t == texts[0] for t in texts)


def test_a_stages_source_digest_depends_on_the_oracles_it_uses(plan: Plan) -> None:
    assert plan.code("score", ["correctness"]) != plan.code("score", ["overall"]) != plan.code("score")
    assert plan.code("score", ["overall"]) == plan.code("score", ["overall", "brevity"])  # brevity is a part of overall
    assert len({plan.code(s) for s in ("prompts", "sft", "sample", "pair", "logps", "train", "tabulate", "plot")}) == 8


def test_configurations_with_the_same_name_share_a_root(configured: Callable[..., Config]) -> None:
    assert Plan(configured(name="other")).files.root == "results/other"
    assert changed_nouns(Plan(configured()), Plan(configured())) == set()


def test_the_demos_own_code_is_part_of_the_demos_digests_only(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The world behind the prompts and the tiny model behind SFT count where the configuration uses them."""
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr("mnpo.storage.code_digests.digest", lambda *modules: seen.append(modules) or "")
    checks = {"kind": "constraints", "constraints": [{"id": "punctuation:no_comma"}]}
    local = {
        "prompts": {"source": "file", "path": "p.jsonl"},
        "models": {"tiny": {"path": "here"}},
        "reference": {"sft": None},
        "oracles": {name: checks for name in planned().config.oracles if name != "majority"}
        | {"majority": {"kind": "majority", "of": ["overall"]}},
    }
    for plan in (planned(), planned(**local)):
        for stage in ("prompts", "sft", "pair"):
            plan.code(stage)
    assert seen == [
        ("mnpo.stages.prompts", "mnpo.demo.world"),
        ("mnpo.stages.sft", "mnpo.demo.model"),
        ("mnpo.stages.pair",),
        ("mnpo.stages.prompts",),
        ("mnpo.stages.sft",),
        ("mnpo.stages.pair",),
    ]


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "inpo", "eta": 0.2, "weights": [1]}, "does not read weights"),
        ({"name": "simpo", "weights": [5]}, "does not read weights"),
        ({"name": "inpo", "eta": 0.2, "history": 2}, "does not read history"),
        ({"name": "td-mnpo", "eta": 0.2, "updates": "alternating"}, "does not read updates; ht-mnpo does"),
        ({"name": "eo-mnpo", "eta": 0.2, "players": ["tinny"]}, "player 'tinny' is not a model; did you mean 'tiny'"),
        ({"name": "ht-mnpo", "eta": 0.2, "players": ["mine"]}, "player 'mine' is not another run"),
    ],
)
def test_who_opposes_is_read_by_the_objective_and_exists(
    planned: Planned, objective: dict[str, Any], message: str
) -> None:
    runs = {"mine": {"objective": objective, "oracle": "overall", "iterations": [{"parts": [1]}]}}
    with pytest.raises(ConfigError, match=message):
        planned(runs=runs, tables=SFT_ONLY)


def test_evalscope_measures_all_but_mt_bench(planned: Planned) -> None:
    benchmarks = ["gsm8k", "minerva", "arc", "mt-bench", "arena-hard"]
    plan = planned(evaluation={"protocol": "evalscope", "benchmarks": benchmarks})
    assert (plan.measurements.evalscope, plan.measurements.harness, plan.measurements.answered) == (
        ["gsm8k", "arc"],
        [],
        ["minerva", "mt-bench", "arena-hard"],
    )
    assert list(plan.measurements.measured) == ["gsm8k", "arc", "minerva.demo", "mt-bench.demo", "arena-hard.demo"]
    made = {piece.stage: piece.outputs for piece in job_graph.needed(plan, [plan.files.evaluation("sft", "arc")])}
    assert made["evalscope"] == ("results/demo/evals/sft/gsm8k.json", "results/demo/evals/sft/arc.json")
    assert planned().measurements.evalscope == [] and planned().measurements.answered == [
        "alpaca-eval",
        "arena-hard",
        "mt-bench",
    ]


def test_each_benchmark_may_have_its_protocol(planned: Planned) -> None:
    """One table can mix; what is not named is measured by its own package, and rests on nothing of EvalScope's."""
    protocol = {"minerva": "evalscope", "gsm8k": "evalscope"}
    plan = planned(evaluation={"protocol": protocol, "benchmarks": ["gsm8k", "minerva", "arc", "arena-hard"]})
    assert (plan.measurements.evalscope, plan.measurements.harness, plan.measurements.answered) == (
        ["gsm8k"],
        ["arc"],
        ["minerva", "arena-hard"],
    )
    asked = {"policy": "sft", "judge": "demo", "repeat": ""}
    settings = {b: json.loads(plan.settings("judge", benchmark=b, **asked)) for b in plan.measurements.answered}
    assert settings["minerva"]["protocol"] == "evalscope" and "protocol" not in settings["arena-hard"]


# ------------------------------------------------------------------------------------------------ oracles that compare


def test_what_compares_reads_the_references_responses(planned: Callable[..., Plan]) -> None:
    plan = planned(evaluation={"oracle": "majority"})
    rows = "results/demo/evals/sft/heldout.parquet"
    inputs = {piece.what: piece.inputs for piece in job_graph.everything(plan) if piece.stage == "assess"}
    assert rows in inputs["td-mnpo.3"] and rows not in inputs["sft"]
    assert not any(rows in piece.inputs for piece in job_graph.everything(planned()) if piece.stage == "assess")
    for stage in ("tabulate", "players", "plot", "examples"):
        assert json.loads(plan.settings(stage))["over_reference"] == ["majority"]
        assert "over_reference" not in json.loads(planned().settings(stage))
    assert json.loads(planned(evaluation={"oracle": "majority", "accuracy": None}).settings("plot"))[
        "family_value"
    ] == ("win rate over SFT, sampled")


def test_attention_is_a_setting_of_training_and_log_probabilities_where_it_is_asked_for(planned: Planned) -> None:
    plan, asked = planned(), planned(training={"attention": "eager", "compile": True})
    assert not any('"attention"' in settings or '"compile"' in settings for settings in jobs(plan).values())
    assert changed_nouns(plan, asked) == {"policies", "logps"}
    assert json.loads(asked.settings("logps", text="chat"))["attention"] == "eager"
    assert json.loads(asked.settings("train", policy="inpo.1"))["training"]["compile"] is True
