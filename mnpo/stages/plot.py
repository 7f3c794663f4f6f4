"""Stage `plot`: tables and training metrics -> figures, as SVG and PNG. Same inputs, same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mnpo.config.blocks import REFERENCE, Block, Ordered, nearest
from mnpo.errors import BadInput
from mnpo.storage.artifacts import artifact
from mnpo.tables.heldout import circles

ENVIRONMENT = "eval"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # readable when colour-blind
MARKERS = "os^Dv<>"
CURVES = {
    "loss": "loss, of the iteration's first step",
    "margin": "margin h (nats)",
    "accuracy": "pairs with a positive margin",
    "kl": "KL to the reference (nats)",
}
"""Column of a training's metrics -> what its panel is called."""
READ = ("families", "main", "wins")
"""The tables that figures are drawn from."""


class Settings(Block):
    """What this stage reads."""

    labels: Ordered[str]
    """Policy -> what figures call it."""
    runs: Ordered[list[str]]
    """Run -> its policies that are evaluated, iteration by iteration."""
    trainings: Ordered[list[str]]
    """Run -> all its policies, iteration by iteration."""
    run_labels: dict[str, str]
    family_value: str = "accuracy, sampled"
    """What the table `families` holds."""
    oracle: str
    """Decides wins."""
    scores: list[str]
    """Oracles whose mean score the table `main` has."""
    over_reference: list[str] = []
    """Those of them that compare: their score is a win rate over SFT."""


def run(settings: Settings, figure: str, tables: Path, output: Path, training: Sequence[Path] = ()) -> None:
    """Draw a figure of tables and training metrics.

    Args:
        figure: its name: `win_rate`, `length`, `oracles`, ...; a wrong one is told the nearest.
        tables: the directory of the tables.
        output: the figure without its ending: .svg and .png are made.
        training: `{policy}.jsonl` of every policy whose training is drawn.
    """
    if figure not in FIGURES:
        raise BadInput(f"unknown figure {figure!r}{nearest(figure, FIGURES)}")
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams.update({"svg.hashsalt": "mnpo", "figure.dpi": 150, "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update(
        {
            "axes.spines.right": False,
            "legend.frameon": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
        }
    )
    metrics = {t.stem: _metrics(t) for t in training}
    drawn = FIGURES[figure](settings, tables, metrics)
    inputs = [*(tables / f"{name}.csv" for name in READ), *training]
    for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        with artifact(output.with_suffix(f".{ending}"), "plot", settings.model_dump(), inputs) as made:
            drawn.savefig(made.path, format=ending, metadata=metadata, bbox_inches="tight")


def _metrics(training: Path) -> pd.DataFrame:
    lines = training.read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines])


