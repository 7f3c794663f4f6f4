"""Which rows go together: in a step any, in a forward pass those of similar length, which waste little on padding."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence

SCORING_TOKENS = 16384  # padded tokens of a batch that needs no gradients
WINDOW = 50  # batches that `windows` sorts by length together


def by_tokens(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """All rows, longest first, in batches whose padded size stays within `most_tokens` (one row always fits)."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= most_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def dealt(lengths: Sequence[int], most_tokens: int, ranks: int) -> list[list[list[int]]]:
    """For each of `ranks` processes, the micro-batches of its share of a step's rows: as many for each.

    Micro-batches are cut from the rows by falling length, which pads little, and dealt out in turns. For several ranks
    they are cut to be alike in padded tokens, since all wait for the slowest. Where one rank would have fewer than
    another (a forward pass of a sharded model is everyone's), empty ones fill up.
    """
    parts = by_tokens(lengths, most_tokens)
    wanted = math.ceil(len(parts) / ranks) * ranks
    if ranks > 1:  # the lower the limit, the more parts; the lowest that makes not too many
        limits = range(most_tokens + 1)
        parts = by_tokens(lengths, bisect_left(limits, True, key=lambda n: len(by_tokens(lengths, n)) <= wanted))
    parts += [[] for _ in range(wanted - len(parts))]
    return [parts[rank::ranks] for rank in range(ranks)]


def shuffled(
    lengths: Sequence[int], batch_size: int, seed: int, *, windows: bool = False, fill: bool = True
) -> Iterator[list[int]]:
    """Endless epochs of batches of exactly `batch_size` rows (fewer only when there are fewer), drawn uniformly.

    Args:
        windows: rows of similar length share a batch, and batches are unlike each other (docs/ledger.md, point 45).
        fill: an epoch's last, incomplete batch is filled up by the next epoch's first rows, so no row is ever left
            out; otherwise it is dropped.
    """
    rng = random.Random(seed)
    size = min(batch_size, len(lengths))
    pool: list[int] = []
    while True:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        pool = [*pool, *epoch] if fill else epoch
        whole = len(pool) - len(pool) % size
        ready, pool = pool[:whole], pool[whole:]
        if not windows:
            yield from (ready[i : i + size] for i in range(0, whole, size))
            continue
        for start in range(0, whole, size * WINDOW):
            window = sorted(ready[start : start + size * WINDOW], key=lambda i: lengths[i])
            batches = [window[i : i + size] for i in range(0, len(window), size)]
            rng.shuffle(batches)
            yield from batches


def steps(rows: int, batch_size: int, epochs: int, *, fill: bool = True) -> int:
    """How many of these batches make up `epochs` epochs."""
    size = min(batch_size, rows)
    return math.ceil(rows * epochs / size) if fill else rows // size * epochs
