"""Names of a configuration become names of files, several in one: a file system's limit is theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mnpo.config.blocks import ConfigError
from mnpo.planning import job_graph

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

LIMIT = 255
"""Bytes of one component of a path, on every common file system; names are ASCII."""
WRITTEN = ".partial-{}.manifest.json"
"""The longest name that making a file or directory uses beside its own (mnpo/storage/artifacts.py)."""


def require_short(plan: Plan) -> None:
    """Refuse names from which names of files follow that no file system takes.

    Raises:
        ConfigError: one line for each name, with its key, its length, and how long it may be.
    """
    bounds: dict[tuple[str, str], int] = {}
    for component in dict.fromkeys(_components(plan)):
        if len(component) > LIMIT:
            key, name = max(_keyed(plan), key=lambda entry: len(entry[1]) if entry[1] in component else 0)
            bound = len(name) - math.ceil((len(component) - LIMIT) / component.count(name))
            bounds[key, name] = min(bound, bounds.get((key, name), bound))
    if bounds:
        raise ConfigError("\n".join(_said(key, name, bound) for (key, name), bound in bounds.items()))


def _said(key: str, name: str, bound: int) -> str:
    shown = name if len(name) <= 40 else f"{name[:37]}..."
    return (
        f"{key}: the name {shown} has {len(name)} characters, and names of files made of it would have more than the "
        f"{LIMIT} that a file system takes; give it at most {max(bound, 1)}"
    )


def _keyed(plan: Plan) -> list[tuple[str, str]]:
    """Every name of the configuration, with its key."""
    blocks = ("runs", "models", "oracles", "judges", "datasets")
    return [("name", plan.config.name), *((block, name) for block in blocks for name in getattr(plan.config, block))]


def _components(plan: Plan) -> Iterator[str]:
    """The longest names that files and directories get: one of each name itself, of results and of logs."""
    yield from (WRITTEN.format(f"{name}.parquet") for key, name in _keyed(plan) if key != "name")
    for work in job_graph.everything(plan):
        if work.stage != "download":  # called by repositories, not by names of ours
            for output in map(PurePosixPath, work.outputs):
                name = (
                    output.with_suffix(".parquet").name if output.suffix == ".json" else output.name
                )  # rows lie beside
                yield from (*output.parts[:-1], WRITTEN.format(name))
            yield ".".join([*work.what.replace(" under ", " ").split(), str(work.jobs), "log"])
