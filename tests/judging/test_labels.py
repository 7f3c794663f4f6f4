"""Labels in brackets: given, or only mentioned."""

from __future__ import annotations

import pytest

from mnpo.judging.labels import labels
from mnpo.judging.requests import Answer


@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("x [[1]] y", []),
        ("Rating: [[1]]", ["1"]),
        ("the RATING is about [[1]] and [[2]]", ["1"]),
        ("ratings: [[1]]", []),
        ('It says "Rating: [[1]]"', []),
        ("> **[[1]]**\nmore", ["1"]),
        ("Rating:\n[[1]]\n[[2]] is what it wants", ["1"]),
    ],
)
def test_a_cut_replys_labels_are_those_it_states_and_a_finished_ones_are_all(
    text: str, finish: str, stated: list[str]
) -> None:
    found = labels(Answer(text, finish, None, 1, 1), r"(\d)", "rating")
    assert found == ([part[0] for part in text.split("[[")[1:]] if finish == "stop" else stated)
