"""Verifiable constraints as an oracle: the share of a prompt's constraints that a response satisfies.

The checkers are those of lm-eval's IFEval task, in its strict reading: an empty response satisfies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mnpo.config.constraints import CONSTRAINTS, SENTENCES, checked, of_row
from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.oracles import Judgement, Kept, Oracle, Question, Scorer, preferences_from_scores
from mnpo.storage import text_tools


class Constraints(Scorer):
    """The share of constraints that are satisfied, in [0, 1].

    Args:
        constraints: of every prompt, `{id: ..., ...}` (mnpo/config/constraints.py); None: each row has its own, in the
            columns of IFEval.
    """

    def __init__(self, constraints: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.constraints = None if constraints is None else [checked(c) for c in constraints]
        self.registry = _registry()
        self.has_sentence_model = text_tools.has_sentence_model()

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question; each constraint's 0 or 1 is an objective.

        Raises:
            BadInput: a row without constraints, or with one that cannot be verified; NLTK's sentence model is needed
                and missing.
        """
        return [self._judgement(question) for question in questions]

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The shares."""
        return [judgement.scores for judgement in self.judge(questions)]

    def _judgement(self, question: Question) -> Judgement:
        objectives: dict[str, list[float]] = {}
        for constraint in self._of(question):
            met = [self._is_met(constraint, response) for response in question.responses]
            objectives[_unused(constraint["id"], objectives)] = met
        scores = [sum(met) / len(objectives) for met in zip(*objectives.values(), strict=True)]
        return Judgement(scores, preferences_from_scores(scores, self.temperature), objectives)

    def _of(self, question: Question) -> Sequence[Mapping[str, Any]]:
        if self.constraints is not None:
            return self.constraints
        try:
            return of_row(json.loads(question.truth) if question.truth else {})
        except ValueError as error:
            raise BadInput(f"prompt {question.name[:80]}: {error}") from None

    def _is_met(self, constraint: Mapping[str, Any], response: str) -> float:
        name = constraint["id"]
        if name in SENTENCES and not self.has_sentence_model:
            raise BadInput(f"{name}: NLTK's punkt_tab is missing, which finds sentences; {text_tools.HOW}")
        checker = self.registry[name](name)
        checker.build_description(**{key: constraint[key] for key in CONSTRAINTS[name]})
        return float(bool(response.strip()) and bool(checker.check_following(response)))


def _registry() -> Mapping[str, Any]:
    """IFEval's checkers by name. Importing them downloads nothing, which they would try."""
    import nltk

    text_tools.use([])
    download, nltk.download = nltk.download, lambda *_, **__: False
    try:
        from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT
    finally:
        nltk.download = download
    found: Mapping[str, Any] = INSTRUCTION_DICT
    return found


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, numbered where a prompt has several constraints of that name."""
    number = 1 + sum(other == name or other.startswith(f"{name} ") for other in taken)
    return name if number == 1 else f"{name} {number}"


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    return Constraints(settings.constraints)
