"""Whoever prefers one response to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from mnpo.config import Model
from mnpo.config import Oracle as OracleSettings


class Question(NamedTuple):
    """A prompt and the responses to be judged."""

    prompt: str
    truth: str
    """What the demo's rules need to know of the prompt; empty elsewhere."""
    responses: list[str]


class Judgement(NamedTuple):
    """What an oracle thinks of a prompt's responses."""

    scores: list[float]
    """How good each is, higher is better."""
    preferences: list[list[float]]
    """P(a > b) for all pairs of them: 1/2 on the diagonal, P(a > b) + P(b > a) = 1."""


class Oracle(Protocol):
    """Judges all responses of a prompt at once."""

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question."""
        ...


class Scorer:
    """An oracle that gives each response a score; whoever scores higher is preferred."""

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """One number a response, higher is better."""
        raise NotImplementedError

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question."""
        return [Judgement(scores, preferences_from_scores(scores)) for scores in self.score(questions)]


MODULES = {"rule": "rules", "weighted": "ensembles", "majority": "ensembles", "reward-model": "reward_models"}


def load(name: str, oracles: Mapping[str, OracleSettings], models: Mapping[str, Model]) -> Oracle:
    """The oracle `name` of a configuration's `oracles`, with those it is made of."""
    settings = oracles[name]
    members = {member: load(member, oracles, models) for member in settings.members()}
    module: Any = import_module(f"mnpo.oracles.{MODULES[settings.kind]}")
    return module.build(settings, members, models)  # type: ignore[no-any-return]


def preferences_from_scores(scores: Sequence[float]) -> list[list[float]]:
    """Whoever scores higher wins, equals share: P(a > b), ``[responses][responses]``."""
    return [[0.5 if a == b else float(a > b) for b in scores] for a in scores]


def win_rates(preferences: Sequence[Sequence[float]]) -> list[float]:
    """P(y > pi) of each response, over the prompt's other responses (eq. 21); 1/2 when there are none."""
    others = len(preferences) - 1
    return [(sum(row) - row[i]) / others if others else 0.5 for i, row in enumerate(preferences)]


def has_cycle(preferences: Sequence[Sequence[float]]) -> bool:
    """Whether strict preferences (P > 1/2) run in a circle: a Condorcet cycle."""
    left = set(range(len(preferences)))
    while left:
        unbeaten = {i for i in left if not any(preferences[j][i] > 0.5 for j in left)}
        if not unbeaten:
            return True
        left -= unbeaten
    return False
