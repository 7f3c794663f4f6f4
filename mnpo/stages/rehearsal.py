"""Stage `rehearsal`: what a small version of a configuration says of that one, from its manifests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnpo.config.blocks import Block
from mnpo.config.reading import load
from mnpo.planning.estimate import forecast
from mnpo.planning.plan import Plan
from mnpo.tables.files import write
from mnpo.tables.rehearsal import notes, page, ran

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    of: str
    """The configuration file that was rehearsed."""


def run(settings: Settings, artifacts: Sequence[Path], output: Path) -> None:
    """Say what ran on what, stage by stage, and what fixed costs the rehearsed configuration would have.

    Args:
        artifacts: what jobs made, each with its manifest.
        output: the table without its ending.

    Raises:
        BadInput: the rehearsed configuration has a mistake.
    """
    found, real = ran(artifacts), forecast(Plan(load(settings.of)))
    write(page(found, real), output, "rehearsal", settings.model_dump(), artifacts, notes(found, real))
