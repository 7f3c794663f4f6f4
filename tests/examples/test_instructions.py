"""The experiment's prompts: made as they stand, disjoint, and such that their constraints can be verified."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples import instructions
from mnpo.config.constraints import of_row

ROOT = Path(__file__).parents[2]
MADE = ROOT / "examples/instructions"
SPLITS = tuple(instructions.TOPICS)
BENCHMARKS = ROOT.parent / "shared/benchmarks"  # where they are at hand


def rows(split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (MADE / f"{split}.jsonl").read_text().splitlines()]


def test_the_files_are_what_the_script_makes(tmp_path: Path) -> None:
    instructions.main(tmp_path)
    for split in SPLITS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (MADE / f"{split}.jsonl").read_bytes()


def test_no_topic_and_no_prompt_of_one_split_is_in_another() -> None:
    topics = [topic for split in SPLITS for topic in instructions.TOPICS[split]]
    assert len(set(topics)) == len(topics)
    prompts = [row["prompt"] for split in SPLITS for row in rows(split)]
    assert len(set(prompts)) == len(prompts) == sum(instructions.SIZES.values())
    for split in SPLITS:
        others = [topic for other in SPLITS if other != split for topic in instructions.TOPICS[other]]
        assert not any(topic in row["prompt"] for row in rows(split) for topic in others)


@pytest.mark.parametrize("split", SPLITS)
def test_each_prompt_has_two_or_three_constraints_that_can_be_verified(split: str) -> None:
    kinds = set()
    for row in rows(split):
        constraints = of_row(row)
        assert len(constraints) in (2, 3)
        assert len({c["id"] for c in constraints}) == len(constraints)
        kinds |= {c["id"] for c in constraints}
    assert len(kinds) == 14  # of each split, all that there are


def test_a_constraint_says_what_its_checker_is_told() -> None:
    """Numbers and words of the checker's stand in the prompt; `fewer than two` sentences is one."""
    for row in rows("train"):
        for constraint in of_row(row):
            told = [
                v for k, v in constraint.items() if k in ("num_words", "end_phrase", "keyword", "postscript_marker")
            ]
            told += constraint.get("keywords", []) + constraint.get("forbidden_words", [])
            assert all(str(value) in row["prompt"] for value in told)


def shingles(text: str, n: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks' files are not at hand")
def test_no_eight_words_in_a_row_are_of_a_benchmark() -> None:
    asked = " ".join(
        file.read_text(errors="ignore")
        for file in sorted(BENCHMARKS.rglob("*.json*"))
        if file.suffix in (".json", ".jsonl")
    )
    theirs = shingles(asked)
    ours = [row["prompt"] for split in SPLITS for row in rows(split)]
    assert theirs and not [prompt for prompt in ours if shingles(prompt) & theirs]
