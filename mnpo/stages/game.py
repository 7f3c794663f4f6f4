"""`mnpo game`: play exact tabular games and measure which algorithm converges in which iterate."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnpo.errors import BadInput
from mnpo.method import equilibria, games, updates
from mnpo.method.play import ALGORITHMS, HETEROGENEOUS, Trace, log_spaced, play
from mnpo.storage.artifacts import artifact

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = dict[str, Any]

PLAYERS = 3  # of HT-MNPO, as in the paper
TINY = 1e-6  # a gap that counts as closed
FLOOR = 1e-12  # gaps below are rounding, and the figures stop there


class Entry(NamedTuple):
    """One algorithm of the theory table."""

    algorithm: str
    weights: tuple[float, ...] | None = None
    comparisons: str = "policy"

    @property
    def label(self) -> str:
        """Its name in the figure."""
        weights = "" if self.weights is None else " " + "/".join(f"{w:g}" for w in self.weights)
        return self.algorithm + weights + (" vs opponents" if self.comparisons == "opponents" else "")


NEARER, FARTHER = (
    (0.667, 0.333),
    (0.25, 0.75),
)  # history weights, newest first: the paper's grid, its public iteration 2
TD_MNPO = [Entry("td-mnpo", weights, kind) for weights, kind in product((NEARER, FARTHER), updates.COMPARISONS)]
HT_MNPO = [*(Entry("ht-mnpo", None, kind) for kind in updates.COMPARISONS), Entry("ht-mnpo-alternating")]
# Without the reference IPO is undefined, and INPO and Nash-MD are multiplicative weights: one row for the three.
OURS = [
    Entry("td-mnpo-nash", (1.0, 1.0, 1.0)),
    Entry("td-mnpo-optimistic", NEARER),
]  # of the weights of Nash, their number counts
UNREGULARISED = [Entry("multiplicative-weights"), *TD_MNPO, *OURS, Entry("onpo"), Entry("egpo"), *HT_MNPO]
REGULARISED = [Entry("ipo"), Entry("inpo"), *TD_MNPO, *OURS, Entry("onpo"), Entry("egpo"), Entry("nash-md"), *HT_MNPO]
TAUS = (0.0, 0.01, 0.1)

# The columns of the theory table, in order.
COLUMNS = {
    "game": "preset of mnpo/method/games.py",
    "tau": "weight of KL(policy || reference) in the game; 0: no reference",
    "algorithm": "as in `mnpo game --algorithm`",
    "weights": "history weights, newest first",
    "comparisons": "policy: pairs from pi_t, the trained loss; opponents: the advantage averaged over the opponents",
    "player": "0, or each player of the heterogeneous game, whose oracles differ",
    "learning_rate": "the update is exp(learning_rate * P); ipo: 1 / tau",
    "steps": "updates played from the reference",
    "gap_last": "the game's own gap of the last policy: the duality gap, of HT-MNPO the player's own gap",
    "gap_average": "the same of the average policy",
    "worst_last": "the worst gap_last over the last half of the steps: a cycle has no lucky moment",
    "last_converges": "worst_last is tiny (1e-6), or still falling at least like T^-0.2: see `converges`",
    "average_converges": "the same of the average policy, unless it only follows a last policy whose gap stays open",
    "steps_to_tiny": "from this step on the last policy's gap is at most 1e-6; empty: never",
    "group_gap_last": "duality gap of the players' mean policy under their mean oracle; one oracle: gap_last",
    "group_gap_average": "the same of the average policy",
}


# ------------------------------------------------------------------------------------------------------------- one game


def run(
    *,
    algorithm: str,
    preset: str = "rps",
    matrices: Sequence[Path] = (),
    weights: Sequence[float] | None = None,
    learning_rate: float = 1.0,
    tau: float = 0.0,
    comparisons: str = "policy",
    steps: int = 2000,
    actions: int | None = None,
    players: int | None = None,
    seed: int = 0,
    table: Path | None = None,
    figures: Sequence[Path] = (),
) -> dict[str, Any]:
    """Play one game; everything measured, ready for JSON. `matrices`: CSV files, one per player, instead of a preset.

    `table` receives the gaps as CSV, each of `figures` the log-log figure in the format of its suffix.
    """
    games.choose(algorithm, ALGORITHMS, "algorithm")
    if matrices:
        if actions is not None or players is not None:
            raise BadInput("actions and players are those of the matrix files: leave both out")
        game = games.from_csv(*matrices, tau=tau)
    else:
        players = players or (PLAYERS if algorithm in HETEROGENEOUS else 1)
        game = games.preset(preset, actions=actions, seed=seed, players=players, tau=tau)
    trace = play(game, algorithm, steps, learning_rate, weights, comparisons)
    settings = {
        "game": game.name,
        "players": game.players,
        "actions": game.actions,
        "seed": seed,
        "algorithm": algorithm,
        "weights": None if weights is None else list(weights),
        "comparisons": comparisons,
        "learning_rate": 1 / tau if algorithm == "ipo" else learning_rate,
        "tau": tau,
        "steps": steps,
    }
    rows = _trace_rows(trace)
    write_table(rows, table, "game", settings)
    write_figures(lambda: plot([(f"{game.name}, tau = {tau:g}", [(algorithm, trace)])]), figures, "game", settings)
    return settings | {
        "gap_last": trace.gap_last[-1].tolist(),
        "gap_average": trace.gap_average[-1].tolist(),
        "last": trace.last.tolist(),
        "average": trace.average.tolist(),
        "reference": np.exp(game.reference).tolist(),
        "equilibrium": _equilibrium(game),
        "trace": rows,
    }


def describe(result: dict[str, Any]) -> str:
    """The result of `run` for a terminal."""
    lines = [
        f"{result['algorithm']} on {result['game']}: {result['actions']} actions, {result['players']} oracle(s),"
        f" tau {result['tau']:g}, learning rate {result['learning_rate']:g}",
        f"{'step':>8} {'player':>7} {'gap last':>12} {'gap average':>12}",
    ]
    shown = result["trace"][:: max(1, len(result["trace"]) // 12)]
    shown += [row for row in result["trace"] if row["step"] == result["steps"] and row not in shown]
    for row in shown:
        lines.append(f"{row['step']:>8} {row['player']:>7} {row['gap_last']:>12.3e} {row['gap_average']:>12.3e}")
    for name in ("last", "average"):
        lines += [f"{name} policy: " + " ".join(f"{p:.4f}" for p in policy) for policy in result[name]]
    if result["equilibrium"] is not None:
        lines.append("equilibrium: " + " ".join(f"{p:.4f}" for p in result["equilibrium"]))
    return "\n".join(lines)


def dump(result: dict[str, Any]) -> str:
    """The result of `run` as JSON."""
    return json.dumps(result, indent=2, allow_nan=False)


def _equilibrium(game: games.Game) -> list[float] | None:
    """Of a game with one oracle: the Nash policy, or with tau > 0 the regularised one. Several oracles: not known."""
    if game.players > 1:
        return None
    if game.tau == 0:
        return list(map(float, equilibria.nash(game.preferences[0])))
    logs = equilibria.regularised_equilibrium(game.preferences[0], game.reference, game.tau)
    return list(map(float, np.exp(logs)))


def _trace_rows(trace: Trace) -> list[dict[str, Any]]:
    """A row per recorded step and player; plain gaps have tau = 0 whatever the game's."""
    names = ("gap_last", "gap_average", "plain_gap_last", "plain_gap_average")
    return [
        {"step": int(step), "player": player} | {name: float(getattr(trace, name)[k, player]) for name in names}
        for k, step in enumerate(trace.steps)
        for player in range(trace.gap_last.shape[1])
    ]


