"""Stage `examples`: a page that shows what policies answer to the same held-out prompts, and each oracle's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.config.blocks import Block, Ordered
from mnpo.errors import BadInput
from mnpo.seeds import derive
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import PROMPTS, SAMPLED, read, rows_of
from mnpo.tables.examples import Answer, Example, page
from mnpo.tables.heldout import evaluated, over_reference_notes

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what tables call it, in the order of the rows."""
    scores: list[str]
    """Oracles whose scores are shown."""
    over_reference: list[str] = []
    """Those of them that compare: their scores are win rates over the reference."""
    prompts: int
    """How many are shown, or all that there are."""
    seed: int


def run(settings: Settings, evaluations: Sequence[Path], prompts: Path, output: Path) -> None:
    """Make a page of examples: the same held-out prompts under several policies, with what each oracle says.

    Args:
        evaluations: one summary (JSON, per-item Parquet beside it) for each policy in `labels`.
        prompts: the held-out prompts.
        output: the page, an HTML file.

    Raises:
        BadInput: an evaluation is missing, or has no score of a response to one of the prompts that are shown.
    """
    summaries, items = evaluated(settings.labels, evaluations)
    everything = rows_of(read(PROMPTS, prompts))
    chosen = drawn(everything, settings.prompts, settings.seed)
    answers = {
        policy: _answers(items[policy].to_dict("records"), policy, label, [p["prompt_id"] for p in chosen], settings)
        for policy, label in settings.labels.items()
    }
    examples = [
        Example(p["prompt_id"], p["family"], p["prompt"], p["context"], [answers[a][p["prompt_id"]] for a in answers])
        for p in chosen
    ]
    notes = over_reference_notes(settings.over_reference, settings.labels, summaries)
    inputs = [prompts, *(file for summary in evaluations for file in (summary, summary.with_suffix(".parquet")))]
    with artifact(output, "examples", settings.model_dump(), inputs) as made:
        made.path.write_text(page(examples, settings.scores, len(everything), notes), encoding="utf-8")


def drawn(prompts: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """`count` prompts at random: each gets a number from its name, and the lowest are taken. More prompts come behind
    those that fewer would be."""
    return sorted(prompts, key=lambda p: derive(seed, p["prompt_id"]))[:count]


def _answers(
    rows: Sequence[Mapping[Any, Any]], policy: str, label: str, prompts: Sequence[str], settings: Settings
) -> dict[str, Answer]:
    """Prompt -> the policy's first sampled response to it."""
    first = {(r["prompt_id"], r["oracle"]): r for r in rows if r["mode"] == SAMPLED and r["k"] == 0}
    for prompt in prompts:
        for oracle in settings.scores:
            if (prompt, oracle) not in first:
                raise BadInput(
                    f"the evaluation of {policy} has no sampled response to the prompt {prompt} scored by {oracle}; "
                    f"evaluate {policy} again"
                )
    answers = {}
    for prompt in prompts:
        of = {oracle: first[prompt, oracle] for oracle in settings.scores}
        row = of[settings.scores[0]]
        scores = [float(of[oracle]["score"]) for oracle in settings.scores]
        answers[prompt] = Answer(label, row["response"], int(row["tokens"]), row["finish"], scores)
    return answers
