"""Stage `weigh`: the game that a policy's opponents play against each other, and their weights in its equilibrium."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnpo.config.blocks import Block, Positive
from mnpo.errors import BadInput
from mnpo.method.equilibria import among
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import SCORES, read

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    policy: str
    """Whose training they oppose."""
    oracle: str
    """Who decides."""
    opponents: list[str]
    """Newest first."""
    games: list[tuple[str, str]]
    """Every two of them."""
    tau: Positive | None = None
    """How strongly the equilibrium is drawn to equal weights; None: not at all."""


def run(settings: Settings, output: Path, scores: Sequence[Path] = ()) -> None:
    """Weigh opponents by the equilibrium of the game between them (docs/method.md, eq. 24).

    Args:
        output: JSON: `wins` [opponents, opponents], how often responses of one beat those of the other to the same
            prompt; `standard_errors` of these over prompts; `weights`, opponent -> weight, sum one.
        scores: for each of `games`, the same number of files that `mnpo score --against` wrote: win rates of the first
            one's responses over the second's.

    Raises:
        BadInput: files that are not the same number for each game, or that hold no scores.
    """
    each, left = divmod(len(scores), len(settings.games))
    if left or not each:
        raise BadInput(
            f"{len(settings.games)} games need the same number of score files each, got {len(scores)} in all"
        )
    n = len(settings.opponents)
    wins, errors, prompts = np.full((n, n), 0.5), np.zeros((n, n)), 0
    for g, (first, second) in enumerate(settings.games):
        files = scores[g * each : (g + 1) * each]
        per_prompt = read(SCORES, *files).groupby("prompt_id")["win"].mean().to_numpy()
        if not (prompts := len(per_prompt)):
            raise BadInput(f"{files[0]}: no scores; without them {first} and {second} cannot be compared")
        i, j = settings.opponents.index(first), settings.opponents.index(second)
        wins[i, j] = per_prompt.mean()
        wins[j, i] = 1 - wins[i, j]
        errors[i, j] = errors[j, i] = per_prompt.std(ddof=1) / math.sqrt(prompts) if prompts > 1 else 0.0
    weights = dict(zip(settings.opponents, among(wins, settings.tau).tolist(), strict=True))
    found = {
        "policy": settings.policy,
        "oracle": settings.oracle,
        "prompts": prompts,
        "opponents": settings.opponents,
        "wins": wins.tolist(),
        "standard_errors": errors.tolist(),
        "weights": weights,
    }
    with artifact(output, "weigh", settings.model_dump(exclude_none=True), scores) as made:
        made.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        made.facts = {"prompts": prompts, "weights": weights}
