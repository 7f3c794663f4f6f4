"""Questions as the benchmarks' own files have them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mnpo.benchmarks.answers import TEMPERATURES
from mnpo.benchmarks.questions import Question, read_questions
from mnpo.errors import BadInput

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "benchmarks"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not here: no public benchmark data")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@needs_shared
def test_the_public_questions_are_read_whole_and_in_order() -> None:
    mt = read_questions("mt-bench", SHARED / "mt_bench")
    assert [q.item_id for q in mt] == [str(n) for n in range(81, 161)]
    assert Counter(q.category for q in mt) == dict.fromkeys(TEMPERATURES, 10)
    assert {len(q.turns) for q in mt} == {2}
    arena = read_questions("arena-hard", SHARED / "arena_hard_v0.1")
    assert len({q.item_id for q in arena}) == 500 and arena[0].turns[0].startswith("Use ABC notation")
    alpaca = read_questions("alpaca-eval", SHARED / "alpaca_eval_2")
    assert [q.item_id for q in alpaca] == [str(n) for n in range(805)] and alpaca[0].category == "helpful_base"
    assert read_questions("alpaca-eval", SHARED / "alpaca_eval_2", limit=7) == alpaca[:7]


def test_both_layouts_of_the_arena_hard_repository_are_the_same_questions(tmp_path: Path) -> None:
    common = {"category": "arena-hard-v0.1", "cluster": "Cats"}
    write_lines(tmp_path / "new/question.jsonl", [{"uid": "a1", **common, "prompt": "Why?"}])
    old = tmp_path / "old/data/arena-hard-v0.1/question.jsonl"
    write_lines(old, [{"question_id": "a1", **common, "turns": [{"content": "Why?"}]}])
    new = read_questions("arena-hard", tmp_path / "new")
    assert new == read_questions("arena-hard", tmp_path / "old") == [Question("a1", "Cats", ("Why?",))]


@pytest.mark.parametrize(
    ("benchmark", "name", "content", "message"),
    [
        ("mt-bench", "other.jsonl", "", r"none of fastchat/.*question.jsonl, question.jsonl is here; fetch"),
        ("mt-bench", "question.jsonl", "", r"question.jsonl: no questions"),
        ("mt-bench", "question.jsonl", '{"question_id": 1, "category": "math"}', r"row 0: no question of mt-bench"),
        ("arena-hard", "question.jsonl", '{"uid": "a", "prompt": "x"}', r"row 0: no question .*'cluster'"),
        ("alpaca-eval", "alpaca_eval_gpt4_baseline.json", "[{}]", r"row 0: no question .*'instruction'"),
        ("alpaca-eval", "alpaca_eval_gpt4_baseline.json", "{}", r"expected a list of objects"),
        ("alpaca-eval", "alpaca_eval_gpt4_baseline.json", "[", r"not JSON"),
    ],
)
def test_data_that_are_no_questions_are_refused_with_file_and_row(
    tmp_path: Path, benchmark: str, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=message):
        read_questions(benchmark, tmp_path)


def test_a_question_that_stands_twice_is_refused(tmp_path: Path) -> None:
    row = {"question_id": 1, "category": "math", "turns": ["a", "b"]}
    write_lines(tmp_path / "question.jsonl", [row, row])
    with pytest.raises(BadInput, match="a question's id stands twice"):
        read_questions("mt-bench", tmp_path)
