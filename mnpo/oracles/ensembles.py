"""Oracles made of others: a weighted sum of scores, a majority vote, a population of annotators.

The last two need not be transitive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.oracles import Judgement, Kept, Oracle, Question, Scorer, win_rates
from mnpo.seeds import derive


class Weighted(Scorer):
    """A sum of other oracles' scores, each times its weight."""

    def __init__(self, members: Mapping[str, Oracle], weights: Mapping[str, float]) -> None:
        self.members = members
        self.weights = weights

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The weighted sum, in the members' units."""
        judged = [(self.weights[name], member.judge(questions)) for name, member in self.members.items()]
        return [
            [
                sum(weight * judgements[q].scores[i] for weight, judgements in judged)
                for i in range(len(question.responses))
            ]
            for q, question in enumerate(questions)
        ]

    def facts(self) -> dict[str, Any]:
        """Each member's."""
        return facts_of(self.members)


class Majority:
    """Each member votes between two responses; most votes win, equal votes share. Not transitive in general."""

    def __init__(self, members: Mapping[str, Oracle]) -> None:
        self.members = members

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """P(a > b) in {0, 1/2, 1}; the score is the share of the other responses that one beats."""
        ballots = zip(*(member.judge(questions) for member in self.members.values()), strict=True)
        preferences = [majority([voter.preferences for voter in ballot]) for ballot in ballots]
        return [Judgement(win_rates(p), p) for p in preferences]

    def facts(self) -> dict[str, Any]:
        """Each member's."""
        return facts_of(self.members)


def majority(voters: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """From the voters' P(a > b), ``[voter][a][b]``, the majority's.

    A vote is for whom the voter prefers, however slightly; who is undecided, or did not compare the two, abstains.
    """
    n = len(voters[0])
    lead = [[sum(_vote(voter[a][b]) for voter in voters) for b in range(n)] for a in range(n)]
    return [[0.5 if margin == 0 else float(margin > 0) for margin in row] for row in lead]


def _vote(preference: float) -> int:
    return (preference > 0.5) - (preference < 0.5)


class Annotator:
    """A population: each prompt is judged by one of several oracles, drawn by the prompt's id, always the same one.

    What the population prefers on average is a mixture of its members' preferences, and need not be transitive.
    """

    def __init__(self, members: Mapping[str, Oracle]) -> None:
        self.members = members
        self.judged: Counter[str] = Counter()

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """Each question's judgement is its annotator's own, scores in that annotator's units."""
        asked: dict[str, list[int]] = {name: [] for name in self.members}
        for q, question in enumerate(questions):
            asked[annotator(question, list(self.members))].append(q)
        found: dict[int, Judgement] = {}
        for name, indices in asked.items():
            self.judged[name] += len(indices)
            if indices:
                found |= zip(indices, self.members[name].judge([questions[q] for q in indices]), strict=True)
        return [found[q] for q in range(len(questions))]

    def facts(self) -> dict[str, Any]:
        """Each member's, and how many prompts each has judged."""
        return {**facts_of(self.members), "annotators": dict(self.judged)}


def annotator(question: Question, names: Sequence[str]) -> str:
    """Which of `names` annotates a question: each with equal probability."""
    return names[derive(0, "annotator", question.name) % len(names)]


def facts_of(members: Mapping[str, Oracle]) -> dict[str, Any]:
    """The facts of those members that have some, and the tokens that they all have read, one of several once."""
    facts = {name: told for name, member in members.items() if (told := member.facts())}
    tokens = sum(told.get("tokens", 0) for told in _plain(facts).values())
    return {**({"tokens": tokens} if tokens else {}), **({"members": facts} if facts else {})}


def _plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of those that are not made of others, however deep."""
    found: dict[str, Any] = {}
    for name, told in facts.items():
        found |= _plain(told["members"]) if "members" in told else {name: told}
    return found


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    if settings.weights is not None:
        return Weighted(members, settings.weights)
    return Annotator(members) if settings.kind == "annotator" else Majority(members)
