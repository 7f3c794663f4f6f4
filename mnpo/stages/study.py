"""`mnpo study`: where opponents help. Random exact games over a grid of what could make them matter, every algorithm at
a learning rate chosen on other games."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnpo import statistics
from mnpo.errors import BadInput
from mnpo.method.equilibria import duality_gap
from mnpo.method.games import Array, Game, default_reference, logistic, partly_cyclic
from mnpo.method.play import ALGORITHMS, Settings
from mnpo.progress import say, track
from mnpo.seeds import derive
from mnpo.stages.game import write_figures, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

ACTIONS = 10
CYCLIC = (0.0, 0.25, 0.5, 0.75, 1.0)
TAUS = (0.0, 0.01, 0.1)
HORIZONS = (3, 10, 100)
RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SAMPLES = 5  # K of the paper
TUNING = 100  # games that choose learning rates and weights; none of them is reported
DIFFERENT = (0.25, 0.5, 1.0)  # shares of three oracles' log-odds that are each one's own
RESAMPLES, CONFIDENCE = 2000, 0.95
ROUNDING = 1e-9  # of gaps: a difference below it is none


class Contestant(NamedTuple):
    """An algorithm of the study, and how often it asks the oracle in an update."""

    label: str
    algorithm: str
    weights: tuple[float, ...] | None = None
    asks: int = 1
    nash_tau: float = 0.0


BASELINE = Contestant("INPO", "inpo")
CONTESTANTS = (
    BASELINE,
    Contestant("TD .67/.33", "td-mnpo", (2 / 3, 1 / 3)),
    Contestant("TD .25/.75", "td-mnpo", (0.25, 0.75)),
    Contestant("TD thirds", "td-mnpo", (1 / 3, 1 / 3, 1 / 3)),
    Contestant("TD Nash", "td-mnpo-nash", (1.0, 1.0, 1.0)),
    Contestant("TD Nash .1", "td-mnpo-nash", (1.0, 1.0, 1.0), nash_tau=0.1),
    Contestant("TD optimistic", "td-mnpo-optimistic", (2 / 3, 1 / 3)),
    Contestant("ONPO", "onpo"),
    Contestant("EGPO (asks twice)", "egpo", asks=2),
    Contestant("Nash-MD", "nash-md"),
)
PAPER = [c.label for c in CONTESTANTS if c.algorithm == "td-mnpo"]
PLAYERS = (BASELINE, Contestant("HT-MNPO", "ht-mnpo"), Contestant("HT alternating", "ht-mnpo-alternating"))
"""Of games with three oracles; INPO learns from their mean."""

# The columns of the table, in order.
COLUMNS = {
    "oracle": "exact; noisy: an advantage over 5 sampled responses; stale: over the policy of the update before; "
    "three .5: three exact oracles, half of each its own",
    "tau": "weight of KL(policy || reference) in the game",
    "steps": "updates from the reference",
    "cyclic": "share of the preferences' log-odds that no Bradley-Terry model explains",
    "algorithm": "with its weights, newest first",
    "learning_rate": "of RATES, the one with the smallest mean gap on the tuning games",
    "games": "random games of the mean",
    "tuning_gap": "the mean gap there",
    "gap": "mean duality gap of the last policy, the game's own (regularised where tau > 0); three oracles: of the "
    "players' mean policy under their mean oracle",
    "gap_low": "lower end of its 95% bootstrap interval over games",
    "gap_high": "upper end",
    "exploitability": "mean gap of the last policy without the reference (tau = 0)",
    "less_than_inpo": "INPO's gap minus this one, the same games; positive: closer to the equilibrium than INPO",
    "less_low": "lower end of its 95% paired bootstrap interval",
    "less_high": "upper end",
    "ratio": "gap over INPO's gap, of the means",
    "best": "1: no other algorithm has a smaller gap on the tuning games",
}


class Noisy:
    """The oracle compares with `SAMPLES` responses drawn from the policy, as the pipeline's does with K."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def __call__(self, policy: Array) -> Array:
        """The drawn responses' shares, [games, actions]."""
        shares: Array = self.random.multinomial(SAMPLES, np.exp(policy)) / SAMPLES
        return shares


class Stale:
    """The oracle compares with the responses of one update before: samples that are used once more."""

    def __init__(self, asks: int) -> None:
        self.asks = asks
        self.past: list[Array] = []

    def __call__(self, policy: Array) -> Array:
        """An earlier policy, [games, actions]; at first the policy itself."""
        self.past = [*self.past[-self.asks :], np.exp(policy)]
        return self.past[0]


