"""The workflow on one's own data: pairs that they prefer themselves, no oracle asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.storage.records import PAIRS, read, rows_of
from tests.helpers.own import configuration, jsonl, project

pytestmark = pytest.mark.slow


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def metrics(policy: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (policy / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(random_policy: Path) -> dict[str, Any]:
    return configuration(random_policy)


def test_offline_objectives_learn_from_chosen_and_rejected(tmp_path: Path, base: dict[str, Any]) -> None:
    """DPO, IPO, SimPO and CPO on one file of pairs, without an oracle; what is edited in it is paired again."""
    rows = [{"prompt": f"Say cat {n} times.", "chosen": "cat cat", "rejected": "dog dog dog"} for n in range(11)]
    rows += [rows[0], {"prompt": "Say cow.", "chosen": said("Say cow.", "cow"), "rejected": said("Say cow.", "cow")}]
    objectives = [{"name": "dpo"}, {"name": "ipo", "eta": 1}, {"name": "simpo"}, {"name": "cpo"}]
    runs = {o["name"]: {"objective": o, "iterations": [{"parts": [1], "samples": "dataset"}]} for o in objectives}
    checkout = project(tmp_path / "own", base | {"runs": runs}, rows)
    results = checkout.path / "results/small"
    trained = [f"results/small/policies/{name}.1" for name in runs]
    checkout.made("preferences", *trained)
    pairs = rows_of(read(PAIRS, results / "pairs/dataset/part1/dataset.parquet"))
    assert {(pair["chosen"], pair["rejected"]) for pair in pairs} == {("cat cat", "dog dog dog")}
    table = pd.read_csv(results / "tables/preferences.csv").iloc[0]
    assert (table["policy"], table["oracle"], table["pairs"]) == ("data set", "data set", len(pairs))
    assert table["identical_responses"] == table["prompts_without_a_pair"] == table["prompts"] - len(pairs)
    assert metrics(results / "policies/dpo.1")[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert metrics(results / "policies/ipo.1")[0]["loss"] == pytest.approx(0.25, abs=1e-3)  # (1 / (2 eta))^2
    for name in runs:
        assert (
            metrics(results / f"policies/{name}.1")[-1]["margin"] > metrics(results / f"policies/{name}.1")[0]["margin"]
        )
    assert not (results / "samples").exists() and not (results / "scores").exists()
    assert checkout.planned("preferences", *trained) == set()
    jsonl(checkout.path / "rows.jsonl", [row | {"chosen": "cat"} for row in rows])
    assert "prefer pairs/dataset/part1/dataset.parquet" in checkout.planned("preferences", *trained)


def test_spin_learns_from_demonstrations_over_its_own_responses(tmp_path: Path, base: dict[str, Any]) -> None:
    rows = [{"messages": said(f"Say cat {n} times.", "cat cat")} for n in range(10)]
    spin = {"objective": {"name": "spin", "beta": 0.5}, "iterations": [{"parts": [1], "samples": "demonstrations"}] * 2}
    checkout = project(tmp_path / "own", base | {"runs": {"spin": spin}}, rows)
    checkout.made("results/small/policies/spin.2", "preferences")
    results = checkout.path / "results/small"
    for start, policy in (("sft", "spin.1"), ("spin.1", "spin.2")):
        pairs = read(PAIRS, results / f"pairs/{start}/part1/dataset.parquet")
        assert set(pairs["chosen"]) == {"cat cat"} and "cat cat" not in set(pairs["rejected"])
        first, *_, last = metrics(results / f"policies/{policy}")
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-3)  # at first the policy is its own opponent
        assert last["margin"] > first["margin"]
    assert list(pd.read_csv(results / "tables/preferences.csv")["policy"]) == ["SFT", "SPIN 1"]


def test_a_base_model_is_fine_tuned_on_conversations_of_ones_own(tmp_path: Path, base: dict[str, Any]) -> None:
    """Three turns each, in a JSONL; what is edited in it is learnt again, and nothing else follows from it."""
    words = ("cat", "dog", "cow", "pig", "hen")
    rows = [
        {"messages": said(f"Say {w}.", w, "Again.", f"{w} {w}", f"And {n}?", "no")} for w in words for n in range(4)
    ]
    sft = {"data": {"file": "conversations.jsonl", "heldout": 0.1}, "epochs": 4, "batch_size": 6, "learning_rate": 1e-2}
    sft |= {"evaluate_every": 5, "keep": "best"}
    own = {"text": {"max_length": 120, "max_prompt_length": 90, "template": "chatml"}, "runs": {}}
    reference = {"reference": {"model": "base", "sft": sft}}
    checkout = project(tmp_path / "own", base | own | reference, [{"prompt": f"Say {w}."} for w in words])
    jsonl(checkout.path / "conversations.jsonl", rows)
    target = "results/small/policies/sft"
    checkout.made(target)
    policy = checkout.path / target
    facts = json.loads((policy / "manifest.json").read_text())
    assert (facts["rows"], facts["heldout_rows"], facts["new_tokens"], facts["steps"]) == (18, 2, 2, 12)
    losses = [row["heldout_loss"] for row in metrics(policy) if "heldout_loss" in row]
    assert len(losses) == 3 and facts["heldout_loss"] == min(losses) < metrics(policy)[0]["loss"]
    assert checkout.planned(target) == set()
    jsonl(checkout.path / "conversations.jsonl", rows[:-1])
    assert {job.split()[0] for job in checkout.planned(target)} == {"demonstrations", "sft"}
