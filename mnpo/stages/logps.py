"""Stage `logps`: log-probabilities of the chosen and rejected responses of pairs under a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mnpo.batches import SCORING_TOKENS
from mnpo.config import Block, Text, TextForm
from mnpo.progress import counter
from mnpo.records import LOGPS, PAIRS, read, rows_of, write
from mnpo.resume import resumable


class Settings(Block):
    """What this stage reads."""

    form: TextForm
    text: Text
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights, as training's products have it."""


def run(settings: Settings, policy: Path, pairs: Path, output: Path) -> None:
    """Write the summed log-probabilities (nats) and token counts of both responses of every pair.

    Finished batches survive a kill.
    """
    rows = read(PAIRS, pairs)
    from mnpo.chat import Chat
    from mnpo.checkpoints import load_model, load_tokenizer
    from mnpo.logprobs import score_texts

    with resumable(output, "logps", settings.model_dump(), [policy, pairs]) as (made, session):
        chat = Chat(load_tokenizer(policy), settings.text, settings.form)
        sides = ("chosen", "rejected")
        texts = [
            chat.encode(row["prompt"], row[side], f"{pairs}: pair {row['pair_id']}, {side}")
            for row in rows_of(rows)
            for side in sides
        ]
        model = load_model(policy, dtype=settings.dtype)
        progress = counter(f"logps {policy.name}", "texts")
        journal = session.journal("batches")
        scored = score_texts(model, texts, max_tokens=SCORING_TOKENS, progress=progress, journal=journal)
        table = rows[["pair_id"]].copy()
        for i, side in enumerate(sides):
            table[side] = scored.sums[i::2].double().tolist()
            table[f"{side}_tokens"] = [len(t.response) for t in texts[i::2]]
        write(LOGPS, table, made.path)
        made.facts = {
            "rows": len(table),
            "tokens": scored.computed,
            "parameters": model.num_parameters(),
            "padding_share": round(scored.padding, 4),
            "shared_prompt_share": round(scored.shared, 4),
            **chat.counts,
        }
