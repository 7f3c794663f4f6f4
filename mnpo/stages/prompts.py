"""Stage `prompts`: the prompts of every train part, the held-out ones, and the demonstrations."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mnpo.config.blocks import Block
from mnpo.config.sources import Prompts
from mnpo.errors import BadInput
from mnpo.storage import conversations
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import DEMONSTRATIONS, PROMPTS, Table, read_rows, write

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads."""

    prompts: Prompts
    seed: int


def run(settings: Settings, output: Path, data: Path | None = None) -> None:
    """Cut prompts into train parts and held-out ones (the demo: make them).

    Args:
        output: the directory of `part{t}.parquet`, `heldout.parquet`, `demonstrations.parquet` and, where the prompts
            came with responses, `responses.parquet`.
        data: the directory of the data set, for source `dataset`.

    Raises:
        BadInput: a malformed row, an empty prompt, or fewer prompts than asked for.
    """
    if settings.prompts.source == "demo":
        tables, facts = _demo(settings)
    else:
        tables, facts = _read(settings.prompts, data)
    inputs = [Path(settings.prompts.path)] if settings.prompts.path else [data] if data else []
    for name, rows in tables.items():
        kind: Table = DEMONSTRATIONS if name in ("demonstrations", "responses") else PROMPTS
        with artifact(output / f"{name}.parquet", "prompts", settings.model_dump(), inputs) as made:
            write(kind, rows, made.path)
            made.facts = {"rows": len(rows), **facts}


def _demo(settings: Settings) -> tuple[dict[str, Any], dict[str, Any]]:
    world_of_the_demo = import_module(
        "mnpo.demo.world"
    )  # by name: only the demo depends on it (mnpo/storage/code_digests.py)
    p = settings.prompts
    assert p.part_size is not None
    try:
        world = world_of_the_demo.make_world(settings.seed, p.demonstrations, p.parts, p.part_size, p.heldout)
    except ValueError as error:
        raise BadInput(f"prompts: {error}") from None
    demonstrations = world.demonstrations.assign(row=range(len(world.demonstrations)))
    parts = {f"part{t}": part for t, part in enumerate(world.parts, 1)}
    return {**parts, "heldout": world.heldout, "demonstrations": demonstrations}, {}


def _read(p: Prompts, data: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shuffle a user's prompts, keep the held-out ones aside, and cut the rest into parts."""
    rows, where = source_rows(p, data)
    prompts, facts = _distinct(rows, p, where)
    unique = _ordered(prompts)
    random.Random(p.seed).shuffle(unique)
    apart, unique = _apart(unique, p, data)
    also_held_out = len(prompts) - len(unique)
    needed = p.heldout - len(apart) + p.parts * (p.part_size or 1)
    if len(unique) < needed:
        raise BadInput(
            f"{where}: {len(unique)} different prompts, and {needed} are asked for "
            f"(prompts.heldout {p.heldout} + {p.parts} parts of {p.part_size or 'at least 1'}); ask for fewer"
        )
    heldout, unique = (apart, unique) if apart else (unique[: p.heldout], unique[p.heldout :])
    size = p.part_size or len(unique) // p.parts
    cut = {f"part{t + 1}": unique[t * size : (t + 1) * size] for t in range(p.parts)}
    facts |= {"unused_prompts": len(unique) - p.parts * size, "train_prompts_also_held_out": also_held_out}
    tables: dict[str, Any] = {**cut, "heldout": heldout, "demonstrations": []}
    if p.responses:
        tables["responses"], facts["blank_responses"] = _own_responses(rows, cut, p, where)
    return tables, facts


def _distinct(rows: Sequence[Mapping[str, Any]], p: Prompts, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompt's id -> its row of the table, each once: of rows with the same prompt, the smallest truth."""
    prompts: dict[str, dict[str, str]] = {}
    answers = 0
    for number, row in enumerate(rows, 1):
        found = asked(row, p, f"{where}: row {number}")
        answers += conversations.answered(row, f"{where}: row {number}", p.column)
        known = prompts.get(found["prompt_id"], found)
        prompts[found["prompt_id"]] = min(found, known, key=lambda r: r["truth"])
    return prompts, {"repeated_prompts": len(rows) - len(prompts), "answers_left_out": answers}


def asked(row: Mapping[str, Any], p: Prompts, where: str) -> dict[str, str]:
    """The table's row of a data set's row."""
    turns = conversations.columns(conversations.prompt_of(row, where, p.column))
    return {"prompt_id": prompt_id(**turns), "family": "", "truth": _further(row, p, where), **turns}


def _further(row: Mapping[str, Any], p: Prompts, where: str) -> str:
    """The row's further columns that oracles get, as JSON; empty where the configuration names none."""
    if p.further is None:
        return ""
    if missing := [name for name in p.further if name not in row]:
        raise BadInput(f"{where} has no {missing[0]!r} (it has {', '.join(row)}); mend prompts.further")
    return json.dumps({name: row[name] for name in p.further}, ensure_ascii=False, default=str)


def _apart(
    unique: list[dict[str, str]], p: Prompts, data: Path | None
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Held-out prompts from a split of their own, and the train prompts without them."""
    if p.heldout_split is None or data is None:
        return [], unique
    rows, where = source_rows(p, data, p.heldout_split)
    prompts, _ = _distinct(rows, p, where)
    if len(prompts) < p.heldout:
        raise BadInput(f"{where}: {len(prompts)} different prompts, and prompts.heldout asks for {p.heldout}")
    heldout = _ordered(prompts)
    random.Random(p.seed).shuffle(heldout)
    taken = {row["prompt_id"] for row in heldout[: p.heldout]}
    return heldout[: p.heldout], [row for row in unique if row["prompt_id"] not in taken]


def _ordered(prompts: Mapping[str, dict[str, str]]) -> list[dict[str, str]]:
    """Whatever the order of the file."""
    return sorted(prompts.values(), key=lambda row: (row["prompt"], row["context"]))


def _own_responses(
    rows: Sequence[Mapping[str, Any]], cut: Mapping[str, list[dict[str, str]]], p: Prompts, where: str
) -> tuple[list[dict[str, Any]], int]:
    """The responses that came with the train prompts (of a prompt that stands twice, all), and how many were blank."""
    known = {row["prompt_id"]: row for part in cut.values() for row in part}
    responses: list[dict[str, Any]] = []
    for number, row in enumerate(rows, 1):
        texts = row.get(p.responses or "")
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
            raise BadInput(
                f"{where}: row {number}: {p.responses} is {str(texts)[:60]!r}, expected a list of texts; "
                "set prompts.responses to the column with the rows' own responses"
            )
        prompt = known.get(asked(row, p, f"{where}: row {number}")["prompt_id"])
        responses += [{**prompt, "response": text} for text in texts if prompt is not None]
    kept = [response for response in responses if response["response"].strip()]
    return [{**response, "row": number} for number, response in enumerate(kept)], len(responses) - len(kept)


def source_rows(p: Prompts, data: Path | None, split: str | None = None) -> tuple[list[dict[str, Any]], str]:
    """The rows that prompts are read from, and how messages call them."""
    rows = read_rows(data or p.path or "", split or p.split)
    return rows, f"{data}, {split or p.split}" if data else str(p.path)


def prompt_id(prompt: str, context: str = "") -> str:
    """A name for a prompt that depends on nothing but its text, and what was said before."""
    return hashlib.sha256((f"{context}\0{prompt}" if context else prompt).encode()).hexdigest()[:16]
