"""Oracles for the demo's world that look at style alone: styles that beat each other in a circle, and a ladder of them.

Both are games of three actions, the styles. Their log-odds are of one size: root mean square 1 (docs/regimes.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

STYLES = ("terse", "courteous", "framed")
STARTS = (
    ("courteous", re.compile(r"(Sure|OK|Happy to help|Of course)\b")),
    ("framed", re.compile(r"(The answer is|I think it is)\b")),
)
# Log-odds that a row's style beats a column's, in the order of STYLES.
CIRCLE = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
STEP = math.sqrt(0.5)
LADDER = tuple(tuple(STEP * (a - b) for b in range(3)) for a in range(3))


def style(response: str) -> str:
    """How a response begins: with courtesy, with a frame around the answer, or with the answer itself."""
    return next((name for name, start in STARTS if start.match(response.strip())), "terse")


def preferences(odds: Sequence[Sequence[float]]) -> list[list[float]]:
    """[3, 3]: P(a style beats another)."""
    return [[1 / (1 + math.exp(-x)) for x in row] for row in odds]


def circle(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Courteous beats terse, framed beats courteous, terse beats framed: each in 73 of 100 comparisons."""
    return _compared(CIRCLE, first, second)


def ladder(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Framed beats courteous, courteous beats terse: a Bradley-Terry model, no circle."""
    return _compared(LADDER, first, second)


def _compared(odds: Sequence[Sequence[float]], first: Sequence[str], second: Sequence[str]) -> list[float]:
    table = preferences(odds)
    return [table[STYLES.index(style(a))][STYLES.index(style(b))] for a, b in zip(first, second, strict=True)]
