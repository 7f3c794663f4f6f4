"""Weighted sums, and majorities that are not transitive."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo import oracles
from mnpo.config.oracles import Oracle
from mnpo.demo.world import brevity, correctness, courtesy
from mnpo.oracles import Judgement, Question, Scorer, has_cycle, preferences_from_scores
from mnpo.oracles.ensembles import Annotator, Majority, Weighted, annotator, majority

# Three voters over a, b, c, each with another order: a > b > c, b > c > a, c > a > b.
CONDORCET = [[3.0, 2.0, 1.0], [1.0, 3.0, 2.0], [2.0, 1.0, 3.0]]


class Given(Scorer):
    """Scores that were decided beforehand, the same for every question."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        return [self.scores[: len(q.responses)] for q in questions]


ONE = [Question("p", "t", ["a", "b", "c"])]


def test_the_majority_of_a_condorcet_electorate_runs_in_a_circle() -> None:
    preferences = majority([preferences_from_scores(s) for s in CONDORCET])
    # a beats b (voters 1 and 3), b beats c (1 and 2), c beats a (2 and 3).
    assert preferences == [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
    assert has_cycle(preferences)


def test_a_majority_oracle_scores_by_the_share_of_the_others_that_one_beats() -> None:
    voters = {f"v{i}": Given(*scores) for i, scores in enumerate(CONDORCET)}
    (judgement,) = Majority(voters).judge(ONE)
    assert judgement.scores == [0.5, 0.5, 0.5] and has_cycle(judgement.preferences)
    voters["v3"] = Given(3.0, 2.0, 1.0)
    voters["v4"] = Given(3.0, 2.0, 1.0)  # now a > b 4:1, b > c 4:1, a > c 3:2
    (judgement,) = Majority(voters).judge(ONE)
    assert judgement.scores == [1.0, 0.5, 0.0] and not has_cycle(judgement.preferences)


def test_votes_that_are_equal_share_and_abstentions_do_not_count() -> None:
    tie = majority([preferences_from_scores(s) for s in ([1.0, 0.0], [0.0, 1.0])])
    assert tie == [[0.5, 0.5], [0.5, 0.5]]
    decided = majority([preferences_from_scores(s) for s in ([1.0, 0.0], [0.0, 0.0], [0.0, 0.0])])
    assert decided == [[0.5, 1.0], [0.0, 0.5]]


def test_a_vote_is_for_whom_the_voter_prefers_however_slightly_or_for_nobody() -> None:
    """Two voters lean to a a little, one is sure of b, one did not compare them: a has two votes of three."""
    lean, sure, silent = [[0.5, 0.51], [0.49, 0.5]], [[0.5, 0.0], [1.0, 0.5]], [[0.5, math.nan], [math.nan, 0.5]]
    assert majority([lean, lean, sure, silent]) == [[0.5, 1.0], [0.0, 0.5]]
    assert majority([silent, silent]) == [[0.5, 0.5], [0.5, 0.5]]


@given(st.lists(st.lists(st.integers(0, 3).map(float), min_size=4, max_size=4), min_size=1, max_size=5))
def test_a_majority_adds_up_to_one(voters: list[list[float]]) -> None:
    preferences = majority([preferences_from_scores(s) for s in voters])
    assert all(preferences[a][b] + preferences[b][a] == 1 for a in range(4) for b in range(4))
    if len(voters) == 1:
        assert preferences == preferences_from_scores(voters[0])


def test_a_weighted_sum_adds_each_response_s_scores() -> None:
    members = {"x": Given(1.0, 2.0, 0.0), "y": Given(10.0, 0.0, -10.0)}
    (judgement,) = Weighted(members, {"x": 2.0, "y": 0.1}).judge(ONE)
    assert judgement.scores == pytest.approx([3.0, 4.0, -1.0])
    assert judgement.preferences[1] == [1.0, 0.5, 1.0]


def test_questions_keep_their_order_and_their_own_responses() -> None:
    questions = [Question("p", "t", ["a", "b"]), Question("q", "t", ["c"]), Question("r", "t", ["d", "e", "f"])]
    judged = Weighted({"x": Given(1.0, 2.0, 3.0)}, {"x": 3.0}).judge(questions)
    assert [j.scores for j in judged] == [[3.0, 6.0], [3.0], [3.0, 6.0, 9.0]]


class Counting(Given):
    """Scores that were decided beforehand, with something to tell of them."""

    def __init__(self, *scores: float) -> None:
        super().__init__(*scores)
        self.asked: list[str] = []

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        self.asked += [q.id for q in questions]
        return [j._replace(objectives={"first": j.scores}) for j in super().judge(questions)]

    def facts(self) -> dict[str, Any]:
        return {"tokens": len(self.asked)} if self.asked else {}


def test_each_prompt_has_one_annotator_always_the_same_and_all_about_as_often() -> None:
    members = {f"v{i}": Counting(*scores) for i, scores in enumerate(CONDORCET)}
    questions = [Question("p", "t", ["a", "b", "c"], f"id{i}") for i in range(300)]
    population = Annotator(members)
    judged = population.judge(questions)
    for question, judgement in zip(questions, judged, strict=True):
        one = members[annotator(question, list(members))]
        assert judgement.scores == one.scores == judgement.objectives["first"]
        assert not has_cycle(judgement.preferences)  # each annotator is consistent; the population is not
    assert sorted(sum((m.asked for m in members.values()), [])) == sorted(q.id for q in questions)
    facts = population.facts()
    assert facts["annotators"] == {name: len(m.asked) for name, m in members.items()} and facts["tokens"] == 300
    assert all(abs(count - 100) < 4 * 8.2 for count in facts["annotators"].values())  # sd = sqrt(300 * 1/3 * 2/3)
    mean = [[sum(j.preferences[a][b] for j in judged) / 300 for b in range(3)] for a in range(3)]
    assert has_cycle(mean)  # on average a > b, b > c and c > a: two of three annotators each
    backwards = Annotator({f"v{i}": Given(*scores) for i, scores in enumerate(CONDORCET)}).judge(questions[::-1])
    assert [j.scores for j in backwards[::-1]] == [j.scores for j in judged]


def test_a_population_is_one_setting(oracle_settings: dict[str, Any]) -> None:
    settings = {n: Oracle.model_validate(s) for n, s in oracle_settings.items()}
    settings["crowd"] = Oracle(kind="annotator", of=["correctness", "brevity", "courtesy"])
    truth = json.dumps({"family": "repeat", "answer": "cat cat cat"})
    questions = [Question(f"Say cat {i} times", truth, ["cat cat cat", "Of course: cat"]) for i in range(9)]
    crowd = oracles.load("crowd", settings, {}).judge(questions)
    for question, judgement in zip(questions, crowd, strict=True):
        one = annotator(question, ["correctness", "brevity", "courtesy"])  # without an id, by the prompt itself
        assert judgement == oracles.load(one, settings, {}).judge([question])[0]
    assert len({tuple(j.scores) for j in crowd}) > 1


def test_the_demos_rules_disagree_into_a_condorcet_cycle(oracle_settings: dict[str, Any]) -> None:
    """Right and wordy; nearly right and curt; wrong and polite: 2 of 3 rules prefer each to the next."""
    truth = json.dumps({"family": "repeat", "answer": "cat cat cat"})
    responses = ["I think it is cat cat cat. I hope this helps.", "cat cat", "Of course: dog, dog, dog."]
    scores = [[rule(truth, r) for r in responses] for rule in (correctness, brevity, courtesy)]
    settings = {name: Oracle.model_validate(s) for name, s in oracle_settings.items()}
    (judgement,) = oracles.load("majority", settings, {}).judge([Question("Say cat 3 times", truth, responses)])

    def votes(a: int, b: int) -> float:
        return sum((s[a] > s[b]) - (s[a] < s[b]) for s in scores)

    assert [votes(0, 1), votes(1, 2), votes(2, 0)] == [1, 1, 1]
    assert judgement.preferences == [[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]]
    overall = oracles.load("overall", settings, {}).judge([Question("Say cat 3 times", truth, responses)])[0].scores
    assert overall == pytest.approx([c + 0.4 * b + 0.2 * p for c, b, p in zip(*scores, strict=True)])