ORACLES: dict[str, Callable[[Contestant, int], Callable[[Array], Array]]] = {
    "exact": lambda contestant, seed: np.exp,
    "noisy": lambda contestant, seed: Noisy(seed),
    "stale": lambda contestant, seed: Stale(contestant.asks),
}


def run(*, table: Path, figures: Sequence[Path] = (), games: int = 200, seed: int = 0) -> list[dict[str, Any]]:
    """The whole grid. `table` receives it as CSV (`COLUMNS`), each of `figures` the map in the format of its suffix."""
    if games < 2:
        raise BadInput(f"games {games}: an interval needs at least 2")
    kinds: list[tuple[str, float | None, Sequence[Contestant]]] = [(oracle, None, CONTESTANTS) for oracle in ORACLES]
    kinds += [(f"three {own:g}", own, PLAYERS) for own in DIFFERENT]
    cells = list(product(kinds, TAUS, CYCLIC))
    rows = []
    for (oracle, own, contestants), tau, share in track(cells, len(cells), "study", "cells"):
        preferences = drawn(share, own, TUNING + games, seed)
        gaps = {c: _tuned(c, oracle, preferences, tau, seed) for c in contestants}
        rows += [row | {"oracle": oracle, "tau": tau, "cyclic": share, "games": games} for row in _rows(gaps, seed)]
    rows = [{column: row[column] for column in COLUMNS} for row in rows]
    settings = {"games": games, "seed": seed, "tuning": TUNING, "actions": ACTIONS}
    write_table(rows, table, "study", settings)
    write_figures(lambda: plot(rows), figures, "study", settings)
    say(sides(rows).to_string())
    return rows


def drawn(share: float, own: float | None, games: int, seed: int) -> Array:
    """[players, games, actions, actions]: one oracle, or three that share all but `own` of their log-odds' squares."""

    def odds(*name: str | int) -> Array:
        names = [("study", f"{share:g}", *name, i) for i in range(games)]
        return np.stack([partly_cyclic(ACTIONS, share, derive(seed, *name)) for name in names])

    shared = odds()
    if own is None:
        return logistic(shared[None])
    return logistic(np.stack([np.sqrt(1 - own) * shared + np.sqrt(own) * odds("player", i) for i in range(3)]))


def _rows(gaps: dict[Contestant, list[Found]], seed: int) -> list[dict[str, Any]]:
    """A row for each horizon and contestant."""
    rows = []
    bootstrap = (RESAMPLES, CONFIDENCE, derive(seed, "study", "bootstrap"))
    for k, steps in enumerate(HORIZONS):
        base = gaps[BASELINE][k]
        least = min(found[k].tuning for found in gaps.values())
        for contestant, found in gaps.items():
            rate, tuning, gap, plain = found[k]
            low, high = statistics.interval(gap, *bootstrap)
            less = statistics.paired(base.gap, gap, *bootstrap)
            rows.append(
                {
                    "steps": steps,
                    "algorithm": contestant.label,
                    "learning_rate": rate,
                    "tuning_gap": tuning,
                    "gap": gap.mean(),
                    "gap_low": low,
                    "gap_high": high,
                    "exploitability": plain.mean(),
                    "less_than_inpo": less.difference,
                    "less_low": less.low,
                    "less_high": less.high,
                    "ratio": gap.mean() / base.gap.mean(),
                    "best": int(tuning == least),
                }
            )
    return rows


class Found(NamedTuple):
    """The learning rate that the tuning games chose, their mean gap, and the reported games' gaps, [games]."""

    rate: float
    tuning: float
    gap: Array
    plain: Array


def _tuned(contestant: Contestant, oracle: str, preferences: Array, tau: float, seed: int) -> list[Found]:
    """For each horizon."""
    rates = [rate for rate in RATES if rate * tau <= 1]
    tried = [played(contestant, oracle, preferences, tau, rate, seed) for rate in rates]
    found = []
    for k in range(len(HORIZONS)):
        tuning = [float(own[k][:TUNING].mean()) for own, _ in tried]
        best = int(np.argmin(tuning))
        own, plain = tried[best]
        found.append(Found(rates[best], tuning[best], own[k][TUNING:], plain[k][TUNING:]))
    return found


