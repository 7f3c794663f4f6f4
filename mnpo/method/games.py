"""Exact tabular preference games: what responses there are, who prefers which, and where every policy starts.

A game has one prompt and `actions` responses; `preference[a, b]` is P(a > b), so P + P^T = 1. Policies are softmax
policies with full support: updates take and return LOG-probabilities `[actions]`, gaps take probabilities (an average
of policies is an average of probabilities). Equation numbers are those of docs/method.md, papers are arXiv ids.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnpo.errors import BadInput

Array = NDArray[np.float64]
Weights = Sequence[float] | Array
TOLERANCE = 1e-6  # how far P + P^T may be from 1 in a file with rounded numbers


@dataclass(frozen=True)
class Game:
    """Players, what each prefers, and the reference from which every policy starts and to which tau ties it."""

    name: str
    preferences: Array  # [players, actions, actions]; one matrix when all players share one oracle
    reference: Array  # [actions], log-probabilities
    tau: float = 0.0  # weight of KL(policy || reference) in every player's objective

    @property
    def actions(self) -> int:
        """How many responses there are to choose from."""
        return int(self.preferences.shape[-1])

    @property
    def players(self) -> int:
        """How many preference matrices there are: one for all players, or one each."""
        return int(self.preferences.shape[0])


def rock_paper_scissors() -> Array:
    """[3, 3]: paper beats rock, scissors beat paper, rock beats scissors. The Nash policy is uniform."""
    return np.array([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]])


def random_preference(actions: int, seed: int) -> Array:
    """[actions, actions]: every P(a > b), a < b, uniform on [0, 1]. No structure: in general non-transitive."""
    upper = np.triu(np.random.default_rng(seed).uniform(size=(actions, actions)), 1)
    return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(actions)


def logistic(odds: Array) -> Array:
    """Probabilities of log-odds."""
    probabilities: Array = 0.5 * (1 + np.tanh(odds / 2))
    return probabilities


def bradley_terry(rewards: Sequence[float] | Array) -> Array:
    """[actions, actions]: P(a > b) = logistic(r_a - r_b). The Nash policy is the action with the highest reward."""
    rewards = np.asarray(rewards, float)
    return logistic(rewards[:, None] - rewards[None, :])


def partly_cyclic(actions: int, cyclic: float, seed: int, strength: float = 1.0) -> Array:
    """[actions, actions]: log-odds of a random preference, of which the share `cyclic` is no Bradley-Terry model's.

    Random skew log-odds are split into the part that rewards explain (differences of their row means) and the rest,
    which sums to nothing in every row: a circulation (the Hodge decomposition of 0811.1067). Both parts are brought to
    one size and mixed, so that `cyclic` is the rest's share of the sum of squares; `strength` is the log-odds' root
    mean square, whatever the share.
    """
    if not 0 <= cyclic <= 1:
        raise BadInput(f"cyclic is {cyclic}: a share is between 0 and 1")
    if actions < 3:
        raise BadInput(f"{actions} actions have no cycle: give at least 3")
    drawn = np.random.default_rng(seed).normal(size=(actions, actions))
    odds = drawn - drawn.T
    rewards = odds.mean(1)
    ordered = rewards[:, None] - rewards[None, :]
    parts = [part / np.linalg.norm(part) for part in (ordered, odds - ordered)]
    size = strength * np.sqrt(actions * (actions - 1))
    mixed: Array = size * (np.sqrt(1 - cyclic) * parts[0] + np.sqrt(cyclic) * parts[1])
    return mixed


def condorcet(rankings: Sequence[Sequence[int]] | Array, shares: Weights) -> Array:
    """[actions, actions]: P(a > b) is the share of annotators who rank a before b; a ranking lists actions, best first.

    Every annotator is transitive, the majority need not be.
    """
    ranks = np.argsort(np.asarray(rankings), axis=1)  # ranks[k, a]: where annotator k puts action a
    before = (ranks[:, :, None] < ranks[:, None, :]) + 0.5 * np.eye(ranks.shape[1])
    if len(shares) != len(ranks):
        raise BadInput(f"{len(ranks)} rankings but {len(shares)} annotator shares: give one for each")
    mixture: Array = np.einsum("k,kab->ab", normalised(shares, len(ranks), "annotator shares"), before)
    return mixture


def _condorcet_players(actions: int, players: int) -> Array:
    """Three annotators enter the same circle of actions at three places, and their majority is a cycle.

    One player's oracle mixes them .4 .35 .25; of several players each has a favourite, who decides four times in five.
    """
    rankings = np.array([np.roll(np.arange(actions), -((k * actions) // 3)) for k in range(3)])
    if players == 1:
        return condorcet(rankings, [0.4, 0.35, 0.25])[None]
    return np.stack([condorcet(rankings, np.where(np.arange(3) == i % 3, 0.8, 0.1)) for i in range(players)])


# name -> (default number of actions, (actions, seed, players) -> [players, actions, actions])
PRESETS: dict[str, tuple[int, Callable[[int, int, int], Array]]] = {
    "rps": (3, lambda actions, seed, players: np.stack([rock_paper_scissors()] * players)),
    "random": (
        10,
        lambda actions, seed, players: np.stack([random_preference(actions, seed + i) for i in range(players)]),
    ),
    "bradley-terry": (
        10,
        lambda actions, seed, players: np.stack(
            [bradley_terry(np.random.default_rng(seed + i).normal(size=actions)) for i in range(players)]
        ),
    ),
    "condorcet": (6, lambda actions, seed, players: _condorcet_players(actions, players)),
}


def default_reference(actions: int) -> Array:
    """[actions] log-probabilities: logits fall evenly from 1 to 0; the first action is e times as likely as the last.

    Not uniform: that is the equilibrium of rock-paper-scissors, and every algorithm would start where it should end.
    """
    return log_softmax(np.linspace(1.0, 0.0, actions))


def preset(name: str, *, actions: int | None = None, seed: int = 0, players: int = 1, tau: float = 0.0) -> Game:
    """The named game. `actions` None: the preset's own number. `players` > 1: a matrix per player, for HT-MNPO."""
    default, build = PRESETS[choose(name, PRESETS, "preset")]
    actions = default if actions is None else actions
    if name == "rps" and actions != 3:
        raise BadInput(f"rps has 3 actions, not {actions}: leave actions out, or choose another preset")
    if actions < 2 or players < 1:
        raise BadInput(f"a game needs at least 2 actions and 1 player, got {actions} and {players}")
    if name == "condorcet" and actions < 3:
        raise BadInput(f"condorcet needs at least 3 actions for a majority cycle, got {actions}")
    return Game(name, build(actions, seed, players), default_reference(actions), _tau(tau))


