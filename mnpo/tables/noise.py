"""Which differences are more than noise: of our rows, item by item, and of the paper's printed figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Any

from mnpo import statistics
from mnpo.planning import paper_tables
from mnpo.seeds import derive
from mnpo.tables.cells import View
from mnpo.tables.files import NOT_RUN

if TYPE_CHECKING:
    import pandas as pd

SIDES = ("ours", "against")


def significance(view: View, bootstrap: int, seed: int) -> pd.DataFrame:
    """Every two rows that have run, on every benchmark: paired bootstrap over the items that both have."""
    import pandas as pd

    lines = []
    for column, a, b, items in _pairs(view):
        if not column.per_item or items is None:
            continue
        drawn = derive(seed, "significance", view.table.name, column.name, a.key, b.key)
        ours, against, *weights = (items[f"{who}_{what}"].to_numpy() for what in ("value", "weight") for who in SIDES)
        result = statistics.paired(ours, against, bootstrap, view.confidence, drawn, (weights[0], weights[1]))
        lines.append(
            {
                "column": column.name,
                "row": a.key,
                "against": b.key,
                "difference": result.difference,
                "difference_low": result.low,
                "difference_high": result.high,
                "share": result.share,
                "items": len(items),
                "unpaired": items.attrs["unpaired"],
                "verdict": result.verdict,
            }
        )
    names = ["column", "row", "against", "difference", "difference_low", "difference_high", "share", "items"]
    return pd.DataFrame(lines, columns=[*names, "unpaired", "verdict"])


def gaps(view: View) -> pd.DataFrame:
    """Every gap between two published figures of a column: would noise of the items alone make one as large?

    The standard error is for the paper's number of items, with the variance of the difference over our own items where
    both rows have run and differ; otherwise the binomial one of the published shares, which is too large for policies
    that answer alike. A rating has no binomial error.
    """
    import pandas as pd

    z = statistics.normal_quantile(view.confidence)
    variances: dict[tuple[str, str], list[float | None]] = {}
    lines = []
    for column, a, b, items in _pairs(view):
        one, other = (view.cells[row.key, column.name].published for row in (a, b))
        error, basis = _gap_error(column, one, other, items)
        variances.setdefault((a.key, b.key), []).append(None if error is None else error**2)
        if one is not None and other is not None:
            lines.append(_gap(column.name, column.items, a, b, one - other, error, basis, z))
    for (a_key, b_key), parts in variances.items() if view.table.average else ():
        a, b = (next(row for row in view.rows if row.key == key) for key in (a_key, b_key))
        means = [view.cells[key, paper_tables.AVERAGE].published for key in (a_key, b_key)]
        if means[0] is not None and means[1] is not None and None not in parts:
            error = math.sqrt(sum(p for p in parts if p is not None)) / len(parts)
            lines.append(_gap(paper_tables.AVERAGE, None, a, b, means[0] - means[1], error, "of its columns", z))
    names = ["column", "row", "against", "gap", "stderr", "noise", "items", "basis", "verdict"]
    return pd.DataFrame(lines, columns=names).astype({"items": "Int64"})


def _pairs(view: View) -> Iterator[tuple[paper_tables.Column, paper_tables.Row, paper_tables.Row, pd.DataFrame | None]]:
    """Column, two rows of a group, and the items that both have run: `ours_value`, `ours_weight`, `against_...`."""

    for column in view.table.columns:
        for group in view.groups():
            values = {row.key: view.item_values(row, column) for row in group}
            for a, b in combinations(group, 2):
                one, other = values[a.key], values[b.key]
                items = None
                if one is not None and other is not None:
                    union = one.add_prefix("ours_").join(other.add_prefix("against_"), how="outer")
                    items = union.dropna()
                    items.attrs["unpaired"] = len(union) - len(items)
                yield column, a, b, None if items is None or items.empty else items


def _gap_error(
    column: paper_tables.Column, one: float | None, other: float | None, items: pd.DataFrame | None
) -> tuple[float | None, str]:
    deviation = None if items is None else statistics.spread((items["ours_value"] - items["against_value"]).tolist())
    if deviation:
        return deviation / math.sqrt(column.items), "our items"
    if one is None or other is None or column.rating:
        return None, "none"
    return 100 * statistics.binomial_difference_error(one / 100, other / 100, column.items), "binomial"


def _gap(
    name: str,
    items: int | None,
    a: paper_tables.Row,
    b: paper_tables.Row,
    gap: float,
    error: float | None,
    basis: str,
    z: float,
) -> dict[str, Any]:
    verdict = NOT_RUN if error is None else statistics.APART if abs(gap) > z * error else statistics.WITHIN_NOISE
    return {
        "column": name,
        "row": a.key,
        "against": b.key,
        "gap": round(gap, 6),
        "stderr": error,
        "noise": None if error is None else z * error,
        "items": items,
        "basis": basis,
        "verdict": verdict,
    }
