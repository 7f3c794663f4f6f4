"""The published tables as data: which file, which rows, what each column measures and how much of it was printed.

Figures are those of arXiv 2509.23102 v3; the CSV files are in results/paper. Averages are computed here, never read.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from mnpo.errors import BadInput

JUDGE = "GPT-5-mini"
"""The judge of every judged benchmark outside Table 7, as the paper calls it."""
VALUE = "value"
"""The metric that a benchmark's summary reports as its value."""
AVERAGE = "avg"
KEY_SEPARATOR = " / "
"""Between the parts of a row's key, where it has more than one."""


@dataclass(frozen=True)
class Column:
    """One measured column: what it is of, and how many items the published figure rests on."""

    name: str
    """In the CSV file."""
    heading: str
    benchmark: str
    items: int
    """Items behind the published figure (docs/ledger.md, "What the printed digits say")."""
    metric: str = VALUE
    evalscope: str = VALUE
    """The metric that EvalScope, the paper's harness, reports in its place."""
    stderr: str = ""
    """Where `metric` is not the summary's value: the name of its standard error among the metrics."""
    judge: str | None = None
    """Who judged the published figure; ours may need no judge."""
    decimals: int = 2
    rating: bool = False
    """A rating from 1 to 10; otherwise percent."""
    per_item: bool = True
    """Whether the figure is a mean over items; a length-controlled win rate is not."""
    published: bool = True
    """False: we report it, the paper does not."""
    spread: str | None = None
    """CSV column of the published standard deviation over judgings."""
    repeats: str | None = None
    """CSV column of how many judgings."""

    @property
    def scale(self) -> float:
        """From an item's value to the column's unit: percent points, or rating."""
        return 1.0 if self.rating else 100.0


def _alpaca(name: str, spread: str | None = None, repeats: str | None = None) -> tuple[Column, Column]:
    """AlpacaEval 2, length-controlled as the paper's captions say, and plain, which the paper does not print."""
    controlled = Column(
        name,
        "AlpacaEval 2 LC",
        "alpaca-eval",
        805,
        "length_controlled_winrate",
        stderr="length_controlled_standard_error",
        judge=JUDGE,
        per_item=False,
        spread=spread,
        repeats=repeats,
    )
    plain = Column("alpaca_eval_2_wr", "AlpacaEval 2 WR", "alpaca-eval", 805, "win_rate", judge=JUDGE, published=False)
    return controlled, plain


@dataclass(frozen=True)
class Row:
    """One published row: its cells as printed."""

    key: str
    cells: dict[str, str]

    def printed(self, column: str | None) -> Decimal | None:
        """The figure in `column`, exactly as printed; None where the paper has none."""
        text = self.cells.get(column, "") if column else ""
        return Decimal(text) if text else None


