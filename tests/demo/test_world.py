"""The tiny world: splits, demonstrations, and rules whose scores are worked out by hand."""

from __future__ import annotations

import json
import random

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnpo.demo import world
from mnpo.demo.world import FAMILIES, RULES, brevity, correctness, courtesy, make_world

SMALL = {"seed": 3, "demonstrations": 2000, "parts": 3, "part_size": 50, "heldout": 45}


def every_prompt() -> list[world.Prompt]:
    return [item for family in FAMILIES for item in world._prompts(family)]


def truth_of(prompt: str) -> str:
    (found,) = [item.truth for item in every_prompt() if item.prompt == prompt]
    return found


# Splits


def test_splits_are_disjoint_and_have_the_sizes_asked_for() -> None:
    made = make_world(**SMALL)
    splits = [set(made.demonstrations.prompt), set(made.heldout.prompt), *(set(part.prompt) for part in made.parts)]
    assert len(made.demonstrations) == 2000
    assert [len(split) for split in splits[1:]] == [45, 50, 50, 50]  # no prompt twice within a part either
    assert len(set.union(*splits)) == sum(len(split) for split in splits)


def test_families_are_balanced_to_within_one_row() -> None:
    made = make_world(**SMALL)
    for table in (made.demonstrations, made.heldout, *made.parts):
        counts = table.family.value_counts()
        assert set(counts.index) == set(FAMILIES)
        assert counts.max() - counts.min() <= 1


def test_columns_and_prompt_ids() -> None:
    made = make_world(**SMALL)
    assert list(made.heldout.columns) == ["prompt_id", "family", "prompt", "truth"]
    assert list(made.demonstrations.columns) == ["prompt_id", "family", "prompt", "truth", "response"]
    # sha1 of "Say cat 3 times", from the command line: printf 'Say cat 3 times' | sha1sum
    assert world.prompt_id("repeat", "Say cat 3 times") == "repeat-c5acfb14db"
    for table in (made.heldout, made.demonstrations):
        assert [world.prompt_id(f, p) for f, p in zip(table.family, table.prompt, strict=True)] == list(table.prompt_id)
        assert [json.loads(truth)["family"] for truth in table.truth] == list(table.family)


def test_same_arguments_give_the_same_tables_and_another_seed_others() -> None:
    one, two, other = make_world(**SMALL), make_world(**SMALL), make_world(**{**SMALL, "seed": 4})
    pd.testing.assert_frame_equal(one.demonstrations, two.demonstrations)
    pd.testing.assert_frame_equal(one.heldout, two.heldout)
    for part, again in zip(one.parts, two.parts, strict=True):
        pd.testing.assert_frame_equal(part, again)
    assert set(one.heldout.prompt) != set(other.heldout.prompt)


def test_heldout_prompts_do_not_depend_on_the_other_splits() -> None:
    more = make_world(**{**SMALL, "parts": 1, "part_size": 210, "demonstrations": 70})
    pd.testing.assert_frame_equal(make_world(**SMALL).heldout, more.heldout)


def test_demonstrations_beyond_the_prompts_left_repeat_prompts_with_fresh_responses() -> None:
    made = make_world(seed=0, demonstrations=14_000, parts=0, part_size=0, heldout=0)
    opposites = made.demonstrations[made.demonstrations.family == "opposite"]
    assert len(opposites) == 2000
    assert opposites.prompt.nunique() == 24 * 5 * 6  # words x phrasings x leads
    assert opposites.groupby("prompt").response.nunique().mean() > 1.5


def test_a_world_too_small_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"'list' has 720 prompts and 1001 are asked for; ask for fewer or smaller parts"
    ):
        make_world(seed=0, demonstrations=7, parts=1, part_size=7000, heldout=0)
    with pytest.raises(ValueError, match="negative"):
        make_world(seed=0, demonstrations=-1, parts=1, part_size=7, heldout=0)


def test_prompts_are_thousands_of_distinct_strings_without_stray_spaces() -> None:
    prompts = [item.prompt for item in every_prompt()]
    assert len(prompts) == len(set(prompts)) > 20_000
    assert all(prompt == " ".join(prompt.split()) for prompt in prompts)


