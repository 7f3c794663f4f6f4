"""The paper's tables beside ours: cells, averages, marks, footnotes and comparisons, by hand."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.planning.paper_tables import TABLES
from mnpo.stages.compare import Settings, run
from mnpo.storage.records import ITEMS, write

PUBLISHED = Path(__file__).parents[2] / "results" / "paper"
JUDGES = {"GPT-5-mini": "mini", "GPT-4.1": "big"}


def files(table: str) -> list[str]:
    parts = [f"{table}-{part}.{ending}" for part in ("significance", "gaps") for ending in ("csv", "md", "html")]
    return [*(f"{table}.{ending}" for ending in ("csv", "md", "tex", "html")), *parts]


def evaluation(root: Path, policy: str, stem: str, values: dict[str, float], **changes: Any) -> Path:
    """What a benchmark would have written: items, and a summary whose value is their mean in percent."""
    path = root / policy / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"item_id": i, "value": v, "weight": 1.0, "response": "r", "tokens": 1} for i, v in values.items()]
    write(ITEMS, rows, path.with_suffix(".parquet"))
    numbers = np.array(list(values.values()))
    summary = {
        "policy": policy,
        "benchmark": stem.split(".")[0],
        "value": 100 * float(numbers.mean()),
        "stderr": 100 * float(numbers.std(ddof=1) / math.sqrt(len(numbers))),
        "metric": "accuracy",
        "items": len(values),
        "metrics": {},
        "protocol": "greedy, zero-shot",
        "missing": 0,
    }
    path.write_text(json.dumps({**summary, **changes}))
    return path


def correct(right: int, items: int) -> dict[str, float]:
    return {f"q{i:03}": float(i < right) for i in range(items)}


def settings(table: str, rows: dict[str, list[str]]) -> Settings:
    return Settings(table=table, rows=rows, judges=JUDGES, bootstrap=500, confidence=0.95, seed=0)


def read_csv(output: Path, table: str) -> pd.DataFrame:
    text = {"players": str, "row": str, "against": str}
    return pd.read_csv(output / f"{table}.csv", dtype=text, keep_default_na=False, na_values=[""])


FOURTH = {"gsm8k": (8, 10), "minerva": (5, 10), "aime24": (1, 10), "humaneval": (6, 10)}


@pytest.fixture
def fourth(tmp_path: Path) -> Path:
    """Table 4: SFT ran all four, INPO all but one, TD-MNPO has two seeds, one of which lacks HumanEval."""
    paths = [evaluation(tmp_path, "sft", b, correct(*c)) for b, c in FOURTH.items()]
    paths += [evaluation(tmp_path, "inpo.3", b, correct(*c)) for b, c in FOURTH.items() if b != "humaneval"]
    for policy, right in (("td.3", 9), ("td-2.3", 7)):
        paths.append(evaluation(tmp_path, policy, "gsm8k", correct(right, 10)))
    paths.append(
        evaluation(
            tmp_path,
            "td.3",
            "humaneval",
            correct(8, 10),
            missing=2,
            read_otherwise=4,
            answers=164,
            empty={"length": 3},
            protocol="sampled",
        )
    )
    rows = {"SFT": ["sft"], "INPO": ["inpo.3"], "TD-MNPO": ["td.3", "td-2.3"]}
    run(settings("table4", rows), tmp_path / "tables", PUBLISHED, paths[::-1])
    return tmp_path / "tables"


def test_every_file_is_there(fourth: Path) -> None:
    made = {p.name for p in fourth.iterdir() if not p.name.endswith(".manifest.json")}
    assert made == set(files("table4"))
    assert json.loads((fourth / "table4.md.manifest.json").read_text())["stage"] == "compare"


def test_ours_the_papers_and_the_difference_with_all_digits(fourth: Path) -> None:
    table = read_csv(fourth, "table4").set_index(["model", "column"])
    assert len(table) == 9 * 5
    cell = table.loc[("SFT", "gsm8k")]
    assert (cell["ours"], cell["published"]) == (80.0, 81.96)
    assert cell["difference"] == pytest.approx(-1.96)
    assert cell["stderr"] == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 9))  # sample variance of 8 of 10: n/(n-1) p q
    assert (cell["low"], cell["high"]) == pytest.approx(
        (80 - 1.959964 * cell["stderr"], 80 + 1.959964 * cell["stderr"])
    )
    assert (cell["items"], cell["seeds"], cell["policies"]) == (10, 1, "sft")
    assert cell["protocol"] == "greedy, zero-shot"
    not_run = table.loc[("DPO", "gsm8k")]
    assert not_run[["ours", "stderr", "difference", "items", "protocol"]].isna().all() and not_run["published"] == 82.03


def test_seeds_are_averaged_and_their_spread_shown(fourth: Path) -> None:
    """90 and 70: mean 80, sample standard deviation sqrt(200)."""
    table = read_csv(fourth, "table4").set_index(["model", "column"])
    cell = table.loc[("TD-MNPO", "gsm8k")]
    assert (cell["ours"], cell["seeds"]) == (80.0, 2)
    assert cell["seeds_spread"] == pytest.approx(math.sqrt(200))
    assert cell["stderr"] == pytest.approx(100 * (math.sqrt(0.09 / 9) + math.sqrt(0.21 / 9)) / 2)
    text = (fourth / "table4.md").read_text()
    assert "80.00 ± 12.64, sd 14.14 of 2 seeds" in text.replace("*", "")
    assert "HumanEval, TD-MNPO: 1 of 2 seeds have run." in text


def test_an_average_is_there_only_where_all_columns_are(fourth: Path) -> None:
    table = read_csv(fourth, "table4").set_index(["model", "column"])
    average = table.loc[("SFT", "avg")]
    assert average["ours"] == pytest.approx((80 + 50 + 10 + 60) / 4)
    errors = [table.loc[("SFT", c), "stderr"] for c in ("gsm8k", "minerva_math", "aime24", "humaneval")]
    assert average["stderr"] == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 4)
    assert average["published"] == pytest.approx(46.6125)  # computed from the printed row, printed as 46.61
    assert math.isnan(table.loc[("INPO", "avg"), "ours"]) and table.loc[("INPO", "avg"), "published"] == 47.1025


def test_best_and_second_best_as_printed_ties_share(fourth: Path) -> None:
    """GSM8K: SFT, INPO and TD-MNPO all 80.00, nothing to mark. HumanEval: TD-MNPO 80, SFT 60.

    The paper's HumanEval: 61.59 TD-MNPO, 60.98 HT ArmoRM. Its AIME-24: two rows 3.33, all others second with 0.00.
    """
    table = read_csv(fourth, "table4")

    def ranks(whose: str, column: str) -> dict[str, int]:
        cells = table[table["column"] == column].set_index("model")[f"{whose}_rank"]
        return {str(model): int(rank) for model, rank in cells.dropna().items()}

    assert ranks("ours", "gsm8k") == {} and ranks("ours", "humaneval") == {"TD-MNPO": 1, "SFT": 2}
    assert ranks("published", "humaneval") == {"TD-MNPO": 1, "HT-MNPO (ArmoRM-Llama3)": 2}
    best = [model for model, rank in ranks("published", "aime24").items() if rank == 1]
    assert best == ["TD-MNPO", "HT-MNPO (ArmoRM-Llama3)"]
    text = (fourth / "table4.md").read_text()
    assert "**80.00** ± 13.33 (paper **61.59**, +18.41)" in text
    assert "*60.00* ± 16.33 (paper 60.37, −0.37)" in text
    assert "n/a (paper *60.98*)" in text


def test_halves_are_rounded_up_as_the_paper_does_mostly(fourth: Path) -> None:
    """SimPO's exact mean is 45.815, whose binary form is below it."""
    assert "n/a (paper 45.82)" in (fourth / "table4.md").read_text()


