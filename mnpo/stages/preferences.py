"""Stage `preferences`: how often preferences ran in circles, and what made pairs, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mnpo.config.blocks import DATASET, Block
from mnpo.errors import BadInput
from mnpo.stages.pair import REASONS
from mnpo.storage.artifacts import manifest
from mnpo.tables.files import write

ENVIRONMENT = "eval"
OF_SAMPLES = ("dropped_responses", "prompts_without_a_response")  # of a shard, as the next: they add up
OF_SCORES = ("prompts", "prompts_with_a_cycle", "responses_without_a_comparison")


class Settings(Block):
    """What this stage reads."""

    rows: list[tuple[str, int, str]]
    """Whose responses, to which part's prompts, judged by which oracle; DATASET, of the last rows: by none."""


def run(
    settings: Settings, pairs: Sequence[Path], output: Path, scores: Sequence[Path] = (), samples: Sequence[Path] = ()
) -> None:
    """Make the table of cycles, ties and pairs of every iteration.

    All is read from the manifests of pairs, scores and samples.

    Args:
        pairs: a file for each row of the settings.
        output: the table without its ending.
        scores: all shards of each row that an oracle judged, row by row.
        samples: as many, which the scores are of. Where a data set's own responses are used, none is dropped.

    Raises:
        BadInput: files that do not fit the rows, or one without a manifest.
    """
    judged_rows = sum(oracle != DATASET for _, _, oracle in settings.rows)
    shards = len(scores) // max(1, judged_rows)
    if len(pairs) != len(settings.rows) or not len(scores) == len(samples) == shards * judged_rows:
        raise BadInput(
            f"{len(settings.rows)} rows, {len(pairs)} files of pairs, {len(scores)} of scores and {len(samples)} of "
            "samples do not fit"
        )
    rows = []
    for i, (policy, part, oracle) in enumerate(settings.rows):
        drawn, judged = ([_facts(file) for file in files[i * shards : (i + 1) * shards]] for files in (samples, scores))
        paired = _facts(pairs[i])
        rows.append(
            {"policy": policy, "part": part, "oracle": "data set" if oracle == DATASET else oracle}
            | {name: sum(facts[name] for facts in judged) if judged else None for name in OF_SCORES}
            | {name: sum(facts.get(name, 0) for facts in drawn) if judged else None for name in OF_SAMPLES}
            | ({} if judged else {"prompts": paired["prompts"]})
            | {"pairs": paired["rows"], "prompts_without_a_pair": paired["prompts_without_a_pair"]}
            | {name: paired[name] for name in REASONS}
        )
    write(pd.DataFrame(rows, dtype=object), output, "preferences", settings.model_dump(), [*pairs, *scores, *samples])


def _facts(file: Path) -> dict[str, Any]:
    facts = manifest(file)
    if not facts:
        raise BadInput(f"{file}: no manifest says what it was made of; delete it to have it remade")
    return facts
