"""Stage `miniature`: the demo's small version of a public benchmark's data, in the columns of the real one."""

from __future__ import annotations

from pathlib import Path

from mnpo.config.blocks import Block
from mnpo.storage.artifacts import artifact


class Settings(Block):
    """What this stage reads."""

    benchmark: str
    seed: int


def run(settings: Settings, output: Path) -> None:
    """Make the demo's small version of a benchmark's data.

    Args:
        output: the directory of the benchmark's files.
    """
    from mnpo.demo.benchmarks import make

    with artifact(output, "miniature", settings.model_dump(), directory=True) as made:
        make(made.path, settings.benchmark, settings.seed)
