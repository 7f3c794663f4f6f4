"""Weights of opponents from the game between them: by hand, in a circle, and drawn to equal weights."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnpo.errors import BadInput
from mnpo.method.equilibria import among
from mnpo.stages.weigh import Settings, run
from mnpo.storage.records import SCORES, write

Wins = dict[str, list[float]]


@pytest.fixture
def weighed(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The game's file, for each game given as prompt -> win rates of the first's responses."""

    def _weighed(opponents: Sequence[str], games: dict[tuple[str, str], Sequence[Wins]], **more: Any) -> dict[str, Any]:
        files = []
        for (first, second), shards in games.items():
            for number, prompts in enumerate(shards):
                rows = [
                    {"prompt_id": name, "k": k, "score": win, "win": win}
                    for name, wins in prompts.items()
                    for k, win in enumerate(wins)
                ]
                files.append(tmp_path / f"{first}.{second}.{number}.parquet")
                write(SCORES, rows, files[-1])
        settings = {"policy": "mine.3", "oracle": "overall", "opponents": opponents, "games": list(games), **more}
        run(Settings.model_validate(settings), tmp_path / "game.json", files)
        return dict(json.loads((tmp_path / "game.json").read_text()))

    return _weighed


Weighed = Callable[..., dict[str, Any]]


def test_win_rates_are_means_over_prompts_of_all_files(weighed: Weighed) -> None:
    """Prompt a: 1 and .5, so .75; b: .25, whatever its number of responses; c, in the other file: .5. Mean .5."""
    shards = [{"a": [1.0, 0.5], "b": [0.25]}, {"c": [0.5, 0.5]}]
    found = weighed(["new", "old"], {("new", "old"): shards})
    assert found["wins"] == [[0.5, pytest.approx(0.5)], [pytest.approx(0.5), 0.5]] and found["prompts"] == 3
    deviation = math.sqrt((0.25**2 + 0.25**2 + 0) / 2)  # of .75, .25, .5, with two degrees of freedom
    assert found["standard_errors"][0][1] == pytest.approx(deviation / math.sqrt(3))


@pytest.mark.parametrize(("win", "weights"), [(0.6, [0.0, 1.0]), (0.4, [1.0, 0.0]), (0.5, [1.0, 0.0])])
def test_of_two_the_one_that_wins_has_all_the_weight_and_the_newest_where_none_does(
    weighed: Weighed, win: float, weights: list[float]
) -> None:
    """`old` is named first in the game, as files are, and `new` first among the opponents."""
    found = weighed(["new", "an-old"], {("an-old", "new"): [{"a": [win]}]})
    assert found["weights"] == dict(zip(["new", "an-old"], weights, strict=True))


def test_three_in_a_circle_have_the_weights_of_rock_paper_scissors_with_unequal_stakes(weighed: Weighed) -> None:
    """a beats b by .1, b beats c by .2, c beats a by .3: each has the stake of the game without it, .2 : .3 : .1."""
    games = {("a", "b"): [{"p": [0.6]}], ("a", "c"): [{"p": [0.2]}], ("b", "c"): [{"p": [0.7]}]}
    found = weighed(["a", "b", "c"], games)
    assert [found["weights"][name] for name in "abc"] == pytest.approx([2 / 6, 3 / 6, 1 / 6])
    replies = np.array(found["wins"]) @ [2 / 6, 3 / 6, 1 / 6]
    assert replies == pytest.approx([0.5] * 3)  # nobody beats the mixture


def test_of_two_the_regularised_weight_is_a_sigmoid(weighed: Weighed) -> None:
    found = weighed(["new", "old"], {("new", "old"): [{"a": [0.7]}]}, tau=0.1)
    assert found["weights"]["new"] == pytest.approx(1 / (1 + math.exp(-2)))


def test_the_regularised_mixture_of_four_is_its_own_best_reply() -> None:
    """lambda_i is proportional to exp((W lambda)_i / tau)."""
    upper = np.triu(np.random.default_rng(3).uniform(-0.4, 0.4, (4, 4)), 1)
    wins = 0.5 + upper - upper.T
    mixture = among(wins, 0.2)
    reply = np.exp(wins @ mixture / 0.2)
    assert mixture == pytest.approx(reply / reply.sum()) and mixture.min() > 0


def test_four_without_regularisation_lose_to_nobody() -> None:
    upper = np.triu(np.random.default_rng(3).uniform(-0.4, 0.4, (4, 4)), 1)
    wins = 0.5 + upper - upper.T
    assert (among(wins, None) @ wins).min() >= 0.5 - 1e-9


def test_a_number_of_files_that_is_no_multiple_of_the_games_is_refused(weighed: Weighed) -> None:
    games = {("a", "b"): [{"p": [0.6]}], ("a", "c"): [{"p": [0.2]}], ("b", "c"): []}
    with pytest.raises(BadInput, match="3 games need the same number of score files each, got 2 in all"):
        weighed(["a", "b", "c"], games)
