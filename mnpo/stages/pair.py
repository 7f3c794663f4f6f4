"""Stage `pair`: which of a prompt's scored responses are chosen over which."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mnpo.config.blocks import Block
from mnpo.config.sampling import Pairing
from mnpo.config.sources import Strip
from mnpo.errors import BadInput
from mnpo.models.thinking import answers
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import PAIRS, SAMPLES, SCORES, read, rows_of, write

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads."""

    pairing: Pairing
    strip: Strip | None = None
    """What the oracle was not shown of the responses (see Model); None: what their policy's template says."""


def run(settings: Settings, samples: Sequence[Path], scores: Sequence[Path], output: Path) -> None:
    """Pair each prompt's responses: which are chosen over which.

    What makes no pair is counted by its reason in the manifest.

    Args:
        samples: what `mnpo sample` wrote, shard by shard.
        scores: what `mnpo score` wrote of them, shard by shard.
        output: the pairs, a Parquet file.

    Raises:
        BadInput: a sample without a score, or no pair at all.
    """
    merged = read(SAMPLES, *samples).merge(read(SCORES, *scores), on=["prompt_id", "k"], how="left", validate="1:1")
    if merged["score"].isna().any():
        row = merged[merged["score"].isna()].iloc[0]
        raise BadInput(
            f"{scores[0]}: no score for prompt {row['prompt_id']}, k = {row['k']}; score these samples again"
        )
    merged["answer"] = answers(merged["response"], merged["thinking"], settings.strip)
    with artifact(output, "pair", settings.model_dump(), [*samples, *scores]) as made:
        counts: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        responses: dict[str, list[Row]] = {}
        for response in rows_of(merged):
            responses.setdefault(response["prompt_id"], []).append(response)
        pairs = [pair for of in responses.values() for pair in pairs_of(of, settings.pairing, counts)]
        prompts = len(responses)
        if not pairs:
            raise BadInput(f"{samples[0]}: no pair can be made of {prompts} prompts ({dict(counts)})")
        write(PAIRS, pairs, made.path)
        paired = len({pair["prompt_id"] for pair in pairs})
        made.facts = {"rows": len(pairs), "prompts": prompts, "prompts_without_a_pair": prompts - paired, **counts}


Row = dict[str, Any]
"""A response: its row of samples joined with its row of scores, and `answer`, what the oracle was shown of it."""
REASONS = (
    "empty_responses",
    "repeated_responses",
    "middle_responses",
    "fewer_than_two_responses",
    "identical_responses",
    "tied_scores",
)
"""Why responses (the first three), prompts (the next two) and pairs (the last) are left out."""


def pairs_of(responses: Sequence[Row], pairing: Pairing, counts: Counter[str]) -> list[Row]:
    """A prompt's pairs; what is left out is added to `counts` under one of REASONS.

    Which pairs there are does not depend on the rows' order. None is made from a tie, from one response, or from a
    response and itself (docs/ledger.md, point 6).
    """
    answered = [r for r in responses if r["answer"].strip()]
    texts = len({r["response"] for r in answered})
    counts["empty_responses"] += len(responses) - len(answered)
    if len(answered) < 2 or texts == 1:
        counts["fewer_than_two_responses" if len(answered) < 2 else "identical_responses"] += 1
        return []
    counts["repeated_responses"] += len(answered) - texts
    counts["middle_responses"] += texts % 2 if pairing.form == "each" else 0
    wanted = list(FORMS[pairing.form](answered))
    pairs = [pair_of(better, worse) for better, worse in wanted if better["score"] - worse["score"] > pairing.min_gap]
    counts["tied_scores"] += len(wanted) - len(pairs)
    return pairs


def best_against_worst(responses: Sequence[Row]) -> list[tuple[Row, Row]]:
    """One pair, among equal scores the smallest k."""
    best = min(responses, key=lambda r: (-r["score"], r["k"]))
    others = (r for r in responses if r["response"] != best["response"])  # its own text may score apart by rounding
    return [(best, min(others, key=lambda r: (r["score"], r["k"])))]


def every_two(responses: Sequence[Row]) -> Iterable[tuple[Row, Row]]:
    """All pairs of different texts, the better one first."""
    return combinations(_ranked(responses), 2)


def each_once(responses: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The best against the worst, the second against the second worst, and so on: each text in one pair at most."""
    ranked = _ranked(responses)
    return list(zip(ranked, ranked[::-1], strict=True))[: len(ranked) // 2]


FORMS: dict[str, Callable[[Sequence[Row]], Iterable[tuple[Row, Row]]]] = {
    "best-worst": best_against_worst,
    "all": every_two,
    "each": each_once,
}


def _ranked(responses: Sequence[Row]) -> list[Row]:
    """Each text once, best first; of its copies the one that scored best."""
    ranked: dict[str, Row] = {}
    for row in sorted(responses, key=lambda r: (-r["score"], r["k"])):
        ranked.setdefault(row["response"], row)
    return list(ranked.values())


def pair_of(chosen: Row, rejected: Row) -> Row:
    """A row of PAIRS."""
    text = f"{chosen['response']}\0{rejected['response']}"
    return {
        "pair_id": f"{chosen['prompt_id']}:{hashlib.sha256(text.encode()).hexdigest()[:12]}",  # other texts, other pair
        "prompt_id": chosen["prompt_id"],
        "prompt": chosen["prompt"],
        "context": chosen["context"],
        "chosen": chosen["response"],
        "rejected": rejected["response"],
        "chosen_score": chosen["score"],
        "rejected_score": rejected["score"],
        "chosen_win": chosen["win"],
        "rejected_win": rejected["win"],
    }
