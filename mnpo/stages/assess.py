"""Stage `assess`: a policy on held-out prompts. Writes a summary as JSON and per-item rows as Parquet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mnpo.benchmarks import heldout
from mnpo.config.blocks import validated
from mnpo.config.sources import directories
from mnpo.storage import user_code
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import JUDGED, PROMPTS, read, rows_of, write

ENVIRONMENT = "infer"


def run(settings: dict[str, Any], policy: Path, reference: Path, prompts: Path, output: Path) -> None:
    """Measure a policy on held-out prompts.

    Args:
        policy: the policy's directory.
        reference: the policy that the KL divergence is taken to.
        prompts: held-out prompts.
        output: the summary, a JSON file; per-item rows go beside it, as Parquet.

    Raises:
        BadInput: settings that the benchmark does not know; a function's file changed since the job was planned.
    """
    wanted = validated(heldout.Settings, settings, "settings")
    user_code.require_unchanged(wanted.functions)
    rows = read(PROMPTS, prompts)
    inputs = [policy, reference, prompts, *directories(wanted.models.values()), *map(Path, wanted.functions)]
    items = output.with_suffix(".parquet")
    with (
        artifact(output, "assess", settings, inputs) as made,
        artifact(items, "assess", settings, inputs) as made_items,
    ):
        summary, judged = heldout.evaluate(wanted, policy, reference, rows_of(rows))
        write(JUDGED, judged, made_items.path)
        tokens, parameters = summary.pop("generated_tokens"), summary.pop("parameters")
        facts = {"rows": len(judged), "tokens": tokens, "parameters": parameters}
        made.facts = made_items.facts = facts
        made.path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
