"""The page of examples by hand: whose response and score stands where, what is marked, and that text is no markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages.examples import Settings, drawn, run
from mnpo.storage.records import JUDGED, PROMPTS, write

HOSTILE = "<script>alert('1')</script></td><b>&amp; \"x\"\n  second line</b>"
# Policy -> prompt -> the first sampled response, how it ended, its tokens, its scores by `overall` and `short`.
SAMPLED: dict[str, dict[str, tuple[str, str, int, float, float]]] = {
    "sft": {"p1": (HOSTILE, "stop", 9, 1.25, 0.5), "p2": ("both", "length", 7, 0.5, 0.25)},
    "run.2": {"p1": ("fine", "stop", 2, 1.5, 0.50004), "p2": (" \n", "length", 7, 0.5, -1.0)},
    "other.1": {"p1": ("also fine", "stop", 3, 1.49996, 0.5), "p2": ("no", "stop", 2, 0.5, 0.0)},
}
CONTEXT = json.dumps([{"role": "system", "content": "Be <i>brief</i>."}])
ASKED = [
    {"prompt_id": "p1", "family": "sort", "prompt": "Sort <2 1>", "truth": "", "context": CONTEXT},
    {"prompt_id": "p2", "family": "", "prompt": "Say no", "truth": "", "context": ""},
]


class Page(HTMLParser):
    """What a browser would see: the texts of cells, turns and notes, row by row, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.turns: list[str] = []
        self.notes: list[str] = []
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        into = self.rows[-1] if tag in ("th", "td") else self.notes if tag == "li" else None
        into = self.turns if ("class", "turn") in attrs else into
        if into is not None:
            self._into = into
            into.append("")
        elif tag == "b":
            self.handle_data("*")
        elif ("class", "mark") in attrs:
            self.handle_data("|")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tr", "li", "section"):
            self._into = None

    def handle_data(self, data: str) -> None:
        if self._into:
            self._into[-1] += data


def evaluation(directory: Path, policy: str, finish: bool = True) -> Path:
    """What the stage `assess` would have written: beside what is shown, greedy responses and further samples."""
    rows: list[dict[str, Any]] = []
    for prompt, (response, end, tokens, *scores) in SAMPLED[policy].items():
        for oracle, score in zip(("overall", "short"), scores, strict=True):
            row = {"prompt_id": prompt, "family": "", "mode": "sampled", "k": 0, "response": response, "tokens": tokens}
            row |= {"oracle": oracle, "score": score} | ({"finish": end} if finish else {})
            rows += [row | {"k": 1, "response": "another", "score": 9.0}, row | {"mode": "greedy", "score": 9.0}, row]
    path = directory / policy / "heldout.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(JUDGED, rows, path.with_suffix(".parquet"))
    path.write_text(json.dumps({"policy": policy, "undecided": {"short": 3} if policy != "sft" else {}}))
    return path


@pytest.fixture
def settings() -> Settings:
    labels = {"sft": "SFT", "run.2": "Run & <2>", "other.1": "Other"}
    return Settings(labels=labels, scores=["overall", "short"], prompts=2, seed=5)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    write(PROMPTS, ASKED, tmp_path / "heldout.parquet")
    return tmp_path / "heldout.parquet"


def made(tmp_path: Path, settings: Settings, prompts: Path, **how: Any) -> str:
    paths = [evaluation(tmp_path, policy, **how) for policy in SAMPLED]
    run(settings, paths[::-1], prompts, tmp_path / "examples.html")  # in any order
    return (tmp_path / "examples.html").read_text()


def shown(page: Page) -> dict[str, list[list[str]]]:
    """Prompt -> its table's rows, without the headings."""
    heads = [i for i, row in enumerate(page.rows) if row[0] == "policy"]
    assert all(page.rows[i] == ["policy", "response", "tokens", "overall", "short"] for i in heads)
    tables = [page.rows[i + 1 : i + 4] for i in heads]
    return {"p1" if "also fine" in str(table) else "p2": table for table in tables}


