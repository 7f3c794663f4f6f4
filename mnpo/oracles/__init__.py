"""Whoever prefers one response to another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.storage import text_tools, user_code
from mnpo.storage.conversations import Turn, turns

if TYPE_CHECKING:
    from mnpo.storage.journal import Journal


class Question(NamedTuple):
    """A prompt and the responses to be judged."""

    prompt: str
    """The last user's turn."""
    truth: str
    """What the table of prompts knows of it beside its text, as JSON: what the demo's rules need, or the further
    columns of a data set's row; empty: nothing."""
    responses: list[str]
    id: str = ""
    context: str = ""
    """The turns before the prompt (mnpo/storage/conversations.py)."""

    @property
    def name(self) -> str:
        """What seeds and messages call it: its id, or the prompt itself where it has none."""
        return self.id or self.prompt

    @property
    def turns(self) -> list[Turn]:
        """The conversation that the responses answer."""
        return turns(self.prompt, self.context)


class Judgement(NamedTuple):
    """What an oracle thinks of a prompt's responses."""

    scores: list[float]
    """How good each is, higher is better."""
    preferences: list[list[float]]
    """P(a > b) for all pairs of them: 1/2 on the diagonal, P(a > b) + P(b > a) = 1; both NaN for two that were not
    compared."""
    objectives: Mapping[str, list[float]] = {}
    """What the scores were made of, where an oracle tells: objective -> one number a response."""


class Kept(NamedTuple):
    """Where what was thought is kept, so that a kill loses little of it."""

    answers: Path | None = None
    """A judge's answers (SQLite), for good; the kind `judge` cannot do without."""
    journal: Journal | None = None
    """The finished batches of models."""


NOWHERE = Kept()


class Oracle(Protocol):
    """Judges all responses of a prompt at once."""

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question."""
        ...

    def facts(self) -> dict[str, Any]:
        """What judging has taken so far, for the manifest: `tokens` read, `parameters` of models, calls, cost."""
        ...


class Scorer:
    """An oracle that gives each response a score; whoever scores higher is preferred."""

    temperature: float | None = None
    """Of the Bradley-Terry model from scores to preferences; None: the higher score wins for certain."""

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """One number a response, higher is better."""
        raise NotImplementedError

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question."""
        return [
            Judgement(scores, preferences_from_scores(scores, self.temperature)) for scores in self.score(questions)
        ]

    def facts(self) -> dict[str, Any]:
        """Nothing to tell."""
        return {}


MODULES = {
    "rule": "rules",
    "weighted": "ensembles",
    "majority": "ensembles",
    "annotator": "ensembles",
    "reward-model": "reward_models",
    "pair-model": "pair_models",
    "judge": "judges",
    "function": "functions",
    "constraints": "constraints",
    "likelihood": "likelihood",
}


def prepared(functions: Mapping[str, str], nltk: str | None) -> list[Path]:
    """The files that oracles read beside their models: users' own, which are as they were planned, and NLTK's data,
    which are found from now on. Raises BadInput."""
    user_code.require_unchanged(functions)
    if nltk:
        text_tools.use([Path(nltk)])
    return [*map(Path, functions), *([Path(nltk)] if nltk else [])]


def modules(kinds: Iterable[str]) -> list[str]:
    """The modules behind kinds of oracles."""
    return [f"mnpo.oracles.{MODULES[kind]}" for kind in sorted(set(kinds))]


def load(
    name: str,
    oracles: Mapping[str, OracleSettings],
    models: Mapping[str, Model],
    kept: Kept = NOWHERE,
    loaded: dict[str, Oracle] | None = None,
) -> Oracle:
    """The oracle `name` of a configuration's `oracles`, with those it is made of.

    One that several are made of is one, and reads no text twice. `loaded` holds what other calls have loaded, and gets
    what this one does.
    """
    loaded = {} if loaded is None else loaded
    if name in loaded:
        return loaded[name]
    settings = oracles[name]
    members = {member: load(member, oracles, models, kept, loaded) for member in settings.members()}
    module: Any = import_module(f"mnpo.oracles.{MODULES[settings.kind]}")
    oracle: Oracle = module.build(settings, members, models, kept)
    if isinstance(oracle, Scorer):
        oracle.temperature = settings.temperature
    loaded[name] = oracle
    return oracle


def preferences_from_scores(scores: Sequence[float], temperature: float | None = None) -> list[list[float]]:
    """P(a > b), ``[responses][responses]``: whoever scores higher wins, equals share.

    With a temperature, Bradley-Terry's logistic((score_a - score_b) / temperature).
    """
    if temperature is None:
        return [[0.5 if a == b else float(a > b) for b in scores] for a in scores]
    return [[0.5 * (1 + math.tanh((a - b) / temperature / 2)) for b in scores] for a in scores]


def win_rates(preferences: Sequence[Sequence[float]], own: bool = False) -> list[float]:
    """P(y > pi) of each response, over the prompt's other responses (eq. 21); 1/2 when it was compared with none.

    With `own` a response counts against itself too, at 1/2.
    """
    return [
        _mean([p for j, p in enumerate(row) if (own or j != i) and not math.isnan(p)])
        for i, row in enumerate(preferences)
    ]


def win_rates_against(preferences: Sequence[Sequence[float]], own: int) -> list[float]:
    """P(y > pi) of each of the first `own` responses, over the rest, which are another policy's; 1/2 when it was
    compared with none of them."""
    return [_mean([p for p in row[own:] if not math.isnan(p)]) for row in preferences[:own]]


def _mean(wins: Sequence[float]) -> float:
    return math.fsum(wins) / len(wins) if wins else 0.5


def has_cycle(preferences: Sequence[Sequence[float]]) -> bool:
    """Whether strict preferences (P > 1/2) run in a circle: a Condorcet cycle."""
    left = set(range(len(preferences)))
    while left:
        unbeaten = {i for i in left if not any(preferences[j][i] > 0.5 for j in left)}
        if not unbeaten:
            return True
        left -= unbeaten
    return False
