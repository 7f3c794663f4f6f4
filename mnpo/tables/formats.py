"""A table of the paper, with ours beside it, as CSV, Markdown, HTML and LaTeX."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mnpo import statistics
from mnpo.planning import paper_tables
from mnpo.tables.cells import Cell, View, rounded
from mnpo.tables.files import NOT_RUN, STYLE
from mnpo.tables.notes import caption


@dataclass(frozen=True)
class Markup:
    """How a format writes text, best, second best, small print and the join of ours with the paper's."""

    escape: Callable[[str], str]
    best: str
    second: str
    small: str
    join: str

    def figure(self, value: float, decimals: int, rank: int | None) -> str:
        """A figure, marked by its rank."""
        return {1: self.best, 2: self.second}.get(rank or 0, "{}").format(rounded(value, decimals))


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {c: "\\" + c for c in "&%$#_{}"} | {"±": r"$\pm$", "−": "$-$", "<": "$<$", ">": "$>$"}
    return "".join(special.get(c, c) for c in text)


MARKDOWN = Markup(lambda text: text.replace("|", "\\|"), "**{}**", "*{}*", "{}", " ")
HTML = Markup(html.escape, "<b>{}</b>", "<u>{}</u>", "<small>{}</small>", "<br>")
TEX = Markup(_tex, r"\textbf{{{}}}", r"\underline{{{}}}", "{{\\footnotesize {}}}", " & ")


def _ours(cell: Cell, column: paper_tables.Column, markup: Markup) -> str:
    """Ours ± standard error, and the spread over seeds or judgings where there are several."""
    if cell.ours is None:
        return NOT_RUN
    error = "" if cell.stderr is None else f" ± {cell.stderr:.{column.decimals}f}"
    for count, spread, noun in (
        (cell.seeds, cell.seeds_spread, "seeds"),
        (cell.repeats, cell.repeats_spread, "judgings"),
    ):
        error += "" if spread is None else f", sd {spread:.{column.decimals}f} of {count} {noun}"
    text = markup.figure(cell.ours, column.decimals, cell.ours_rank)
    return text + (markup.small.format(markup.escape(error)) if error else "")


def _papers(cell: Cell, column: paper_tables.Column, markup: Markup) -> str:
    """The paper's figure, its spread over judgings, and how far ours is from it."""
    if cell.published is None:
        return ""
    text = markup.figure(cell.published, column.decimals, cell.published_rank)
    if cell.published_spread is not None:
        text += markup.escape(f" ± {cell.published_spread:.{column.decimals}f}")
    if cell.difference is not None:
        text += markup.escape(f", {cell.difference:+.{column.decimals}f}".replace("-", "−"))
    return text


def _grid(view: View, markup: Markup) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for reading: a row's key, then ours with the paper's in brackets or below."""
    headings = [markup.escape(k.replace("_", " ")) for k in view.table.key]
    headings += [markup.escape(column.heading) for column in view.columns]
    lines = []
    for row in view.rows:
        line = [markup.escape(row.cells[k]) for k in view.table.key]
        for column in view.columns:
            cell = view.cells[row.key, column.name]
            papers = _papers(cell, column, markup)
            below = [markup.small.format(f"(paper {papers})")] if papers else []
            line.append(markup.join.join([_ours(cell, column, markup), *below]))
        lines.append(line)
    return headings, lines


def to_csv(view: View) -> str:
    """A line for every cell, with all digits, and the protocols that the other formats have in footnotes."""
    import pandas as pd

    z = statistics.normal_quantile(view.confidence)
    lines = []
    for row in view.rows:
        for column in view.columns:
            cell = view.cells[row.key, column.name]
            bounds = (
                {"low": cell.ours - z * cell.stderr, "high": cell.ours + z * cell.stderr}
                if cell.ours is not None and cell.stderr is not None
                else {"low": None, "high": None}
            )
            lines.append(
                {
                    **{k: row.cells[k] for k in view.table.key},
                    "column": column.name,
                    "benchmark": column.benchmark,
                    "metric": column.metric,
                    "judge": view.table.judge(row, column),
                    "policies": " ".join(view.found(row, column)),
                    **vars(cell),
                    "difference": cell.difference,
                    **bounds,
                    "protocol": " / ".join(dict.fromkeys(r.summary["protocol"] for r in view.judgings(row, column))),
                }
            )
    frame = pd.DataFrame(lines)
    whole = [c for c in ("published_repeats", "items", "missing", "published_rank", "ours_rank") if c in frame]
    return str(frame.astype(dict.fromkeys(whole, "Int64")).to_csv(index=False))


def to_markdown(view: View, notes: Sequence[str]) -> str:
    """Ours, and the paper's in brackets."""
    import pandas as pd

    headings, lines = _grid(view, MARKDOWN)
    text = pd.DataFrame(lines, columns=headings).to_markdown(index=False, disable_numparse=True)
    return f"**{caption(view)}**\n\n{text}\n\n" + "".join(f"- {MARKDOWN.escape(n)}\n" for n in notes)


def to_html(view: View, notes: Sequence[str]) -> str:
    """Ours, and the paper's below it; reads on a phone."""
    import pandas as pd

    headings, lines = _grid(view, HTML)
    text = pd.DataFrame(lines, columns=headings).to_html(index=False, border=0, escape=False)
    listed = "".join(f"<li>{HTML.escape(n)}</li>\n" for n in notes)
    return f"{STYLE}<h3>{HTML.escape(caption(view))}</h3>\n{text}\n<ul>\n{listed}</ul>\n"


def to_tex(view: View, notes: Sequence[str]) -> str:
    """A booktabs table as wide as the page: each column twice, ours and the paper's."""
    keys = len(view.table.key)
    shown = view.columns
    first = [""] * keys + [rf"\multicolumn{{2}}{{c}}{{{_tex(c.heading)}}}" for c in shown]
    second = [_tex(k.replace("_", " ")) for k in view.table.key] + ["ours", "paper"] * len(shown)
    rules = " ".join(rf"\cmidrule(lr){{{keys + 2 * i + 1}-{keys + 2 * i + 2}}}" for i in range(len(shown)))
    body = []
    for row in view.rows:
        line = [_tex(row.cells[k]) for k in view.table.key]
        for column in shown:
            cell = view.cells[row.key, column.name]
            line += [_ours(cell, column, TEX), _papers(cell, column, TEX)]
        body.append(" & ".join(line) + r" \\")
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            rf"\caption{{{_tex(caption(view))}}}",
            r"\resizebox{\linewidth}{!}{%",
            rf"\begin{{tabular}}{{{'l' * keys}{'r' * 2 * len(shown)}}}",
            r"\toprule",
            " & ".join(first) + r" \\",
            rules,
            " & ".join(second) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\par\footnotesize",
            *(_tex(note) + r"\par" for note in notes),
            r"\end{table}",
            "",
        ]
    )
