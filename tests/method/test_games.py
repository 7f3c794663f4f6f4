"""Exact games: matrices derived by hand, presets, files, and what is refused."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mnpo.errors import BadInput
from mnpo.method import games
from mnpo.method.equilibria import duality_gap
from mnpo.method.games import preset
from mnpo.method.play import play

logits = arrays(float, 5, elements=st.floats(-3, 3))


@pytest.mark.parametrize("name", games.PRESETS)
@pytest.mark.parametrize("players", [1, 3])
def test_presets_are_preferences_and_start_off_equilibrium(name: str, players: int) -> None:
    game = preset(name, players=players)
    assert game.players == players
    for matrix in game.preferences:
        np.testing.assert_array_equal(games.check_preference(matrix, name), (matrix + 1 - matrix.T) / 2)
        assert duality_gap(matrix, np.exp(game.reference)) > 0.1


def test_presets_are_seeded() -> None:
    for name in ("random", "bradley-terry"):
        np.testing.assert_array_equal(preset(name, seed=3).preferences, preset(name, seed=3).preferences)
        assert abs(preset(name, seed=3).preferences - preset(name, seed=4).preferences).max() > 0.1


def test_bradley_terry_by_hand() -> None:
    np.testing.assert_allclose(games.bradley_terry([0, np.log(3)]), [[0.5, 0.25], [0.75, 0.5]])


def test_condorcet_by_hand() -> None:
    """Rankings abc, bca, cab with shares .4 .35 .25: a > b .65, b > c .75, c > a .6, a cycle of majorities."""
    mixture = games.condorcet([[0, 1, 2], [1, 2, 0], [2, 0, 1]], [0.4, 0.35, 0.25])
    np.testing.assert_allclose(mixture, [[0.5, 0.65, 0.4], [0.35, 0.5, 0.75], [0.6, 0.25, 0.5]])


def test_condorcet_preset_has_a_majority_cycle() -> None:
    beats = preset("condorcet").preferences[0] > 0.5
    assert any(beats[a, b] and beats[b, c] and beats[c, a] for a, b, c in itertools.permutations(range(6), 3))


def test_csv_game(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("0.5,0.2\n0.8,0.5\n")
    game = games.from_csv(path, path, tau=0.1)
    assert (game.name, game.players, game.actions, game.tau) == ("mine+mine", 2, 2, 0.1)
    np.testing.assert_allclose(game.preferences[0], [[0.5, 0.2], [0.8, 0.5]], atol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5,0.2\n0.7,0.5\n", r"mine.csv, row 1, column 2: 0.2 \+ its opposite 0.7 = 0.9, P \+ P\^T must be 1.* 0.8"),
        ("0.5,nan\n0.7,0.5\n", "row 1, column 2: nan is not a finite number"),
        ("0.5,20\n0.7,0.5\n", "row 1, column 2: 20.0 is not a probability.*not percentages"),
        ("0.5,0.2\n0.8,1\n", "row 2, column 2: 1.0 on the diagonal: it must be 0.5"),
        ("0.5,0.2\n0.8\n", "row 2: 1 columns, 2 rows: the matrix must be square"),
        ("a,b\n0.5,0.2\n", "row 1, column 1: 'a' is no number; no header"),
        ("", "a preference matrix is square, with at least 2 actions"),
    ],
)
def test_csv_errors_name_file_place_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        games.from_csv(path)
    assert str(path) in str(error.value)


def test_csv_players_need_the_same_actions(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("0.5,0.2\n0.8,0.5\n")
    (tmp_path / "three.csv").write_text("0.5,1,0\n0,0.5,1\n1,0,0.5\n")
    with pytest.raises(ValueError, match=r"three\.csv has 3 actions, .*two\.csv 2"):
        games.from_csv(tmp_path / "two.csv", tmp_path / "three.csv")


def test_game_errors() -> None:
    with pytest.raises(ValueError, match="unknown preset 'rsp': did you mean 'rps'"):
        preset("rsp")
    with pytest.raises(ValueError, match="rps has 3 actions, not 4"):
        preset("rps", actions=4)
    with pytest.raises(ValueError, match="tau is -1"):
        preset("rps", tau=-1)
    with pytest.raises(ValueError, match="3 rankings but 2 annotator shares"):
        games.condorcet([[0, 1], [1, 0], [0, 1]], [0.5, 0.5])
    with pytest.raises(ValueError, match="share of the anchor is at most 1"):
        play(preset("rps", tau=0.6), "inpo", 10, learning_rate=2.0)


@given(logits, st.floats(-100, 100))
def test_a_constant_in_the_logits_is_no_difference(values: np.ndarray, constant: float) -> None:
    np.testing.assert_allclose(games.log_softmax(values + constant), games.log_softmax(values), atol=1e-10)
    assert np.exp(games.log_softmax(values)).sum() == pytest.approx(1)


@pytest.mark.parametrize("cyclic", [0.0, 0.3, 1.0])
def test_the_cyclic_share_is_what_rewards_do_not_explain(cyclic: float) -> None:
    """Least squares of the log-odds on differences of rewards leaves `cyclic` of the sum of squares; `strength` is the
    root mean square."""
    preference = games.logistic(games.partly_cyclic(6, cyclic, seed=3, strength=1.5))
    games.check_preference(preference, "here")
    odds = np.log(preference / (1 - preference))
    a, b = np.triu_indices(6, 1)
    design = np.zeros((len(a), 6))
    design[np.arange(len(a)), a], design[np.arange(len(a)), b] = 1, -1
    explained = design @ np.linalg.lstsq(design, odds[a, b], rcond=None)[0]
    assert ((odds[a, b] - explained) ** 2).sum() / (odds[a, b] ** 2).sum() == pytest.approx(cyclic, abs=1e-12)
    assert np.sqrt((odds[a, b] ** 2).mean()) == pytest.approx(1.5)


def test_partly_cyclic_refuses_what_is_no_share() -> None:
    with pytest.raises(BadInput, match=r"cyclic is 1.5"):
        games.partly_cyclic(6, 1.5, 0)
    with pytest.raises(BadInput, match="2 actions have no cycle"):
        games.partly_cyclic(2, 0.5, 0)
