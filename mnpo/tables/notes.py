"""What a reader of a table must know: its caption and its footnotes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mnpo import statistics
from mnpo.planning import paper_tables
from mnpo.tables.cells import View
from mnpo.tables.files import NOT_RUN, READ_OTHERWISE

if TYPE_CHECKING:
    import pandas as pd


def caption(view: View) -> str:
    """The table's number and title."""
    return f"Table {view.table.name.removeprefix('table')}: {view.table.title}"


def footnotes(view: View, gaps: pd.DataFrame) -> list[str]:
    """What a reader must know: units, ranks, protocols, what is missing, `gaps` in noise, and the paper's slips."""
    ranked = f" of the same {view.table.group.replace('_', ' ')}" if view.table.group else ""
    unit = "percent, MT-Bench a rating from 1 to 10" if any(c.rating for c in view.columns) else "percent"
    notes = [
        f"Ours ± its standard error over items (paper's figure, ours minus it); {unit}. Marked are the best and the "
        f"second best{ranked}, ours among ours and the paper's among the paper's. {NOT_RUN}: has not run. Noise: how "
        f"far apart two equal policies come out by chance in the items, in {view.confidence:.0%} of cases."
    ]
    for column in view.columns:
        notes += [*_column_notes(view, column), *_gap_notes(gaps, column)]
    notes += [f"The paper's arithmetic: {slip}." for slip in paper_tables.slips(view.table, view.rows)]
    return notes


def missing_note(missing: int, refused: float) -> str:
    """What is left out of a figure, and how much of it a judge's endpoint refused to answer."""
    by_endpoint = f" ({refused:.0f} of them refused by the judge's endpoint)" if refused else ""
    return f"{missing} verdicts, ratings or checks missing{by_endpoint}, not counted."


def answers_notes(summary: Mapping[str, Any]) -> list[str]:
    """What there is to say of a policy's answers: how many are empty and how they ended, and thinking taken off."""
    notes = []
    if empty := summary.get("empty"):
        ends = ", ".join(f"{number} {finish}" for finish, number in sorted(empty.items()))
        notes.append(f"{sum(empty.values())} of {summary['answers']} answers are empty ({ends}), and count as such.")
    if thinking := summary.get("thinking"):
        nothing = f" ({thinking['empty']} of them have nothing after it)" if thinking["empty"] else ""
        notes.append(
            f"thinking was taken off {thinking['answers']} of {summary['answers']} answers{nothing}; mean length "
            f"{thinking['mean_tokens']:.0f} tokens, with thinking {thinking['mean_tokens_with_thinking']:.0f}."
        )
    return notes


def _column_notes(view: View, column: paper_tables.Column) -> Iterator[str]:
    """Protocols of a column, its missing items, and evaluations without its metric."""
    protocols: dict[str, list[str]] = {}
    counts: set[int] = set()
    for row in view.rows:
        cell = view.cells[row.key, column.name]
        for result in view.judgings(row, column):
            protocols.setdefault(result.summary["protocol"].rstrip("."), []).append(row.key)
            counts.add(result.summary["items"])
            if result.metric(column) is None:
                yield f"{column.heading}, {row.key}: {result.path.name} does not report {column.metric}."
            if otherwise := result.summary.get("read_otherwise"):
                yield f"{column.heading}, {row.key}: {otherwise} {READ_OTHERWISE}."
        told = (note for result in view.judgings(row, column) for note in answers_notes(result.summary))
        for note in dict.fromkeys(told):  # once for all judgements of the same answers
            yield f"{column.heading}, {row.key}: {note}"
        if cell.missing:
            yield f"{column.heading}, {row.key}: {missing_note(cell.missing, cell.refused)}"
        wanted = len(view.policies.get(row.key, []))
        if 0 < cell.seeds < wanted:
            yield f"{column.heading}, {row.key}: {cell.seeds} of {wanted} seeds have run."
    items = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""
    for protocol, rows in protocols.items():
        where = f", {', '.join(dict.fromkeys(rows))}" if len(protocols) > 1 else ""
        yield f"{column.heading}{where}: {protocol} ({items} items; the paper's figure rests on {column.items})."
    if len(protocols) > 1:
        yield f"{column.heading}: measured in different ways, rows do not compare."


def _gap_notes(gaps: pd.DataFrame, column: paper_tables.Column) -> Iterator[str]:
    """How many of a column's published gaps are more than noise, and how large one has to be."""
    judged = gaps[(gaps["column"] == column.name) & gaps["noise"].notna()]
    if len(judged):
        apart = int((judged["verdict"] == statistics.APART).sum())
        needed = judged["noise"][judged["noise"] > 0].median()
        yield (
            f"{column.heading}: noise is up to about {needed:.1f}, "
            f"and {apart} of the paper's {len(judged)} gaps are larger."
        )
