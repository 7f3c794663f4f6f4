"""Stage `prefer`: pairs that the data themselves prefer, without an oracle.

Chosen and rejected as the rows of the prompts have them; or the rows' demonstrations over a policy's own responses, as
SPIN (arXiv 2401.01335) learns from them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnpo.config.blocks import Block
from mnpo.config.sources import Prompts
from mnpo.errors import BadInput
from mnpo.stages.pair import REASONS, Row, pair_of
from mnpo.stages.prompts import asked, source_rows
from mnpo.stages.prompts import prompt_id as id_of
from mnpo.storage import conversations
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import PAIRS, PROMPTS, SAMPLES, read, rows_of, write

ENVIRONMENT = "infer"
Sides = Callable[[Mapping[str, Any], str, str], tuple[list[conversations.Turn], Row, Row]]
"""A row of the data, how messages call it, its prompt's id -> its conversation, what is chosen, what is rejected."""


class Settings(Block):
    """What this stage reads."""

    prompts: Prompts


def run(
    settings: Settings, prompts: Path, output: Path, samples: Sequence[Path] = (), data: Path | None = None
) -> None:
    """Pair responses as the data that the prompts are of prefer them.

    Each row of the data whose prompt is in the part makes one pair: its `chosen` over its `rejected`, or, where samples
    are given, its demonstration over the first of them that is another text. What makes none is counted by its reason
    in the manifest. A win is 1, and so is the score, unless `prompts.scores` names the columns that have them.

    Args:
        prompts: the part's prompts.
        output: the pairs, a Parquet file.
        samples: what `mnpo sample` wrote of a policy's responses to them, shard by shard.
        data: the directory of the data set, for source `dataset`.

    Raises:
        BadInput: a row that has no preference or no demonstration, or one of another prompt; a score that is none; or
            no pair at all.
    """
    p = settings.prompts
    rows, where = source_rows(p, data)
    order = {prompt_id: place for place, prompt_id in enumerate(read(PROMPTS, prompts)["prompt_id"])}
    counts = Counter(dict.fromkeys([*REASONS, "repeated_pairs"], 0))
    sides = _over_samples(p, samples) if samples else _as_given(p)
    inputs = [prompts, *samples, data or Path(p.path or "")]
    with artifact(output, "prefer", settings.model_dump(), inputs) as made:
        pairs: dict[str, Row] = {}
        for pair in _pairs(rows, where, p, order, sides, counts):
            counts["repeated_pairs"] += pair["pair_id"] in pairs
            pairs.setdefault(pair["pair_id"], pair)
        if not pairs:
            raise BadInput(f"{where}: no pair can be made of {len(order)} prompts ({dict(counts)})")
        kept = sorted(pairs.values(), key=lambda pair: order[pair["prompt_id"]])
        write(PAIRS, kept, made.path)
        without = len(order) - len({pair["prompt_id"] for pair in kept})
        against = sum(pair["chosen_score"] <= pair["rejected_score"] for pair in kept)
        facts = {"rows": len(kept), "prompts": len(order), "prompts_without_a_pair": without}
        made.facts = {**facts, "scored_no_better": against, **counts}


def _pairs(
    rows: Sequence[Mapping[str, Any]], where: str, p: Prompts, order: Mapping[str, int], sides: Sides, counts: Any
) -> Iterator[Row]:
    """A pair of each row whose prompt is in the part; what is left out is added to `counts`."""
    for number, row in enumerate(rows, 1):
        here = f"{where}: row {number}"
        prompt_id = asked(row, p, here)["prompt_id"]
        if prompt_id not in order:
            continue
        conversation, chosen, rejected = sides(row, here, prompt_id)
        if empty := sum(not side["response"].strip() for side in (chosen, rejected)):
            counts["empty_responses"] += empty
        elif chosen["response"] == rejected["response"]:
            counts["identical_responses"] += 1
        else:
            of = {"prompt_id": prompt_id, **conversations.columns(conversation)}
            yield pair_of(of | chosen, of | rejected)


def _as_given(p: Prompts) -> Sides:
    """A row's own chosen and rejected."""

    def sides(row: Mapping[str, Any], where: str, _: str) -> tuple[list[conversations.Turn], Row, Row]:
        found = conversations.preference_of(row, where, p.column)
        scores = [_score(row, column, where) for column in p.scores] if p.scores else [1.0, 0.0]
        chosen = {"response": found.chosen, "score": scores[0], "win": 1.0}
        return found.prompt, chosen, {"response": found.rejected, "score": scores[1], "win": 0.0}

    return sides


def _score(row: Mapping[str, Any], column: str, where: str) -> float:
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        has = f"(it has {', '.join(row)})" if column not in row else "mend or remove the row, or"
        raise BadInput(f"{where}: {column} is {str(value)[:60]!r}, expected a score; {has} mend prompts.scores")
    return float(value)


def _over_samples(p: Prompts, samples: Sequence[Path]) -> Sides:
    """A row's demonstration, and the first of the policy's responses that is another text."""
    drawn: dict[str, list[str]] = {}
    for sample in sorted(rows_of(read(SAMPLES, *samples)), key=lambda sample: sample["k"]):
        drawn.setdefault(sample["prompt_id"], []).append(sample["response"])

    def sides(row: Mapping[str, Any], where: str, prompt_id: str) -> tuple[list[conversations.Turn], Row, Row]:
        *prompt, answer = conversations.demonstration_of(row, where, p.column)
        if id_of(**conversations.columns(prompt)) != prompt_id:
            raise BadInput(
                f"{where}: its demonstration does not answer its {p.column}; set prompts.column to the column with the "
                "whole conversation"
            )
        own = drawn.get(prompt_id, [])
        other = [text for text in own if text.strip() and text != answer["content"]]
        rejected = (other or own or [""])[0]
        chosen = {"response": answer["content"], "score": 1.0, "win": 1.0}
        return prompt, chosen, {"response": rejected, "score": 0.0, "win": 0.0}

    return sides
