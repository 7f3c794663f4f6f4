"""What may go wrong with the demo's judge, on demand: which fault, in which requests."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

REFUSALS = {
    "400": "this model refuses what was asked of it",
    "422": "the prompt is longer than the context",
    "401": "Incorrect API key provided: {authorization}",  # it echoes the key, as careless servers do
    "403": "no access to this model",
    "404": "there is no such model",
    "429": "too many requests",
    "429-date": "too many requests",
    "500": "the server stumbled",
    "503": "the server is overloaded",
    "quota": "You exceeded your current quota",
}
KINDS = (
    *REFUSALS,
    "truncated",  # half of the JSON, and the length of that half
    "cut",  # half of what Content-Length promises
    "schema",  # JSON, and no chat completion
    "reset",  # the connection, by RST
    "hang",  # no answer at all
    "drip",  # an answer byte by byte, DRIP seconds each
    "307",  # sent on to the server's `elsewhere`
    "flood",  # blanks without end: FLOOD bytes
    "unparsable",  # a text without a verdict
)
DRIP = 0.2
FLOOD = 2**26


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and in which requests, counted from 1: KIND@N, KIND@N-M (inclusive), KIND%N (every Nth)."""

    kind: str
    first: int
    last: int
    every: int

    @classmethod
    def read(cls, text: str) -> Fault:
        """Raises ValueError for what is no fault."""
        match = re.fullmatch(r"([\w-]+)(?:@(\d+)(?:-(\d+))?|%(\d+))", text)
        if not match or match[1] not in KINDS or match[4] == "0":
            raise ValueError(f"no such fault: {text!r}; write KIND@N, KIND@N-M or KIND%N, KIND of {', '.join(KINDS)}")
        kind, first, last, every = match.groups()
        if every:
            return cls(kind, int(every), sys.maxsize, int(every))
        return cls(kind, int(first), int(last or first), 1)

    def hits(self, number: int) -> bool:
        """Whether request `number` is one of its own."""
        return self.first <= number <= self.last and (number - self.first) % self.every == 0
