"""A table of the paper with its cells filled in: figures of ours beside the paper's, their spreads and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING

from mnpo import statistics
from mnpo.planning import paper_tables
from mnpo.tables.results import Result, Results

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Cell:
    """A figure of ours and the paper's."""

    published: float | None
    published_spread: float | None = None
    published_repeats: int | None = None
    ours: float | None = None
    stderr: float | None = None
    """Over items; the mean over seeds, which answer the same items."""
    items: int | None = None
    missing: int | None = None
    """Items without a verdict, rating or check, over all seeds and repeats."""
    refused: float = 0
    """Of these, the judge's questions that its endpoint refused."""
    seeds: int = 0
    seeds_spread: float | None = None
    repeats: int = 0
    repeats_spread: float | None = None
    """Mean over seeds of the standard deviation over judgings."""
    published_rank: int | None = None
    ours_rank: int | None = None

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.published is None else self.ours - self.published


class View:
    """A table of the paper with its cells filled in."""

    def __init__(
        self,
        table: paper_tables.Table,
        rows: list[paper_tables.Row],
        results: Results,
        policies: Mapping[str, Sequence[str]],
        judges: Mapping[str, str],
        confidence: float,
    ) -> None:
        """`policies`: key of a row -> those that are it, one a seed; `judges`: the paper's name of one -> ours."""
        self.table, self.rows, self.results = table, rows, results
        self.policies, self.judges, self.confidence = policies, judges, confidence
        self.columns = [*table.columns]
        self.cells = {(row.key, column.name): self._cell(row, column) for row in rows for column in table.columns}
        if table.average:
            self.columns.append(paper_tables.Column(paper_tables.AVERAGE, "Average", paper_tables.AVERAGE, 0))
            self.cells |= {(row.key, paper_tables.AVERAGE): self._average(row) for row in rows}
        for column in self.columns:
            for group in self.groups():
                cells = [self.cells[row.key, column.name] for row in group]
                for field in ("published", "ours"):
                    _rank(cells, field, column.decimals)

    def groups(self) -> list[list[paper_tables.Row]]:
        """Rows that are ranked and compared with each other."""
        names = [row.cells[self.table.group] if self.table.group else "" for row in self.rows]
        return [[r for r, n in zip(self.rows, names, strict=True) if n == name] for name in dict.fromkeys(names)]

    def found(self, row: paper_tables.Row, column: paper_tables.Column) -> dict[str, list[Result]]:
        """Policy (one a seed) -> its judgings, of those that have run; or its one result that needed no judge."""
        ours = self.judges.get(self.table.judge(row, column) or "")
        results = self.results.of
        found = {
            p: results.get((p, column.benchmark, ours), []) or results.get((p, column.benchmark, None), [])
            for p in self.policies.get(row.key, [])
        }
        return {policy: results for policy, results in found.items() if results}

    def judgings(self, row: paper_tables.Row, column: paper_tables.Column) -> list[Result]:
        """All that is behind a cell."""
        return [result for results in self.found(row, column).values() for result in results]

    def _cell(self, row: paper_tables.Row, column: paper_tables.Column) -> Cell:
        printed = row.printed(column.name) if column.published else None
        spread, repeats = row.printed(column.spread), row.printed(column.repeats)
        cell = Cell(
            published=None if printed is None else float(printed),
            published_spread=None if spread is None else float(spread),
            published_repeats=None if repeats is None else int(repeats),
        )
        found = self.found(row, column)
        measured = [[m for r in results if (m := r.metric(column))] for results in found.values()]
        measured = [m for m in measured if m]
        if not measured:
            return cell
        means = [_mean([value for value, _ in judgings]) for judgings in measured]
        errors = [error for judgings in measured for _, error in judgings]
        results = self.judgings(row, column)
        spreads = [s for judgings in measured if (s := statistics.spread([v for v, _ in judgings])) is not None]
        cell.ours = _mean(means)
        cell.stderr = None if None in errors else _mean([e for e in errors if e is not None])
        cell.items = max(r.summary["items"] for r in results)
        cell.missing = sum(r.summary["missing"] for r in results)
        cell.refused = sum(r.summary.get("refused", 0) for r in results)
        cell.seeds, cell.seeds_spread = len(means), statistics.spread(means)
        cell.repeats = max(len(judgings) for judgings in measured)
        cell.repeats_spread = _mean(spreads) if spreads else None
        return cell

    def _average(self, row: paper_tables.Row) -> Cell:
        """The mean over the columns, where all have run; their errors are independent."""
        mean = self.table.mean(row)
        cell = Cell(published=None if mean is None else float(mean))
        parts = [self.cells[row.key, column.name] for column in self.table.columns]
        values, errors = [p.ours for p in parts], [p.stderr for p in parts]
        if None not in values:
            cell.ours = _mean([v for v in values if v is not None])
            cell.seeds = min(p.seeds for p in parts)
        if cell.ours is not None and None not in errors:
            cell.stderr = math.sqrt(sum(e * e for e in errors if e is not None)) / len(errors)
        return cell

    def item_values(self, row: paper_tables.Row, column: paper_tables.Column) -> pd.DataFrame | None:
        """Item id -> value, in the column's unit, and weight, over seeds and judgings; None when it has not run."""
        import pandas as pd

        values = [result.items for result in self.judgings(row, column)]
        if not values:
            return None
        rows = pd.concat(values)
        means = rows.assign(value=rows["value"] * rows["weight"]).groupby(level=0).mean()
        return means.assign(value=means["value"] / means["weight"] * column.scale)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def rounded(value: float, decimals: int) -> Decimal:
    """As people round: half a unit goes up, whatever its binary form."""
    return Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def _rank(cells: Sequence[Cell], field: str, decimals: int) -> None:
    """Mark best and second best as printed: figures that print the same share a rank. One figure alone has none."""
    shown = [None if (v := getattr(cell, field)) is None else rounded(v, decimals) for cell in cells]
    order = sorted({v for v in shown if v is not None}, reverse=True)
    for cell, value in zip(cells, shown, strict=True):
        rank = order.index(value) + 1 if value is not None and len(order) > 1 else None
        setattr(cell, f"{field}_rank", rank if rank in (1, 2) else None)
