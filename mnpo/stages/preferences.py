"""Stage `preferences`: how often preferences ran in circles, and what made pairs, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mnpo.artifacts import manifest
from mnpo.config import Block
from mnpo.errors import BadInput
from mnpo.stages.pair import REASONS
from mnpo.stages.tabulate import write

OF_SCORES = ("prompts", "prompts_with_a_cycle", "responses_without_a_comparison")  # of a shard: they add up


class Settings(Block):
    """What this stage reads."""

    rows: list[tuple[str, int, str]]
    """Whose responses, to which part's prompts, judged by which oracle."""


def run(settings: Settings, pairs: Sequence[Path], scores: Sequence[Path], output: Path) -> None:
    """Write the table `output` from the manifests of pairs and scores.

    Args:
        pairs: a file for each row.
        scores: all shards of each row, row by row.

    Raises:
        BadInput: files that do not fit the rows, or one without a manifest.
    """
    shards = len(scores) // max(1, len(settings.rows))
    if len(pairs) != len(settings.rows) or len(scores) != shards * len(settings.rows):
        raise BadInput(f"{len(settings.rows)} rows, {len(pairs)} files of pairs and {len(scores)} of scores do not fit")
    rows = []
    for i, (policy, part, oracle) in enumerate(settings.rows):
        judged = [_facts(file) for file in scores[i * shards : (i + 1) * shards]]
        paired = _facts(pairs[i])
        rows.append(
            {"policy": policy, "part": part, "oracle": oracle}
            | {name: sum(facts[name] for facts in judged) for name in OF_SCORES}
            | {"pairs": paired["rows"], "prompts_without_a_pair": paired["prompts_without_a_pair"]}
            | {name: paired[name] for name in REASONS}
        )
    write(pd.DataFrame(rows), output, "preferences", settings.model_dump(), [*pairs, *scores])


def _facts(file: Path) -> dict[str, Any]:
    facts = manifest(file)
    if not facts:
        raise BadInput(f"{file}: no manifest says what it was made of; delete it to have it remade")
    return facts
