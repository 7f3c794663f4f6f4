"""The experiment's prompts: made as they stand, disjoint, and such that their constraints can be verified."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples import ifbench, instructions
from examples.wheels import cache
from mnpo.config.constraints import of_row

ROOT = Path(__file__).parents[2]
MADE = ROOT / "examples/instructions"
SPLITS = tuple(instructions.TOPICS)
BENCHMARKS = ROOT.parent / "shared/benchmarks"  # where they are at hand
IFBENCH_IS_CACHED = all((cache() / wheel).is_file() for wheel in ifbench.WHEELS)


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


def is_apart(asked: str) -> bool:
    """Whether no eight words in a row of our prompts are in a text."""
    theirs = shingles(asked)
    ours = [row["prompt"] for split in SPLITS for row in rows(split)]
    assert theirs
    return not [prompt for prompt in ours if shingles(prompt) & theirs]


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks' files are not at hand")
def test_no_eight_words_in_a_row_are_of_a_benchmark() -> None:
    files = [file for file in sorted(BENCHMARKS.rglob("*")) if ".json" in file.suffixes or ".jsonl" in file.suffixes]
    assert len(files) >= 10
    for file in files:
        content = file.read_bytes()
        text = gzip.decompress(content) if file.suffix == ".gz" else content
        assert is_apart(text.decode("utf-8")), file


@pytest.mark.skipif(not IFBENCH_IS_CACHED, reason="the wheels of IFBench are not in the cache")
def test_nor_are_they_of_ifbench() -> None:
    items = ifbench.items()
    assert len(items) == 288  # of 294: six ask for a verb at the beginning
    assert is_apart("\n".join(item["prompt"] for item in items))
