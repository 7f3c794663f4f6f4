"""Stage `compare`: evaluations -> one of the paper's tables with ours beside it, and which gaps are more than noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnpo.config.blocks import Block, Ordered, nearest
from mnpo.errors import BadInput
from mnpo.planning import paper_tables
from mnpo.storage.artifacts import artifact
from mnpo.tables.cells import View
from mnpo.tables.files import write
from mnpo.tables.formats import to_csv, to_html, to_markdown, to_tex
from mnpo.tables.noise import gaps, significance
from mnpo.tables.notes import footnotes
from mnpo.tables.results import Results

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    table: str
    """A name of `paper_tables.TABLES`."""
    rows: Ordered[list[str]] = {}
    """Key of a row of the paper -> the policies that are it, one a training seed."""
    judges: Ordered[str] = {}
    """The paper's name of a judge -> ours in file names."""
    bootstrap: int
    confidence: float
    seed: int


def run(
    settings: Settings, output: Path, published: Path = Path("results/paper"), evaluations: Sequence[Path] = ()
) -> None:
    """Make one of the paper's tables, ours beside the published figures.

    {table}.csv, .md, .tex and .html; {table}-significance and -gaps beside them.

    Args:
        output: the directory of the tables.
        published: the directory of the published figures, as CSV.
        evaluations: summaries, `{policy}/{benchmark}[.{judge}[.r{repeat}]].json`, per-item Parquet beside each. What is
            not among them has not run, and the table says so.

    Raises:
        BadInput: an unknown table or row, an evaluation given twice, a summary without a key that all benchmarks write.
    """
    if settings.table not in paper_tables.TABLES:
        raise BadInput(f"unknown table {settings.table!r}{nearest(settings.table, paper_tables.TABLES)}")
    table = paper_tables.TABLES[settings.table]
    rows = table.rows(published)
    if unknown := [key for key in settings.rows if key not in [row.key for row in rows]]:
        raise BadInput(f"{table.name} has no row {unknown[0]!r}{nearest(unknown[0], [row.key for row in rows])}")
    view = View(table, rows, Results(evaluations), settings.rows, settings.judges, settings.confidence)
    published_gaps = gaps(view)
    notes = footnotes(view, published_gaps)
    texts = {
        "csv": to_csv(view),
        "md": to_markdown(view, notes),
        "tex": to_tex(view, notes),
        "html": to_html(view, notes),
    }
    inputs = [*evaluations, *(i for e in evaluations if (i := e.with_suffix(".parquet")).is_file())]
    inputs.append(published / table.file)
    for ending, text in texts.items():
        with artifact(output / f"{table.name}.{ending}", "compare", settings.model_dump(), inputs) as made:
            made.path.write_text(text, encoding="utf-8")
    for part, frame in (
        ("significance", significance(view, settings.bootstrap, settings.seed)),
        ("gaps", published_gaps),
    ):
        write(frame, output / f"{table.name}-{part}", "compare", settings.model_dump(), inputs)
