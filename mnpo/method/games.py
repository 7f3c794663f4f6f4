"""Exact tabular preference games: every algorithm as the update it makes when its loss is minimised exactly.

A game has one prompt and `actions` responses; `preference[a, b]` is P(a > b), so P + P^T = 1. Policies are softmax
policies with full support: updates take and return LOG-probabilities `[actions]`, gaps take probabilities (an average
of policies is an average of probabilities). Equation numbers are those of docs/method.md, papers are arXiv ids.

Two forms of eta. Everything here takes `learning_rate`: updates `exp(learning_rate * P)`, target of the pair loss
`learning_rate / 2`. The `inverse` form of INPO and of the trained loss has updates `exp(P / eta)` and target
`1 / (2 eta)`. They are one update, `learning_rate = 1 / eta`. A KL weight tau gives the reference the share
`ratio = tau / eta = learning_rate * tau` of the anchor.
"""

import csv
import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mnpo.errors import BadInput

Array = NDArray[np.float64]
Weights = Sequence[float] | Array
TOLERANCE = 1e-6  # how far P + P^T may be from 1 in a file with rounded numbers
COMPARISONS = ("policy", "opponents")


# ---------------------------------------------------------------------------------------------------------------- games


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


def bradley_terry(rewards: Sequence[float] | Array) -> Array:
    """[actions, actions]: P(a > b) = logistic(r_a - r_b). The Nash policy is the action with the highest reward."""
    rewards = np.asarray(rewards, float)
    return 0.5 * (1 + np.tanh((rewards[:, None] - rewards[None, :]) / 2))


def condorcet(rankings: Sequence[Sequence[int]] | Array, shares: Weights) -> Array:
    """[actions, actions]: P(a > b) is the share of annotators who rank a before b; a ranking lists actions, best first.

    Every annotator is transitive, the majority need not be.
    """
    ranks = np.argsort(np.asarray(rankings), axis=1)  # ranks[k, a]: where annotator k puts action a
    before = (ranks[:, :, None] < ranks[:, None, :]) + 0.5 * np.eye(ranks.shape[1])
    if len(shares) != len(ranks):
        raise BadInput(f"{len(ranks)} rankings but {len(shares)} annotator shares: give one for each")
    mixture: Array = np.einsum("k,kab->ab", _weights(shares, len(ranks), "annotator shares"), before)
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


def _weights(weights: Weights | None, count: int, what: str = "weights") -> Array:
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


# -------------------------------------------------------------------------------------------------------------- updates
# All exact: the minimiser of the pair loss over all softmax policies (tests/test_bridge.py minimises it and compares).


def log_softmax(logits: Array) -> Array:
    """Over the last axis."""
    normaliser: Array = np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logits - normaliser


def multiplicative_weights(
    preference: Array, opponents: Array, learning_rate: float, weights: Weights | None = None
) -> Array:
    """n-player multiplicative weights: eq. 3; MNPO, 2509.23102. Opponents [n-1, actions] -> [actions].

    `pi' ∝ prod_j pi_j^w_j * exp(learning_rate * sum_j w_j P(y > pi_j))`, w uniform when None.
    """
    weights = _weights(weights, len(opponents))
    return log_softmax(weights @ opponents + learning_rate * preference @ (weights @ np.exp(opponents)))


def ipo(preference: Array, policy: Array, reference: Array, learning_rate: float) -> Array:
    """IPO: eq. 15; 2310.12036, online 2403.08635. `pi' ∝ pi_ref * exp(learning_rate * P(y > policy))`, rate 1/tau.

    `policy` made the pairs: the reference itself (offline), or pi_t (online: the regularised best response to pi_t).
    """
    return log_softmax(reference + learning_rate * preference @ np.exp(policy))


def inpo(preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float) -> Array:
    """INPO: eq. 15; 2407.00617. `pi' ∝ pi_ref^ratio * pi_t^(1 - ratio) * exp(learning_rate * P(y > pi_t))`."""
    anchor = ratio * reference + (1 - ratio) * policy
    return log_softmax(anchor + learning_rate * preference @ np.exp(policy))


