"""Verifiable constraints: each of IFEval's, by hand; shares; and what nobody could verify."""

from __future__ import annotations

import inspect
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mnpo import oracles
from mnpo.config.constraints import CONSTRAINTS, LANGUAGES, RELATIONS, checked
from mnpo.config.oracles import Oracle as Settings
from mnpo.errors import BadInput
from mnpo.oracles import Question
from mnpo.oracles.constraints import Constraints
from mnpo.storage import text_tools

ENGLISH = "the weather is nice today and we are going to the park with our friends"
GERMAN = "das Wetter ist heute schön und wir gehen mit unseren Freunden in den Park"
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # what it is told; a text that satisfies it, one that does not
    "keywords:existence": ({"keywords": ["cat", "dog"]}, "A Cat and a dog.", "A cat."),
    "keywords:frequency": ({"keyword": "cat", "frequency": 2, "relation": "at least"}, "cat, cat", "cat"),
    "keywords:forbidden_words": ({"forbidden_words": ["cat"]}, "A category.", "A cat."),
    "keywords:letter_frequency": ({"letter": "a", "let_frequency": 2, "let_relation": "less than"}, "Ab", "Aba"),
    "language:response_language": ({"language": "de"}, GERMAN, ENGLISH),
    "length_constraints:number_sentences": ({"num_sentences": 2, "relation": "less than"}, "One.", "One. Two. Three."),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    "length_constraints:number_words": ({"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        "First.\n\nThen that.",
        "Then.\n\nThis.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 1}, "Dear [name]", "Dear name"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Write.", "Bye."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* a\n* b", "* a"),
    "detectable_format:constrained_response": ({}, "My answer is yes.", "Yes."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 1}, "this *word*", "this word"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "SECTION 1\na",
    ),
    "detectable_format:json_format": ({}, '{"a": 1}', "a: 1"),
    "detectable_format:title": ({}, "<<A title>>\ntext", "A title\ntext"),
    "combination:two_responses": ({}, "one******two", "one"),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Say hi"}, "Say hi. Hi!", "Hi!"),
    "startend:end_checker": ({"end_phrase": "The end."}, "So. The end.", "The end. Or not"),
    "change_case:capital_word_frequency": ({"capital_frequency": 1, "capital_relation": "at least"}, "A CAT", "a cat"),
    "change_case:english_capital": ({}, ENGLISH.upper(), ENGLISH),
    "change_case:english_lowercase": ({}, ENGLISH, ENGLISH.upper()),
    "punctuation:no_comma": ({}, "one two", "one, two"),
    "startend:quotation": ({}, '"said"', "said"),
}


@pytest.fixture(scope="module", autouse=True)
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The demo's, which knows no abbreviations."""
    from mnpo.demo import benchmarks

    directory = tmp_path_factory.mktemp("ifeval")
    benchmarks.make(directory, "ifeval", 0)
    text_tools.use([directory])


@pytest.mark.parametrize("name", CASES)
def test_each_constraint_tells_a_text_that_satisfies_it_from_one_that_does_not(name: str) -> None:
    told, good, bad = CASES[name]
    oracle = Constraints([{"id": name, **told}])
    (judged,) = oracle.judge([Question("Say hi", "", [good, bad, "", "  "])])
    assert judged.scores == [1.0, 0.0, 0.0, 0.0]
    assert judged.objectives == {name: judged.scores} and judged.preferences[0] == [0.5, 1.0, 1.0, 1.0]


def test_the_table_of_constraints_is_the_registrys() -> None:
    from lm_eval.tasks.ifeval import instructions, instructions_util
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    assert set(CASES) == set(CONSTRAINTS) == set(INSTRUCTION_DICT)
    for name, checker in INSTRUCTION_DICT.items():
        wanted = [p for p in inspect.signature(checker.build_description).parameters if p != "self"]
        assert wanted == list(CONSTRAINTS[name]), name
    assert set(instructions_util.LANGUAGE_CODES) == set(LANGUAGES) and instructions._COMPARISON_RELATION == RELATIONS


