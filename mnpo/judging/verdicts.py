"""What whoever asks for verdicts does: set the judge's decoding, and stop when no reply can be read."""

from __future__ import annotations

from typing import Any

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput


def is_reasoning_model(judge: Judge) -> bool:
    """Whether it refuses a temperature, and gives no log-probabilities."""
    return judge.reasoning_effort not in (None, "none")


def judge_decoding(judge: Judge, temperature: float, max_tokens: int) -> dict[str, Any]:
    """A protocol's decoding of the judge, for Request, wherever the judge's own settings say nothing else.

    A reasoning model is left to itself: it refuses a temperature, and thinks within max_tokens.
    """
    if is_reasoning_model(judge):
        return {}
    return {
        **({"temperature": temperature} if judge.temperature is None else {}),
        **({"max_tokens": max_tokens} if judge.max_tokens is None else {}),
    }


def require_verdicts(benchmark: str, judge: Judge, verdicts: int, asked: int) -> None:
    """Stop when no verdict at all could be read. Raises BadInput."""
    if asked and not verdicts:
        raise BadInput(
            f"{benchmark}: none of {asked} replies of the judge {judge.model} holds a verdict; look at some in the "
            "store of its answers, and mend its endpoint, max_tokens or reasoning_effort"
        )
