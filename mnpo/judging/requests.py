"""What a judge is asked and what it answers; what is sent, and the key under which the answer is stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.seeds import derive

REFUSED = "refused"


@dataclass(frozen=True)
class Request:
    """One question to a judge. `temperature` and `max_tokens` replace the judge's own."""

    name: str
    """What it is, for messages."""
    messages: tuple[Mapping[str, str], ...]
    """Of the chat: {"role": ..., "content": ...}."""
    logprobs: int = 0
    """Alternatives of each token whose log-probabilities are asked for (top_logprobs)."""
    max_tokens: int | None = None
    temperature: float | None = None
    repeat: int = 1
    """Which of several judgements of the same messages."""

    @property
    def size(self) -> int:
        """UTF-8 bytes of its messages: no fewer than their tokens."""
        return sum(len(message["content"].encode()) for message in self.messages)


@dataclass(frozen=True)
class Answer:
    """What came back."""

    text: str
    finish: str
    """stop, length, content_filter, ...; `refused` where the endpoint refuses this question (REFUSED)."""
    logprobs: tuple[tuple[str, float], ...] | None
    """(token, log-probability in nats) of the FIRST token's alternatives, as the endpoint orders them; None where it
    gave none, asked or not."""
    input_tokens: int
    output_tokens: int
    """Reasoning included."""
    reason: str = ""
    """Why it was refused."""
    reasoning_tokens: int = 0
    """Of output_tokens, those of thinking that the endpoint counts and keeps to itself."""

    @property
    def refused(self) -> bool:
        """Whether there is no reply, and asking again is useless."""
        return self.finish == REFUSED


def endings(finishes: Iterable[str]) -> str:
    """How answers ended, and how many so: "7 length, 4 content_filter"."""
    return ", ".join(f"{number} {finish}" for finish, number in Counter(finishes).most_common())


def wire_body(judge: Judge, request: Request, attempt: int) -> dict[str, Any]:
    """The request on the wire; what is None is left to the endpoint."""
    settings = answer_settings(judge, request, attempt)
    openai_own = urlsplit(judge.endpoint).hostname == "api.openai.com"
    usual = "max_completion_tokens" if openai_own or judge.reasoning_effort else "max_tokens"
    limit = judge.token_field or usual
    optional = {
        "reasoning_effort": settings["reasoning_effort"],
        "temperature": settings["temperature"],
        limit: settings["max_tokens"],
        "seed": settings["seed"],
        "logprobs": True if request.logprobs else None,
        "top_logprobs": request.logprobs or None,
    }
    chosen = {name: value for name, value in optional.items() if value is not None}
    return {"model": judge.model, "messages": settings["messages"], **chosen}


def answer_key(judge: Judge, request: Request, attempt: int) -> str:
    """The name of an answer in the store: SHA-256 of the canonical JSON of all that it depends on."""
    settings = answer_settings(judge, request, attempt)
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return hashlib.sha256(canonical.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{request.name}: a message holds half a character ({error.object[error.start : error.end]!a}), which no "
            f"endpoint reads; mend the text, or the decoding that it comes from"
        ) from None


def answer_settings(judge: Judge, request: Request, attempt: int) -> dict[str, Any]:
    """All that an answer depends on. A repetition has a seed of its own, or it would be the same answer again."""
    temperature = judge.temperature if request.temperature is None else request.temperature
    repeated = request.repeat != 1 or attempt > 0
    seed = derive(judge.seed, "judge", request.repeat, attempt) if judge.seed is not None and repeated else judge.seed
    return {
        "model": judge.model,
        "endpoint": judge.endpoint.rstrip("/"),
        "reasoning_effort": judge.reasoning_effort,
        "temperature": None if temperature is None else float(temperature),
        "max_tokens": judge.max_tokens if request.max_tokens is None else request.max_tokens,
        "seed": seed,
        "messages": [dict(message) for message in request.messages],
        "logprobs": request.logprobs,
        "repeat": request.repeat,
        "try": attempt,
    }
