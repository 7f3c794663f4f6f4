"""Evaluations on the held-out prompts, by policy: who beats whom how often, and where that runs in circles."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnpo.config.blocks import REFERENCE
from mnpo.errors import BadInput
from mnpo.statistics import cyclic_triples
from mnpo.storage.records import JUDGED, SAMPLED, read


def evaluated(
    policies: Iterable[str], evaluations: Sequence[Path]
) -> tuple[dict[str, dict[str, Any]], dict[str, pd.DataFrame]]:
    """Policy -> its summary, and policy -> its per-item rows, of evaluations by the stage `assess`.

    Raises:
        BadInput: one of `policies` is not among them.
    """
    summaries = {s["policy"]: s for s in (json.loads(p.read_text(encoding="utf-8")) for p in evaluations)}
    if missing := [p for p in policies if p not in summaries]:
        raise BadInput(f"no evaluation of {', '.join(missing)} among {len(evaluations)} files")
    return summaries, {s: read(JUDGED, p.with_suffix(".parquet")) for s, p in zip(summaries, evaluations, strict=True)}


def scored(rows: pd.DataFrame, oracle: str | None, mode: str) -> pd.DataFrame:
    """Those of a policy's rows that hold an oracle's scores of its greedy or its sampled responses (`mode`)."""
    return rows[(rows["oracle"] == oracle) & (rows["mode"] == mode)]


Grids = Mapping[str, Mapping[str, np.ndarray]]
"""Policy -> prompt -> an oracle's scores of the policy's sampled responses."""


def score_grids(items: Mapping[str, pd.DataFrame], oracle: str) -> Grids:
    """What `oracle` said of every policy. Raises BadInput when it was not asked."""
    return {policy: _score_grid(rows, oracle, policy) for policy, rows in items.items()}


def _score_grid(rows: pd.DataFrame, oracle: str, policy: str) -> dict[str, np.ndarray]:
    wanted = scored(rows, oracle, SAMPLED)
    if wanted.empty:
        raise BadInput(f"the evaluation of {policy} has no sampled responses scored by {oracle}")
    return {str(p): g["score"].to_numpy() for p, g in wanted.groupby("prompt_id", sort=True)}


def wins(grids: Grids, policy: str, opponent: str) -> np.ndarray:
    """[prompts], in the order of their ids: how often responses of `policy` beat those of `opponent` (eq. 14)."""
    mine, theirs = grids[policy], grids[opponent]
    if list(mine) != list(theirs):
        raise BadInput(f"{policy} and {opponent} were evaluated on different prompts; evaluate them again")
    return np.array([_win(mine[p], theirs[p]) for p in mine])


def wins_over_reference(grids: Grids, policy: str, opponent: str) -> np.ndarray:
    """[prompts]: the same under an oracle that compares, whose scores are wins over the reference; NaN for two others,
    which it has not compared."""
    prompts = list(grids[policy])
    if list(grids[opponent]) != prompts:
        raise BadInput(f"{policy} and {opponent} were evaluated on different prompts; evaluate them again")
    if opponent == REFERENCE:
        return np.array([grids[policy][p].mean() for p in prompts])
    if policy == REFERENCE:
        return np.array([1 - grids[opponent][p].mean() for p in prompts])
    return np.full(len(prompts), math.nan)


def over_reference_notes(
    oracles: Sequence[str], labels: Mapping[str, str], summaries: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What a reader must know of oracles that compare: what their figures are, and what was not decided.

    Args:
        labels: policy -> what tables call it; those that are shown.
        summaries: policy -> what was measured.
    """
    reference = labels.get(REFERENCE, REFERENCE)
    undecided = Counter[str]()
    for policy in labels:
        undecided.update(summaries[policy].get("undecided", {}))
    notes = [
        f"{oracle} compares: its scores are win rates over {reference}, each response beside {reference}'s to the same "
        "prompt, of the same decoding and number"
        for oracle in oracles
    ]
    left = {oracle: count for oracle in oracles if (count := undecided[oracle])}
    return notes + [f"{oracle}: {count} comparisons without a verdict count one half" for oracle, count in left.items()]


def _win(scores: np.ndarray, against: np.ndarray) -> float:
    difference = scores[:, None] - against[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def circles(wins: pd.DataFrame) -> str:
    """How many triples of the policies of a table of wins beat each other in a circle, by rate and for certain."""
    policies = wins["policy"].nunique()
    by_rate, for_certain = (
        cyclic_triples(wins.pivot(index="policy", columns="opponent", values=column).to_numpy())
        for column in ("win_rate", "win_rate_low")
    )
    certainly = f", {for_certain} with all three intervals above one half" if by_rate else ""
    return f"Cyclic triples: {by_rate} of {math.comb(policies, 3)}{certainly}"
