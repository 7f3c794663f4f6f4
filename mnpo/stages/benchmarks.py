"""Stage `benchmarks`: every policy's result on every public benchmark, a row a benchmark, with standard errors.

Footnotes say what each result really computes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mnpo.benchmarks.cards import CARDS
from mnpo.config.blocks import Block, Ordered
from mnpo.tables.files import NOT_RUN, PROTOCOL, READ_OTHERWISE, write
from mnpo.tables.notes import answers_notes, missing_note

ENVIRONMENT = "eval"

LENGTH_CONTROLLED = "length_controlled_winrate"
GENERAL = f"± standard error over items. {NOT_RUN}: has not run."


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what tables call it, in the order of the columns."""
    benchmarks: list[str]
    """Results by their names in files, in the order of the rows."""


def run(settings: Settings, output: Path, evaluations: Sequence[Path] = ()) -> None:
    """Make the table of policies on public benchmarks.

    A policy that has no result on a benchmark says so.

    Args:
        output: the table without its ending.
        evaluations: summaries, `{policy}/{benchmark}.json`.
    """
    results = {
        (path.parent.name, path.name.removesuffix(".json")): json.loads(path.read_text(encoding="utf-8"))
        for path in evaluations
    }
    rows = [row for name in settings.benchmarks for row in _rows(settings, name, results)]
    notes = [GENERAL, *(note for name in settings.benchmarks for note in _notes(settings, name, results))]
    write(pd.DataFrame(rows), output, "benchmarks", settings.model_dump(), evaluations, notes)


def _rows(settings: Settings, name: str, results: dict[tuple[str, str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A benchmark's row; where there is a length-controlled rate beside the plain one, another for that."""
    of = {policy: results.get((policy, name)) for policy in settings.labels}
    yield _row(settings, name, of)
    if any(result and LENGTH_CONTROLLED in result["metrics"] for result in of.values()):
        yield _row(settings, name, {policy: _length_controlled(result) for policy, result in of.items()})


def _notes(settings: Settings, name: str, results: Mapping[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """A benchmark's protocols, each with its policies where they differ, and verdicts that are missing."""
    title = _title(name)
    of = {policy: results.get((policy, name)) for policy in settings.labels}
    protocols = _protocols(settings, of)
    for policy, label in settings.labels.items():
        if (result := of[policy]) and result["missing"]:
            yield f"{title}, {label}: {missing_note(result['missing'], result.get('refused', 0))}"
        for note in answers_notes(of[policy] or {}):
            yield f"{title}, {label}: {note}"
        if (result := of[policy]) and (otherwise := result.get("read_otherwise")):
            yield f"{title}, {label}: {otherwise} {READ_OTHERWISE}."
    for protocol, labels in protocols.items():
        where = f", {', '.join(labels)}" if len(protocols) > 1 else ""
        yield f"{title}{where}: {protocol}."
    if len(protocols) > 1:
        yield f"{title}: measured in different ways, policies do not compare."


def _protocols(settings: Settings, of: Mapping[str, dict[str, Any] | None]) -> dict[str, list[str]]:
    """Protocol -> whom it measured."""
    protocols: dict[str, list[str]] = {}
    for policy, label in settings.labels.items():
        if result := of[policy]:
            protocols.setdefault(result["protocol"].rstrip("."), []).append(label)
    return protocols


def _title(name: str) -> str:
    return CARDS[name.partition(".")[0]].title


def _length_controlled(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """AlpacaEval's other rate, in the place of the plain one."""
    if result is None or LENGTH_CONTROLLED not in result["metrics"]:
        return None
    rate, stderr = (result["metrics"][key] for key in (LENGTH_CONTROLLED, "length_controlled_standard_error"))
    return result | {"metric": "length-controlled win_rate", "value": rate, "stderr": stderr}


def _row(settings: Settings, name: str, of: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """One benchmark: its metric, how many items it has, and each policy's value."""
    ran = [result for result in of.values() if result is not None]
    items = sorted({result["items"] for result in ran})
    return {
        "benchmark": _title(name),
        "metric": ", ".join(sorted({result["metric"].removesuffix(",none") for result in ran})) or NOT_RUN,
        "items": " to ".join(str(n) for n in {items[0]: 0, items[-1]: 0}) if items else NOT_RUN,
        **{
            label: f"{result['value']:.2f} ± {result['stderr']:.2f}" if (result := of[policy]) else NOT_RUN
            for policy, label in settings.labels.items()
        },
        PROTOCOL: " / ".join(_protocols(settings, of)) or NOT_RUN,
    }
