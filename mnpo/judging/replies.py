"""What an endpoint's replies say: an answer, or why there is none and whether a further try could mend it."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mnpo.config.oracles import Judge
from mnpo.judging.endpoints import scrubbed
from mnpo.judging.requests import Answer, Request

RETRIED = (408, 409, 425, 429)  # and 5xx
QUESTION = (400, 413, 422)  # of one question: a content filter, or a context that is too long; of most: the settings
LONGEST_RETRY_AFTER = 900.0  # seconds; who asks for a longer wait is left in peace until the next run
SETTINGS_REFUSED = (
    "check the judge's settings: reasoning models refuse temperature and log-probabilities, others refuse "
    "reasoning_effort; max_tokens may be more than the model has"
)


class Trouble(Exception):
    """A call without an answer: why, whether it may have been billed, and how long the endpoint wants to be let be."""

    def __init__(
        self, reason: str, *, billed: bool = False, wait: float | None = None, remedy: str = "", status: int = 0
    ) -> None:
        super().__init__(reason)
        self.reason, self.billed, self.wait, self.status = reason, billed, wait, status
        self.remedy = remedy  # for a person; when there is one, further tries are useless


def read_answer(text: str, request: Request) -> Answer:
    """A chat completion. Raises Trouble when it is none: truncated, not JSON, or of another form.

    An endpoint that counts no tokens is taken to have used one a byte, so that a budget holds.
    """
    try:
        body = json.loads(text)
        choice = body["choices"][0]
        content = choice["message"]["content"]
        if not isinstance(content, str | None):
            raise TypeError("message.content is no text")
        usage = body.get("usage") or {}
        output_tokens = int(usage.get("completion_tokens") or len((content or "").encode()))
        reasoning = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
        return Answer(
            text=content or "",
            finish=str(choice.get("finish_reason") or "stop"),
            logprobs=_first_token(choice) if request.logprobs else None,
            input_tokens=int(usage.get("prompt_tokens") or request.size),
            output_tokens=output_tokens,
            reasoning_tokens=max(0, min(reasoning, output_tokens)),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        start = " ".join(text.split())[:200]
        raise Trouble(f"a reply that is no chat completion: {start!r}", billed=True) from None


def _first_token(choice: Mapping[str, Any]) -> tuple[tuple[str, float], ...] | None:
    tokens = (choice.get("logprobs") or {}).get("content")
    if not tokens:
        return None
    return tuple((str(top["token"]), float(top["logprob"])) for top in tokens[0]["top_logprobs"])


def refusal(judge: Judge, key: str, status: int, headers: Mapping[str, str], text: str) -> Trouble:
    """Why an error status gave no answer. `text`, the body, may echo `key`."""
    said = scrubbed(_error_message(text), key)
    reason = f"HTTP {status}: {said[:300]}" if said else f"HTTP {status}"
    if 300 <= status < 400:
        elsewhere = scrubbed(headers.get("location", "an address that it does not name"), key)
        return Trouble(
            f"HTTP {status}: it sends its questions on to {elsewhere[:200]}",
            remedy="no question was sent there: if that is the judge, make it the judge's endpoint",
        )
    if "insufficient_quota" in text:
        return Trouble(reason, remedy=f"give the account of the key in {judge.key} more quota")
    if status in RETRIED or status >= 500:
        wait = retry_after(headers)
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return Trouble(f"{reason} (to be left alone for {wait:.0f} s)", remedy="run it again after that")
        return Trouble(reason, wait=wait)
    remedies = {
        **dict.fromkeys(QUESTION, SETTINGS_REFUSED),
        401: f"check the key in the environment variable {judge.key}",
        403: f"check that the account of the key in {judge.key} may use this model",
        404: "check the judge's endpoint and model",
    }
    return Trouble(reason, remedy=remedies.get(status, "check the judge's endpoint, model and settings"), status=status)


def _error_message(text: str) -> str:
    """What an error's body says, on one line."""
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return " ".join(text.split())


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