def td_mnpo(
    preference: Array,
    history: Array,
    weights: Weights | None,
    reference: Array,
    learning_rate: float,
    ratio: float,
    comparisons: str = "policy",
) -> Array:
    """TD-MNPO: eq. 15; 2509.23102. History [n-1, actions], newest first -> [actions].

    `pi' ∝ pi_ref^ratio * (prod_j pi_{t-j}^lambda_j)^(1 - ratio) * exp(learning_rate * P(y > q))`, with
    comparisons "policy": q = pi_t, pairs from pi_t as the trained loss has them;
    comparisons "opponents": q = sum_j lambda_j pi_{t-j}, the update of eq. 3, pairs from q.
    The reference regularises but is nobody to compare with: that would move the equilibrium.
    """
    weights = _weights(weights, len(history))
    anchor = ratio * reference + (1 - ratio) * (weights @ history)
    opposed = (
        np.exp(history[0]) if choose(comparisons, COMPARISONS, "comparisons") == "policy" else weights @ np.exp(history)
    )
    return log_softmax(anchor + learning_rate * preference @ opposed)


def ht_mnpo(
    preferences: Array,
    policies: Array,
    weights: Array | None,
    reference: Array,
    learning_rate: float,
    ratio: float = 0.0,
    comparisons: str = "policy",
) -> Array:
    """HT-MNPO: eq. 15; 2509.23102. Preferences [n, actions, actions], policies [n, actions] -> [n, actions].

    `pi_i' ∝ pi_ref^ratio * (prod_{j != i} pi_j^w_ij)^(1 - ratio) * exp(learning_rate * P_i(y > q_i))`, with
    comparisons "policy": q_i = pi_i, pairs from player i's own policy as the paper has them;
    comparisons "opponents": q_i = sum_j w_ij pi_j. Weights [n, n] as `opponent_weights` gives them.
    """
    weights = opponent_weights(len(policies)) if weights is None else weights
    anchors = ratio * reference + (1 - ratio) * (weights @ policies)
    own = choose(comparisons, COMPARISONS, "comparisons") == "policy"
    opposed = np.exp(policies) if own else weights @ np.exp(policies)
    return log_softmax(anchors + learning_rate * (preferences @ opposed[:, :, None])[:, :, 0])


def opponent_weights(players: int) -> Array:
    """[players, players], row i: uniform over the others, 0 for player i itself."""
    return (1 - np.eye(players)) / (players - 1)


def onpo(
    preference: Array,
    policy: Array,
    base: Array,
    learning_rate: float,
    reference: Array | None = None,
    ratio: float = 0.0,
) -> tuple[Array, Array]:
    """ONPO: eq. 16; 2502.16852. -> (pi_{t+1}, base_{t+1}): two fits on the pairs of pi_t, base is the paper's pi'.

    `base' ∝ base * exp(learning_rate * P(y > pi_t))`, then `pi' ∝ base' * exp(learning_rate * P(y > pi_t))`: the second
    bets that the next advantage is this one. The paper has ratio 0; with a ratio both fits are INPO's (our extension).
    """
    reference = base if reference is None else reference
    gain = learning_rate * preference @ np.exp(policy)
    base = log_softmax(ratio * reference + (1 - ratio) * base + gain)
    return log_softmax(ratio * reference + (1 - ratio) * base + gain), base


def egpo(preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float) -> tuple[Array, Array]:
    """EGPO: eq. 17; 2503.08942. -> (pi_{t+1}, pi_half): extragradient, both steps FROM pi_t.

    `∝ pi_ref^ratio * pi_t^(1 - ratio) * exp(learning_rate * P(y > q))`: q = pi_t for pi_half, q = pi_half for pi_{t+1}.
    """
    anchor = ratio * reference + (1 - ratio) * policy
    half = log_softmax(anchor + learning_rate * preference @ np.exp(policy))
    return log_softmax(anchor + learning_rate * preference @ np.exp(half)), half


