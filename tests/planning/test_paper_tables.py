"""The published figures: what is read, what the paper computed wrongly, and what its printed digits give away."""

from __future__ import annotations

import csv
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from mnpo.errors import BadInput
from mnpo.planning import paper_tables
from mnpo.planning.paper_tables import TABLES, counts, slips

REPOSITORY = Path(__file__).parents[2]
PUBLISHED = REPOSITORY / "results" / "paper"
UNMEASURED = {"family", "size"}  # columns that say what a model is


def rows(name: str) -> dict[str, paper_tables.Row]:
    return {row.key: row for row in TABLES[name].rows(PUBLISHED)}


def column(name: str, heading: str) -> paper_tables.Column:
    return next(c for c in TABLES[name].columns if c.heading == heading)


@pytest.mark.parametrize("name", TABLES)
def test_every_column_of_a_published_file_is_accounted_for(name: str) -> None:
    table = TABLES[name]
    with open(PUBLISHED / table.file, encoding="utf-8") as stream:
        heading = next(csv.reader(stream))
    measured = [x for c in table.columns if c.published for x in (c.name, c.spread, c.repeats) if x]
    average = [paper_tables.AVERAGE] if table.average else []
    assert set(heading) - UNMEASURED == {*table.key, *measured, *average}


@pytest.mark.parametrize("name", TABLES)
def test_the_copies_are_the_facts_that_were_handed_over(name: str) -> None:
    facts = REPOSITORY.parent / "shared" / "paper" / TABLES[name].file
    if not facts.is_file():
        pytest.skip(f"{facts} is not here")
    assert (PUBLISHED / TABLES[name].file).read_bytes() == facts.read_bytes()


def test_cells_are_found_by_their_row_and_column() -> None:
    """One cell a table, read off the paper."""
    cells = {
        ("table2", "TD-MNPO", "mt_bench"): "7.03",
        ("table3", "DPO", "gpqa"): "29.29",
        ("table4", "INPO", "humaneval"): "59.15",
        ("table5", "4", "alpaca_eval_2_lc_wr"): "57.42",
        ("table6", "Llama-3-8B / TD-MNPO", "alpaca_eval_2_lc_wr"): "42.94",
        ("table7", "MNPO / GPT-4.1", "alpaca_eval_2_lc_wr_mean"): "49.21",
        ("table8", "ArmoRM-Llama3 / 2", "alpaca_eval_2_lc_wr"): "55.43",
    }
    for (name, row, of), printed in cells.items():
        assert rows(name)[row].printed(of) == Decimal(printed)
    assert rows("table7")["MNPO / GPT-4.1"].printed("alpaca_eval_2_lc_wr_std") == Decimal("0.14")


def test_judges_are_those_of_the_row_or_of_the_column() -> None:
    seventh, second = TABLES["table7"], TABLES["table2"]
    assert seventh.judge(rows("table7")["DPO / GPT-4.1"], seventh.columns[0]) == "GPT-4.1"
    assert second.judge(rows("table2")["DPO"], column("table2", "MT-Bench")) == "GPT-5-mini"
    assert TABLES["table3"].judge(rows("table3")["DPO"], column("table3", "GPQA")) is None


# ----------------------------------------------------------------------------------------------------------- arithmetic


def test_the_papers_slips_are_these_and_no_others() -> None:
    """Table 3: SimPO's columns add up to 489.22 and SPPO's to 493.33; over seven, 69.89 and 70.48."""
    found = {name: slips(table, table.rows(PUBLISHED)) for name, table in TABLES.items()}
    assert {name: texts for name, texts in found.items() if texts} == {
        "table3": [
            "SimPO: average printed 69.60, the row's mean is 69.89",
            "SPPO: average printed 70.19, the row's mean is 70.48",
        ],
        "table5": ["3 over 1: printed +3.93, it is +3.95"],
        "table6": ["Llama-3-8B / INPO over Llama-3-8B / Llama-3-8B-it: printed +16.64, it is +16.68"],
    }


def test_both_averages_would_be_right_with_four_gpqa_questions_less() -> None:
    """Four of 198 are 2.02 points, a seventh of it .289: 32.32 - 2.02 is 60 of 198, 26.26 - 2.02 is 48 of 198."""
    for row, right, printed in (("SimPO", 64, "69.60"), ("SPPO", 52, "70.19")):
        cells = {c.name: Fraction(rows("table3")[row].printed(c.name) or 0) for c in TABLES["table3"].columns}
        assert abs(cells["gpqa"] - Fraction(100 * right, 198)) <= Fraction(1, 200)
        cells["gpqa"] = Fraction(100 * (right - 4), 198)
        assert abs(sum(cells.values()) / 7 - Fraction(printed)) <= Fraction(1, 200)