def from_csv(*paths: str | Path, tau: float = 0.0) -> Game:
    """A game from one CSV file per player: numbers only, row a column b is P(a > b)."""
    matrices = [read_preference(path) for path in paths]
    first = len(matrices[0])
    for path, matrix in zip(paths, matrices, strict=True):
        if len(matrix) != first:
            raise BadInput(f"{path} has {len(matrix)} actions, {paths[0]} {first}: all players need the same actions")
    name = "+".join(Path(path).stem for path in paths)
    return Game(name, np.stack(matrices), default_reference(len(matrices[0])), _tau(tau))


def read_preference(path: str | Path) -> Array:
    """[actions, actions] from a CSV file without a header; rows and columns are counted from 1 in errors."""
    with Path(path).open(newline="") as lines:
        rows = [row for row in csv.reader(lines) if row]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows):
            raise BadInput(f"{path}, row {number}: {len(row)} columns, {len(rows)} rows: the matrix must be square")
        for column, cell in enumerate(row, start=1):
            try:
                float(cell)
            except ValueError:
                raise BadInput(f"{path}, row {number}, column {column}: {cell!r} is no number; no header") from None
    return check_preference(np.array(rows, float), str(path))


def check_preference(matrix: Array, source: str) -> Array:
    """The matrix, exactly skew about 1/2, or an error naming source, row and column (from 1), value and remedy."""
    matrix = np.asarray(matrix, float)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise BadInput(f"{source}: shape {matrix.shape}: a preference matrix is square, with at least 2 actions")

    def refuse(bad: NDArray[np.bool_], remedy: str) -> None:
        for row, column in np.argwhere(bad)[:1]:
            there, opposite = matrix[row, column], matrix[column, row]
            remedy = remedy.format(opposite=opposite, sum=there + opposite, right=1 - there)
            raise BadInput(f"{source}, row {row + 1}, column {column + 1}: {there} {remedy}")

    refuse(~np.isfinite(matrix), "is not a finite number: give the probability that the row's action is preferred")
    refuse((matrix < 0) | (matrix > 1), "is not a probability: use numbers from 0 to 1, not percentages or rewards")
    refuse(np.eye(len(matrix), dtype=bool) & (abs(matrix - 0.5) > TOLERANCE), "on the diagonal: it must be 0.5")
    refuse(
        abs(matrix + matrix.T - 1) > TOLERANCE,
        "+ its opposite {opposite} = {sum:.6g}, P + P^T must be 1: set the opposite to {right:.6g}",
    )
    return (matrix + 1 - matrix.T) / 2


def choose(name: str, known: Collection[str], what: str) -> str:
    """The name if it is known, else an error with the nearest known one."""
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise BadInput(f"unknown {what} {name!r}: did you mean {nearest[0]!r}? Known: {', '.join(known)}")
    return name


def _tau(tau: float) -> float:
    if not (np.isfinite(tau) and tau >= 0):
        raise BadInput(f"tau is {tau}: the KL weight is 0 (no reference) or positive")
    return tau


def normalised(weights: Weights | None, count: int, what: str = "weights") -> Array:
    """[count], summing to 1; None is uniform. Of more than `count`, those of opponents that exist yet (eq. 4)."""
    if weights is None:
        return np.full(count, 1 / count)
    values = np.asarray(weights, float)
    if values.ndim != 1 or len(values) < count:
        raise BadInput(f"{what} {values.tolist()}: {count} wanted, one for each")
    total = float(values[:count].sum())
    if not ((values >= 0).all() and 0 < total < np.inf):
        raise BadInput(f"{what} {values.tolist()}: each must be a number >= 0, and those in use must not all be 0")
    return values[:count] / total


def advantage(preference: Array, against: Array) -> Array:
    """P(y > against) of every action: [..., actions, actions] and probabilities [..., actions] -> [..., actions]."""
    beaten: Array = (preference @ against[..., None])[..., 0]
    return beaten


def log_softmax(logits: Array) -> Array:
    """Over the last axis."""
    normaliser: Array = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logits - normaliser
