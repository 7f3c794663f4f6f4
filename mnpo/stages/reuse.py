"""Stage `reuse`: the responses that came with the prompts of a shard, in the columns of samples.

The paper's iteration 1 learns from these instead of sampling.
"""

from __future__ import annotations

from pathlib import Path

from mnpo.config.blocks import Block
from mnpo.errors import BadInput
from mnpo.models.thinking import characters_shown
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import DEMONSTRATIONS, PROMPTS, SAMPLES, read, rows_of, write

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads."""

    shard: int
    shards: int
    responses: int
    """At most so many of a prompt, the first ones."""


def run(settings: Settings, responses: Path, prompts: Path, output: Path) -> None:
    """Take the responses that came with the prompts instead of sampling.

    Empty ones stay, are counted, and never become part of a pair. `tokens` and `seed` are 0: nobody here generated
    them.

    Args:
        responses: the responses that came with the prompts.
        prompts: the part's prompts.
        output: the shard's samples, a Parquet file.

    Raises:
        BadInput: a prompt of the shard came without responses.
    """
    rows = rows_of(read(PROMPTS, prompts).iloc[settings.shard :: settings.shards])
    own: dict[str, list[str]] = {}
    for row in rows_of(read(DEMONSTRATIONS, responses)):
        own.setdefault(row["prompt_id"], []).append(row["response"])
    if alone := [row["prompt_id"] for row in rows if row["prompt_id"] not in own]:
        raise BadInput(f"{responses}: {len(alone)} prompts of {prompts} came without responses, such as {alone[0]}")
    with artifact(output, "reuse", settings.model_dump(), [responses, prompts]) as made:
        samples = [
            {**row, "k": k, "response": text, "tokens": 0, "finish": "stop", "seed": 0}
            | {"thinking": characters_shown(text, None)}
            for row in rows
            for k, text in enumerate(own[row["prompt_id"]][: settings.responses])
        ]
        write(SAMPLES, samples, made.path)
        further = sum(max(0, len(own[row["prompt_id"]]) - settings.responses) for row in rows)
        made.facts = {
            "rows": len(samples),
            "empty_responses": sum(not s["response"].strip() for s in samples),
            "further_responses": further,
        }