def test_four_averages_of_table_4_end_in_a_half_unit_and_were_rounded_both_ways() -> None:
    table, halves = TABLES["table4"], {}
    for row in table.rows(PUBLISHED):
        mean = table.mean(row)
        assert mean is not None
        if (mean * 1000) % 10 == 5 and (mean * 1000) % 1 == 0:
            halves[row.key] = (str(mean), str(row.printed("avg")))
    assert halves == {
        "SimPO": ("45.815", "45.82"),
        "SPPO": ("47.325", "47.33"),
        "HT-MNPO (ArmoRM-Llama3)": ("48.685", "48.68"),
        "HT-MNPO (Skywork-Reward-V2)": ("47.855", "47.86"),
    }


def test_tables_that_repeat_a_figure_agree() -> None:
    second, lc = rows("table2"), "alpaca_eval_2_lc_wr"
    assert rows("table5")["3"].printed(lc) == second["TD-MNPO"].printed(lc)
    for model in ("ArmoRM-Llama3", "Skywork-Reward-V2", "Athene-RM-8B"):
        assert rows("table8")[f"{model} / 3"].printed(lc) == second[f"HT-MNPO ({model})"].printed(lc)


def test_means_over_judgings_are_near_the_single_figures() -> None:
    names = {"SFT": "SFT", "DPO": "DPO", "INPO": "INPO", "MNPO": "TD-MNPO"}
    for name, single in names.items():
        row = rows("table7")[f"{name} / GPT-5-mini"]
        mean, deviation = row.printed("alpaca_eval_2_lc_wr_mean"), row.printed("alpaca_eval_2_lc_wr_std")
        printed = rows("table2")[single].printed("alpaca_eval_2_lc_wr")
        assert mean is not None and deviation is not None and printed is not None
        assert abs(mean - printed) < Decimal("1.2") * deviation


# --------------------------------------------------------------------------------------------------------------- counts


def test_counts_by_hand() -> None:
    """120 of 272 is 44.1176 percent; 28.28 is 56 of 198; of 1172, 1069 are 91.21 and 1070 are 91.30."""
    assert counts(Decimal("44.12"), 272) == [120]
    assert counts(Decimal("28.28"), 198) == [56]
    assert counts(Decimal("91.29"), 1172) == []
    assert counts(Decimal("0"), 30) == [0]


def shares(name: str, of: str, items: int) -> int:
    """How many of a column's published figures are a whole number of `items`."""
    printed = [row.printed(of) for row in TABLES[name].rows(PUBLISHED)]
    return sum(bool(counts(p, items)) for p in printed if p is not None)


@pytest.mark.parametrize(
    ("name", "of"),
    [("table3", "gpqa"), ("table3", "truthfulqa"), ("table3", "winogrande")]
    + [("table4", c) for c in ("gsm8k", "minerva_math", "aime24", "humaneval")],
)
def test_nine_of_nine_figures_are_shares_of_the_columns_items(name: str, of: str) -> None:
    items = next(c.items for c in TABLES[name].columns if c.name == of)
    assert shares(name, of, items) == 9


def test_what_the_other_digits_say() -> None:
    """As docs/ledger.md reports them."""
    assert shares("table3", "arc", 1172) == 0
    assert shares("table3", "arc", 1172 + 2376) == 8
    assert shares("table3", "ifeval", 541) == 4
    assert shares("table2", "alpaca_eval_2_lc_wr", 805) == 9
    assert shares("table2", "arena_hard_wr", 500) == 0


# ------------------------------------------------------------------------------------------------------------ bad input


def broken(tmp_path: Path, text: str) -> Path:
    (tmp_path / TABLES["table5"].file).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("players\n1\n", r"table5_players_ablation\.csv: no column 'alpaca_eval_2_lc_wr'"),
        ("players,alpaca_eval_2_lc_wr\n1,53.32\n2,high\n", r"line 3: alpaca_eval_2_lc_wr is 'high', not a number"),
        ("players,alpaca_eval_2_lc_wr\n1,53.32\n1,53.33\n", r"row '1' is given twice"),
        ("", "no column 'players'"),
    ],
)
def test_a_broken_file_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TABLES["table5"].rows(broken(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"following\.csv: the published figures of table2 are missing"):
        TABLES["table2"].rows(tmp_path)


def test_the_plan_can_import_it_without_anything_heavy() -> None:
    program = (
        "import sys, mnpo.planning.paper_tables; "
        "print(sorted({'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout.strip() == "[]"
