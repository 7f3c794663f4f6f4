"""Stage `assess`: a policy on held-out prompts. Writes a summary as JSON and per-item rows as Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mnpo import oracles
from mnpo.benchmarks import heldout
from mnpo.config.blocks import validated
from mnpo.config.sources import directories
from mnpo.models.checkpoints import readable
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import JUDGED, PROMPTS, read, rows_of, write

ENVIRONMENT = "infer"


def run(
    settings: dict[str, Any],
    policy: Path,
    reference: Path,
    prompts: Path,
    output: Path,
    against: Path | None = None,
    store: Path | None = None,
) -> None:
    """Measure a policy on held-out prompts.

    Beside `output`, by the same name: per-item rows (.parquet).

    Args:
        policy: the policy's directory.
        reference: the policy that the KL divergence is taken to.
        prompts: held-out prompts.
        output: the summary, a JSON file.
        against: the reference's per-item rows, for oracles that compare.
        store: where a judge's answers are kept; beside the summary, if it is not given.

    Raises:
        BadInput: settings that the benchmark does not know, nothing for an oracle to compare with, or a function's
            file that changed since the job was planned.
    """
    wanted = validated(heldout.Settings, settings, "settings")
    further = oracles.prepared(wanted.functions, wanted.nltk)
    rows = read(PROMPTS, prompts)
    policy, reference = (readable(each, wanted.dtype) for each in (policy, reference))
    other = [] if against is None else [against]
    inputs = [policy, reference, prompts, *other, *directories(wanted.models.values()), *further]
    items = output.with_suffix(".parquet")
    with (
        artifact(output, "assess", settings, inputs) as made,
        artifact(items, "assess", settings, inputs) as made_items,
    ):
        kept = oracles.Kept(store or output.with_suffix(".judge.sqlite"))
        opposing = None if against is None else rows_of(read(JUDGED, against))
        summary, judged, facts = heldout.evaluate(wanted, policy, reference, rows_of(rows), opposing, kept)
        write(JUDGED, judged, made_items.path)
        made.facts = made_items.facts = facts
        made.path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
