"""Whoever draws responses from a policy: prompts' token ids in, K responses each out."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """One response to be drawn."""

    prompt: list[int]
    """Token ids, as mnpo/chat.py made them; no sampler renders or adds anything."""
    seed: int


class Response(NamedTuple):
    """What was drawn."""

    tokens: list[int]
    """Generated ids; the last one is a stop token unless the response was cut."""
    finish: str
    """`stop`, or `length` when it was cut at the limit."""