def test_the_score_is_the_share_that_is_satisfied_and_says_the_same_every_time() -> None:
    few = {"id": "length_constraints:number_words", "num_words": 4, "relation": "less than"}
    some = {"id": "length_constraints:number_words", "num_words": 2, "relation": "at least"}
    oracle = Constraints(
        [few, some, {"id": "punctuation:no_comma"}, {"id": "language:response_language", "language": "en"}]
    )
    questions = [Question("?", "", ["the cat sat", "cat, dog, cow, pig", ENGLISH])]
    state, found = random.getstate(), [oracle.score(questions) for _ in range(3)]
    assert found[0] == found[1] == found[2] and random.getstate() == state
    (judged,) = oracle.judge(questions)
    assert list(judged.objectives) == [
        few["id"],
        f"{few['id']} 2",
        "punctuation:no_comma",
        "language:response_language",
    ]
    assert judged.scores[2] == 3 / 4 and judged.objectives[few["id"]] == [1.0, 0.0, 0.0]
    assert [sum(o[i] for o in judged.objectives.values()) / 4 for i in range(3)] == judged.scores


def test_rows_may_have_constraints_of_their_own_as_ifevals_have() -> None:
    columns = {
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{"num_words": None}, {"num_words": 2.0, "relation": "at least", "keywords": None}],
    }
    oracle = oracles.load("own", {"own": Settings(kind="constraints")}, {})
    (judged,) = oracle.judge([Question("?", json.dumps(columns), ["one two", "one, two", "one,"], "p1")])
    assert judged.scores == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("columns", "message"),
    {
        "": r"prompt p1: instruction_id_list and kwargs are None and None, expected two lists of one length",
        '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}': r"prompt p1: .* two lists of one length",
        '{"instruction_id_list": [], "kwargs": []}': r"prompt p1: instruction_id_list is empty",
        '{"instruction_id_list": ["no_comma"], "kwargs": [null]}': r"prompt p1: unknown constraint 'no_comma'; did you",
    }.items(),
)
def test_a_row_whose_constraints_cannot_be_verified_is_named(columns: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Constraints().judge([Question("?", columns, ["x"], "p1")])


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"keywords": ["a"]}, r"a constraint is \{id: \.\.\., \.\.\.\}"),
        ({"id": "keywords:exist"}, r"unknown constraint 'keywords:exist'; did you mean 'keywords:existence'\?"),
        ({"id": "keywords:existence"}, r"keywords:existence needs keywords"),
        ({"id": "keywords:existence", "keyword": "a"}, r"does not read 'keyword'; did you mean 'keywords'\?"),
        ({"id": "keywords:existence", "keywords": "a"}, r"keywords is 'a', expected a list of texts"),
        ({"id": "keywords:existence", "keywords": ["a("]}, r"'a\(' is read as a regular expression.*; write"),
        ({"id": "detectable_format:number_bullet_lists", "num_bullets": 1.5}, r"num_bullets is 1\.5, expected a whole"),
        (
            {"id": "detectable_format:number_bullet_lists", "num_bullets": True},
            r"num_bullets is True, expected a whole",
        ),
        ({"id": "language:response_language", "language": "german"}, r"language is 'german', expected one of: en, es"),
        (
            {"id": "length_constraints:number_words", "num_words": 3, "relation": "at most"},
            r"relation is 'at most', expected one of: less than, at least",
        ),
        (
            {"id": "keywords:letter_frequency", "letter": "ab", "let_frequency": 1, "let_relation": "at least"},
            r"letter is 'ab', expected one letter",
        ),
        (
            {
                "id": "length_constraints:nth_paragraph_first_word",
                "num_paragraphs": 2,
                "nth_paragraph": 3,
                "first_word": "a",
            },
            r"nth_paragraph 3 of 2 paragraphs",
        ),
    ],
)
def test_what_ifevals_code_would_draw_at_random_is_refused(constraint: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked(constraint)


def test_without_nltks_model_sentences_are_not_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    oracle = Constraints([{"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "at least"}])
    with pytest.raises(BadInput, match=r"number_sentences: NLTK's punkt_tab is missing.*datasets\.nltk.*NLTK_DATA"):
        oracle.judge([Question("?", "", ["One. Two."])])