@dataclass(frozen=True)
class Table:
    """A published table."""

    name: str
    title: str
    file: str
    key: tuple[str, ...]
    """CSV columns that identify a row."""
    columns: tuple[Column, ...]
    group: str | None = None
    """CSV column within whose values rows are ranked and compared; None: all rows together."""
    average: bool = False
    """Whether it prints the mean of a row's columns."""

    def row_key(self, cells: Mapping[str, str]) -> str:
        """What a configuration calls a row."""
        return KEY_SEPARATOR.join(cells[k] for k in self.key)

    def judge(self, row: Row, column: Column) -> str | None:
        """Who judged a cell, as the paper calls it; Table 7 has a row per judge."""
        return row.cells.get("judge", column.judge) if column.judge else None

    def rows(self, directory: str | Path) -> list[Row]:
        """The rows of the table's CSV file in `directory`, in print order.

        Raises:
            BadInput: no such file, a column missing, a cell that is not a number, a row given twice.
        """
        path = Path(directory) / self.file
        if not path.is_file():
            raise BadInput(f"{path}: the published figures of {self.name} are missing; git checkout results/paper")
        with open(path, encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
        read = [c.name for c in self.columns if c.published]
        wanted = [*self.key, *read, *([self.group] if self.group else []), *([AVERAGE] if self.average else [])]
        if absent := [c for c in wanted if not lines or c not in lines[0]]:
            raise BadInput(f"{path}: no column {absent[0]!r}; git checkout results/paper")
        rows = [Row(self.row_key(cells), dict(cells)) for cells in lines]
        for number, row in enumerate(rows, 2):
            for column in read:
                try:
                    row.printed(column)
                except ArithmeticError:
                    raise BadInput(f"{path}, line {number}: {column} is {row.cells[column]!r}, not a number") from None
        keys = [row.key for row in rows]
        if twice := next((k for k in keys if keys.count(k) > 1), None):
            raise BadInput(f"{path}: row {twice!r} is given twice")
        return rows

    def mean(self, row: Row) -> Decimal | None:
        """The mean of a row's printed columns, exactly; None where one is blank."""
        cells = [row.printed(c.name) for c in self.columns if c.published]
        return None if None in cells else sum(c for c in cells if c is not None) / Decimal(len(cells))


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "table2",
            "Instruction following",
            "table2_instruction_following.csv",
            ("model",),
            (
                *_alpaca("alpaca_eval_2_lc_wr"),
                Column("arena_hard_wr", "Arena-Hard", "arena-hard", 500, judge=JUDGE),
                Column("mt_bench", "MT-Bench", "mt-bench", 80, judge=JUDGE, rating=True),
            ),
            group="family",
        ),
        Table(
            "table3",
            "Instructions, knowledge, common sense",
            "table3_instruction_knowledge_commonsense.csv",
            ("model",),
            (
                Column("ifeval", "IFEval", "ifeval", 541),
                Column("gpqa", "GPQA", "gpqa", 198),
                Column("mmlu", "MMLU", "mmlu", 14042),
                Column("arc", "ARC", "arc", 3548),
                Column("hellaswag", "HellaSwag", "hellaswag", 10042),
                Column("truthfulqa", "TruthfulQA", "truthfulqa", 817),
                Column("winogrande", "Winogrande", "winogrande", 1267),
            ),
            average=True,
        ),
        Table(
            "table4",
            "Mathematics and code",
            "table4_math_code.csv",
            ("model",),
            (
                Column("gsm8k", "GSM8K", "gsm8k", 1319),
                Column("minerva_math", "Minerva-Math", "minerva", 272, judge=JUDGE),
                Column("aime24", "AIME-24", "aime24", 30),
                Column("humaneval", "HumanEval", "humaneval", 164),
            ),
            average=True,
        ),
        Table(
            "table5",
            "Number of players",
            "table5_players_ablation.csv",
            ("players",),
            _alpaca("alpaca_eval_2_lc_wr"),
        ),
        Table(
            "table6",
            "Another base model",
            "table6_base_model_ablation.csv",
            ("base_model", "model"),
            _alpaca("alpaca_eval_2_lc_wr"),
            group="base_model",
        ),
        Table(
            "table7",
            "Judges",
            "table7_judges.csv",
            ("model", "judge"),
            _alpaca("alpaca_eval_2_lc_wr_mean", "alpaca_eval_2_lc_wr_std", "runs"),
            group="judge",
        ),
        Table(
            "table8",
            "Heterogeneous players",
            "table8_ht_players_ablation.csv",
            ("reward_model", "players"),
            _alpaca("alpaca_eval_2_lc_wr"),
        ),
    )
}


@dataclass(frozen=True)
class Claim:
    """A difference that the paper prints beside a table: `row` minus `baseline` in `column`."""

    table: str
    column: str
    row: str
    baseline: str
    printed: Decimal


CLAIMS = (
    Claim("table5", "alpaca_eval_2_lc_wr", "3", "1", Decimal("3.93")),
    Claim("table6", "alpaca_eval_2_lc_wr", "Llama-3-8B / INPO", "Llama-3-8B / Llama-3-8B-it", Decimal("16.64")),
)


def slips(table: Table, rows: list[Row]) -> list[str]:
    """Where what the paper computed is not what its own printed figures give: averages, and printed differences.

    An average counts as printed right while it is within half a unit of its last digit of the exact mean.
    """
    found = []
    for row in rows if table.average else []:
        printed, mean = row.printed(AVERAGE), table.mean(row)
        if printed is not None and mean is not None and abs(printed - mean) > _half_unit(printed):
            found.append(f"{row.key}: average printed {printed}, the row's mean is {mean:.2f}")
    by_key = {row.key: row for row in rows}
    for claim in CLAIMS:
        if claim.table != table.name:
            continue
        better, worse = (by_key[key].printed(claim.column) for key in (claim.row, claim.baseline))
        if better is not None and worse is not None and better - worse != claim.printed:
            found.append(f"{claim.row} over {claim.baseline}: printed {claim.printed:+}, it is {better - worse:+}")
    return found


def _half_unit(printed: Decimal) -> Decimal:
    return Decimal(5).scaleb(int(printed.as_tuple().exponent) - 1)


def counts(printed: Decimal, items: int) -> list[int]:
    """The numbers right, of `items`, whose share prints as `printed` percent: none means that it is no such share."""
    near = int(printed * items / 100)
    half = _half_unit(printed)
    return [k for k in (near - 1, near, near + 1, near + 2) if abs(Decimal(100 * k) / items - printed) <= half]
