"""Stage `logps`: log-probabilities of the chosen and rejected responses of pairs under a policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnpo.config.blocks import Block
from mnpo.config.text import Text, TextForm
from mnpo.config.training import Attention
from mnpo.learning.batches import SCORING_TOKENS
from mnpo.progress import counter
from mnpo.storage.conversations import turns
from mnpo.storage.records import LOGPS, PAIRS, SAMPLER_LOGPS, read, rows_of, write
from mnpo.storage.resume import resumable

if TYPE_CHECKING:
    from mnpo.models.chat import Encoded
    from mnpo.storage.journal import Journal

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads."""

    form: TextForm
    text: Text
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights, as training's products have it."""
    attention: Attention | None = None
    """How attention is computed, as in training."""
    soft_cap: bool | None = None
    """false: the model's attention logits are not capped, whatever it says (docs/ledger.md, point 44)."""


def run(settings: Settings, policy: Path, pairs: Path, output: Path, sampler: Sequence[Path] = ()) -> None:
    """Log-probabilities of pairs under a policy.

    Summed, in nats, and the token counts of both responses of every pair. Finished batches survive a kill.

    Args:
        policy: the policy's directory.
        pairs: what `mnpo pair` wrote.
        output: the log-probabilities, a Parquet file.
        sampler: what the sampler said of this policy's own responses, shard by shard. Where the tokens are the very
            same, that is taken, and counted; the model reads the rest.
    """
    rows = read(PAIRS, pairs)
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_tokenizer, readable

    read_from = readable(policy, settings.dtype)
    inputs = [read_from, pairs, *sampler]
    with resumable(output, "logps", settings.model_dump(exclude_none=True), inputs) as (made, session):
        chat = Chat(load_tokenizer(read_from), settings.text, settings.form)
        sides = ("chosen", "rejected")
        texts = [
            chat.encode(turns(row["prompt"], row["context"]), row[side], f"{pairs}: pair {row['pair_id']}, {side}")
            for row in rows_of(rows)
            for side in sides
        ]
        said = _said(sampler)
        sums = [said.get(text.fingerprint()) if said else None for text in texts]
        unsaid = [i for i, value in enumerate(sums) if value is None]
        facts: dict[str, Any] = {"said_by_the_sampler": len(texts) - len(unsaid)} if sampler else {}
        if unsaid:
            computed, further = _computed(settings, policy, [texts[i] for i in unsaid], session.journal("batches"))
            facts |= further
            for i, value in zip(unsaid, computed, strict=True):
                sums[i] = value
        table = rows[["pair_id"]].copy()
        for i, side in enumerate(sides):
            table[side] = sums[i::2]
            table[f"{side}_tokens"] = [len(t.response) for t in texts[i::2]]
        write(LOGPS, table, made.path)
        made.facts = {"rows": len(table), **facts, **chat.counts}


def _said(sampler: Sequence[Path]) -> dict[str, float]:
    """Fingerprint of the token ids -> log-probability."""
    if not sampler:
        return {}
    rows = read(SAMPLER_LOGPS, *sampler)
    return dict(zip(rows["read"], rows["logp"], strict=True))


def _computed(
    settings: Settings, policy: Path, texts: Sequence[Encoded], journal: Journal
) -> tuple[list[float], dict[str, Any]]:
    """What the model makes of texts, and what that cost."""
    from mnpo.models.checkpoints import load_model
    from mnpo.models.logprobs import score_texts

    model = load_model(policy, "causal", settings.dtype, settings.attention, settings.soft_cap is not False)
    progress = counter(f"logps {policy.name}", "texts")
    scored = score_texts(model, texts, max_tokens=SCORING_TOKENS, progress=progress, journal=journal)
    return scored.sums.double().tolist(), {
        "tokens": scored.computed,
        "parameters": model.num_parameters(),
        "padding_share": round(scored.padding, 4),
        "shared_prompt_share": round(scored.shared, 4),
    }
