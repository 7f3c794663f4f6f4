"""The demo's rules as oracles."""

from __future__ import annotations

import json

import pytest

from mnpo.demo.world import RULES
from mnpo.errors import BadInput
from mnpo.oracles import Question
from mnpo.oracles.rules import Rule

TRUTH = json.dumps({"family": "opposite", "answer": "cold", "word": "hot"})


def test_a_rule_scores_every_response_by_the_prompts_truth() -> None:
    questions = [Question("Opposite of hot?", TRUTH, ["cold", "warm", ""]), Question("Not hot but", TRUTH, ["cold"])]
    judged = Rule("correctness", RULES["correctness"]).judge(questions)
    assert [j.scores for j in judged] == [[1.0, 0.0, 0.0], [1.0]]
    assert judged[0].preferences[1:] == [[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]


@pytest.mark.parametrize("truth", ["", '{"answer": "me"}', '{"instruction_id_list": []}'])
def test_a_prompt_without_the_demos_truth_is_refused(truth: str) -> None:
    questions = [Question("Opposite of hot?", TRUTH, ["cold"]), Question("Who are you?", truth, ["me"])]
    with pytest.raises(
        BadInput, match=r"the rule brevity judges .* 'Who are you\?' has none; use an oracle of another kind"
    ):
        Rule("brevity", RULES["brevity"]).judge(questions)
