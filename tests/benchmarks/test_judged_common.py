"""What the judged benchmarks share: errors of weighted means, and answers that belong to the questions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mnpo.benchmarks.judged_common import answered, weighted_mean
from mnpo.benchmarks.questions import Question
from mnpo.errors import BadInput

ASKED = [Question("1", "math", ("one", "two")), Question("2", "math", ("three", "four"))]


def row(item_id: str, turn: int, prompt: str) -> dict[str, Any]:
    return {"item_id": item_id, "turn": turn, "prompt": prompt, "response": f"{item_id}.{turn}", "tokens": 1}


ROWS = [row("1", 1, "one"), row("1", 2, "two"), row("2", 1, "three"), row("2", 2, "four")]


def test_with_equal_weights_the_error_is_the_usual_one() -> None:
    values = np.random.default_rng(0).normal(size=40)
    mean, error = weighted_mean(values.tolist(), [2.0] * 40)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=1e-12)


def test_a_weighted_mean_and_its_error_by_hand() -> None:
    mean, error = weighted_mean([1.0, 0.0, 0.5], [3.0, 1.0, 4.0])
    assert mean == 5 / 8
    # residuals w (v - mean): 9/8, -5/8, -4/8; sum of squares 122/64; times n/(n-1) = 3/2; root over 8
    assert error == pytest.approx(np.sqrt(122 / 64 * 1.5) / 8, rel=1e-12)


def test_the_weighted_error_is_what_a_bootstrap_over_items_shows() -> None:
    rng = np.random.default_rng(1)
    weights = rng.choice([1.0, 2.0, 6.0], size=300)
    values = np.clip(0.4 + 0.05 * weights + rng.normal(0, 0.3, size=300), 0, 1)
    draws = rng.integers(0, 300, (4000, 300))
    means = (weights[draws] * values[draws]).sum(axis=1) / weights[draws].sum(axis=1)
    _, error = weighted_mean(values.tolist(), weights.tolist())
    assert error == pytest.approx(means.std(), rel=0.05)


def test_a_single_item_has_no_error() -> None:
    assert weighted_mean([0.25], [3.0]) == (0.25, 0.0)


def test_answers_are_matched_to_questions_whatever_their_order() -> None:
    matched = answered("mt-bench", ASKED, reversed(ROWS))
    assert {k: [r["response"] for r in rows] for k, rows in matched.items()} == {
        "1": ["1.1", "1.2"],
        "2": ["2.1", "2.2"],
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "mt-bench 2, turn 2: no answer 'four'; make the answers anew"),
        ([*ROWS[:3], row("2", 2, "five")], "mt-bench 2, turn 2: the answer is to 'five', not to 'four'"),
        ([*ROWS, row("3", 1, "six")], "1 answers to questions that are not asked, such as 3, turn 1; judge with"),
    ],
)
def test_answers_made_from_other_data_are_refused(rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        answered("mt-bench", ASKED, rows)
