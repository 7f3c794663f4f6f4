"""The nouns as typed tables: their columns, what must hold of them, and how they are read and written (Parquet).

Every table is a pandas DataFrame between `read` and `write`. Nothing that breaks a table's promises gets past either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

TYPES = {"string": "string", "int": "int64", "float": "float64"}


class RecordError(BadInput):
    """A table that breaks its promises; the message names file, row, column, value and remedy."""


@dataclass(frozen=True)
class Table:
    """A kind of table: columns (name -> string, int or float), the key that identifies a row, columns never blank, and
    columns that are empty (texts) or 0 (numbers) where they are not given, as in files of earlier versions."""

    noun: str
    columns: dict[str, str]
    key: tuple[str, ...]
    not_blank: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


CONTEXT = ("context",)
PROMPTS = Table(
    "prompts",
    {
        "prompt_id": "string",
        "family": "string",
        "prompt": "string",  # the last user's turn
        "truth": "string",  # what oracles may know of the prompt beside it, JSON; empty: nothing
        "context": "string",  # the turns before it (mnpo/storage/conversations.py); empty: none
    },
    ("prompt_id",),
    ("prompt_id", "prompt"),
    CONTEXT,
)
DEMONSTRATIONS = Table(
    "demonstrations",
    {**PROMPTS.columns, "row": "int", "response": "string"},
    ("row",),
    ("prompt_id", "prompt", "response"),
    CONTEXT,
)
SAMPLES = Table(
    "samples",
    {
        **PROMPTS.columns,
        "k": "int",  # which of the prompt's responses
        "response": "string",
        "tokens": "int",  # generated, the end of turn included
        "finish": "string",  # stop, or length when it was cut
        "seed": "int",
        "thinking": "int",  # characters at the response's start that no oracle is shown (mnpo/models/thinking.py)
    },
    ("prompt_id", "k"),
    ("prompt_id", "prompt"),
    (*CONTEXT, "thinking"),
)
SCORES = Table(
    "scores",
    {"prompt_id": "string", "k": "int", "score": "float", "win": "float"},  # win: P(y > the prompt's other responses)
    ("prompt_id", "k"),
    ("prompt_id",),
)
PAIRS = Table(
    "pairs",
    {
        "pair_id": "string",
        "prompt_id": "string",
        "prompt": "string",
        "context": "string",
        "chosen": "string",
        "rejected": "string",
        "chosen_score": "float",
        "rejected_score": "float",
        "chosen_win": "float",  # P(chosen > pi_t), over the prompt's other responses
        "rejected_win": "float",
    },
    ("pair_id",),
    ("pair_id", "prompt", "chosen", "rejected"),
    CONTEXT,
)
LOGPS = Table(
    "logps",
    {
        "pair_id": "string",
        "chosen": "float",  # sum over the response's tokens, nats
        "rejected": "float",
        "chosen_tokens": "int",
        "rejected_tokens": "int",
    },
    ("pair_id",),
    ("pair_id",),
)
SAMPLER_LOGPS = Table(
    "sampler's log-probabilities",
    {
        "prompt_id": "string",
        "k": "int",
        "read": "string",  # fingerprint of the token ids, prompt and response (mnpo/models/chat.py)
        "logp": "float",  # sum over the response's tokens, nats
    },
    ("prompt_id", "k"),
    ("prompt_id", "read"),
)
GREEDY, SAMPLED = "greedy", "sampled"  # how a judged response was decoded
JUDGED = Table(
    "judged responses",
    {
        "prompt_id": "string",
        "family": "string",
        "mode": "string",  # GREEDY or SAMPLED
        "k": "int",
        "response": "string",
        "tokens": "int",
        "finish": "string",  # stop, or length when it was cut; empty: not known
        "oracle": "string",
        "score": "float",
    },
    ("prompt_id", "mode", "k", "oracle"),
    ("prompt_id",),
    ("finish",),
)
ANSWERS = Table(
    "answers",
    {
        "item_id": "string",
        "turn": "int",  # 1, or 2 for MT-Bench's second
        "category": "string",
        "prompt": "string",  # what was asked in this turn
        "response": "string",
        "tokens": "int",  # of the response
        "finish": "string",
        "thinking": "int",  # tokens before it, which were taken off
    },
    ("item_id", "turn"),
    ("item_id", "prompt"),
    optional=("thinking",),
)
ITEMS = Table(
    "benchmark items",
    {
        "item_id": "string",
        "value": "float",  # 0 to 1, or a rating
        "weight": "float",  # in the benchmark's mean: 1, or how many battles or ratings the value is of
        "response": "string",
        "tokens": "int",
    },
    ("item_id",),
    ("item_id",),
)


def read(table: Table, *paths: str | Path) -> pd.DataFrame:
    """The rows of `paths` (Parquet), in order, checked.

    Raises:
        RecordError: a file is missing, truncated or not Parquet, or its rows break the table's promises.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    frames = []
    for path in paths:
        try:
            frames.append(_completed(table, pq.read_table(path).to_pandas()))
        except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RecordError(
                f"{path}: not a readable Parquet file of {table.noun} ({reason}); delete it to have it remade"
            ) from None
        check(table, frames[-1], path)
    rows = pd.concat(frames, ignore_index=True) if len(frames) != 1 else frames[0]
    if len(frames) > 1:
        _unique(table, rows, ", ".join(map(str, paths)))
    columns: pd.DataFrame = rows[list(table.columns)]
    return columns


