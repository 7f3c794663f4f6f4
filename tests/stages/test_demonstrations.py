"""Conversations of one's own: each once, some kept aside, what cannot be used refused or counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages.demonstrations import Settings, run
from mnpo.storage.conversations import turns
from mnpo.storage.records import DEMONSTRATIONS, read, rows_of

Manifest = Callable[[Path], dict[str, Any]]
Row = dict[str, Any]


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def made(directory: Path, given: list[Row] | Path, /, seed: int = 0, **asked: Any) -> dict[str, list[Row]]:
    """train and heldout."""
    if isinstance(given, list):
        data = directory / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in given))
        asked |= {"file": str(data)}
    else:
        data, asked = given, asked | {"dataset": "own"}
    run(Settings.model_validate({"data": asked, "seed": seed}), data, directory / "out")
    return {name: rows_of(read(DEMONSTRATIONS, directory / f"out/{name}.parquet")) for name in ("train", "heldout")}


def test_conversations_of_every_convention_are_kept_whole(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"messages": said("A?", "1", "B?", "2", "C?", "3")},
        {"conversations": [{"from": "human", "value": "D?"}, {"from": "gpt", "value": "4"}]},
        {"instruction": "E", "input": "F", "output": "5"},
        {"prompt": "G?", "response": "6"},
        {"prompt": "H?", "messages": said("H?", "7", "I?", "8")},  # as UltraChat has them
    ]
    train = made(tmp_path, rows)["train"]
    assert [row["row"] for row in train] == [1, 2, 3, 4, 5]
    assert [(row["prompt"], row["response"]) for row in train] == [
        ("C?", "3"), ("D?", "4"), ("E\n\nF", "5"), ("G?", "6"), ("I?", "8"),
    ]  # fmt: skip
    assert turns(train[0]["prompt"], train[0]["context"]) == said("A?", "1", "B?", "2", "C?")


def test_each_counts_once_and_none_that_is_kept_aside_is_learnt(tmp_path: Path, manifest_of: Manifest) -> None:
    rows = [{"prompt": f"{n % 20}?", "response": "x"} for n in range(50)]
    tables = made(tmp_path, rows, heldout=0.25)
    prompts = {name: [row["prompt"] for row in table] for name, table in tables.items()}
    assert {name: len(set(found)) for name, found in prompts.items()} == {"train": 15, "heldout": 5}
    assert {name: len(found) for name, found in prompts.items()} == {"train": 15, "heldout": 5}
    assert not set(prompts["train"]) & set(prompts["heldout"])
    facts = manifest_of(tmp_path / "out/train.parquet")
    assert (facts["rows"], facts["repeated_conversations"], facts["kept_aside"]) == (15, 30, 5)
    (tmp_path / "backwards").mkdir()
    backwards = made(tmp_path / "backwards", rows[::-1], heldout=0.25)
    assert {row["prompt"] for row in backwards["heldout"]} == set(prompts["heldout"])  # by text, not by place


def test_a_number_of_rows_and_what_is_left_over(tmp_path: Path, manifest_of: Manifest) -> None:
    rows = [{"prompt": f"{n}?", "response": "x"} for n in range(20)]
    tables = made(tmp_path, rows, heldout=3, rows=10)
    assert {name: len(table) for name, table in tables.items()} == {"train": 10, "heldout": 3}
    assert manifest_of(tmp_path / "out/heldout.parquet")["unused_conversations"] == 7
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other", rows, seed=1, heldout=3, rows=10)
    assert other != tables


def test_a_split_of_its_own_is_kept_aside_and_what_it_shares_is_not_learnt(tmp_path: Path) -> None:
    data = tmp_path / "snapshot/data"
    data.mkdir(parents=True)
    rows = [{"messages": said(f"{n}?", "x")} for n in range(6)]
    pd.DataFrame(rows).to_parquet(data / "train-00000-of-00001.parquet")
    pd.DataFrame([rows[0], {"messages": said("New?", "x")}]).to_parquet(data / "test-00000-of-00001.parquet")
    tables = made(tmp_path, tmp_path / "snapshot", heldout_split="test", heldout=2)
    assert {row["prompt"] for row in tables["heldout"]} == {"0?", "New?"}
    assert {row["prompt"] for row in tables["train"]} == {f"{n}?" for n in range(1, 6)}


BAD = [
    ({"messages": said("A?")}, "row 2: messages: the conversation ends with the user, expected the assistant"),
    ({"messages": said("A?", "")}, "row 2: messages: message 2, the assistant's, is empty"),
    ({"messages": said("A?", "b")[::-1]}, "row 2: messages: message 1 is the assistant's, where the user's is due"),
    ({"text": "A"}, r"row 2 has no 'prompt' \(it has text\)"),
]


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_a_row_that_is_no_such_conversation_is_refused_or_counted(
    tmp_path: Path, manifest_of: Manifest, capsys: pytest.CaptureFixture[str], row: Row, problem: str
) -> None:
    rows = [{"messages": said("Fine?", "Yes.")}, row]
    with pytest.raises(BadInput, match=rf"rows\.jsonl: {problem}.*unusable: drop leaves such rows out"):
        made(tmp_path, rows)
    assert [row["prompt"] for row in made(tmp_path, rows, unusable="drop")["train"]] == ["Fine?"]
    assert manifest_of(tmp_path / "out/train.parquet")["unusable_rows"] == 1
    assert "demonstrations: left out:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"heldout": 3}, "2 different conversations, of which reference.sft.data.heldout 3 makes 3"),
        ({"heldout": 0.1}, "2 different conversations, of which reference.sft.data.heldout 0.1 makes 0"),
        ({"heldout": 2}, "no conversation is left to learn from"),
    ],
)
def test_more_kept_aside_than_there_are_is_refused(tmp_path: Path, asked: Row, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        made(tmp_path, [{"prompt": f"{n}?", "response": "x"} for n in range(2)], **asked)
