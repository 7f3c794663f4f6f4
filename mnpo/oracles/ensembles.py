"""Oracles made of others: a weighted sum of scores, and a majority vote, which need not be transitive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mnpo.config import Model
from mnpo.config import Oracle as OracleSettings
from mnpo.oracles import Judgement, Oracle, Question, Scorer, win_rates


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


class Majority:
    """Each member votes between two responses; most votes win, equal votes share. Not transitive in general."""

    def __init__(self, members: Mapping[str, Oracle]) -> None:
        self.members = members

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """P(a > b) in {0, 1/2, 1}; the score is the share of the other responses that one beats."""
        ballots = zip(*(member.judge(questions) for member in self.members.values()), strict=True)
        preferences = [majority([voter.preferences for voter in ballot]) for ballot in ballots]
        return [Judgement(win_rates(p), p) for p in preferences]


def majority(voters: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """From the voters' P(a > b), ``[voter][a][b]``, the majority's."""
    n = len(voters[0])
    lead = [[sum(voter[a][b] - 0.5 for voter in voters) for b in range(n)] for a in range(n)]
    return [[0.5 if margin == 0 else float(margin > 0) for margin in row] for row in lead]


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model]) -> Oracle:
    """The oracle that `settings` describe."""
    return Weighted(members, settings.weights) if settings.weights is not None else Majority(members)
