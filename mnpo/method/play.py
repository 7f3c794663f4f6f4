"""The loop: an algorithm plays an exact game from the reference on, and its gaps are measured on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from mnpo.errors import BadInput
from mnpo.method.equilibria import duality_gap, player_gap
from mnpo.method.games import Array, Game, choose, normalised
from mnpo.method.updates import (
    COMPARISONS,
    Seen,
    egpo,
    ht_mnpo,
    inpo,
    ipo,
    multiplicative_weights,
    nash_md,
    nash_weights,
    opponent_weights,
    optimistic_td_mnpo,
    td_mnpo,
)


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
    weights: tuple[float, ...] | None = None  # over the history, newest first, or the other players in their order
    comparisons: str = "policy"
    seen: Seen = np.exp
    nash_tau: float = 0.0  # of the game between past policies that weighs them

    @property
    def over_history(self) -> tuple[float, ...]:
        """`weights`, or pi_t alone."""
        return self.weights or (1.0,)


Iterates = Iterator[Array]  # [players, actions] log-probabilities, the start first
Algorithm = Callable[[Game, Settings], Iterates]


def _from_current(update: Callable[..., Array]) -> Algorithm:
    """Algorithms that need pi_t alone: `update(preference, policy, reference, learning_rate, ratio, seen)`."""

    def iterates(game: Game, settings: Settings) -> Iterates:
        rate, policy = settings.learning_rate, game.reference
        while True:
            yield policy[None]
            policy = update(game.preferences[0], policy, game.reference, rate, rate * game.tau, settings.seen)

    return iterates


def _from_history(update: Callable[[Array, Array, Game, Settings], Array]) -> Algorithm:
    """Algorithms with several own past policies, newest first: `update(preference, history, game, settings)`."""

    def iterates(game: Game, settings: Settings) -> Iterates:
        history = game.reference[None]
        while True:
            yield history[:1]
            newest = update(game.preferences[0], history, game, settings)
            history = np.concatenate([newest[None], history])[: len(settings.over_history)]

    return iterates


def _ht_mnpo(game: Game, settings: Settings, alternating: bool = False) -> Iterates:
    """All players move at once, or one after another, each against the new policies of those before it."""
    rate, weights = settings.learning_rate, opponent_weights(game.players, settings.weights)
    policies = np.stack([game.reference] * game.players)
    shared = (game.reference, rate, rate * game.tau, settings.comparisons)
    turns = [[player] for player in range(game.players)] if alternating else [list(range(game.players))]
    while True:
        yield policies
        for moving in turns:
            moved, policies = ht_mnpo(game.preferences, policies, weights, *shared), policies.copy()
            policies[moving] = moved[moving]


def _optimistic(game: Game, settings: Settings) -> Iterates:
    """Without a history, ONPO."""
    rate, policy, bases = settings.learning_rate, game.reference, game.reference[None]
    shared = (game.reference, rate, rate * game.tau, settings.seen)
    while True:
        yield policy[None]
        policy, base = optimistic_td_mnpo(game.preferences[0], policy, bases, settings.over_history, *shared)
        bases = np.concatenate([base[None], bases])[: len(settings.over_history)]


def _td_mnpo(preference: Array, past: Array, game: Game, settings: Settings, nash: bool = False) -> Array:
    rate = settings.learning_rate
    weights = nash_weights(preference, past, settings.nash_tau) if nash else settings.over_history
    return td_mnpo(
        preference, past, weights, game.reference, rate, rate * game.tau, settings.comparisons, settings.seen
    )


ALGORITHMS: dict[str, Algorithm] = {
    "multiplicative-weights": _from_history(
        lambda p, past, game, s: multiplicative_weights(p, past, s.learning_rate, s.over_history)
    ),
    # its learning rate is 1 / tau whatever the play's
    "ipo": _from_current(lambda p, policy, reference, rate, ratio, _: ipo(p, policy, reference, rate / ratio)),
    "inpo": _from_current(inpo),
    "td-mnpo": _from_history(_td_mnpo),
    "td-mnpo-nash": _from_history(partial(_td_mnpo, nash=True)),  # of its weights only how many there are counts
    "td-mnpo-optimistic": _optimistic,
    "ht-mnpo": _ht_mnpo,
    "ht-mnpo-alternating": partial(_ht_mnpo, alternating=True),
    "onpo": _optimistic,
    "egpo": _from_current(lambda *state: egpo(*state)[0]),
    "nash-md": _from_current(nash_md),
}
HISTORIC = ("td-mnpo", "td-mnpo-nash", "td-mnpo-optimistic", "multiplicative-weights")
HETEROGENEOUS = ("ht-mnpo", "ht-mnpo-alternating")  # players with oracles of their own


def play(
    game: Game,
    algorithm: str,
    steps: int,
    learning_rate: float = 1.0,
    weights: Sequence[float] | None = None,
    comparisons: str = "policy",
    record: Sequence[int] | Array | None = None,
    nash_tau: float = 0.0,
) -> Trace:
    """Start at the reference, update `steps` times, measure the gaps at the `record` steps (None: log-spaced)."""
    settings = Settings(learning_rate, None if weights is None else tuple(weights), comparisons, nash_tau=nash_tau)
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
        gap_last=_gaps(game, lasts, game.tau, settings),
        gap_average=_gaps(game, averages, game.tau, settings),
        plain_gap_last=_gaps(game, lasts, 0.0, settings),
        plain_gap_average=_gaps(game, averages, 0.0, settings),
        last=last,
        average=total / steps,
    )


def _check_weights(game: Game, algorithm: str, weights: tuple[float, ...] | None) -> None:
    if weights is None:
        return
    if algorithm in HETEROGENEOUS:
        if game.players > 1 and len(weights) != game.players - 1:
            raise BadInput(f"weights {list(weights)}: {game.players} players, so give one for each of the others")
        normalised(weights, len(weights))
        return
    if algorithm not in HISTORIC:
        raise BadInput(f"{algorithm} has no history: leave weights out, or use td-mnpo")
    normalised(weights, len(weights))
    if not weights or weights[0] <= 0:
        raise BadInput(f"weights {list(weights)}: the first, pi_t's own, must be positive: step 1 has no other")


def log_spaced(steps: int, records: int = 60) -> Array:
    """At most `records` whole steps from 1 to `steps`, evenly spaced on a log axis."""
    return np.unique(np.geomspace(1, steps, records).round().astype(int))


def _gaps(game: Game, policies: Array, tau: float, settings: Settings) -> Array:
    """[records, players] of policies [records, players, actions]."""
    if game.players == 1:
        return duality_gap(game.preferences[0], policies, tau, game.reference)
    opposed = opponent_weights(game.players, settings.weights) @ policies
    players = enumerate(game.preferences)
    return np.stack([player_gap(p, policies[:, i], opposed[:, i], tau, game.reference) for i, p in players], axis=1)


def _check_play(game: Game, algorithm: str, steps: int, settings: Settings) -> None:
    choose(settings.comparisons, COMPARISONS, "comparisons")
    rate = settings.learning_rate
    if steps < 1 or not (np.isfinite(rate) and rate > 0):
        raise BadInput(f"steps {steps}, learning rate {rate}: both must be positive")
    _check_weights(game, algorithm, settings.weights)
    if settings.comparisons == "opponents" and algorithm not in ("td-mnpo", *HETEROGENEOUS):
        raise BadInput(f"{algorithm} has one way to compare: leave comparisons at 'policy', or use td-mnpo or ht-mnpo")
    if not settings.nash_tau >= 0 or (settings.nash_tau > 0 and algorithm != "td-mnpo-nash"):
        raise BadInput(f"nash_tau {settings.nash_tau}: give one that is not negative, to td-mnpo-nash alone")
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
