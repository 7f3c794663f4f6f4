"""Prompts: disjoint parts of the size asked for, from the demo's world or a user's file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput
from mnpo.stages.prompts import Settings, prompt_id, run
from mnpo.storage.records import DEMONSTRATIONS, PROMPTS, read, rows_of

Manifest = Callable[[Path], dict[str, Any]]


def cut(directory: Path, seed: int = 0, **asked: Any) -> dict[str, list[str]]:
    """Split -> its prompts."""
    run(Settings.model_validate({"prompts": asked, "seed": seed}), directory)
    names = [p.stem for p in sorted(directory.glob("*.parquet")) if p.stem != "demonstrations"]
    return {name: read(PROMPTS, directory / f"{name}.parquet")["prompt"].tolist() for name in names}


def jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"Question {i}?"} for i in range(23)])


def test_the_demos_splits_share_no_string(prompts_directory: Path) -> None:
    tables = {n: read(PROMPTS, prompts_directory / f"{n}.parquet") for n in ("part1", "part2", "heldout")}
    assert {n: len(t) for n, t in tables.items()} == {"part1": 14, "part2": 14, "heldout": 7}
    demonstrations = read(DEMONSTRATIONS, prompts_directory / "demonstrations.parquet")
    assert demonstrations["row"].tolist() == list(range(140))
    texts = [set(t["prompt"]) for t in (*tables.values(), demonstrations)]
    assert len(set().union(*texts)) == sum(map(len, texts))
    assert all(json.loads(truth)["answer"] for t in tables.values() for truth in t["truth"])


def test_a_demo_that_asks_for_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ask for fewer"):
        cut(tmp_path, source="demo", part_size=100_000, heldout=7)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_file_is_cut_into_disjoint_parts_and_what_is_left_is_counted(
    tmp_path: Path, file: str, manifest_of: Manifest
) -> None:
    splits = cut(tmp_path / "out", source="file", path=file, parts=3, part_size=5, heldout=4)
    assert {n: len(s) for n, s in splits.items()} == {"part1": 5, "part2": 5, "part3": 5, "heldout": 4}
    everything = [p for s in splits.values() for p in s]
    assert len(set(everything)) == 19 and set(everything) <= {f"Question {i}?" for i in range(23)}
    facts = manifest_of(tmp_path / "out" / "part1.parquet")
    assert (facts["rows"], facts["unused_prompts"], facts["repeated_prompts"]) == (5, 4, 0)
    assert list(facts["inputs"]) == [file]


def test_without_a_size_a_file_is_cut_evenly(tmp_path: Path, file: str, manifest_of: Manifest) -> None:
    splits = cut(tmp_path / "out", source="file", path=file, parts=2, heldout=4)  # (23 - 4) / 2 = 9, one left
    assert {n: len(s) for n, s in splits.items()} == {"part1": 9, "part2": 9, "heldout": 4}
    assert manifest_of(tmp_path / "out" / "part1.parquet")["unused_prompts"] == 1


def test_the_cut_depends_on_texts_and_seed_and_not_on_the_files_order(tmp_path: Path, file: str) -> None:
    asked: dict[str, Any] = {"source": "file", "parts": 2, "part_size": 5, "heldout": 4}
    lines = Path(file).read_text().splitlines(keepends=True)
    backwards = tmp_path / "backwards.jsonl"
    backwards.write_text("".join([*reversed(lines), lines[0]]))
    first = cut(tmp_path / "1", path=file, **asked)
    assert first == cut(tmp_path / "2", path=str(backwards), **asked)
    run(Settings.model_validate({"prompts": asked | {"path": file, "seed": 1}, "seed": 0}), tmp_path / "3")
    assert read(PROMPTS, tmp_path / "3" / "part1.parquet")["prompt"].tolist() != first["part1"]


def test_repeated_prompts_count_once(tmp_path: Path, manifest_of: Manifest) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": t} for t in ("a", "b", "a", "c", "a")])
    splits = cut(tmp_path / "out", source="file", path=path, parts=1, part_size=2, heldout=1)
    assert sorted(p for s in splits.values() for p in s) == ["a", "b", "c"]
    assert manifest_of(tmp_path / "out" / "heldout.parquet")["repeated_prompts"] == 2


def test_answers_that_are_left_out_and_prompts_that_are_held_out_too_are_counted(
    tmp_path: Path, manifest_of: Manifest
) -> None:
    """By hand: of a, b, c, d two end with an answer; the split of held-out prompts has b and e, and gives both."""

    def conversation(text: str, *answer: str) -> dict[str, Any]:
        turns = zip(("user", "assistant"), (text, *answer), strict=False)
        return {"messages": [{"role": role, "content": content} for role, content in turns]}

    data = tmp_path / "data"
    data.mkdir()
    jsonl(data / "train.jsonl", [conversation("a", "A"), conversation("b", "B"), conversation("c"), conversation("d")])
    jsonl(data / "test.jsonl", [conversation("b", "B"), conversation("e")])
    asked = {"source": "dataset", "dataset": "d", "parts": 1, "heldout": 2, "heldout_split": "test"}
    run(Settings.model_validate({"prompts": asked, "seed": 0}), tmp_path / "out", data)
    assert sorted(read(PROMPTS, tmp_path / "out/part1.parquet")["prompt"]) == ["a", "c", "d"]
    assert sorted(read(PROMPTS, tmp_path / "out/heldout.parquet")["prompt"]) == ["b", "e"]
    facts = manifest_of(tmp_path / "out/part1.parquet")
    assert (facts["answers_left_out"], facts["train_prompts_also_held_out"]) == (2, 1)


def test_a_prompts_id_is_of_its_text_alone(tmp_path: Path, file: str) -> None:
    cut(tmp_path / "out", source="file", path=file, parts=1, part_size=2, heldout=1)
    row = read(PROMPTS, tmp_path / "out" / "part1.parquet").iloc[0]
    assert row["prompt_id"] == prompt_id(row["prompt"])
    assert prompt_id("abc") == "ba7816bf8f01cfea"  # of SHA-256, as published in FIPS 180-2


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": ""}, "row 2: prompt is '', expected a text that is not empty"),
        ({"prompt": "  \n"}, r"row 2: prompt is '  \\n', expected a text that is not empty"),
        ({"prompt": None}, "row 2: prompt is None, expected a text"),
        ({"prompt": ["a"]}, r"row 2: prompt is \['a'\], expected a text"),
        ({"question": "a"}, r"row 2 has no 'prompt' \(it has question\); set prompts.column"),
        ([], "line 2 is not an object"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path: Path, row: Any, problem: str) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, row, {"prompt": "b"}])
    with pytest.raises(BadInput, match=f"^{path}: {problem}"):
        cut(tmp_path / "out", source="file", path=path, parts=1, part_size=1, heldout=1)
    assert not list(tmp_path.glob("out/*"))


def test_another_column_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"question": "a"}, {"question": "b"}])
    splits = cut(tmp_path / "out", source="file", path=path, column="question", parts=1, part_size=1, heldout=1)
    assert sorted(p for s in splits.values() for p in s) == ["a", "b"]


def test_a_conversation_is_its_last_turn_and_what_came_before(tmp_path: Path) -> None:
    before = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
    rows = [{"prompt": "Why?"}, {"messages": [*before, {"role": "user", "content": "Why?"}]}]
    path = jsonl(tmp_path / "p.jsonl", rows)
    run(
        Settings.model_validate({"prompts": {"source": "file", "path": path, "heldout": 1, "parts": 1}, "seed": 0}),
        tmp_path,
    )
    table = {
        row["context"]: row
        for name in ("part1", "heldout")
        for row in rows_of(read(PROMPTS, tmp_path / f"{name}.parquet"))
    }
    assert set(table) == {"", json.dumps(before)}
    assert {row["prompt"] for row in table.values()} == {"Why?"}
    assert table[""]["prompt_id"] == prompt_id("Why?") != table[json.dumps(before)]["prompt_id"]


def test_further_columns_reach_the_table_and_a_missing_one_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "answer": 2, "note": "x"}, {"prompt": "2 + 2?", "answer": 4, "note": "y"}]
    asked: dict[str, Any] = {"source": "file", "parts": 1, "heldout": 1}
    path = jsonl(tmp_path / "p.jsonl", rows)
    cut(tmp_path / "out", path=path, further=["answer"], **asked)
    tables = [read(PROMPTS, tmp_path / "out" / f"{name}.parquet") for name in ("part1", "heldout")]
    known = {row["prompt"]: json.loads(row["truth"]) for table in tables for row in rows_of(table)}
    assert known == {"1 + 1?": {"answer": 2}, "2 + 2?": {"answer": 4}}
    with pytest.raises(BadInput, match=r"row 1 has no 'reply' \(it has prompt, answer, note\); mend prompts.further"):
        cut(tmp_path / "other", path=path, further=["reply"], **asked)


def test_too_few_prompts_are_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(BadInput, match="23 different prompts, and 24 are asked for"):
        cut(tmp_path / "out", source="file", path=file, parts=2, part_size=10, heldout=4)