# --------------------------------------------------------------------------------------------------------------- theory


def theory(
    *,
    table: Path | None = None,
    figures: Sequence[Path] = (),
    steps: int = 2000,
    learning_rate: float = 1.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Which algorithms converge in which iterate, with the reference and without: every preset, tau and algorithm.

    Columns: `COLUMNS`. `table` receives it as CSV, each of `figures` the figure in the format of its suffix.
    """
    if steps < 100:
        raise BadInput(f"steps {steps}: at least 100 are needed to compare the end with what went before")
    every = range(1, steps + 1)
    rows, panels = [], []
    for tau, name in product(TAUS, games.PRESETS):
        curves = []
        for entry in REGULARISED if tau else UNREGULARISED:
            players = PLAYERS if entry.algorithm in HETEROGENEOUS else 1
            game = games.preset(name, seed=seed, players=players, tau=tau)
            trace = play(game, entry.algorithm, steps, learning_rate, entry.weights, entry.comparisons, every)
            rows += _theory_rows(game, entry, 1 / tau if entry.algorithm == "ipo" else learning_rate, trace)
            if players == 1 and entry.weights != FARTHER:
                curves.append((entry.label, trace))
        panels.append((f"{name}, tau = {tau:g}", curves))
    settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    write_table(rows, table, "game", settings)
    write_figures(lambda: plot(panels, columns=len(games.PRESETS)), figures, "game", settings)
    return rows


def _theory_rows(game: games.Game, entry: Entry, learning_rate: float, trace: Trace) -> list[dict[str, Any]]:
    mean_oracle = game.preferences.mean(0)
    group = [
        equilibria.duality_gap(mean_oracle, p.mean(0), game.tau, game.reference) for p in (trace.last, trace.average)
    ]
    rows = []
    for player in range(game.players):
        last, average = trace.gap_last[:, player], trace.gap_average[:, player]
        open_steps = np.flatnonzero(last > TINY)
        closed = 1 if len(open_steps) == 0 else int(trace.steps[open_steps[-1]]) + 1
        rows.append(
            {
                "game": game.name,
                "tau": game.tau,
                "algorithm": entry.algorithm,
                "weights": "" if entry.weights is None else " ".join(f"{w:g}" for w in entry.weights),
                "comparisons": entry.comparisons,
                "player": player,
                "learning_rate": learning_rate,
                "steps": len(last),
                "gap_last": last[-1],
                "gap_average": average[-1],
                "worst_last": last[len(last) // 2 :].max(),
                "last_converges": converges(last),
                "average_converges": converges(average) and (converges(last) or average[-1] < last[-1]),
                "steps_to_tiny": closed if closed <= len(last) else "",
                "group_gap_last": group[0],
                "group_gap_average": group[1],
            }
        )
    return rows


def converges(gaps: games.Array) -> bool:
    """Do the gaps at steps 1..T go to zero, as far as T steps can tell?

    The worst of (T/2, T] is tiny, or at most 3/4 of the worst of (T/8, T/4] (1/sqrt(T) leaves half, a cycle all) and
    the last tenth is not flat: a bias is reached from above.
    """
    steps = len(gaps)
    late, early, end = gaps[steps // 2 :].max(), gaps[steps // 8 : steps // 4].max(), gaps[-(steps // 10) :]
    return bool(late <= TINY or (late <= 0.75 * early and end.max() > 1.01 * end.min()))


# -------------------------------------------------------------------------------------------------------------- figures

Curves = list[tuple[str, Trace]]


def plot(panels: list[tuple[str, Curves]], columns: int = 1) -> "Figure":
    """Gaps over steps, log-log: a panel per game, a colour per algorithm, the last policy solid, the average dashed.

    Several players: the worst player's gap. Gaps below 1e-12 are drawn there.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns + 1.2, 2.5 * rows + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    labels = list(dict.fromkeys(label for _, curves in panels for label, _ in curves))
    for axis, (title, curves) in zip(axes.flat, panels, strict=True):
        for label, trace in curves:
            kept = np.unique(np.searchsorted(trace.steps, log_spaced(int(trace.steps[-1]), 120)))
            for gaps, style in ((trace.gap_last, "-"), (trace.gap_average, "--")):
                values = np.maximum(gaps.max(1), FLOOR)[kept]
                axis.loglog(trace.steps[kept], values, style, color=f"C{labels.index(label)}", linewidth=1)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("gap")
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for label in labels:
        axes[0, 0].plot([], [], color=f"C{labels.index(label)}", label=label)
    for style, label in (("-", "last policy"), ("--", "average policy")):
        axes[0, 0].plot([], [], style, color="black", label=label)
    figure.legend(loc="outside lower center", ncols=min(5, len(labels) + 2), fontsize=8, frameon=False)
    return figure


def write_figures(draw: Callable[[], "Figure"], paths: Sequence[Path], stage: str, settings: Settings) -> None:
    """The same bytes every time: no date, and ids that do not depend on the process."""
    if not paths:
        return
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "mnpo", "svg.fonttype": "none"}):
        figure = draw()
        for path in paths:
            kind = Path(path).suffix[1:]
            if kind not in figure.canvas.get_supported_filetypes():
                raise BadInput(f"{path}: no figure format {kind!r}: name it .svg, .png or .pdf")
            with artifact(path, stage, settings) as made:
                figure.savefig(made.path, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else {})


def write_table(rows: Sequence[Mapping[str, Any]], path: Path | None, stage: str, settings: Settings) -> None:
    """`rows` as CSV with a manifest, where there is a path."""
    if path is None:
        return
    from pandas import DataFrame

    with artifact(path, stage, settings) as made:
        DataFrame(rows).to_csv(made.path, index=False, float_format="%.4g", lineterminator="\n")