def nash_md(preference: Array, policy: Array, reference: Array, learning_rate: float, ratio: float) -> Array:
    """Nash-MD: eq. 18; 2312.00886. `mix ∝ pi_t^(1 - ratio) * pi_ref^ratio`, `pi' ∝ mix * exp(rate * P(y > mix))`.

    The mixture is the opponent too, so at a fixed rate the fixed point is NEAR the regularised equilibrium, not at it.
    """
    mixture = log_softmax(ratio * reference + (1 - ratio) * policy)
    return log_softmax(mixture + learning_rate * preference @ np.exp(mixture))


# -------------------------------------------------------------------------------------------------- equilibria and gaps


def nash(preference: Array) -> Array:
    """[actions] probabilities: a Nash policy of the symmetric game, `max_x min_b (x P)_b`, by linear programming."""
    from scipy.optimize import linprog  # type: ignore[import-untyped, unused-ignore]

    actions = len(preference)
    solution = linprog(  # variables x and v: maximise v subject to v <= (x P)_b for every b
        c=np.r_[np.zeros(actions), -1.0],
        A_ub=np.c_[-preference.T, np.ones(actions)],
        b_ub=np.zeros(actions),
        A_eq=np.r_[np.ones(actions), 0.0][None],
        b_eq=[1.0],
        bounds=[(0, None)] * actions + [(None, None)],
    )
    if solution.x is None:
        raise RuntimeError(f"no Nash policy found by linear programming: {solution.message}")
    probabilities: Array = np.clip(solution.x[:actions], 0, None)
    return probabilities / float(probabilities.sum())


def regularised_equilibrium(preference: Array, reference: Array, tau: float, tolerance: float = 1e-12) -> Array:
    """[actions] log-probabilities of the one policy with `pi ∝ pi_ref * exp(P(y > pi) / tau)`: 2407.00617, section 3.

    Newton's method with halved steps. The Jacobian `I - P (diag(pi) - pi pi^T) / tau` is never singular: up to
    constants P is skew and the covariance positive, so its eigenvalues are 1 + i * something.
    """
    if not tau > 0:
        raise BadInput(f"tau is {tau}: the regularised equilibrium needs tau > 0; for tau = 0 use nash()")

    def residual(logits: Array) -> Array:
        error = logits - reference - preference @ np.exp(log_softmax(logits)) / tau
        return error - float(error.mean())  # a constant in the logits is no error

    logits = np.array(reference)
    error = residual(logits)
    for _ in range(1000):
        if abs(error).max() <= tolerance * max(1, 1 / tau):
            return log_softmax(logits)
        policy = np.exp(log_softmax(logits))
        jacobian = np.eye(len(policy)) - (preference - 0.5) @ (np.diag(policy) - np.outer(policy, policy)) / tau
        step, scale = np.linalg.solve(jacobian, error), 1.0
        while scale > 1e-12 and np.linalg.norm(residual(logits - scale * step)) >= np.linalg.norm(error):
            scale /= 2
        logits = logits - scale * step
        error = residual(logits)
    raise RuntimeError(
        f"the regularised equilibrium was not reached: optimality error {abs(error).max():.3g} at tau {tau}"
    )


def player_gap(
    preference: Array, policy: Array, opposed: Array, tau: float = 0.0, reference: Array | None = None
) -> Array:
    """What a player could gain alone: `max_pi' J(pi', O) - J(pi, O)`, eq. 19. Probabilities [..., actions] -> [...].

    `J(pi, O) = pi P opposed - tau KL(pi || pi_ref)`, `opposed` the opponents' mixture, `reference` log-probabilities.
    """
    advantage: Array = opposed @ preference.T
    gained: Array = (policy * advantage).sum(-1)
    if tau == 0:
        gap: Array = advantage.max(-1) - gained
        return np.maximum(gap, 0.0)
    if reference is None:
        raise BadInput("the regularised gap needs the reference")
    best: Array = tau * np.logaddexp.reduce(reference + advantage / tau, axis=-1)
    logs = np.log(np.where(policy > 0, policy, 1.0))  # 0 log 0 is 0
    divergence: Array = (policy * (logs - reference)).sum(-1)
    return np.maximum(best - gained + tau * divergence, 0.0)  # a true 0 rounds to -1e-16


