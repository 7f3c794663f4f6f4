"""Whoever draws responses from a policy: prompts' token ids in, K responses each out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mnpo.storage.journal import Journal


class Request(NamedTuple):
    """One response to be drawn."""

    prompt: list[int]
    """Token ids, as mnpo/models/chat.py made them; no sampler renders or adds anything."""
    seed: int


class Response(NamedTuple):
    """What was drawn."""

    tokens: list[int]
    """Generated ids; the last one is a stop token unless the response was cut."""
    finish: str
    """`stop`, or `length` when it was cut at the limit."""
    logprobs: list[float] | None = None
    """Where asked for: what the sampler holds each token's log-probability under the policy to be, in nats, before
    temperature and top_p."""


def kept_or_drawn(
    requests: list[Request], draw: Callable[[list[Request]], list[Response]], journal: Journal | None
) -> list[Response]:
    """The responses to `requests`, which are drawn whole or not at all: the journal's, else drawn now and kept there.

    Raises:
        Interrupted: a signal asked the journal's session to stop.
    """
    if journal is None:
        return draw(requests)
    return [Response(*response) for response in journal.once(requests, lambda: draw(requests))]


def longest_first(requests: Sequence[Request]) -> list[int]:
    """Indices of the requests, longest prompt first, so that running out of memory happens at the start. Requests that
    share a prompt, and were neighbours, stay so."""
    return sorted(range(len(requests)), key=lambda i: (-len(requests[i].prompt), i))