def write(table: Table, rows: pd.DataFrame | Sequence[dict[str, Any]], path: str | Path) -> None:
    """Check `rows` and write them to `path` as Parquet: same rows, same bytes. Raises RecordError."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(rows, pd.DataFrame):
        frame = _completed(table, rows)
    else:
        frame = pd.DataFrame([_blanks(table) | row for row in rows], columns=list(table.columns))
    check(table, frame, path)
    fields = pa.schema([(c, getattr(pa, TYPES[t])()) for c, t in table.columns.items()])
    arrays = [pa.array(frame[c].tolist(), type=fields.field(c).type) for c in table.columns]
    pq.write_table(pa.Table.from_arrays(arrays, schema=fields), path)


def _blanks(table: Table) -> dict[str, Any]:
    return {column: "" if table.columns[column] == "string" else 0 for column in table.optional}


def _completed(table: Table, rows: pd.DataFrame) -> pd.DataFrame:
    """`rows` with the optional columns that they lack."""
    return rows.assign(**{column: blank for column, blank in _blanks(table).items() if column not in rows.columns})


def check(table: Table, rows: pd.DataFrame, where: str | Path) -> None:
    """Whether `rows` are a `table`. Raises RecordError with the first thing wrong."""
    if missing := [c for c in table.columns if c not in rows.columns]:
        raise RecordError(
            f"{where}: {table.noun} need the columns {', '.join(missing)}; it has {', '.join(map(str, rows.columns))}"
        )
    for column, kind in table.columns.items():
        for row, value in enumerate(rows[column].tolist()):
            if problem := _problem(value, kind, column in table.not_blank):
                raise RecordError(
                    f"{where}: row {row}, column {column}: {problem} (got {value!r}); mend or remove the row"
                )
    _unique(table, rows, str(where))


def _problem(value: Any, kind: str, not_blank: bool) -> str | None:
    if kind == "string":
        if not isinstance(value, str):
            return "expected a text"
        return "empty" if not_blank and not value.strip() else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "expected a number"
    if not math.isfinite(value):
        return "not a finite number"
    return "expected a whole number" if kind == "int" and value != int(value) else None


def _unique(table: Table, rows: pd.DataFrame, where: str) -> None:
    repeated = rows.duplicated(list(table.key))
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        key = tuple(rows[column].tolist()[row] for column in table.key)
        raise RecordError(
            f"{where}: row {row}: {', '.join(table.key)} = {key} stands twice; {table.noun} name each once"
        )


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries."""
    return [{str(column): value for column, value in row.items()} for row in table.to_dict("records")]


def read_rows(path: str | Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a user's JSONL or Parquet file, or of a data set's directory (its `split`), as dictionaries.

    Raises:
        RecordError: names the line.
    """
    path = Path(path)
    if path.is_dir():
        return _dataset_rows(path, split)
    if not path.is_file():
        raise RecordError(f"{path}: no such file")
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
        except pa.ArrowException as error:
            raise RecordError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from None
    rows: list[dict[str, Any]] = []
    try:
        content = path.read_bytes().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: byte {error.start} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    for number, line in enumerate(content.split("\n") if content else [], 1):  # a row may contain other line separators
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecordError(f"{path}: line {number} is not JSON ({error.msg}): {line[:80]!r}") from None
        if not isinstance(row, dict):
            raise RecordError(f"{path}: line {number} is not an object: {line[:80]!r}")
        rows.append(row)
    return rows


def _dataset_rows(directory: Path, split: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return list(load_dataset(str(directory), split=split))
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise RecordError(f"{directory}: cannot be read as a data set with the split {split!r} ({reason})") from None
