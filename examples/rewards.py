"""Three rewards of one's own, for configs/smollm2.yaml: each takes lists, one entry a response, and returns numbers.

A parameter's name says what it is given: `prompts`, `responses`, `columns` (what `prompts.further` names of each row).
"""

from __future__ import annotations

import re

ENOUGH, TOO_MANY = 20, 60  # words


def brevity(responses: list[str]) -> list[float]:
    """1 up to ENOUGH words, falling in a straight line to 0 at TOO_MANY."""
    words = [len(response.split()) for response in responses]
    return [min(1.0, max(0.0, (TOO_MANY - n) / (TOO_MANY - ENOUGH))) for n in words]


def on_topic(responses: list[str], columns: list[dict[str, str]]) -> list[float]:
    """1 for a response that names what its prompt is about, else 0."""
    return [
        float(re.search(rf"\b{re.escape(column['about'])}", response, re.I) is not None)
        for response, column in zip(responses, columns, strict=True)
    ]


def finished(responses: list[str]) -> list[float]:
    """1 for a response that ends as a sentence does, else 0: one that was cut seldom does."""
    return [float(response.rstrip().endswith((".", "!", "?"))) for response in responses]
