"""Stage `tabulate`: evaluations -> printed tables: CSV (all digits), Markdown and HTML (rounded)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnpo.config.blocks import Block, Ordered
from mnpo.errors import BadInput
from mnpo.seeds import derive
from mnpo.statistics import cyclic_triples, interval
from mnpo.storage.artifacts import artifact, manifest
from mnpo.storage.records import GREEDY, JUDGED, SAMPLED, read

ENVIRONMENT = "eval"
STYLE = """\
<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>
body { font: 14px sans-serif; overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #ddd }
th { vertical-align: bottom } td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: white }
td:first-child { white-space: normal; min-width: 6em }
</style>
"""
PROTOCOL = "protocol"


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what tables call it, in the order of the rows."""
    win_against: list[str]
    oracle: str
    scores: list[str]
    accuracy: str | None = None
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
    for name, table in tables.items():
        notes = [circles(wins)] if name == "wins" else []
        write(table, output / name, "tabulate", settings.model_dump(), read_from, notes)


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


def costs(artifacts: Sequence[Path], output: Path) -> None:
    """Write what each stage cost to make `artifacts`, from their manifests, as the table `output`."""
    write(cost_table(artifacts), output, "tabulate", {}, artifacts)


def write(
    table: pd.DataFrame,
    output: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    notes: Sequence[str] = (),
) -> None:
    """Write `table` beside `output`: .csv with all digits, .md and .html for reading, with footnotes.

    A column `protocol` is the CSV's alone: elsewhere a footnote says it.
    """
    shown = readable(table.drop(columns=PROTOCOL, errors="ignore"))
    listed = "".join(f"<li>{escape(note)}</li>\n" for note in notes)
    texts = {
        "csv": table.to_csv(index=False),
        "md": shown.to_markdown(index=False, disable_numparse=True)
        + "\n"
        + ("\n" if notes else "")
        + "".join(f"- {note}\n" for note in notes),
        "html": STYLE
        + shown.rename(columns=lambda name: name.replace("_", " ")).to_html(index=False, border=0)
        + "\n"
        + (f"<ul>\n{listed}</ul>\n" if notes else ""),
    }
    for ending, text in texts.items():
        with artifact(output.with_suffix(f".{ending}"), stage, settings, inputs) as made:
            made.path.write_text(text, encoding="utf-8")


def win_table(settings: Settings, items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """P(a response of `policy` beats one of `opponent`) under the oracle, ties half, with its bootstrap interval.

    Each prompt's win is the mean over all pairs of the two policies' sampled responses to it (docs/method.md, eq. 14);
    the bootstrap resamples prompts, the same ones for both policies.
    """
    grids = score_grids(items, settings.oracle)
    rows = []
    for policy, opponent in product(settings.labels, repeat=2):
        if policy == opponent:
            continue
        per_prompt = wins(grids, policy, opponent)
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


def circles(wins: pd.DataFrame) -> str:
    """How many triples of the policies of a table of wins beat each other in a circle, by rate and for certain."""
    policies = wins["policy"].nunique()
    by_rate, for_certain = (
        cyclic_triples(wins.pivot(index="policy", columns="opponent", values=column).to_numpy())
        for column in ("win_rate", "win_rate_low")
    )
    certainly = f", {for_certain} with all three intervals above one half" if by_rate else ""
    return f"Cyclic triples: {by_rate} of {math.comb(policies, 3)}{certainly}"


Grids = Mapping[str, Mapping[str, np.ndarray]]
"""Policy -> prompt -> an oracle's scores of the policy's sampled responses."""


def score_grids(items: Mapping[str, pd.DataFrame], oracle: str) -> Grids:
    """What `oracle` said of every policy. Raises BadInput when it was not asked."""
    return {policy: _score_grid(rows, oracle, policy) for policy, rows in items.items()}


def _score_grid(rows: pd.DataFrame, oracle: str, policy: str) -> dict[str, np.ndarray]:
    wanted = _scored(rows, oracle, SAMPLED)
    if wanted.empty:
        raise BadInput(f"the evaluation of {policy} has no sampled responses scored by {oracle}")
    return {str(p): g["score"].to_numpy() for p, g in wanted.groupby("prompt_id", sort=True)}


def wins(grids: Grids, policy: str, opponent: str) -> np.ndarray:
    """[prompts], in the order of their ids: how often responses of `policy` beat those of `opponent` (eq. 14)."""
    mine, theirs = grids[policy], grids[opponent]
    if list(mine) != list(theirs):
        raise BadInput(f"{policy} and {opponent} were evaluated on different prompts; evaluate them again")
    return np.array([_win(mine[p], theirs[p]) for p in mine])


def _win(scores: np.ndarray, against: np.ndarray) -> float:
    difference = scores[:, None] - against[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


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
        row |= {"tokens": summary["tokens"][SAMPLED], "kl_to_reference": summary["kl_to_reference"]}
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
    return float((_scored(rows, settings.accuracy, mode)["score"] == 1).mean())


def _scored(rows: pd.DataFrame, oracle: str | None, mode: str) -> pd.DataFrame:
    return rows[(rows["oracle"] == oracle) & (rows["mode"] == mode)]


def family_table(settings: Settings, items: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Sampled responses by family of prompts: exact accuracy, or the mean score where nothing says what is right.

    One row a policy, one column a family; prompts without a family are `all`.
    """
    rows = []
    for policy, label in settings.labels.items():
        judged = _scored(items[policy], settings.accuracy or settings.oracle, SAMPLED)
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


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The table for reading: three digits, an interval beside its value in one column."""
    shown = table.map(lambda v: v if isinstance(v, (str, int)) else "n/a" if pd.isna(v) else f"{v:.3f}")
    for low in [c for c in table.columns if c.endswith("_low")]:
        column, high = low.removesuffix("_low"), low.removesuffix("_low") + "_high"
        bounds = " [" + shown[low] + ", " + shown[high] + "]"
        shown[column] = shown[column] + bounds.where(table[column].notna(), "")
        shown = shown.drop(columns=[low, high])
    return shown
