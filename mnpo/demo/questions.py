"""What the small benchmarks' items are made of: held-out prompts, words, choices and calls of the demo's world."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnpo.demo import world

Row = dict[str, Any]
Maker = Callable[[random.Random, int], dict[str, Any]]
"""From the benchmark's source of randomness and the world's seed: file -> its content."""


def heldout_prompts(seed: int, n: int, *families: str) -> list[tuple[str, Mapping[str, str]]]:
    """Held-out prompts of the world and their truths, of some families or of all in turn."""
    share = len(world.FAMILIES) * -(-n // len(families or world.FAMILIES))
    rows = world.make_world(seed, demonstrations=0, parts=0, part_size=0, heldout=share).heldout
    chosen = rows[rows["family"].isin(families or world.FAMILIES)]
    return [(prompt, json.loads(truth)) for prompt, truth in zip(chosen["prompt"], chosen["truth"], strict=True)][:n]


def words(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """Words and the category of each."""
    pool = [(word, category) for category, members in world.CATEGORIES.items() for word in members]
    return rng.sample(pool, n)


def several(rng: random.Random, right: str, options: Sequence[str], n: int) -> tuple[list[str], int]:
    """`n` options in random order, the right one among them, and where it is."""
    chosen = [right, *rng.sample([option for option in options if option != right], n - 1)]
    rng.shuffle(chosen)
    return chosen, chosen.index(right)


def calls(name: str) -> list[tuple[tuple[int, int], Any]]:
    """Arguments of a function of the world, and what it returns for them."""
    body = world.FUNCTIONS[name].format("a", "b")
    pairs = ((6, 3), (2, 8), (5, 5))
    return [(pair, eval(body, {"max": max, "min": min}, dict(zip("ab", pair, strict=True)))) for pair in pairs]
