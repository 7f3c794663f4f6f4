"""Where a benchmark's data lie: as in its card's repository, or `{split}.jsonl`, `.parquet` or `.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnpo.benchmarks.cards import Card
from mnpo.errors import BadInput
from mnpo.storage import text_tools
from mnpo.storage.records import read_rows

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}
"""Ending -> what the library datasets calls it."""
NLTK = "nltk"
"""The entry of `data` that holds NLTK's punkt_tab (nltk_data/tokenizers/punkt_tab), which IFEval needs."""


def split_files(card: Card, directory: Path, name: str, subject: str = "") -> list[Path]:
    """The files of a split, of one subject where there are several. Raises BadInput when there are none."""
    own = card.files[name].format(subject)
    patterns = [*([own] if not own.startswith("/") else []), *(f"{name}{suffix}" for suffix in FORMATS)]
    for pattern in patterns:
        if found := sorted(f for f in directory.glob(pattern) if f.suffix in FORMATS):
            return [f.absolute() for f in found]
    raise BadInput(
        f"{card.name}: no {name} data in {directory} (looked for {', '.join(patterns)}); "
        f"download {card.hub}, or name the directory that has them"
    )


def subjects(card: Card, directory: Path) -> list[str]:
    """The subjects that have a directory of their own; none where the benchmark, or this copy of it, has none."""
    if "{}" not in card.task:
        return []
    pattern = card.files[card.split].format("*")
    return sorted({file.parent.name for file in directory.glob(pattern)} - {"all", "auxiliary_train"})


def split_rows(card: Card, directory: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a split; with a column `subject` where each has a directory. Raises BadInput."""
    return [
        row | ({"subject": subject} if subject else {})
        for subject in subjects(card, directory) or [""]
        for file in split_files(card, directory, name, subject)
        for row in _rows(file)
    ]


def _rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix != ".csv":
        return read_rows(file)
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def prepare_ifeval(data: Mapping[str, Path]) -> None:
    """What IFEval's checks need: NLTK's sentence model, and a language detector that says the same every time.

    Raises:
        BadInput: no sentence model.
    """
    text_tools.use(data[name] for name in (NLTK, "ifeval") if name in data)
    if not text_tools.has_sentence_model():
        raise BadInput(f"ifeval: NLTK's punkt_tab is missing, which counts sentences; {text_tools.HOW}")
