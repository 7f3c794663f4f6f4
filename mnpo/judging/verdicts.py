"""What whoever asks for verdicts does: set the judge's decoding, and stop when too few replies can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from mnpo.config.oracles import Judge, is_reasoning
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.requests import Answer, Request

T = TypeVar("T")


def judge_decoding(judge: Judge, temperature: float, max_tokens: int) -> dict[str, Any]:
    """A protocol's decoding of the judge, for Request, wherever the judge's own settings say nothing else.

    A reasoning model is left to itself: it refuses a temperature, and thinks within max_tokens.
    """
    if is_reasoning(judge.reasoning_effort):
        return {}
    return {
        **({"temperature": temperature} if judge.temperature is None else {}),
        **({"max_tokens": max_tokens} if judge.max_tokens is None else {}),
    }


def read_verdicts(
    client: Client, asker: str, requests: Sequence[Request], parse: Callable[[Answer], T | None]
) -> list[T | None]:
    """What the judge answers, as `parse` reads it; None where that is nothing. The one way to a figure's verdicts.

    Raises:
        BadInput: no verdict at all, or more are missing than judge.max_missing permits; or as Client.verdicts does.
    """
    refused, judge = client.tally["refused"], client.judge
    found = client.verdicts(requests, parse, asker=asker)
    refused = client.tally["refused"] - refused
    missing, asked = found.count(None), len(found)
    if asked and missing == asked:
        raise BadInput(f"{asker}: none of {asked} replies of the judge {judge.model} holds a verdict. {client.mend}")
    if asked and missing / asked > judge.max_missing:
        raise BadInput(
            f"{asker}: {missing} of {asked} verdicts of the judge {judge.model} are missing, more than its max_missing "
            f"({judge.max_missing:g}) permits ({refused:.0f} refused by its endpoint, the others unreadable): a figure "
            f"of what is left would be one of other questions. {client.mend}; or raise max_missing"
        )
    return found