def test_footnotes_say_protocol_items_and_what_is_missing(fourth: Path) -> None:
    text = (fourth / "table4.md").read_text()
    assert "- GSM8K: greedy, zero-shot (10 items; the paper's figure rests on 1319)." in text
    assert "- HumanEval, SFT: greedy, zero-shot" in text and "- HumanEval, TD-MNPO: sampled" in text
    assert "HumanEval: measured in different ways, rows do not compare." in text
    assert "HumanEval, TD-MNPO: 2 verdicts, ratings or checks missing, not counted." in text
    assert "HumanEval, TD-MNPO: 4 replies of the judge hold another rating, or none, in the reading that" in text
    assert text.count("- HumanEval, TD-MNPO: 3 of 164 answers are empty (3 length), and count as such.\n") == 1
    assert "HumanEval: noise is up to about 10.6, and 0 of the paper's 36 gaps are larger." in text


def test_latex_is_balanced_and_escaped(fourth: Path, tmp_path: Path) -> None:
    text = (fourth / "table4.tex").read_text()
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == 9 and all(line.count("&") == 2 * 5 and line.endswith(r"\\") for line in body)
    assert r"\textbf{80.00}{\footnotesize  $\pm$ 13.33} & \textbf{61.59}, +18.41" in body[5]
    assert text.count("{") == text.count("}") and r"\begin{tabular}{lrrrrrrrrrr}" in text
    assert r"in 95\% of cases" in text and "±" not in text
    evaluation(tmp_path, "x", "gsm8k", correct(1, 2), protocol=r"5_shot & 100% \boxed{}")
    run(settings("table4", {"SFT": ["x"]}), tmp_path / "other", PUBLISHED, [tmp_path / "x" / "gsm8k.json"])
    assert r"5\_shot \& 100\% \textbackslash{}boxed\{\}" in (tmp_path / "other" / "table4.tex").read_text()