def duality_gap(preference: Array, policy: Array, tau: float = 0.0, reference: Array | None = None) -> Array:
    """`max_a J(a, pi) - min_b J(pi, b)`, eq. 19's two-player form: what both gain, so twice the `player_gap`."""
    return 2 * player_gap(preference, policy, policy, tau, reference)


# ----------------------------------------------------------------------------------------------------------------- play


@dataclass(frozen=True)
class Trace:
    """What a play was like at the recorded steps; step t is after t updates, averages are over the policies 1..t.

    Gaps [records, players] are the game's own: regularised where tau > 0, the duality gap of one oracle, of several
    each player's own gap.
    """

    steps: Array  # [records]
    gap_last: Array
    gap_average: Array
    plain_gap_last: Array  # with tau = 0 whatever the game's
    plain_gap_average: Array
    last: Array  # [players, actions], probabilities
    average: Array  # [players, actions], probabilities


@dataclass(frozen=True)
class Settings:
    """What a play may set; each algorithm reads its own."""

    learning_rate: float = 1.0
    weights: tuple[float, ...] = (1.0,)  # over the history, newest first
    comparisons: str = "policy"


Iterates = Iterator[Array]  # [players, actions] log-probabilities, the start first
Algorithm = Callable[[Game, Settings], Iterates]


def _from_current(update: Callable[[Array, Array, Array, float, float], Array]) -> Algorithm:
    """Algorithms that need pi_t alone: `update(preference, policy, reference, learning_rate, ratio)`."""

    def iterates(game: Game, settings: Settings) -> Iterates:
        rate, policy = settings.learning_rate, game.reference
        while True:
            yield policy[None]
            policy = update(game.preferences[0], policy, game.reference, rate, rate * game.tau)

    return iterates


def _from_history(update: Callable[[Array, Array, Game, Settings], Array]) -> Algorithm:
    """Algorithms with several own past policies, newest first: `update(preference, history, game, settings)`."""

    def iterates(game: Game, settings: Settings) -> Iterates:
        history = game.reference[None]
        while True:
            yield history[:1]
            newest = update(game.preferences[0], history, game, settings)
            history = np.concatenate([newest[None], history])[: len(settings.weights)]

    return iterates


def _ht_mnpo(game: Game, settings: Settings, alternating: bool = False) -> Iterates:
    """All players move at once, or one after another, each against the new policies of those before it."""
    rate, weights = settings.learning_rate, opponent_weights(game.players)
    policies = np.stack([game.reference] * game.players)
    shared = (game.reference, rate, rate * game.tau, settings.comparisons)
    turns = [[player] for player in range(game.players)] if alternating else [list(range(game.players))]
    while True:
        yield policies
        for moving in turns:
            moved, policies = ht_mnpo(game.preferences, policies, weights, *shared), policies.copy()
            policies[moving] = moved[moving]


def _onpo(game: Game, settings: Settings) -> Iterates:
    rate, policy, base = settings.learning_rate, game.reference, game.reference
    while True:
        yield policy[None]
        policy, base = onpo(game.preferences[0], policy, base, rate, game.reference, rate * game.tau)


ALGORITHMS: dict[str, Algorithm] = {
    "multiplicative-weights": _from_history(
        lambda p, past, game, s: multiplicative_weights(p, past, s.learning_rate, s.weights)
    ),
    # its learning rate is 1 / tau whatever the play's
    "ipo": _from_current(lambda p, policy, reference, rate, ratio: ipo(p, policy, reference, rate / ratio)),
    "inpo": _from_current(inpo),
    "td-mnpo": _from_history(
        lambda p, past, game, s: td_mnpo(
            p, past, s.weights, game.reference, s.learning_rate, s.learning_rate * game.tau, s.comparisons
        )
    ),
    "ht-mnpo": _ht_mnpo,
    "ht-mnpo-alternating": partial(_ht_mnpo, alternating=True),
    "onpo": _onpo,
    "egpo": _from_current(lambda *state: egpo(*state)[0]),
    "nash-md": _from_current(nash_md),
}


