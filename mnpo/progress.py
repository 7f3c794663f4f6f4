"""Progress with rate and ETA: a bar for a person at a terminal, a quiet line now and then for a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

from mnpo.ranks import rank

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 15.0


def track(items: Iterable[Item], total: int, what: str, unit: str = "it") -> Iterator[Item]:
    """Yield `items`, showing how far through `total` they are. `what` says which work it is."""
    if rank() == 0 and sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=what, unit=unit, dynamic_ncols=True)
        return
    started = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            _line(what, unit, done, total, now - started)


def counter(what: str, unit: str) -> Callable[[int, int], None]:
    """A callback `(done, total)` that shows progress as `track` does, for loops that are not ours."""
    started = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last >= SECONDS_BETWEEN_LINES:
            last = now
            _line(what, unit, done, total, now - started)

    return show


def _line(what: str, unit: str, done: int, total: int, seconds: float) -> None:
    rate = done / seconds
    say(f"{what}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {(total - done) / rate:.0f} s left")


def say(line: str) -> None:
    """A line for the log, from one rank of many; that nobody reads it any more is no reason to stop."""
    if rank() == 0:
        _print(line)


def complain(line: str) -> None:
    """A line about what went wrong here, from any rank."""
    _print(f"rank {rank()}: {line}" if rank() else line)


def _print(line: str) -> None:
    with suppress(BrokenPipeError):
        print(line, file=sys.stderr, flush=True)
