"""Which rows go together: batches of similar length waste little on padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

SCORING_TOKENS = 16384  # padded tokens of a batch that needs no gradients
WINDOW = 50  # batches that are sorted by length together: long enough to pad little, short enough to stay shuffled


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

    Rows are dealt out by falling length, so that the shares are alike. Where one rank would have fewer batches than
    another (a forward pass of a sharded model is everyone's), empty ones fill up.
    """
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares = [longest_first[rank::ranks] for rank in range(ranks)]
    parts = [
        [[rows[i] for i in part] for part in by_tokens([lengths[r] for r in rows], most_tokens)] for rows in shares
    ]
    most = max(map(len, parts))
    return [mine + [[] for _ in range(most - len(mine))] for mine in parts]


def shuffled(lengths: Sequence[int], batch_size: int, seed: int) -> Iterator[list[int]]:
    """Endless epochs of batches of exactly `batch_size` rows (fewer only when there are fewer), of similar length.

    An epoch's last, incomplete batch is filled up by the next epoch's first rows, so no row is ever left out.
    """
    rng = random.Random(seed)
    size, pool = min(batch_size, len(lengths)), []
    while True:
        epoch = list(range(len(lengths)))
        rng.shuffle(epoch)
        pool += epoch
        whole = len(pool) - len(pool) % size
        ready, pool = pool[:whole], pool[whole:]
        for start in range(0, len(ready), size * WINDOW):
            window = sorted(ready[start : start + size * WINDOW], key=lambda i: lengths[i])
            batches = [window[i : i + size] for i in range(0, len(window), size)]
            rng.shuffle(batches)
            yield from batches
