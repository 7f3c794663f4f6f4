"""From nothing to tables as a new user would: own conversations, an own function, a configuration by `mnpo init`."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mnpo.storage.records import PROMPTS, SCORES, read
from tests.helpers.checkouts import Checkout

pytestmark = pytest.mark.slow

REWARDS = """\
def closeness(responses, columns, turns):
    assert all(turn[0]["content"] == "Count letters." for turn in turns)
    return [-abs(len(response) - row["length"]) for response, row in zip(responses, columns)]


def shorter(first, second):
    return [(len(a) < len(b)) + (len(a) == len(b)) / 2 for a, b in zip(first, second)]
"""


def test_own_conversations_and_an_own_function_run_to_tables(tmp_path: Path, random_policy: Path) -> None:
    checkout = Checkout.of_project(tmp_path / "checkout", "own.yaml")
    system = {"role": "system", "content": "Count letters."}
    rows = [
        {
            "messages": [
                system,
                {"role": "user", "content": f"Say cat {n}"},
                {"role": "assistant", "content": "cat"},
                {"role": "user", "content": f"Now {n + 1}"},
            ],
            "length": n,
        }
        for n in range(24)
    ]
    (checkout.path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (checkout.path / "rewards.py").write_text(REWARDS)
    asked = ["--model", str(random_policy), "--prompts", "talks.jsonl", "--oracle", "function:rewards.py:closeness"]
    written = checkout.python("mnpo", "init", "own", *asked, "--iterations", "1")
    assert written.returncode == 0 and "is written. Next: mnpo plan" in written.stdout, written.stderr
    (file,) = [f for f in checkout.path.rglob("own.yaml") if f.read_text()]
    config = yaml.safe_load(file.read_text())
    # One that compares decides as well, beside the one that scores.
    config["oracles"]["shorter"] = {"kind": "function", "file": "rewards.py", "function": "shorter", "compare": True}
    config["evaluation"]["scores"].append("shorter")
    config["sampling"]["max_new_tokens"] = 6
    config["tables"]["targets"] = ["heldout"]
    (checkout.path / "own.yaml").write_text(yaml.safe_dump(config))
    if file != checkout.path / "own.yaml":
        file.unlink()
    planned = checkout.python("mnpo", "plan", "--config", "own.yaml")
    assert planned.returncode == 0, planned.stderr
    checkout.made()
    results = checkout.path / "results/own"
    prompts = read(PROMPTS, results / "prompts/part1.parquet").set_index("prompt_id")
    scores = read(SCORES, results / "scores/sft/part1/closeness/0.parquet")
    samples = pd.read_parquet(results / "samples/sft/part1/0.parquet")
    for row, response in zip(scores.to_dict("records"), samples["response"], strict=True):
        length = json.loads(prompts.loc[row["prompt_id"], "truth"])["length"]
        assert row["score"] == -abs(len(response) - length)
    main = pd.read_csv(results / "tables/main.csv").set_index("policy")
    assert list(main.index) == ["SFT", "TD-MNPO"] and main.loc["SFT", "score_shorter"] == 0.5
    assert "shorter compares: its scores are win rates over SFT" in (results / "tables/main.md").read_text()
    shown = checkout.python("mnpo", "show", "--config", "own.yaml")
    assert shown.returncode == 0 and "TD-MNPO" in shown.stdout
