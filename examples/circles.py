"""Oracles that look at style alone: three styles that beat each other in a circle, and a ladder of them.

In the demo's world a style is how a response begins; of real text, how long its first word is. Both are games of
three actions, the styles. Their log-odds are of one size: root mean square 1 (docs/regimes.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

STYLES = ("terse", "courteous", "framed")
STARTS = (
    ("courteous", re.compile(r"(Sure|OK|Happy to help|Of course)\b")),
    ("framed", re.compile(r"(The answer is|I think it is)\b")),
)
LENGTHS = ("long", "medium", "short")
SHORT, MEDIUM = 2, 3  # letters at most
WORD = re.compile(r"[^\W\d_]+")
# Log-odds that a row's style beats a column's, in the order of STYLES or LENGTHS.
CIRCLE = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))
STEP = math.sqrt(0.5)
LADDER = tuple(tuple(STEP * (a - b) for b in range(3)) for a in range(3))


def style(response: str) -> str:
    """How a response begins: with courtesy, with a frame around the answer, or with the answer itself."""
    return next((name for name, start in STARTS if start.match(response.strip())), "terse")


def length(response: str) -> str:
    """How long the first word is: at most two letters, three, or more; none counts as short."""
    word = WORD.search(response)
    letters = len(word.group()) if word else 0
    return "short" if letters <= SHORT else "medium" if letters <= MEDIUM else "long"


def preferences(odds: Sequence[Sequence[float]]) -> list[list[float]]:
    """[3, 3]: P(a style beats another)."""
    return [[1 / (1 + math.exp(-x)) for x in row] for row in odds]


def circle(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Courteous beats terse, framed beats courteous, terse beats framed: each in 73 of 100 comparisons."""
    return _compared(CIRCLE, STYLES, style, first, second)


def ladder(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Framed beats courteous, courteous beats terse: a Bradley-Terry model, no circle."""
    return _compared(LADDER, STYLES, style, first, second)


def length_circle(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Medium beats long, short beats medium, long beats short: each in 73 of 100 comparisons."""
    return _compared(CIRCLE, LENGTHS, length, first, second)


def length_ladder(first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Short beats medium, medium beats long: a Bradley-Terry model, no circle."""
    return _compared(LADDER, LENGTHS, length, first, second)


def _compared(
    odds: Sequence[Sequence[float]],
    styles: Sequence[str],
    seen: Callable[[str], str],
    first: Sequence[str],
    second: Sequence[str],
) -> list[float]:
    table = preferences(odds)
    pairs = zip(first, second, strict=True)
    return [table[styles.index(seen(a))][styles.index(seen(b))] for a, b in pairs]
