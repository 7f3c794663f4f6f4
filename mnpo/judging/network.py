"""The connection to an endpoint: it follows nobody elsewhere, and reads no more than a reply may have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from mnpo.config.oracles import Judge
from mnpo.judging.endpoints import is_loopback
from mnpo.judging.replies import Trouble

MOST_BYTES = 2**24  # of a reply: a thousand times a verdict's, and several times the log-probabilities of a long one


def connect(judge: Judge) -> Any:
    """openai's own client of httpx or httpx2, whichever its version has.

    No proxy stands on the way home. No redirect is followed: prompts go to nobody whom the settings do not name.
    Nothing compressed is read, as a few bytes would be a reply of any size. A reply that is too large raises Trouble,
    as the cause of openai's APIConnectionError.
    """
    import openai

    return openai.DefaultAsyncHttpxClient(
        trust_env=not is_loopback(judge),
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [_bound]},
    )


async def _bound(response: Any) -> None:
    """Have a response's body, which is not read yet, end in Trouble where it is too large."""
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        remedy = "have the endpoint send replies as they are, which it is asked to"
        raise Trouble(f"a reply compressed as {encoding[:20]}", billed=True, remedy=remedy)
    unbounded = response.aiter_raw

    async def bounded(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        received = 0
        async for part in unbounded(chunk_size):
            received += len(part)
            if received > MOST_BYTES:
                raise Trouble(
                    f"a reply of more than {MOST_BYTES // 2**20} MiB, which is refused",
                    billed=True,
                    remedy="check that the endpoint is a judge's, and bound its max_tokens",
                )
            yield part

    response.aiter_raw = bounded
