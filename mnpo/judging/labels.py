"""Verdicts that stand in brackets, and which of them a reply gives rather than mentions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mnpo.judging.requests import Answer

CUT = ("length", "content_filter")  # how a reply ends that was not finished


def is_cut(answer: Answer) -> bool:
    """Whether the reply ends before its writer did."""
    return answer.finish in CUT


def labels(answer: Answer, label: str, word: str) -> list[str]:
    """What a reply has in double brackets, in order; of one that was cut, only what it states as its verdict.

    Args:
        label: regular expression of what stands in the brackets, with one group.
        word: how a verdict is called, see `stated`.
    """
    return stated(answer.text, rf"\[\[{label}\]\]", word) if is_cut(answer) else find(answer.text, label)


def find(text: str, label: str) -> list[str]:
    """What a text has in double brackets, in order."""
    return re.findall(rf"\[\[{label}\]\]", text)


def stated(text: str, bracketed: str, word: str) -> list[str]:
    """The labels that a text states as its verdict: alone on a line, or on a line after `word` and a colon or "is".

    A label before a closing quotation mark is what somebody else said.
    """
    alone = rf"^[^\w\n\[\]]*{bracketed}[^\w\n\[\]]*$"
    named = rf"\b(?i:{word})\b(?:[^\w\n\[\]]*:| is\b)[^\n\[\]]*{bracketed}(?![\"'”’`])"
    found: Sequence[re.Match[str]] = list(re.finditer(rf"{alone}|{named}", text, re.MULTILINE))
    return [next(group for group in match.groups() if group is not None) for match in found]
