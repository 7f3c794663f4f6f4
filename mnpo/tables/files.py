"""How a table is written: CSV with all digits, Markdown and HTML for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from mnpo.storage.artifacts import artifact

STYLE = """\
<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>
body { font: 14px sans-serif; overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }
th { vertical-align: bottom } td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: white }
td:first-child { white-space: normal; min-width: 6em }
</style>
"""
PROTOCOL = "protocol"
READ_OTHERWISE = "replies of the judge hold another rating, or none, in the reading that `ratings` does not choose"
NOT_RUN = "n/a"
"""What stands where something has not run."""


def write(
    table: pd.DataFrame,
    output: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    notes: Sequence[str] = (),
) -> None:
    """Write `table` beside `output`: .csv with all digits, .md and .html for reading, with footnotes.

    A column `protocol` is the CSV's alone: elsewhere a footnote says it.
    """
    shown = readable(table.drop(columns=PROTOCOL, errors="ignore"))
    listed = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    texts = {
        "csv": table.to_csv(index=False),
        "md": shown.to_markdown(index=False, disable_numparse=True)
        + "\n"
        + ("\n" if notes else "")
        + "".join(f"- {note}\n" for note in notes),
        "html": STYLE
        + shown.rename(columns=lambda name: name.replace("_", " ")).to_html(index=False, border=0)
        + "\n"
        + (f"<ul>\n{listed}</ul>\n" if notes else ""),
    }
    for ending, text in texts.items():
        with artifact(output.with_suffix(f".{ending}"), stage, settings, inputs) as made:
            made.path.write_text(text, encoding="utf-8")


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: three digits, an interval beside its value in one column."""
    shown = table.map(lambda v: v if isinstance(v, (str, int)) else NOT_RUN if pd.isna(v) else f"{v:.3f}")
    for low in [c for c in table.columns if c.endswith("_low")]:
        column, high = low.removesuffix("_low"), low.removesuffix("_low") + "_high"
        bounds = " [" + shown[low] + ", " + shown[high] + "]"
        shown[column] = shown[column] + bounds.where(table[column].notna(), "")
        shown = shown.drop(columns=[low, high])
    return shown
