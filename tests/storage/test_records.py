"""The tables: what breaks a promise is refused with file, row, column and value; what does not survives unchanged."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mnpo.storage.records import LOGPS, PROMPTS, SAMPLES, SCORES, RecordError, Table, read, read_rows, write

Row = dict[str, Any]


def prompt(number: int, **changes: Any) -> Row:
    return {"prompt_id": f"p{number}", "family": "", "prompt": f"Say {number}", "truth": "", "context": "", **changes}


def score(number: int, **changes: Any) -> Row:
    return {"prompt_id": f"p{number}", "k": 0, "score": 0.5, "win": 0.25, **changes}


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """Rows as somebody else's Parquet file, unchecked."""

    def _parquet(rows: list[Row], name: str = "rows.parquet") -> Path:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    return _parquet


def message(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(RecordError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- round trip


def test_what_is_written_is_read_with_values_types_and_order(tmp_path: Path) -> None:
    rows = [
        score(2, score=-0.1, k=3),
        score(1, score=1e-300, win=0.0),
        score(1, k=1, score=0.1 + 0.2, win=1.0),
    ]
    write(SCORES, rows, tmp_path / "scores.parquet")
    table = read(SCORES, tmp_path / "scores.parquet")
    assert table.to_dict("records") == rows
    assert [str(table[c].dtype) for c in ("k", "score", "win")] == ["int64", "float64", "float64"]


def test_texts_of_any_characters_and_large_seeds_survive(tmp_path: Path) -> None:
    text = 'tab\t newline\n "quotes" \\ ünïcödé 漢字 🙂 \u2028 nul\x00 end '
    row = prompt(1, prompt=text) | {"k": 0, "response": "", "tokens": 1, "finish": "stop", "seed": 2**63 - 1}
    write(SAMPLES, [row], tmp_path / "samples.parquet")
    assert read(SAMPLES, tmp_path / "samples.parquet").to_dict("records") == [row | {"thinking": 0}]


def test_the_same_rows_are_the_same_bytes_from_dictionaries_and_from_a_frame(tmp_path: Path) -> None:
    rows = [score(n, score=n / 7) for n in range(50)]
    write(SCORES, rows, tmp_path / "a")
    write(SCORES, pd.DataFrame(rows), tmp_path / "b")
    shuffled = pd.DataFrame(rows)[["win", "score", "prompt_id", "k"]].assign(extra=1)
    write(SCORES, shuffled, tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    write(SCORES, rows[::-1], tmp_path / "d")
    assert (tmp_path / "a").read_bytes() != (tmp_path / "d").read_bytes()


def test_several_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name, numbers in (("b", (3, 4)), ("a", (1, 2))):
        write(PROMPTS, [prompt(n) for n in numbers], tmp_path / name)
    table = read(PROMPTS, tmp_path / "b", tmp_path / "a")
    assert table["prompt_id"].tolist() == ["p3", "p4", "p1", "p2"]
    assert table.index.tolist() == [0, 1, 2, 3]


def test_a_context_that_no_row_has_is_empty(tmp_path: Path, parquet: Callable[..., Path]) -> None:
    rows = [{c: v for c, v in prompt(n).items() if c != "context"} for n in (1, 2)]
    assert read(PROMPTS, parquet(rows))["context"].tolist() == ["", ""]  # a table of an earlier version
    write(PROMPTS, [rows[0], prompt(2, context="[]")], tmp_path / "some")
    assert read(PROMPTS, tmp_path / "some")["context"].tolist() == ["", "[]"]


def test_an_empty_table_keeps_its_columns(tmp_path: Path) -> None:
    write(PROMPTS, [], tmp_path / "none")
    table = read(PROMPTS, tmp_path / "none")
    assert table.empty and list(table.columns) == ["prompt_id", "family", "prompt", "truth", "context"]


def test_columns_of_others_are_dropped_and_whole_floats_are_integers(
    parquet: Callable[..., Path], tmp_path: Path
) -> None:
    path = parquet([score(1, k=2.0) | {"note": "x"}])
    assert list(read(SCORES, path).columns) == ["prompt_id", "k", "score", "win"]
    write(SCORES, read(SCORES, path), tmp_path / "again")
    assert read(SCORES, tmp_path / "again")["k"].tolist() == [2]


# ------------------------------------------------------------------------------------------------------ broken promises


@pytest.mark.parametrize(
    ("table", "good", "bad", "column", "value", "problem"),
    [
        (PROMPTS, prompt(0), prompt(1, prompt=""), "prompt", "''", "empty"),
        (PROMPTS, prompt(0), prompt(1, prompt=" \n\t"), "prompt", r"' \n\t'", "empty"),
        (PROMPTS, prompt(0), prompt(1, prompt=None), "prompt", "nan", "expected a text"),  # pandas' missing text
        (SCORES, score(0), score(1, score=math.nan), "score", "nan", "not a finite number"),
        (SCORES, score(0), score(1, score=math.inf), "score", "inf", "not a finite number"),
        (SCORES, score(0), score(1, score=-math.inf), "score", "-inf", "not a finite number"),
        (SCORES, score(0), score(1, score=None), "score", "nan", "not a finite number"),
        (SCORES, score(0, k=0.0), score(1, k=1.5), "k", "1.5", "expected a whole number"),
        (SCORES, score(0, k=0.0), score(1, k=math.nan), "k", "nan", "not a finite number"),
    ],
)
def test_a_bad_value_is_refused_on_reading_and_on_writing(
    parquet: Callable[..., Path],
    tmp_path: Path,
    table: Table,
    good: Row,
    bad: Row,
    column: str,
    value: str,
    problem: str,
) -> None:
    path = parquet([good, bad])
    expected = f"row 1, column {column}: {problem} (got {value}); mend or remove the row"
    assert message(read, table, path) == f"{path}: {expected}"
    target = tmp_path / "target.parquet"
    assert message(write, table, pd.DataFrame([good, bad]), target).startswith(
        f"{target}: row 1, column {column}: {problem}"
    )
    assert not target.exists()


@pytest.mark.parametrize(
    ("table", "row", "column", "problem"),
    [
        (PROMPTS, prompt(1, prompt=7), "prompt", "expected a text (got 7)"),
        (SCORES, score(1, score="high"), "score", "expected a number (got 'high')"),
        (SCORES, score(1, k=True), "k", "expected a number (got True)"),
        (
            LOGPS,
            {"pair_id": "a", "chosen": "x", "rejected": 0.0, "chosen_tokens": 1, "rejected_tokens": 1},
            "chosen",
            "expected",
        ),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    parquet: Callable[..., Path], table: Table, row: Row, column: str, problem: str
) -> None:
    path = parquet([row])
    assert message(read, table, path).startswith(f"{path}: row 0, column {column}: {problem}")


def test_a_missing_column_is_named_with_those_there(parquet: Callable[..., Path]) -> None:
    path = parquet([{"prompt_id": "p1", "k": 0, "scores": 1.0}])
    assert message(read, SCORES, path) == f"{path}: scores need the columns score, win; it has prompt_id, k, scores"


def test_a_key_that_stands_twice_is_refused_within_a_file_and_across_files(tmp_path: Path) -> None:
    target = tmp_path / "twice"
    text = message(write, SCORES, [score(1), score(1, k=1), score(1, score=9.0)], target)
    assert text == f"{target}: row 2: prompt_id, k = ('p1', 0) stands twice; scores name each once"
    write(SCORES, [score(1), score(2)], tmp_path / "a")
    write(SCORES, [score(3), score(2)], tmp_path / "b")
    text = message(read, SCORES, tmp_path / "a", tmp_path / "b")
    assert text.startswith(f"{tmp_path / 'a'}, {tmp_path / 'b'}: row 3: prompt_id, k = ('p2', 0) stands twice")


def test_a_truncated_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "cut.parquet"
    write(SCORES, [score(n) for n in range(100)], path)
    path.write_bytes(path.read_bytes()[:-50])
    text = message(read, SCORES, path)
    assert text.startswith(f"{path}: not a readable Parquet file of scores (") and text.endswith(
        "delete it to have it remade"
    )


def test_damage_in_the_middle_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    write(SCORES, [score(n, score=n / 7) for n in range(500)], path)
    content = bytearray(path.read_bytes())
    content[200:1200] = bytes(1000)
    path.write_bytes(content)
    assert message(read, SCORES, path).startswith(f"{path}: ")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert message(read, SCORES, tmp_path / "none.parquet").startswith(f"{tmp_path / 'none.parquet'}: ")


# --------------------------------------------------------------------------------------------------------- users' files


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt": "a"', "line 2 is not JSON (Expecting ',' delimiter): '{\"prompt\": \"a\"'"),
        ("plain text", "line 2 is not JSON (Expecting value): 'plain text'"),
        ("", "line 2 is not JSON (Expecting value): ''"),
        ("[1, 2]", "line 2 is not an object: '[1, 2]'"),
        ('"text"', "line 2 is not an object: '\"text\"'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "first"}\n' + line + '\n{"prompt": "third"}\n')
    assert message(read_rows, path) == f"{path}: {problem}"


def test_lines_end_where_json_lines_end_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "one \u2028 two \x85 three"}\r\n{"prompt": "four"}'.encode())
    assert read_rows(path) == [{"prompt": "one \u2028 two \x85 three"}, {"prompt": "four"}]
    path.write_text("")
    assert read_rows(path) == []


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"prompt": "café"}\n'.encode("latin-1"))
    assert message(read_rows, path).startswith(f"{path}: ")


def test_rows_of_a_parquet_file_are_read_and_its_damage_is_named(parquet: Callable[..., Path]) -> None:
    path = parquet([{"prompt": "a"}, {"prompt": None}])
    assert read_rows(path) == [{"prompt": "a"}, {"prompt": None}]
    path.write_bytes(b"PAR1 no more")
    assert message(read_rows, path).startswith(f"{path}: not a readable Parquet file")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert message(read_rows, tmp_path / "none.jsonl") == f"{tmp_path / 'none.jsonl'}: no such file"