HETEROGENEOUS = ("ht-mnpo", "ht-mnpo-alternating")  # players with oracles of their own


def play(
    game: Game,
    algorithm: str,
    steps: int,
    learning_rate: float = 1.0,
    weights: Sequence[float] | None = None,
    comparisons: str = "policy",
    record: Sequence[int] | Array | None = None,
) -> Trace:
    """Start at the reference, update `steps` times, measure the gaps at the `record` steps (None: log-spaced)."""
    settings = Settings(learning_rate, (1.0,) if weights is None else tuple(weights), comparisons)
    iterates = ALGORITHMS[choose(algorithm, ALGORITHMS, "algorithm")]
    _check_play(game, algorithm, steps, settings)
    record = log_spaced(steps) if record is None else np.unique(np.asarray(record, int))
    if len(record) == 0 or record[0] < 1 or record[-1] > steps:
        raise BadInput(f"steps to record must lie between 1 and {steps}, got {record.tolist()}")
    wanted, kept = set(record.tolist()), []
    total = np.zeros((game.players, game.actions))
    for step, logs in enumerate(islice(iterates(game, settings), 1, steps + 1), start=1):
        last = np.exp(logs)
        total += last
        if step in wanted:
            kept.append((last, total / step))
    lasts, averages = (np.stack(policies) for policies in zip(*kept, strict=True))  # [records, players, actions]
    return Trace(
        record,
        gap_last=_gaps(game, lasts, game.tau),
        gap_average=_gaps(game, averages, game.tau),
        plain_gap_last=_gaps(game, lasts, 0.0),
        plain_gap_average=_gaps(game, averages, 0.0),
        last=last,
        average=total / steps,
    )


def log_spaced(steps: int, records: int = 60) -> Array:
    """At most `records` whole steps from 1 to `steps`, evenly spaced on a log axis."""
    return np.unique(np.geomspace(1, steps, records).round().astype(int))


def _gaps(game: Game, policies: Array, tau: float) -> Array:
    """[records, players] of policies [records, players, actions]."""
    if game.players == 1:
        return duality_gap(game.preferences[0], policies, tau, game.reference)
    opposed = opponent_weights(game.players) @ policies
    players = enumerate(game.preferences)
    return np.stack([player_gap(p, policies[:, i], opposed[:, i], tau, game.reference) for i, p in players], axis=1)


def _check_play(game: Game, algorithm: str, steps: int, settings: Settings) -> None:
    choose(settings.comparisons, COMPARISONS, "comparisons")
    rate = settings.learning_rate
    if steps < 1 or not (np.isfinite(rate) and rate > 0):
        raise BadInput(f"steps {steps}, learning rate {rate}: both must be positive")
    if settings.weights != (1.0,) and algorithm not in ("td-mnpo", "multiplicative-weights"):
        raise BadInput(f"{algorithm} has no history: leave weights out, or use td-mnpo")
    _weights(settings.weights, len(settings.weights))
    if not settings.weights or settings.weights[0] <= 0:
        raise BadInput(
            f"weights {list(settings.weights)}: the first, pi_t's own, must be positive: step 1 has no other"
        )
    if settings.comparisons == "opponents" and algorithm not in ("td-mnpo", *HETEROGENEOUS):
        raise BadInput(f"{algorithm} has one way to compare: leave comparisons at 'policy', or use td-mnpo or ht-mnpo")
    if (algorithm in HETEROGENEOUS) != (game.players > 1):
        raise BadInput(
            f"{algorithm} on a game of {game.players} matrices: ht-mnpo needs several, the others play on one"
        )
    if algorithm == "ipo" and game.tau == 0:
        raise BadInput("ipo's rate is 1 / tau: give tau > 0, or use inpo")
    if algorithm == "multiplicative-weights" and game.tau > 0:
        raise BadInput("multiplicative-weights has no reference: set tau to 0, or use td-mnpo")
    if algorithm != "ipo" and rate * game.tau > 1:
        raise BadInput(f"learning rate {rate} * tau {game.tau} > 1: the reference's share of the anchor is at most 1")