def played(
    contestant: Contestant, oracle: str, preferences: Array, tau: float, rate: float, seed: int
) -> tuple[Array, Array]:
    """Gaps of the last policies at HORIZONS, the games' own and those without reference: both [horizons, games].

    Preferences [players, games, actions, actions]; gaps are of the players' mean policy under their mean oracle.
    """
    _, count, actions, _ = preferences.shape
    mean = preferences.mean(0)
    played_on = mean[None] if contestant is BASELINE else preferences
    game = Game("study", played_on, np.tile(default_reference(actions), (count, 1)), tau)
    asked = ORACLES.get(oracle, ORACLES["exact"])
    seen = asked(contestant, derive(seed, "study", oracle, contestant.label, f"{rate:g}"))
    settings = Settings(rate, contestant.weights, seen=seen, nash_tau=contestant.nash_tau)
    policies = islice(ALGORITHMS[contestant.algorithm](game, settings), 1, max(HORIZONS) + 1)
    last = [np.exp(logs).mean(0) for t, logs in enumerate(policies, 1) if t in HORIZONS]
    own = [duality_gap(mean, policy, tau, game.reference) for policy in last]
    return np.stack(own), np.stack([duality_gap(mean, policy) for policy in last])


# --------------------------------------------------------------------------------------------------------------- output


def sides(table: Sequence[dict[str, Any]]) -> DataFrame:
    """For each algorithm and oracle: in how many kinds of games it is ahead of INPO, in how many behind."""
    from pandas import DataFrame

    rows = [{**row, "ahead": _apart(row) > 0, "behind": _apart(row) < 0} for row in table]
    for row in rows:
        row["oracle"] = str(row["oracle"]).split()[0]  # three oracles: whatever is each one's own
    counts = DataFrame(rows).pivot_table(
        index="algorithm", columns="oracle", values=["ahead", "behind"], aggfunc="sum", sort=False
    )
    return counts.swaplevel(axis=1).sort_index(axis=1).convert_dtypes()


def _apart(row: Mapping[str, Any]) -> int:
    """1: closer than INPO, -1: further, by an interval that leaves out zero and whatever is rounding; else 0."""
    return int(row["less_low"] > ROUNDING) - int(row["less_high"] < -ROUNDING)


def plot(table: Sequence[dict[str, Any]]) -> Figure:
    """Three maps, oracle and tau down, steps and cyclic share across: gaps over INPO's.

    Blue: a smaller gap than INPO's, red: a larger one; a star where the interval of the difference leaves out zero and
    whatever is rounding. Whose gap is shown was chosen on the tuning games.
    """
    from matplotlib.figure import Figure
    from pandas import DataFrame

    frame = DataFrame(table)
    three = frame["oracle"].str.startswith("three")
    maps = [
        ("TD-MNPO with the best of three weightings of past policies", frame[frame["algorithm"].isin(PAPER)], False),
        ("Whoever is best", frame[~three], True),
        ("Three oracles: HT-MNPO's mean policy, INPO learns from the mean oracle", frame[three], True),
    ]
    figure = Figure(figsize=(15, 29), layout="constrained")
    for axis, (title, rows, named) in zip(figure.subplots(len(maps), 1), maps, strict=True):
        _map(axis, rows.loc[rows.groupby(["oracle", "tau", "steps", "cyclic"])["tuning_gap"].idxmin()], named)
        axis.set_title(f"{title}: gap over INPO's", fontsize=11)
    return figure


def _map(axis: Any, chosen: Any, named: bool) -> None:
    kinds = [kind for kind in (*ORACLES, *(f"three {own:g}" for own in DIFFERENT)) if (chosen["oracle"] == kind).any()]
    rows, columns = list(product(kinds, TAUS)), list(product(HORIZONS, CYCLIC))
    shown = np.full((len(rows), len(columns)), np.nan)
    for cell in chosen.itertuples():
        i, j = rows.index((cell.oracle, cell.tau)), columns.index((cell.steps, cell.cyclic))
        shown[i, j] = np.log2(max(cell.ratio, 1e-3))
        apart = "*" if _apart(cell._asdict()) else ""
        name = cell.algorithm.split(" (")[0].replace(" ", "\n", 1) + "\n" if named else ""
        axis.text(j, i, f"{name}{cell.ratio:.2g}{apart}", ha="center", va="center", fontsize=8)
    axis.imshow(shown, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto", alpha=0.6)
    axis.set_yticks(range(len(rows)), [f"{oracle}, tau {tau:g}" for oracle, tau in rows], fontsize=9)
    axis.set_xticks(range(len(columns)), [f"{share:g}" for _, share in columns], fontsize=9)
    for edge in range(1, len(HORIZONS)):
        axis.axvline(edge * len(CYCLIC) - 0.5, color="black", linewidth=1)
    spans = "   |   ".join(f"{steps} updates" for steps in HORIZONS)
    axis.set_xlabel(f"share of the preferences that is cyclic, after {spans}", fontsize=9)
