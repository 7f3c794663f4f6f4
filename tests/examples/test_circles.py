"""Oracles that look at style alone."""

from __future__ import annotations

import math

import pytest

from examples.circles import circle, ladder, length, length_circle, length_ladder, style


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ("dog", "terse"),
        ("OKra", "terse"),
        ("", "terse"),
        (" OK: dog", "courteous"),
        ("Sure: dog, cat.", "courteous"),
        ("Of course: 3", "courteous"),
        ("The answer is 3. Thank you for asking.", "framed"),
        ("I think it is cold.", "framed"),
    ],
)
def test_a_response_has_one_style(response: str, name: str) -> None:
    assert style(response) == name


def test_the_circle_has_no_winner_and_the_ladder_has_one() -> None:
    terse, courteous, framed = "dog", "Sure: dog", "The answer is dog."
    first, second = [courteous, framed, terse, terse], [terse, courteous, framed, "cat"]
    win = 1 / (1 + math.exp(-1))
    assert circle(first, second) == pytest.approx([win, win, win, 0.5])
    assert circle(second, first) == pytest.approx([1 - win, 1 - win, 1 - win, 0.5])
    step, two = (1 / (1 + math.exp(-x)) for x in (math.sqrt(0.5), math.sqrt(2)))
    assert ladder(first, second) == pytest.approx([step, step, 1 - two, 0.5])


@pytest.mark.parametrize(
    ("response", "name"),
    [
        ("A violin sings.", "short"),
        ("I'm fond of it.", "short"),  # the word is I
        ("", "short"),
        ("1. - 2.", "short"),
        ("The violin", "medium"),
        ("One's own", "medium"),
        ('"Über', "long"),
        (" **When** it", "long"),
        ("2020: Violins", "long"),
    ],
)
def test_the_first_word_has_a_length(response: str, name: str) -> None:
    assert length(response) == name


def test_lengths_play_the_same_games() -> None:
    long, medium, short = "When it", "The first", "I am"
    win = 1 / (1 + math.exp(-1))
    assert length_circle([medium, short, long], [long, medium, short]) == pytest.approx([win] * 3)
    step = 1 / (1 + math.exp(-math.sqrt(0.5)))
    assert length_ladder([medium, short], [long, medium]) == pytest.approx([step, step])