# Demonstrations


def test_demonstrations_are_noisy_in_content_and_in_style() -> None:
    table = make_world(seed=0, demonstrations=7000, parts=0, part_size=0, heldout=0).demonstrations
    rows = list(zip(table.truth, table.response, strict=True))
    right = table.assign(right=[correctness(*row) == 1 for row in rows]).groupby("family").right.mean()
    assert right.between(0.55, 0.65).all()  # 60 in 100, give or take three standard errors of 1,000 rows
    assert (
        0.4
        < sum(response.startswith(tuple("abcdefghijklmnopqrstuvwxyz123456789")) for _, response in rows) / 7000
        < 0.5
    )
    assert 0.2 < sum(courtesy(*row) >= 0.75 for row in rows) / 7000 < 0.35
    assert min(len(response) for _, response in rows) > 0


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(every_prompt()), st.integers())
def test_only_right_content_is_judged_right(item: world.Prompt, seed: int) -> None:
    fields = json.loads(item.truth)
    assert correctness(item.truth, world._right(random.Random(seed), fields)) == 1
    near, blunder = (make(random.Random(seed), fields) for make in (world._near_miss, world._blunder))
    assert 0 < correctness(item.truth, near) <= 0.5
    assert correctness(item.truth, blunder) <= 0.25


# Correctness


def test_the_ideal_answer_of_every_prompt_is_right_and_brief() -> None:
    for item in every_prompt():
        answer = json.loads(item.truth)["answer"]
        assert correctness(item.truth, answer) == 1
        assert brevity(item.truth, answer) == 1


ANSWERS = [
    # prompt, response, correctness by hand
    ("Say cat 3 times", "cat cat cat", 1),
    ("Say cat 3 times", "Of course: cat, cat, cat.", 1),
    ("Say cat 3 times", "cat cat", 0.5 * 2 / 3),
    ("Say cat 3 times", "cat cat cat cat", 0.5 * 3 / 4),
    ("Say cat 3 times", "cat dog cat", 0.5 * 2 / 3),
    ("Say cat 3 times", "dog dog dog", 0),
    ("List 3 animals", "fox, cat, hen", 1),
    ("List 3 animals", "fox cat", 0.5 * 2 / 3),
    ("List 3 animals", "fox cat fox", 0.5 * 2 / 3),
    ("List 3 animals", "fox cat hen pig", 0.5 * 3 / 4),
    ("List 3 animals", "fox cat plum", 0.5 * 2 / 3),
    ("List 3 animals", "plum pear lime", 0),
    ("What is cat?", "animal", 1),
    ("What is cat?", "Sure: Animal.", 1),
    ("What is cat?", "dog", 0.25),
    ("What is cat?", "fruit", 0),
    ("What is cat?", "animal or fruit", 0.5 * 1 / 3),
    ("Opposite of hot?", "cold", 1),
    ("Opposite of hot?", "hot", 0.25),
    ("Opposite of hot?", "up", 0),
    ("Opposite of hot?", "I think it is cold. I hope this helps.", 1),
    ("Code: def add(a, b): return", "a + b", 1),
    ("Code: def add(a, b): return", "a+b", 1),
    ("Code: def add(a, b): return", "a - b", 0.5 * 2 / 3),
    ("Code: def add(a, b): return", "b + a", 0.5 * 1 / 3),
    ("Write most(a, b)", "max(a, b)", 1),
    ("Write most(a, b)", "min(a, b)", 0.5 * 4 / 5),  # max ( a b )
    ("Write same(a, b)", "a == b", 1),
    ("Count words: cat dog cat", "3", 1),
    ("Count words: cat dog cat", "4.", 0.25),
    ("Count words: cat dog cat", "5", 0),
    ("Count words: cat dog cat", "9" * 5000, 0),
    ("Sort 4 1 3", "1 3 4", 1),
    ("Sort 4 1 3", "Happy to help: 1, 3, 4.", 1),
    ("Sort 4 1 3", "3 1 4", 0.5 * 1 / 3),
    ("Sort 4 1 3", "1 3", 0.5 * 2 / 3),
    ("Sort 4 1 3", "4 1 3", 0),
]


