"""What EvalScope's judged benchmarks take for a verdict: what its prompts ask for, and nothing that only looks so."""

from __future__ import annotations

import re

import pytest

from mnpo.benchmarks.evalscope_tasks import NEUTRAL, UNREAD, VERDICT_READERS
from mnpo.judging.requests import Answer

ITS_OWN = {"alpaca-eval": r"(m|M)", "minerva": r"(A|B)", "arena-hard": r"\[\[([AB<>=]+)\]\]"}
"""Where EvalScope 1.0.2 finds a verdict: at the first match of these."""


@pytest.mark.parametrize(
    ("benchmark", "text", "verdict"),
    [
        ("minerva", "A", "A"),
        ("minerva", " B\n", "B"),
        ("minerva", '"B".', "B"),
        ("minerva", "**A**", "A"),
        ("minerva", "B: INCORRECT", "B"),
        ("minerva", "A: CORRECT\n", "A"),
        ("minerva", "Answer: B", None),
        ("minerva", "As an AI I cannot judge this.", None),
        ("minerva", "A or B", None),
        ("minerva", "A: INCORRECT", None),
        ("minerva", "B: CORRECT", None),
        ("minerva", "a", None),
        ("minerva", "CORRECT", None),
        ("minerva", "", None),
        ("alpaca-eval", "m", "m"),
        ("alpaca-eval", " M\n", "M"),
        ("alpaca-eval", '"M"', "M"),
        ("alpaca-eval", "I'm sorry", None),
        ("alpaca-eval", "I'm sorry, but M", None),
        ("alpaca-eval", "m or M", None),
        ("alpaca-eval", "Model M", None),
        ("alpaca-eval", "", None),
        ("arena-hard", "My final verdict is: [[B>A]]", "B>A"),
        ("arena-hard", "[[A>>B]] goes too far. My final verdict is: [[B>A]]", None),
        ("arena-hard", "[[A]]", None),
    ],
)
def test_readable_is_what_its_prompt_asks_for_and_means_what_it_reads(
    benchmark: str, text: str, verdict: str | None
) -> None:
    read = VERDICT_READERS[benchmark](Answer(text, "stop", None, 1, 1))
    assert read == (None if verdict is None else text)
    if read is not None:
        found = re.search(ITS_OWN[benchmark], read)
        assert found is not None and found[1] == verdict


def test_a_cut_reply_that_only_mentions_a_label_has_no_verdict() -> None:
    cut = Answer("The options begin with [[A>>B]],", "length", None, 1, 1)
    assert VERDICT_READERS["arena-hard"](cut) is None


def test_what_stands_for_no_verdict_is_none_to_evalscope_either() -> None:
    assert not [name for name, pattern in ITS_OWN.items() if re.search(pattern, UNREAD)]
    assert all(re.search(pattern, NEUTRAL) for pattern in ITS_OWN.values())
