"""How a judge is asked, and when its silence stops a job: what benchmarks and oracles that ask one share."""

from __future__ import annotations

from typing import Any

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput


def reasons(judge: Judge) -> bool:
    """Whether it is a reasoning model: those refuse a temperature, and give no log-probabilities."""
    return judge.reasoning_effort not in (None, "none")


def decoding(judge: Judge, temperature: float, max_tokens: int) -> dict[str, Any]:
    """A protocol's decoding of the judge, for Request, wherever the judge's own settings say nothing else.

    A reasoning model is left to itself: it refuses a temperature, and thinks within max_tokens.
    """
    if reasons(judge):
        return {}
    return {
        **({"temperature": temperature} if judge.temperature is None else {}),
        **({"max_tokens": max_tokens} if judge.max_tokens is None else {}),
    }


def refuse_silence(benchmark: str, judge: Judge, verdicts: int, asked: int) -> None:
    """Stop when no verdict at all could be read. Raises BadInput."""
    if asked and not verdicts:
        raise BadInput(
            f"{benchmark}: none of {asked} replies of the judge {judge.model} holds a verdict; look at some in the "
            "store of its answers, and mend its endpoint, max_tokens or reasoning_effort"
        )