@pytest.mark.parametrize(("prompt", "response", "score"), ANSWERS)
def test_correctness_by_hand(prompt: str, response: str, score: float) -> None:
    assert correctness(truth_of(prompt), response) == pytest.approx(score)


@pytest.mark.parametrize("response", ["", " ", ".", "Happy to help!", "Sure:", "The answer is"])
def test_courtesy_without_content_is_wrong(response: str) -> None:
    assert correctness(truth_of("Opposite of hot?"), response) == 0


@settings(deadline=None)  # the machine may be busy
@given(
    st.sampled_from(every_prompt()),
    st.sampled_from(["", "Sure: ", "OK. ", "Happy to help! ", "Of course, ", "The answer is ", "Sure! I think it is "]),
    st.sampled_from(["", ".", "!", ". Happy to help!", ". I hope this helps.", " Thank you for asking."]),
    st.integers(),
)
def test_courtesy_does_not_change_correctness(item: world.Prompt, opener: str, closer: str, seed: int) -> None:
    content = world._near_miss(random.Random(seed), json.loads(item.truth))
    for text in (content, json.loads(item.truth)["answer"]):
        assert correctness(item.truth, opener + text + closer) == correctness(item.truth, text)


# Brevity and courtesy


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        ("Opposite of hot?", "", 0),
        ("Opposite of hot?", "cold", 1),
        ("Opposite of hot?", "cold.", 5 / 6),  # 1 + 4 over 2 + 4
        ("Opposite of hot?", "Sure: cold.", 5 / 8),
        ("Opposite of hot?", "The answer is cold. I hope this helps.", 5 / 14),
        ("Say cat 3 times", "cat", 1),  # shorter than needed is brief, if wrong
        ("Say cat 3 times", "cat cat cat", 1),
        ("Say cat 3 times", "cat, cat, cat.", 7 / 10),
    ],
)
def test_brevity_by_hand(prompt: str, response: str, score: float) -> None:
    assert brevity(truth_of(prompt), response) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prompt", "response", "score"),
    [
        ("Opposite of hot?", "", 0),
        ("Opposite of hot?", "cold", 0.25),  # one item needs no commas
        ("Opposite of hot?", "cold.", 0.5),
        ("Opposite of hot?", "Sure: cold", 0.5),
        ("Opposite of hot?", "Surely cold", 0.25),
        ("Opposite of hot?", "Of course: cold.", 1),
        ("Opposite of hot?", "cold. Happy to help!", 0.5),  # an opener opens
        ("Say cat 3 times", "cat cat cat", 0),
        ("Say cat 3 times", "cat, cat cat", 0),
        ("Say cat 3 times", "cat, cat, cat", 0.25),
        ("Say cat 3 times", "Happy to help: cat, cat, cat.", 1),
        ("Say cat 3 times", "Happy to help: cat cat cat.", 0.75),
    ],
)
def test_courtesy_by_hand(prompt: str, response: str, score: float) -> None:
    assert courtesy(truth_of(prompt), response) == score


@settings(deadline=None)  # the machine may be busy
@given(st.sampled_from(every_prompt()), st.text() | st.text("catdog ,.!Sure:123", max_size=40))
def test_scores_are_shares(item: world.Prompt, response: str) -> None:
    assert all(0 <= rule(item.truth, response) <= 1 for rule in RULES.values())


def test_the_majority_of_the_rules_can_be_a_cycle() -> None:
    truth = truth_of("Say cat 3 times")
    wordy = "The answer is cat, cat, cat. I hope this helps."  # right, 14 words and marks, courtesy .5
    curt = "cat cat"  # a near miss, 2, courtesy 0
    polite = "Of course: dog, dog, dog."  # wrong, 9, courtesy 1
    scores = [[rule(truth, response) for rule in RULES.values()] for response in (wordy, curt, polite)]
    assert scores == [[1, pytest.approx(7 / 18), 0.5], [pytest.approx(1 / 3), 1, 0], [0, pytest.approx(7 / 13), 1]]
    for better, worse in ((0, 1), (1, 2), (2, 0)):
        votes = sum((a > b) - (a < b) for a, b in zip(scores[better], scores[worse], strict=True))
        assert votes == 1