def win_rate(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Oracle win rate against SFT over the iterations, with intervals; a line across where one policy is evaluated."""
    wins = pd.read_csv(tables / "wins.csv")
    against = wins[wins["opponent"] == settings.labels[REFERENCE]].set_index("policy")
    figure, axes = _canvas(5.2, 3.4)
    iterative = [run for run, policies in settings.runs.items() if len(policies) > 1]
    for colour, (run, policies) in zip(cycle(COLOURS), settings.runs.items(), strict=False):
        rows = against.loc[[settings.labels[p] for p in policies]]
        if len(policies) == 1:
            [(label, row)] = rows.iterrows()
            axes.axhline(row["win_rate"], color=colour, linestyle="--", label=label)
            axes.axhspan(row["win_rate_low"], row["win_rate_high"], color=colour, alpha=0.12, linewidth=0)
            continue
        shift = 0.04 * (iterative.index(run) - (len(iterative) - 1) / 2)
        spread = [rows["win_rate"] - rows["win_rate_low"], rows["win_rate_high"] - rows["win_rate"]]
        x = [int(policy.rpartition(".")[2]) + shift for policy in policies]
        label = settings.run_labels[run]
        axes.errorbar(x, rows["win_rate"], yerr=spread, color=colour, marker="o", capsize=3, label=label)
    axes.axhline(0.5, color="grey", linewidth=0.8)
    longest = max(len(policies) for policies in settings.runs.values())
    axes.set_xticks(range(1, longest + 1))
    axes.set(xlabel="iteration", ylabel=f"win rate against SFT\n(oracle: {settings.oracle})", xlim=(0.7, longest + 0.3))
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def length(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Mean length of sampled responses against the win rate over SFT, iteration by iteration from SFT on."""
    tokens = pd.read_csv(tables / "main.csv").set_index("policy")["tokens"]
    wins, sft = pd.read_csv(tables / "wins.csv"), settings.labels[REFERENCE]
    rates = wins[wins["opponent"] == sft].set_index("policy")["win_rate"]
    figure, axes = _canvas(5.2, 3.4)
    axes.axhline(0.5, color="grey", linewidth=0.8)
    for (colour, marker), (run_name, policies) in zip(_styles(), settings.runs.items(), strict=False):
        labels = [settings.labels[p] for p in policies]
        x, y = [tokens[sft], *tokens[labels]], [0.5, *rates[labels]]
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.6)
        axes.plot(x[1:], y[1:], marker, color=colour, markersize=5, label=settings.run_labels[run_name])
        axes.plot(x[-1:], y[-1:], marker, color=colour, markersize=9)
    axes.plot([tokens[sft]], [0.5], "*", color="black", markersize=10, label=sft)
    axes.margins(0.08)
    axes.set(xlabel="mean length of a response (tokens)", ylabel=f"win rate against SFT\n(oracle: {settings.oracle})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def oracles(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Every policy's mean score under every oracle, each on its own scale; SFT's as a line."""
    table = pd.read_csv(tables / "main.csv").set_index("policy")
    sft, n = settings.labels[REFERENCE], len(settings.labels)
    figure, panels = _canvas(1.2 + 1.9 * len(settings.scores), 0.9 + 0.22 * n, len(settings.scores), sharey=True)
    styles = {settings.labels[p]: s for s, (_, ps) in zip(_styles(), settings.runs.items(), strict=False) for p in ps}
    for panel, oracle in zip(panels, settings.scores, strict=True):
        values = table[f"score_{oracle}"]
        panel.axvline(values[sft], color="grey", linewidth=0.8)
        for y, label in enumerate(settings.labels.values()):
            colour, marker = styles.get(label, ("black", "*"))
            panel.plot([values[label]], [y], marker, color=colour, markersize=6)
        panel.set(title=oracle, xlabel="win rate over SFT" if oracle in settings.over_reference else "mean score")
        panel.margins(x=0.12)
    panels[0].set_yticks(range(n), settings.labels.values())
    panels[0].set_ylim(n - 0.5, -0.5)
    figure.tight_layout()
    return figure


def families(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Sampled responses by family, for SFT and the last policy of every run."""
    table = pd.read_csv(tables / "families.csv").set_index("policy")
    shown = [settings.labels[REFERENCE], *(settings.labels[policies[-1]] for policies in settings.runs.values())]
    figure, axes = _canvas(7.0, 3.2)
    width = 0.8 / len(shown)
    for i, (colour, label) in enumerate(zip(chain(["#999999"], cycle(COLOURS)), shown, strict=False)):
        x = [f + (i - (len(shown) - 1) / 2) * width for f in range(len(table.columns))]
        axes.bar(x, table.loc[label], width, color=colour, label=label)
    axes.set_xticks(range(len(table.columns)), table.columns)
    axes.set(ylabel=settings.family_value)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def training(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Loss, margin, accuracy of the pairs and KL to the reference over each run's training, iteration after iteration.

    A run of which a training lacks the column `kl` is named below that panel.
    """
    figure, panels = _canvas(11.2, 2.8, len(CURVES))
    without = [
        settings.run_labels[r] for r, ps in settings.trainings.items() if any("kl" not in metrics[p] for p in ps)
    ]
    for colour, (run_name, policies) in zip(cycle(COLOURS), settings.trainings.items(), strict=False):
        start = 0
        for t, policy in enumerate(policies):
            rows = metrics[policy]
            steps = rows["step"] + start
            label = settings.run_labels[run_name] if t == 0 else None
            for panel, column in zip(panels, CURVES, strict=True):
                if column not in rows:
                    continue
                values = rows[column] / rows[column].iloc[0] if column == "loss" else rows[column]
                panel.plot(steps, values.rolling(8, min_periods=1).mean(), color=colour, linewidth=1.2, label=label)
                if t:
                    panel.axvline(start, color=colour, linewidth=0.5, alpha=0.4)
            start += len(rows)
    for panel, title in zip(panels, CURVES.values(), strict=True):
        panel.set(xlabel="optimiser step", title=title)
    if without:
        where = {"ha": "center", "va": "top", "fontsize": 7, "transform": panels[-1].transAxes}
        panels[-1].text(0.5, -0.28, f"not recorded throughout: {', '.join(without)}", wrap=True, **where)
    if not panels[-1].lines:
        panels[-1].tick_params(labelbottom=False, labelleft=False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=6, bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    return figure


def win_matrix(settings: Settings, tables: Path, metrics: Mapping[str, pd.DataFrame]) -> Any:
    """Policy against policy: the row's win rate over the column."""
    table = pd.read_csv(tables / "wins.csv")
    wins = table.pivot(index="policy", columns="opponent", values="win_rate")
    labels = list(settings.labels.values())
    matrix = wins.loc[labels, labels].to_numpy()
    figure, axes = _canvas(0.62 * len(labels) + 1.6, 0.52 * len(labels) + 1.0)
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=0, vmax=1)
    for i in range(len(labels)):
        for j in range(len(labels)):
            if i != j and not np.isnan(matrix[i, j]):
                shade = "white" if abs(matrix[i, j] - 0.5) > 0.3 else "black"
                axes.text(j, i, f"{matrix[i, j]:.2f}", ha="center", va="center", color=shade, fontsize=7)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.grid(False)
    axes.set(xlabel="opponent", ylabel="policy")
    whole = settings.oracle not in settings.over_reference
    axes.set_title(circles(table) if whole else f"{settings.oracle} has compared with SFT only", fontsize=9)
    figure.colorbar(image, shrink=0.8, label=f"win rate ({settings.oracle})")
    return figure


FIGURES: dict[str, Callable[[Settings, Path, Mapping[str, pd.DataFrame]], Any]] = {
    "win_rate": win_rate,
    "length": length,
    "families": families,
    "oracles": oracles,
    "training": training,
    "win_matrix": win_matrix,
}


def _canvas(width: float, height: float, panels: int | None = None, sharey: bool = False) -> tuple[Any, Any]:
    """A figure, and its axes; of `panels`, as an array, where their number is given."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels or 1, figsize=(width, height), sharey=sharey, squeeze=False)
    return figure, axes[0] if panels else axes[0, 0]


def _styles() -> Iterator[tuple[str, str]]:
    """A colour and a marker for each run: either tells them apart."""
    return zip(cycle(COLOURS), cycle(MARKERS), strict=False)
