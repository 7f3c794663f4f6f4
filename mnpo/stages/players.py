"""Stage `players`: every run's last policy as a player: scores under every oracle, win rate, own gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnpo.config.blocks import Block, Ordered
from mnpo.seeds import derive
from mnpo.statistics import interval
from mnpo.storage.records import SAMPLED
from mnpo.tables.files import write
from mnpo.tables.heldout import Grids, evaluated, over_reference_notes, score_grids, wins

ENVIRONMENT = "eval"


class Player(Block):
    """One policy in its game."""

    oracle: str
    """Its own."""
    opponents: Ordered[float]
    """Policy -> weight, sum one: the other players' policies, or the policy itself."""


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what tables call it: all that a player could play instead."""
    players: Ordered[Player]
    """Policy -> how it plays, in the order of the rows."""
    scores: list[str]
    """Oracles that have judged."""
    over_reference: list[str] = []
    """Those of them that compare: they know wins over the reference only, and make no gap."""
    bootstrap: int
    confidence: float
    seed: int


def run(settings: Settings, evaluations: Sequence[Path], output: Path) -> None:
    """Make the table of players: scores under every oracle, win rates against opponents, own gaps.

    A player whose own oracle is not among `scores`, or compares, has no win rate and no gap.

    Args:
        evaluations: one summary (JSON, per-item Parquet beside it) for each policy in `labels`.
        output: the table without its ending.

    Raises:
        BadInput: an evaluation is missing, or policies were evaluated on different prompts.
    """
    summaries, items = evaluated(settings.labels, evaluations)
    scoring = [oracle for oracle in settings.scores if oracle not in settings.over_reference]
    grids = {oracle: score_grids(items, oracle) for oracle in scoring}
    rows = [
        {
            "player": settings.labels[policy],
            "oracle": player.oracle,
            "opponents": ", ".join(settings.labels[o] if o != policy else "itself" for o in player.opponents),
            **{f"score_{oracle}": summaries[policy]["scores"][oracle][SAMPLED] for oracle in settings.scores},
            **_play(settings, policy, player, grids),
        }
        for policy, player in settings.players.items()
    ]
    inputs = [file for summary in evaluations for file in (summary, summary.with_suffix(".parquet"))]
    notes = over_reference_notes(settings.over_reference, settings.labels, summaries)
    write(pd.DataFrame(rows), output, "players", settings.model_dump(), inputs, notes)


def _play(settings: Settings, policy: str, player: Player, grids: Mapping[str, Grids]) -> dict[str, Any]:
    """Win rate against the opponents under the player's own oracle, and its own gap (docs/method.md, eq. 22)."""
    if player.oracle not in grids:
        return dict.fromkeys(("win_rate", "win_rate_low", "win_rate_high", "gap", "gap_low", "gap_high", "best_reply"))
    against = {
        other: sum(w * wins(grids[player.oracle], other, o) for o, w in player.opponents.items())
        for other in settings.labels
    }
    gained, best = best_reply_gain(against, policy)
    return {
        **_with_interval(settings, "win_rate", np.asarray(against[policy])),
        **_with_interval(settings, "gap", gained),
        "best_reply": settings.labels[best],
    }


def best_reply_gain(against: Mapping[str, Any], policy: str) -> tuple[np.ndarray, str]:
    """[prompts]: what the best of all policies wins more than `policy`, and which is best over all prompts.

    On every other prompt the best is chosen by the rest, so that its luck there does not count: without a true gain the
    mean is zero or less.

    Args:
        against: policy -> [prompts] win rates against the same opponents.
    """
    names, table = list(against), np.stack([against[name] for name in against])  # [policies, prompts]
    gained = np.empty(table.shape[1])
    for half in (0, 1):
        chosen = int(table[:, 1 - half :: 2].mean(axis=1).argmax())
        gained[half::2] = (table[chosen] - table[names.index(policy)])[half::2]
    return gained, names[int(table.mean(axis=1).argmax())]


def _with_interval(settings: Settings, name: str, per_prompt: np.ndarray) -> dict[str, float]:
    low, high = interval(per_prompt, settings.bootstrap, settings.confidence, derive(settings.seed, name))
    return {name: float(per_prompt.mean()), f"{name}_low": low, f"{name}_high": high}
