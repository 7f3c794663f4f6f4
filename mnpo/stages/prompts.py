"""Stage `prompts`: the prompts of every train part, the held-out ones, and the demonstrations."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mnpo.artifacts import artifact
from mnpo.config import Block, Prompts
from mnpo.errors import BadInput
from mnpo.records import DEMONSTRATIONS, PROMPTS, Table, read_rows, write


class Settings(Block):
    """What this stage reads."""

    prompts: Prompts
    seed: int


def run(settings: Settings, output: Path) -> None:
    """Write `part{t}.parquet`, `heldout.parquet` and `demonstrations.parquet` into `output`.

    Raises:
        BadInput: a malformed row, an empty prompt, or fewer prompts than asked for.
    """
    make = {"demo": _demo, "file": _read, "hub": _read}[settings.prompts.source]
    tables, facts = make(settings)
    inputs = [settings.prompts.path] if settings.prompts.source == "file" and settings.prompts.path else []
    for name, rows in tables.items():
        kind: Table = DEMONSTRATIONS if name == "demonstrations" else PROMPTS
        with artifact(output / f"{name}.parquet", "prompts", settings.model_dump(), inputs) as made:
            write(kind, rows, made.path)
            made.facts = {"rows": len(rows), **facts}


def _demo(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    world_of_the_demo = import_module("mnpo.demo.world")  # by name: only the demo depends on it (mnpo/sources.py)
    p = settings.prompts
    assert p.part_size is not None
    try:
        world = world_of_the_demo.make_world(settings.seed, p.demonstrations, p.parts, p.part_size, p.heldout)
    except ValueError as error:
        raise BadInput(f"prompts: {error}") from None
    demonstrations = world.demonstrations.assign(row=range(len(world.demonstrations)))
    parts = {f"part{t}": part for t, part in enumerate(world.parts, 1)}
    return {**parts, "heldout": world.heldout, "demonstrations": demonstrations}, {}


def _read(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shuffle a user's prompts, keep the held-out ones aside, and cut the rest into parts."""
    p = settings.prompts
    rows = _hub_rows(p) if p.source == "hub" else read_rows(p.path or "")
    prompts: dict[str, dict[str, str]] = {}
    repeated = 0
    for number, row in enumerate(rows, 1):
        prompt = _prompt_text(row, number, p)
        repeated += prompt in prompts
        prompts[prompt] = {"prompt_id": prompt_id(prompt), "family": "", "prompt": prompt, "truth": ""}
    unique = [prompts[text] for text in sorted(prompts)]
    random.Random(p.seed).shuffle(unique)
    needed = p.heldout + p.parts * (p.part_size or 1)
    if len(unique) < needed:
        raise BadInput(
            f"{p.path}: {len(unique)} different prompts, and {needed} are asked for "
            f"(prompts.heldout {p.heldout} + {p.parts} parts of {p.part_size or 'at least 1'}); ask for fewer"
        )
    size = p.part_size or (len(unique) - p.heldout) // p.parts
    cut = {f"part{t + 1}": unique[p.heldout + t * size : p.heldout + (t + 1) * size] for t in range(p.parts)}
    facts = {"repeated_prompts": repeated, "unused_prompts": len(unique) - p.heldout - p.parts * size}
    return {**cut, "heldout": unique[: p.heldout], "demonstrations": []}, facts


def _hub_rows(p: Prompts) -> list[Mapping[str, Any]]:
    from datasets import load_dataset

    return list(load_dataset(p.path, split=p.split, revision=p.revision))


def _prompt_text(row: Mapping[str, Any], number: int, p: Prompts) -> str:
    if p.column not in row:
        raise BadInput(f"{p.path}: row {number} has no {p.column!r} (it has {', '.join(row)}); set prompts.column")
    text = row[p.column]
    if not isinstance(text, str) or not text.strip():
        raise BadInput(
            f"{p.path}: row {number}: {p.column} is {text!r}, expected a text that is not empty; mend or remove it"
        )
    return text


def prompt_id(prompt: str) -> str:
    """A name for a prompt that depends on nothing but its text."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]
