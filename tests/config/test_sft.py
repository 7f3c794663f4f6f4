"""The block `reference.sft`: where its demonstrations are, how far it goes, and what is refused before any job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.planning import job_graph
from mnpo.planning.estimate import forecast
from mnpo.planning.plan import Plan
from mnpo.stages.demonstrations import Settings

FILE = {"source": "file", "path": "prompts.jsonl", "demonstrations": 0}
OWN_ORACLE = {
    "oracles": {"own": {"kind": "reward-model", "model": "tiny"}},
    "evaluation": {"oracle": "own", "scores": [], "accuracy": None, "majority": None},
    "runs": {},
    "tables": {"win_against": ["sft"]},
}
OWN = {"file": "own.jsonl", "expected": 1000}


def asked(prompts: dict[str, Any] = FILE, **sft: Any) -> dict[str, Any]:
    return OWN_ORACLE | {"prompts": prompts, "reference": {"sft": sft}}


def test_a_template_is_for_models_with_files_and_its_file_decides_what_reruns(planned: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match=r"text\.template: tiny is made with a chat template of its own"):
        planned(text={"template": "chatml"})
    base = {"models": {"tiny": {"path": "here"}}}
    assert planned(**base, text={"template": "chatml"}).files.template == []
    own = planned(**base, text={"template": "own.jinja"}).files
    assert own.template == ["own.jinja"] and own.is_external("own.jinja")


@pytest.mark.parametrize(
    ("sft", "said"),
    [
        ({}, "reference.sft: prompts.source file has no demonstrations to learn from; say where they are by reference"),
        ({"data": OWN, "epochs": 1}, "reference.sft: give one of steps and epochs"),
        ({"data": OWN, "steps": None}, "reference.sft: give one of steps and epochs"),
        ({"data": {}}, "reference.sft.data: give one of file and dataset"),
        ({"data": {"dataset": "other"}}, "reference.sft.data.dataset: unknown dataset 'other'"),
        (
            {"data": OWN | {"split": "test"}},
            "split and heldout_split are for a dataset, and own.jsonl is a file",
        ),
        ({"data": {"dataset": "arc", "heldout_split": "test"}}, "heldout_split needs heldout"),
        ({"data": OWN | {"turns": "first"}}, "reference.sft.data.turns: Input should be 'all' or 'last'"),
        ({"data": OWN, "keep": "best"}, "keep: best needs a held-out loss; set reference.sft.data.heldout"),
        ({"data": OWN, "evaluate_every": 9}, "evaluate_every needs a held-out loss"),
        ({"data": OWN | {"heldout": 0.1}, "keep": "best"}, "keep: best needs evaluate_every"),
    ],
)
def test_what_cannot_be_is_refused(configured: Callable[..., Config], sft: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(**asked(**sft))
    assert said in str(caught.value)


def test_the_reference_rests_on_its_data_alone(planned: Callable[..., Plan]) -> None:
    plan = planned(**asked(data=OWN | {"heldout": 0.02, "turns": "last"}, keep="best", evaluate_every=10))
    jobs = {w.stage: w for w in job_graph.needed(plan, [plan.files.policy("sft")])}
    assert list(jobs) == ["demonstrations", "sft"]
    assert jobs["demonstrations"].inputs == ("own.jsonl",) and plan.files.is_external("own.jsonl")
    assert jobs["sft"].inputs == tuple(f"results/demo/demonstrations/{name}.parquet" for name in ("train", "heldout"))
    read, learnt = (
        json.loads(plan.settings(*a, **k)) for a, k in ((["demonstrations"], {}), (["sft"], {"policy": "sft"}))
    )
    assert "turns" not in read["data"] or read["data"]["turns"] == "all"
    Settings.model_validate(read)  # as the stage does
    assert learnt["turns"] == "last" and "data" not in learnt["sft"]


def test_epochs_are_priced_by_what_the_data_hold(planned: Callable[..., Plan]) -> None:
    """As many tokens as the same number of rows by steps."""
    epochs = planned(**asked(data=OWN, steps=None, epochs=2))
    steps = planned(**asked(data=OWN, steps=100, batch_size=20))
    tokens = [
        next(e.tokens for e in forecast(p, ["heldout"]).estimates if e.work.stage == "sft") for p in (epochs, steps)
    ]
    assert tokens[0] == tokens[1] > 0
    unsaid = planned(**asked(data={"file": "own.jsonl"}, steps=None, epochs=2))
    with pytest.raises(ConfigError, match="reference.sft.data: the plan needs rows, or expected"):
        forecast(unsaid, ["heldout"])


def test_zephyrs_settings_are_the_published_ones(root: Path) -> None:
    """recipes/zephyr-7b-beta/{sft,dpo}/config_full.yaml of the alignment handbook, and a plan that can be priced."""
    config = load(root / "configs/zephyr-sft.yaml")
    sft, dpo = config.reference.sft, config.training
    assert sft is not None and sft.data is not None
    assert (sft.learning_rate, sft.epochs, sft.batch_size, sft.warmup, sft.schedule) == (2e-5, 1, 128, 0.1, "cosine")
    assert (dpo.learning_rate, dpo.epochs, dpo.batch_size, dpo.warmup, dpo.schedule) == (5e-7, 1, 128, 0.1, "cosine")
    assert config.runs["dpo"].objective.beta == 0.01 and config.runs["dpo"].oracle is None
    assert config.text.max_length == 2048 and sft.data.heldout == 1000
    plan = Plan(config)
    stages = {e.work.stage for e in forecast(plan, config.tables.targets).estimates}
    assert {"demonstrations", "sft", "prefer", "logps", "train"} <= stages
    assert not {"sample", "reuse", "score", "pair"} & stages
