"""The example's rewards and prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.rewards import brevity, finished, on_topic

PROMPTS = Path(__file__).parents[2] / "examples/prompts.jsonl"


def test_brevity_falls_from_twenty_words_to_sixty() -> None:
    assert brevity([" ".join(["word"] * n) for n in (0, 1, 20, 30, 40, 60, 500)]) == [1, 1, 1, 0.75, 0.5, 0, 0]


def test_a_response_is_on_topic_when_it_names_it() -> None:
    about = [{"about": "pan"}] * 4 + [{"about": "c++"}]
    assert on_topic(["A Pan.", "pans", "Japan", "", "c++ it is"], about) == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(("response", "value"), [("Yes.", 1), ("Yes!\n", 1), ("Yes, and", 0), ("", 0), ("1.\n2", 0)])
def test_a_finished_response_ends_as_a_sentence(response: str, value: float) -> None:
    assert finished([response]) == [value]


def test_no_prompt_stands_twice_and_every_one_says_what_it_is_about() -> None:
    rows = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 250
    assert all(row.keys() == {"prompt", "about"} and row["about"].strip() for row in rows)
