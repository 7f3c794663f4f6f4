"""Stage `miniature`: small stand-ins for public data and published models, in their columns and their files."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from mnpo.config.blocks import Block
from mnpo.config.sources import Miniature
from mnpo.storage.artifacts import artifact

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads: `benchmark` or `model`."""

    benchmark: str | None = None
    """A data set of the demo's: mnpo/demo/benchmarks.py."""
    model: Miniature | None = None
    """Which published model a small one stands for."""
    seed: int

    @model_validator(mode="after")
    def _one(self) -> Settings:
        if (self.benchmark is None) == (self.model is None):
            raise ValueError("give exactly one of benchmark, model")
        return self


def run(settings: Settings, output: Path) -> None:
    """Make a small version of a public data set, or a small model of random weights in the files of a published one.

    Needs no network. The same settings make the same bytes.

    Args:
        output: the directory of its files.

    Raises:
        BadInput: there is no small version of that data set.
    """
    with artifact(output, "miniature", settings.model_dump(exclude_none=True), directory=True) as made:
        if settings.model is not None:
            from mnpo.demo import miniatures

            miniatures.build(made.path, settings.model, settings.seed)
        else:
            from mnpo.demo.benchmarks import make

            make(made.path, settings.benchmark or "", settings.seed)
