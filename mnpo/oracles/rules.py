"""The demo's ground truth: oracles by construction (mnpo/demo/world.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.demo.world import RULES
from mnpo.errors import BadInput
from mnpo.oracles import Kept, Oracle, Question, Scorer


class Rule(Scorer):
    """A rule of the demo's world as an oracle. Scores in [0, 1]."""

    def __init__(self, name: str, rule: Callable[[str, str], float]) -> None:
        self.name = name
        self.rule = rule

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """Raises BadInput for a prompt that the world did not make: rules judge by the prompt's truth."""
        for question in questions:
            if not {"family", "answer"} <= set(json.loads(question.truth or "{}")):
                raise BadInput(
                    f"the rule {self.name} judges prompts of the demo's world by their truth, and the prompt "
                    f"{question.prompt!r} has none; use an oracle of another kind"
                )
        return [[self.rule(q.truth, response) for response in q.responses] for q in questions]


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    assert settings.rule is not None
    return Rule(settings.rule, RULES[settings.rule])
