"""Stage `tabulate`: evaluations -> printed tables: CSV (all digits), Markdown and HTML (rounded)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from mnpo.config.blocks import REFERENCE, Block, Ordered
from mnpo.seeds import derive
from mnpo.statistics import interval
from mnpo.storage.artifacts import manifest
from mnpo.storage.records import GREEDY, SAMPLED
from mnpo.tables.files import write
from mnpo.tables.heldout import (
    circles,
    evaluated,
    over_reference_notes,
    score_grids,
    scored,
    wins,
    wins_over_reference,
)

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what tables call it, in the order of the rows."""
    win_against: list[str]
    oracle: str
    scores: list[str]
    accuracy: str | None = None
    over_reference: list[str] = []
    """Those of these oracles that compare: their scores are win rates over the reference."""
    bootstrap: int
    confidence: float
    seed: int


def run(settings: Settings, evaluations: Sequence[Path], output: Path) -> None:
    """Make tables of evaluations.

    Args:
        evaluations: one summary (JSON, per-item Parquet beside it) for each policy in `labels`.
        output: the directory of the tables `main`, `families` and `wins`.

    Raises:
        BadInput: an evaluation is missing, or policies were evaluated on different prompts.
    """
    summaries, items = evaluated(settings.labels, evaluations)
    wins = win_table(settings, items)
    tables = {
        "main": main_table(settings, summaries, items, wins),
        "families": family_table(settings, items),
        "wins": wins,
    }
    read_from = [file for summary in evaluations for file in (summary, summary.with_suffix(".parquet"))]
    main = over_reference_notes(settings.over_reference, settings.labels, summaries)
    notes = {"main": main, "wins": _notes_of_wins(settings, wins)}
    for name, table in tables.items():
        write(table, output / name, "tabulate", settings.model_dump(), read_from, notes.get(name, []))


def costs(artifacts: Sequence[Path], output: Path) -> None:
    """Write what each stage cost to make `artifacts`, from their manifests, as the table `output`."""
    write(cost_table(artifacts), output, "tabulate", {}, artifacts)


def win_table(settings: Settings, items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """P(a response of `policy` beats one of `opponent`) under the oracle, ties half, with its bootstrap interval.

    Each prompt's win is the mean over all pairs of the two policies' sampled responses to it (docs/method.md, eq. 14);
    the bootstrap resamples prompts, the same ones for both policies.
    """
    grids, rows = score_grids(items, settings.oracle), []
    wins_of = wins_over_reference if settings.oracle in settings.over_reference else wins
    for policy, opponent in product(settings.labels, repeat=2):
        if policy == opponent:
            continue
        per_prompt = wins_of(grids, policy, opponent)
        low, high = interval(per_prompt, settings.bootstrap, settings.confidence, derive(settings.seed, "wins"))
        rows.append(
            {
                "policy": settings.labels[policy],
                "opponent": settings.labels[opponent],
                "win_rate": per_prompt.mean(),
                "win_rate_low": low,
                "win_rate_high": high,
                "prompts": len(per_prompt),
            }
        )
    return pd.DataFrame(rows, columns=["policy", "opponent", "win_rate", "win_rate_low", "win_rate_high", "prompts"])


def _notes_of_wins(settings: Settings, wins: pd.DataFrame) -> list[str]:
    if settings.oracle not in settings.over_reference:
        return [circles(wins)]
    label = settings.labels.get(REFERENCE, REFERENCE)
    return [f"{settings.oracle} compares, and has compared policies with {label} only: other win rates are not known"]


def main_table(
    settings: Settings, summaries: Mapping[str, Any], items: Mapping[str, pd.DataFrame], wins: pd.DataFrame
) -> pd.DataFrame:
    """One row a policy: accuracy, win rates, each oracle's mean score, length, KL to the reference, cycles."""
    rows = []
    for policy, label in settings.labels.items():
        summary = summaries[policy]
        row: dict[str, Any] = {"policy": label}
        if settings.accuracy:
            row |= {f"accuracy_{mode}": _accuracy(settings, items[policy], mode) for mode in (GREEDY, SAMPLED)}
        for opponent in settings.win_against:
            row |= _win_columns(wins, label, opponent, settings.labels[opponent])
        row |= {
            f"score_{name}": summary["scores"][name][SAMPLED]
            for name in dict.fromkeys([settings.oracle, *settings.scores])
        }
        row["tokens"] = summary["tokens"][SAMPLED]
        if any("tokens_with_thinking" in other for other in summaries.values()):
            row["tokens_with_thinking"] = summary.get("tokens_with_thinking", summary["tokens"])[SAMPLED]
        row |= {"kl_to_reference": summary["kl_to_reference"]}
        if summary["prompts_with_a_cycle"] is not None:
            row["prompts_with_a_cycle"] = summary["prompts_with_a_cycle"]
        rows.append({**row, "prompts": summary["prompts"]})
    return pd.DataFrame(rows)


def _win_columns(wins: pd.DataFrame, label: str, opponent: str, opponent_label: str) -> dict[str, float | None]:
    names = (f"win_vs_{opponent}", f"win_vs_{opponent}_low", f"win_vs_{opponent}_high")
    if label == opponent_label:
        return dict.fromkeys(names)
    found = wins[(wins["policy"] == label) & (wins["opponent"] == opponent_label)].iloc[0]
    return dict(zip(names, (found["win_rate"], found["win_rate_low"], found["win_rate_high"]), strict=True))


def _accuracy(settings: Settings, rows: pd.DataFrame, mode: str) -> float:
    return float((scored(rows, settings.accuracy, mode)["score"] == 1).mean())


def family_table(settings: Settings, items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Sampled responses by family of prompts: exact accuracy, or the mean score where nothing says what is right.

    One row a policy, one column a family; prompts without a family are `all`.
    """
    rows = []
    for policy, label in settings.labels.items():
        judged = scored(items[policy], settings.accuracy or settings.oracle, SAMPLED)
        value = (judged["score"] == 1) if settings.accuracy else judged["score"]
        by_family = value.groupby(judged["family"], sort=True).mean()
        rows.append({"policy": label, **{str(f) or "all": float(v) for f, v in by_family.items()}})
    return pd.DataFrame(rows)


def cost_table(artifacts: Sequence[Path]) -> pd.DataFrame:
    """What each stage cost, from the manifests of what it made: jobs, seconds, tokens, tokens per second."""
    records = [m for m in map(manifest, artifacts) if m]
    frame = pd.DataFrame(
        [{"stage": m["stage"], "jobs": 1, "seconds": m["seconds"], "tokens": m.get("tokens", 0)} for m in records],
        columns=["stage", "jobs", "seconds", "tokens"],
    )
    costs = frame.groupby("stage", sort=False).sum().reset_index()
    costs["tokens_per_second"] = (costs["tokens"] / costs["seconds"]).where(costs["tokens"] > 0)
    return costs