def test_html_is_escaped_and_fits_a_phone(tmp_path: Path) -> None:
    path = evaluation(tmp_path, "x", "gsm8k", correct(1, 2), protocol="<script>")
    run(settings("table4", {"SFT": ["x"]}), tmp_path, PUBLISHED, [path])
    text = (tmp_path / "table4.html").read_text()
    assert "&lt;script&gt;" in text and "<script>" not in text and 'name="viewport"' in text
    assert text.count("<tr") == 1 + 9 and "<b>" in text and "<u>" in text
    assert "50.00<small> ± 50.00</small><br><small>(paper 81.96, −31.96)</small>" in text


def test_the_same_evaluations_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [evaluation(tmp_path, p, b, correct(*c)) for p in ("sft", "inpo.3") for b, c in FOURTH.items()]
    for directory, given in (("a", paths), ("b", paths[::-1])):
        run(settings("table4", {"SFT": ["sft"], "INPO": ["inpo.3"]}), tmp_path / directory, PUBLISHED, given)
    for name in files("table4"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("number", range(2, 9))
def test_a_table_of_which_nothing_has_run_says_so(tmp_path: Path, number: int) -> None:
    name = f"table{number}"
    run(settings(name, {}), tmp_path, PUBLISHED, [])
    table = read_csv(tmp_path, name)
    assert table["ours"].isna().all() and table["published"].notna().any()
    first = (tmp_path / f"{name}.md").read_text().splitlines()[4]
    assert first.count("n/a") == len(table["column"].unique())
    assert len(pd.read_csv(tmp_path / f"{name}-significance.csv")) == 0


# --------------------------------------------------------------------------------------------------------------- judges


def test_the_papers_harness_is_compared_like_with_like(tmp_path: Path) -> None:
    """Its AlpacaEval has one rate, plain, which is what the paper prints; its Minerva-Math has a judge."""
    plain = {"harness": "evalscope", "metric": "win_rate", "protocol": "EvalScope"}
    paths = [evaluation(tmp_path, "sft", "alpaca-eval.mini", correct(6, 10), **plain)]
    paths.append(evaluation(tmp_path, "dpo.1", "alpaca-eval.mini", correct(3, 10), metric="win_rate"))
    run(settings("table2", {"SFT": ["sft"], "DPO": ["dpo.1"]}), tmp_path / "two", PUBLISHED, paths)
    table = read_csv(tmp_path / "two", "table2").set_index(["model", "column"])["ours"]
    assert table["SFT", "alpaca_eval_2_lc_wr"] == 60 and math.isnan(table["DPO", "alpaca_eval_2_lc_wr"])
    assert (
        table["DPO", "alpaca_eval_2_wr"] == 30 and "measured in different" in (tmp_path / "two/table2.md").read_text()
    )
    paths = [evaluation(tmp_path, "sft", "minerva.mini", correct(4, 10), harness="evalscope")]
    paths.append(evaluation(tmp_path, "dpo.1", "minerva", correct(2, 10)))
    run(settings("table4", {"SFT": ["sft"], "DPO": ["dpo.1"]}), tmp_path / "four", PUBLISHED, paths)
    table = read_csv(tmp_path / "four", "table4").set_index(["model", "column"])["ours"]
    assert (table["SFT", "minerva_math"], table["DPO", "minerva_math"]) == (40, 20)


def test_rows_of_table_7_have_their_own_judge_and_its_judgings(tmp_path: Path) -> None:
    """Three judgings by the small judge, 50, 52 and 54: mean 52, standard deviation 2; one by the large one."""
    stems = {
        "alpaca-eval.mini": 50.0,
        "alpaca-eval.mini.r2": 52.0,
        "alpaca-eval.mini.r3": 54.0,
        "alpaca-eval.big": 40.0,
    }
    paths = [
        evaluation(
            tmp_path,
            "sft",
            stem,
            {"a": 1.0, "b": 0.0},
            metric="win_rate",
            value=value + 1,
            stderr=1.25,
            metrics={"length_controlled_winrate": value, "length_controlled_standard_error": 1.5},
        )
        for stem, value in stems.items()
    ]
    rows = {f"SFT / {judge}": ["sft"] for judge in (*JUDGES, "GPT-4-1106-preview")}
    run(settings("table7", rows), tmp_path / "tables", PUBLISHED, paths)
    table = read_csv(tmp_path / "tables", "table7").set_index(["model", "judge", "column"])
    small = table.loc[("SFT", "GPT-5-mini", "alpaca_eval_2_lc_wr_mean")]
    assert (small["ours"], small["repeats"], small["repeats_spread"], small["stderr"]) == (52.0, 3, 2.0, 1.5)
    assert (small["published"], small["published_spread"], small["published_repeats"]) == (49.95, 0.18, 3)
    plain = table.loc[("SFT", "GPT-5-mini", "alpaca_eval_2_wr")]
    assert (plain["ours"], plain["stderr"]) == (53.0, 1.25) and math.isnan(plain["published"])
    large = table.loc[("SFT", "GPT-4.1", "alpaca_eval_2_lc_wr_mean")]
    assert (large["ours"], large["repeats"]) == (40.0, 1)
    assert math.isnan(table.loc[("SFT", "GPT-4-1106-preview", "alpaca_eval_2_lc_wr_mean")]["ours"])
    text = (tmp_path / "tables" / "table7.md").read_text()
    assert "52.00 ± 1.50, sd 2.00 of 3 judgings (paper 49.95 ± 0.18, +2.05)" in text


def test_a_metric_that_was_not_reported_is_said(tmp_path: Path) -> None:
    path = evaluation(tmp_path, "sft", "alpaca-eval.mini", correct(1, 2), metric="win_rate")
    run(settings("table5", {"1": ["sft"]}), tmp_path / "tables", PUBLISHED, [path])
    text = (tmp_path / "tables" / "table5.md").read_text()
    assert "AlpacaEval 2 LC, 1: alpaca-eval.mini.json does not report length_controlled_winrate." in text
    assert re.search(r"\| 1 +\| n/a \(paper 53\.32\) +\| 50\.00 ± 50\.00 +\|", text)


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_significance_pairs_items_and_counts_those_without_a_partner(tmp_path: Path) -> None:
    """30 shared items, the second policy right on the last ten too: a third more, always apart."""
    first, second = correct(10, 30), correct(20, 30)
    paths = [
        evaluation(tmp_path, "sft", "gsm8k", {**first, "only here": 1.0}),
        evaluation(tmp_path, "inpo.3", "gsm8k", second),
    ]
    run(settings("table4", {"SFT": ["sft"], "INPO": ["inpo.3"]}), tmp_path / "tables", PUBLISHED, paths)
    table = pd.read_csv(tmp_path / "tables" / "table4-significance.csv")
    assert len(table) == 1
    line = table.iloc[0]
    assert (line["column"], line["row"], line["against"]) == ("gsm8k", "SFT", "INPO")
    assert line["difference"] == pytest.approx(-100 / 3)
    assert line["difference_low"] <= line["difference"] <= line["difference_high"] < 0
    assert (line["items"], line["unpaired"], line["share"], line["verdict"]) == (30, 1, 0.0, "apart")


def test_policies_that_differ_by_chance_are_within_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    paths = [
        evaluation(tmp_path, p, "gsm8k", {f"q{i}": float(v) for i, v in enumerate(rng.integers(0, 2, 50))})
        for p in ("sft", "inpo.3")
    ]
    run(settings("table4", {"SFT": ["sft"], "INPO": ["inpo.3"]}), tmp_path / "tables", PUBLISHED, paths)
    line = pd.read_csv(tmp_path / "tables" / "table4-significance.csv").iloc[0]
    assert line["difference_low"] < 0 < line["difference_high"] and line["verdict"] == "within noise"


def test_length_controlled_rates_are_no_means_over_items(tmp_path: Path) -> None:
    paths = [
        evaluation(tmp_path, p, "alpaca-eval.mini", correct(n, 9), metric="win_rate") for p, n in (("a", 3), ("b", 5))
    ]
    run(settings("table5", {"1": ["a"], "2": ["b"]}), tmp_path / "tables", PUBLISHED, paths)
    table = pd.read_csv(tmp_path / "tables" / "table5-significance.csv")
    assert table["column"].tolist() == ["alpaca_eval_2_wr"]


def test_published_gaps_against_the_noise_of_their_items(tmp_path: Path) -> None:
    """GPQA, 198 questions: TD-MNPO 33.33 over SPPO 26.26, mean .29795: error sqrt(2 * .29795 * .70205 / 198) = .04597,
    noise 9.01 points, the gap of 7.07 within it; Skywork's 36.36 over SPPO: mean .3131, noise 9.14, gap 10.10: apart.
    """
    run(settings("table3", {}), tmp_path, PUBLISHED, [])
    gaps = pd.read_csv(tmp_path / "table3-gaps.csv").set_index(["column", "row", "against"])
    assert len(gaps) == 36 * 8
    near = gaps.loc[("gpqa", "SPPO", "TD-MNPO")]
    assert near["gap"] == pytest.approx(-7.07) and near["stderr"] == pytest.approx(4.597, abs=0.001)
    assert near["noise"] == pytest.approx(9.01, abs=0.005)
    assert (near["items"], near["basis"], near["verdict"]) == (198, "binomial", "within noise")
    far = gaps.loc[("gpqa", "SPPO", "HT-MNPO (Skywork-Reward-V2)")]
    assert (far["verdict"], round(far["noise"], 2)) == ("apart", 9.14)
    parts = gaps.xs(("SPPO", "TD-MNPO"), level=("row", "against"))
    errors = parts["stderr"].drop("avg")
    assert parts.loc["avg", "stderr"] == pytest.approx(math.sqrt((errors**2).sum()) / 7)


def test_the_gaps_that_the_ledger_reports(tmp_path: Path) -> None:
    """docs/ledger.md, section 4: column -> gaps larger than noise, of how many, among the trained rows."""
    expected = {
        "table2": {"alpaca_eval_2_lc_wr": (8, 36), "arena_hard_wr": (8, 36), "mt_bench": (0, 36)},
        "table3": dict.fromkeys(("ifeval", "arc", "winogrande"), (0, 36))
        | dict.fromkeys(("mmlu", "hellaswag", "truthfulqa"), (8, 36))
        | {"gpqa": (1, 36), "avg": (1, 36)},
        "table4": dict.fromkeys(("gsm8k", "minerva_math", "aime24", "humaneval", "avg"), (0, 36)),
        "table5": {"alpaca_eval_2_lc_wr": (0, 6)},
        "table6": {"alpaca_eval_2_lc_wr": (2, 3)},
        "table7": {"alpaca_eval_2_lc_wr_mean": (7, 18)},
        "table8": {"alpaca_eval_2_lc_wr": (1, 15)},
    }
    for name, columns in expected.items():
        run(settings(name, {}), tmp_path, PUBLISHED, [])
        gaps = pd.read_csv(tmp_path / f"{name}-gaps.csv", keep_default_na=False)
        if name == "table2":
            trained = [r.key for r in TABLES[name].rows(PUBLISHED) if r.cells["family"] == "gemma-2-9b-it"]
            gaps = gaps[gaps["row"].isin(trained)]
        found = {c: (int((g["verdict"] == "apart").sum()), len(g)) for c, g in gaps.groupby("column")}
        assert found == columns


def test_a_gap_is_measured_by_our_own_items_where_both_rows_ran(tmp_path: Path) -> None:
    """Ten items, two of them different, one each way: 1, -1, eight 0: variance 2/9, error sqrt(2/9/80) = .053.

    The paper's gap of .38 is more than 1.96 of it.
    """
    first, second = correct(5, 10), {**correct(5, 10), "q000": 0.0, "q009": 1.0}
    paths = [
        evaluation(tmp_path, p, "mt-bench.mini", items, value=5.0, stderr=0.1)
        for p, items in (("sft", first), ("dpo.1", second))
    ]
    run(settings("table2", {"SFT": ["sft"], "DPO": ["dpo.1"]}), tmp_path / "tables", PUBLISHED, paths)
    gaps = pd.read_csv(tmp_path / "tables" / "table2-gaps.csv", keep_default_na=False)
    lines = gaps.set_index(["column", "row", "against"])
    ours = lines.loc[("mt_bench", "SFT", "DPO")]
    assert float(ours["stderr"]) == pytest.approx(math.sqrt(2 / 9 / 80))  # a rating: not in percent
    assert (ours["basis"], ours["verdict"]) == ("our items", "apart")
    assert tuple(lines.loc[("mt_bench", "SFT", "INPO"), ["basis", "verdict"]]) == ("none", "n/a")
    assert not ((gaps["row"] == "SFT") & (gaps["against"] == "OpenAI/GPT-5")).any()  # families are not compared


# ------------------------------------------------------------------------------------------------------------ bad input


def test_what_cannot_be_compared_is_one_message(tmp_path: Path) -> None:
    good = evaluation(tmp_path, "sft", "gsm8k", correct(1, 2))
    with pytest.raises(BadInput, match="unknown table 'table9'; did you mean 'table"):
        run(settings("table9", {}), tmp_path, PUBLISHED, [])
    with pytest.raises(BadInput, match="table4 has no row 'TDMNPO'; did you mean 'TD-MNPO'"):
        run(settings("table4", {"TDMNPO": ["sft"]}), tmp_path, PUBLISHED, [good])
    twin = evaluation(tmp_path / "copy", "sft", "gsm8k", correct(1, 2))
    with pytest.raises(BadInput, match="are evaluations of the same thing; give one"):
        run(settings("table4", {"SFT": ["sft"]}), tmp_path, PUBLISHED, [good, twin])
    summary = json.loads(good.read_text())
    good.write_text(json.dumps({k: v for k, v in summary.items() if k != "protocol"}))
    with pytest.raises(BadInput, match=r"gsm8k\.json: no 'protocol'; evaluate sft again"):
        run(settings("table4", {"SFT": ["sft"]}), tmp_path, PUBLISHED, [good])
