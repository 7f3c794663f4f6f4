"""Stage `compare`: evaluations -> one of the paper's tables with ours beside it, and which gaps are more than noise."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo import statistics
from mnpo.config.blocks import Block, Ordered, nearest
from mnpo.errors import BadInput
from mnpo.planning import paper_tables
from mnpo.seeds import derive
from mnpo.stages.tabulate import STYLE, write
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import ITEMS, read

if TYPE_CHECKING:
    import pandas as pd

ENVIRONMENT = "eval"
NOT_RUN = "n/a"
SIDES = ("ours", "against")


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
    view = View(settings, table, rows, Results(evaluations))
    inputs = [*evaluations, *(i for e in evaluations if (i := e.with_suffix(".parquet")).is_file())]
    inputs.append(published / table.file)
    for ending, render in RENDERED.items():
        with artifact(output / f"{table.name}.{ending}", "compare", settings.model_dump(), inputs) as made:
            made.path.write_text(render(view), encoding="utf-8")
    for part, frame in (("significance", significance(view)), ("gaps", view.gaps)):
        write(frame, output / f"{table.name}-{part}", "compare", settings.model_dump(), inputs)


# --------------------------------------------------------------------------------------------------------- evaluations


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


# ---------------------------------------------------------------------------------------------------------------- cells


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
        self, settings: Settings, table: paper_tables.Table, rows: list[paper_tables.Row], results: Results
    ) -> None:
        self.settings, self.table, self.rows, self.results = settings, table, rows, results
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
        ours = self.settings.judges.get(self.table.judge(row, column) or "")
        results = self.results.of
        found = {
            p: results.get((p, column.benchmark, ours), []) or results.get((p, column.benchmark, None), [])
            for p in self.settings.rows.get(row.key, [])
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

    @cached_property
    def gaps(self) -> pd.DataFrame:
        """See `gaps`."""
        return gaps(self)

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


def _rounded(value: float, decimals: int) -> Decimal:
    """As people round: half a unit goes up, whatever its binary form."""
    return Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def _rank(cells: Sequence[Cell], field: str, decimals: int) -> None:
    """Mark best and second best as printed: figures that print the same share a rank. One figure alone has none."""
    shown = [None if (v := getattr(cell, field)) is None else _rounded(v, decimals) for cell in cells]
    order = sorted({v for v in shown if v is not None}, reverse=True)
    for cell, value in zip(cells, shown, strict=True):
        rank = order.index(value) + 1 if value is not None and len(order) > 1 else None
        setattr(cell, f"{field}_rank", rank if rank in (1, 2) else None)


# ------------------------------------------------------------------------------------------------------------ rendering


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
        return {1: self.best, 2: self.second}.get(rank or 0, "{}").format(_rounded(value, decimals))


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

    z = statistics.normal_quantile(view.settings.confidence)
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


def to_markdown(view: View) -> str:
    """Ours, and the paper's in brackets."""
    import pandas as pd

    headings, lines = _grid(view, MARKDOWN)
    text = pd.DataFrame(lines, columns=headings).to_markdown(index=False, disable_numparse=True)
    return f"**{_caption(view)}**\n\n{text}\n\n" + "".join(f"- {MARKDOWN.escape(n)}\n" for n in footnotes(view))


def to_html(view: View) -> str:
    """Ours, and the paper's below it; reads on a phone."""
    import pandas as pd

    headings, lines = _grid(view, HTML)
    text = pd.DataFrame(lines, columns=headings).to_html(index=False, border=0, escape=False)
    notes = "".join(f"<li>{HTML.escape(n)}</li>\n" for n in footnotes(view))
    return f"{STYLE}<h3>{HTML.escape(_caption(view))}</h3>\n{text}\n<ul>\n{notes}</ul>\n"


def to_tex(view: View) -> str:
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
    notes = [_tex(note) + r"\par" for note in footnotes(view)]
    return "\n".join(
        [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            rf"\caption{{{_tex(_caption(view))}}}",
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
            *notes,
            r"\end{table}",
            "",
        ]
    )


RENDERED: dict[str, Callable[[View], str]] = {"csv": to_csv, "md": to_markdown, "tex": to_tex, "html": to_html}


def _caption(view: View) -> str:
    return f"Table {view.table.name.removeprefix('table')}: {view.table.title}"


def footnotes(view: View) -> list[str]:
    """What a reader must know: units, ranks, protocols, what is missing, and the paper's slips."""
    ranked = f" of the same {view.table.group.replace('_', ' ')}" if view.table.group else ""
    unit = "percent, MT-Bench a rating from 1 to 10" if any(c.rating for c in view.columns) else "percent"
    notes = [
        f"Ours ± its standard error over items (paper's figure, ours minus it); {unit}. Marked are the best and the "
        f"second best{ranked}, ours among ours and the paper's among the paper's. {NOT_RUN}: has not run. Noise: how "
        f"far apart two equal policies come out by chance in the items, in {view.settings.confidence:.0%} of cases."
    ]
    for column in view.columns:
        notes += [*_column_notes(view, column), *_gap_notes(view, column)]
    notes += [f"The paper's arithmetic: {slip}." for slip in paper_tables.slips(view.table, view.rows)]
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
        if cell.missing:
            yield f"{column.heading}, {row.key}: {cell.missing} verdicts, ratings or checks missing, not counted."
        wanted = len(view.settings.rows.get(row.key, []))
        if 0 < cell.seeds < wanted:
            yield f"{column.heading}, {row.key}: {cell.seeds} of {wanted} seeds have run."
    items = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else ""
    for protocol, rows in protocols.items():
        where = f", {', '.join(dict.fromkeys(rows))}" if len(protocols) > 1 else ""
        yield f"{column.heading}{where}: {protocol} ({items} items; the paper's figure rests on {column.items})."
    if len(protocols) > 1:
        yield f"{column.heading}: measured in different ways, rows do not compare."


def _gap_notes(view: View, column: paper_tables.Column) -> Iterator[str]:
    """How many of a column's published gaps are more than noise, and how large one has to be."""
    judged = view.gaps[(view.gaps["column"] == column.name) & view.gaps["noise"].notna()]
    if len(judged):
        apart = int((judged["verdict"] == statistics.APART).sum())
        needed = judged["noise"][judged["noise"] > 0].median()
        yield (
            f"{column.heading}: noise is up to about {needed:.1f}, "
            f"and {apart} of the paper's {len(judged)} gaps are larger."
        )


# --------------------------------------------------------------------------------------------------------- comparisons


def significance(view: View) -> pd.DataFrame:
    """Every two rows that have run, on every benchmark: paired bootstrap over the items that both have."""
    import pandas as pd

    lines = []
    s = view.settings
    for column, a, b, items in _pairs(view):
        if not column.per_item or items is None:
            continue
        seed = derive(s.seed, "significance", view.table.name, column.name, a.key, b.key)
        ours, against, *weights = (items[f"{who}_{what}"].to_numpy() for what in ("value", "weight") for who in SIDES)
        result = statistics.paired(ours, against, s.bootstrap, s.confidence, seed, (weights[0], weights[1]))
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

    z = statistics.normal_quantile(view.settings.confidence)
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
