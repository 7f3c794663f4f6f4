"""Stock tasks' faults, mended: what a harness misreads in a reply. Their numbers stand beside the stock ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""At which lm-eval's HumanEval ends a reply."""
OPENED = re.compile(r"\s*```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def last_number(text: str) -> str:
    """The value of the last number, plainly written (`1234` for `$1,234.00`); empty where there is none."""
    found = NUMBER.findall(text)
    if not found:
        return ""
    value = Decimal(found[-1].replace(",", "").replace("$", ""))
    return f"{value.normalize():f}" if value else "0"


def last_numbers(replies: Sequence[Sequence[str]], problems: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """lm-eval's filter: the last number of each reply, by its value."""
    return [[last_number(reply) for reply in several] for several in replies]


def stock_completion(reply: str) -> str:
    """What lm-eval's HumanEval runs after the prompt: nothing, where the reply opens with a code fence."""
    for stop in (*STOPS, "```"):
        reply = reply.split(stop)[0]
    return reply


def completion(reply: str) -> str:
    """The code of the block that a reply opens with; the stock completion where it opens with none."""
    opened = OPENED.match(reply)
    return opened[1] if opened else stock_completion(reply)