def test_a_prompts_table_has_the_first_sample_of_each_policy_and_each_oracles_score(
    tmp_path: Path, settings: Settings, prompts: Path
) -> None:
    """p1: 1.5 and 1.49996 both print 1.500, and are best; .5 and .50004 print .500, all the same: nobody is.
    p2: all have .5 by `overall`; by `short` .25 is more than 0 and -1."""
    page = Page(made(tmp_path, settings, prompts))
    assert shown(page) == {
        "p1": [
            ["SFT", HOSTILE, "9", "1.250", "0.500"],
            ["Run & <2>", "fine", "2", "*1.500", "0.500"],
            ["Other", "also fine", "3", "*1.500", "0.500"],
        ],
        "p2": [
            ["SFT", "both|cut off at the longest length allowed", "7", "0.500", "*0.250"],
            ["Run & <2>", " \n|empty response|cut off at the longest length allowed", "7", "0.500", "-1.000"],
            ["Other", "no", "2", "0.500", "0.000"],
        ],
    }
    assert sorted(turn.strip() for turn in page.turns) == ["systemBe <i>brief</i>.", "userSay no", "userSort <2 1>"]
    assert page.notes[0].startswith("Prompts: 2 of 2 held-out ones, drawn at random, not chosen.")
    assert len(page.notes) == 3


def test_what_a_model_writes_is_text_and_the_page_loads_and_runs_nothing(
    tmp_path: Path, settings: Settings, prompts: Path
) -> None:
    text = made(tmp_path, settings, prompts)
    tags = "html head meta title style body ul li section h1 h2 small div table thead tbody tr th td b"
    assert Page(text).tags == set(tags.split())  # no script, no i
    assert text.count("<b>") == 3 and "src=" not in text and "href=" not in text and "url(" not in text
    assert "default-src 'none'" in text


def test_the_same_results_make_the_same_bytes(tmp_path: Path, settings: Settings, prompts: Path) -> None:
    assert made(tmp_path / "a", settings, prompts) == made(tmp_path / "b", settings, prompts)


def test_an_oracle_that_compares_says_so_and_what_nobody_decided(
    tmp_path: Path, settings: Settings, prompts: Path
) -> None:
    text = made(tmp_path, settings.model_copy(update={"over_reference": ["short"]}), prompts)
    notes = Page(text).notes
    assert notes[3].startswith("short compares: its scores are win rates over SFT, each response beside SFT's")
    assert notes[4] == "short: 6 comparisons without a verdict count one half"


def test_results_of_earlier_versions_do_not_say_what_was_cut(tmp_path: Path, settings: Settings, prompts: Path) -> None:
    text = made(tmp_path, settings, prompts, finish=False)
    assert Page(text).notes[3].startswith("Whether a response was cut is not known") and "cut off at" not in text


def test_prompts_are_drawn_by_their_names_and_more_of_them_begin_with_the_same() -> None:
    """In whatever order they come; another seed draws others; over many seeds each prompt is first equally often."""
    rows = [{"prompt_id": f"p{i}"} for i in range(5)]
    assert drawn(rows, 3, 7) == drawn(rows[::-1], 3, 7) == drawn(rows, 9, 7)[:3] and len(drawn(rows, 9, 7)) == 5
    first = pd.Series([drawn(rows, 1, seed)[0]["prompt_id"] for seed in range(2000)]).value_counts()
    assert first.index.sort_values().tolist() == [f"p{i}" for i in range(5)]
    assert first.between(400 - 4 * 17.9, 400 + 4 * 17.9).all()  # binomial: sd sqrt(2000 * .2 * .8) = 17.9


def test_a_policy_or_a_response_that_is_missing_is_named(tmp_path: Path, settings: Settings, prompts: Path) -> None:
    paths = [evaluation(tmp_path, policy) for policy in SAMPLED]
    output = tmp_path / "examples.html"
    with pytest.raises(BadInput, match=r"no evaluation of other\.1 among 2 files"):
        run(settings, paths[:2], prompts, output)
    write(PROMPTS, [*ASKED, {**ASKED[0], "prompt_id": "p3"}], tmp_path / "more.parquet")
    with pytest.raises(BadInput, match=r"evaluation of sft has no sampled response to the prompt p3 scored by overall"):
        run(settings.model_copy(update={"prompts": 3}), paths, tmp_path / "more.parquet", output)
    asking = settings.model_copy(update={"scores": ["overall", "kind"]})
    with pytest.raises(BadInput, match=r"of sft has no .* prompt p\d scored by kind; evaluate sft again"):
        run(asking, paths, prompts, output)
    assert not output.exists()
