"""Our results on the public benchmarks, by policy, benchmark and judge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.errors import BadInput
from mnpo.planning import paper_tables
from mnpo.storage.records import ITEMS, read

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Result:
    """One summary and where it is."""

    path: Path
    summary: Mapping[str, Any]

    def metric(self, column: paper_tables.Column) -> tuple[float, float | None] | None:
        """A column's figure and its standard error (None where not given); None where it was not reported."""
        metric = column.evalscope if self.summary.get("harness") == "evalscope" else column.metric
        if metric in (paper_tables.VALUE, self.summary["metric"]):
            return self.summary["value"], self.summary["stderr"]
        metrics = self.summary["metrics"]
        return (metrics[metric], metrics.get(column.stderr)) if metric in metrics else None

    @cached_property
    def items(self) -> pd.DataFrame:
        """Item id -> value and weight, from the Parquet file beside the summary."""
        rows = read(ITEMS, self.path.with_suffix(".parquet"))
        return rows.set_index("item_id")[["value", "weight"]].sort_index()


class Results:
    """Evaluations by policy, benchmark and judge; what judged them is in their file names."""

    def __init__(self, evaluations: Sequence[Path]) -> None:
        self.of: dict[tuple[str, str, str | None], list[Result]] = {}
        seen: dict[tuple[str, str], Path] = {}
        for path in sorted(evaluations):
            summary = json.loads(path.read_text(encoding="utf-8"))
            needed = ("policy", "benchmark", "value", "stderr", "metric", "metrics", "items", "missing", "protocol")
            if absent := [key for key in needed if key not in summary]:
                raise BadInput(f"{path}: no {absent[0]!r}; evaluate {path.parent.name} again")
            if (other := seen.setdefault((summary["policy"], path.stem), path)) != path:
                raise BadInput(f"{path} and {other} are evaluations of the same thing; give one")
            _, *named = path.stem.split(".")
            judge = ".".join(part for part in named if not re.fullmatch(r"r\d+", part)) or None
            key = (summary["policy"], summary["benchmark"], judge)
            self.of.setdefault(key, []).append(Result(path, summary))
