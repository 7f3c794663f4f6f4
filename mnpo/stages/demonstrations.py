"""Stage `demonstrations`: conversations of one's own for the reference's fine-tuning, and those that are kept aside."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

from mnpo.config.blocks import Block
from mnpo.config.training import Demonstrations
from mnpo.errors import BadInput
from mnpo.progress import say
from mnpo.stages.prompts import prompt_id
from mnpo.storage import conversations
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import DEMONSTRATIONS, read_rows, write

ENVIRONMENT = "infer"
SHOWN = 3
"""Rows left out that are named; the manifest counts them all."""


class Settings(Block):
    """What this stage reads."""

    data: Demonstrations
    seed: int
    """Of who is kept aside, and who is left where `data.rows` are fewer than there are."""


def run(settings: Settings, data: Path, output: Path) -> None:
    """Read conversations that are to be learnt from, and keep some of them aside.

    Each conversation counts once, and one that is kept aside is in nothing that is learnt.

    Args:
        data: the JSONL or Parquet file, or the directory of the data set.
        output: the directory of `train.parquet` and `heldout.parquet`, a row a conversation: its last turn the
            response, those before it prompt and context.

    Raises:
        BadInput: a row that does not end with the assistant's turn or is out of turn, if these are not to be dropped;
            nothing left to learn; or fewer conversations than are to be kept aside.
    """
    asked = settings.data
    facts: Counter[str] = Counter(unusable_rows=0, repeated_conversations=0)
    rows = _distinct(data, asked.split, asked, facts)
    apart = _distinct(data, asked.heldout_split, asked, facts) if asked.heldout_split else rows
    chosen = random.Random(settings.seed).sample(sorted(apart), _count(asked, len(apart), data))
    heldout = [apart[key] for key in chosen]
    left = sorted(rows.keys() - set(chosen))
    facts["kept_aside"] = len(heldout)
    if not left:
        raise BadInput(f"{data}: no conversation is left to learn from ({dict(facts)}); give more, or keep fewer aside")
    random.Random(settings.seed).shuffle(left)
    kept = left[: asked.rows]
    facts["unused_conversations"] = len(left) - len(kept)
    for name, table in {"train": [rows[key] for key in kept], "heldout": heldout}.items():
        with artifact(output / f"{name}.parquet", "demonstrations", settings.model_dump(), [data]) as made:
            write(DEMONSTRATIONS, sorted(table, key=lambda row: row["row"]), made.path)
            made.facts = {"rows": len(table), **facts}


def _distinct(data: Path, split: str, asked: Demonstrations, facts: Counter[str]) -> dict[str, dict[str, Any]]:
    """Conversation's id -> its row of the table; what is left out is added to `facts`."""
    rows: dict[str, dict[str, Any]] = {}
    where = f"{data}, {split}" if data.is_dir() else str(data)
    for number, row in enumerate(read_rows(data, split), 1):
        try:
            *before, answer = conversations.demonstration_of(row, f"{where}: row {number}", asked.column)
        except BadInput as error:
            if asked.unusable == "refuse":
                raise BadInput(f"{error} (reference.sft.data.unusable: drop leaves such rows out)") from None
            facts["unusable_rows"] += 1
            if facts["unusable_rows"] <= SHOWN:
                say(f"demonstrations: left out: {error}")
            continue
        turns = conversations.columns(before)
        known = {"prompt_id": prompt_id(**turns), "family": "", "truth": "", **turns, "response": answer["content"]}
        key = f"{known['prompt_id']} {prompt_id(answer['content'])}"
        facts["repeated_conversations"] += key in rows
        rows.setdefault(key, {**known, "row": number})
    return rows


def _count(asked: Demonstrations, there: int, data: Path) -> int:
    """How many conversations are kept aside."""
    count = asked.kept_aside(there)
    if asked.heldout and not 0 < count <= there:
        raise BadInput(
            f"{data}: {there} different conversations, of which reference.sft.data.heldout {asked.heldout} makes "
            f"{count}; ask for at least one, and no more than there are"
        )
    return count
