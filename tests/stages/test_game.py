"""`mnpo game` and the theory table: what is measured, what is written, and that it is the same every time."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mnpo.method import games
from mnpo.method.play import ALGORITHMS, play
from mnpo.stages import game as stage

SVG = b"<?xml"
PNG = b"\x89PNG"


def test_run_is_json_and_agrees_with_play() -> None:
    result = stage.run(preset="rps", algorithm="td-mnpo", weights=[0.667, 0.333], learning_rate=1.0, steps=2000)
    assert json.loads(stage.dump(result)) == result
    trace = play(games.preset("rps"), "td-mnpo", 2000, 1.0, [0.667, 0.333])
    assert result["gap_last"] == trace.gap_last[-1].tolist() == [result["trace"][-1]["gap_last"]]
    assert result["trace"][-1]["step"] == 2000
    np.testing.assert_allclose(result["equilibrium"], 1 / 3, atol=1e-12)
    text = stage.describe(result)
    assert "td-mnpo on rps" in text and f"{result['gap_average'][0]:.3e}" in text


def test_run_with_the_reference_names_the_regularised_equilibrium() -> None:
    result = stage.run(preset="random", algorithm="egpo", tau=0.1, steps=500)
    np.testing.assert_allclose(result["last"][0], result["equilibrium"], atol=1e-8)
    assert result["trace"][-1]["gap_last"] < 1e-12 < result["trace"][-1]["plain_gap_last"]


def test_run_of_ht_mnpo_has_three_players_and_no_known_equilibrium() -> None:
    result = stage.run(preset="condorcet", algorithm="ht-mnpo", steps=50)
    assert result["players"] == len(result["gap_last"]) == len(result["last"]) == 3
    assert result["equilibrium"] is None
    assert {row["player"] for row in result["trace"]} == {0, 1, 2}


def test_run_from_files(tmp_path: Path) -> None:
    path = tmp_path / "coin.csv"
    path.write_text("0.5,0.2\n0.8,0.5\n")
    result = stage.run(matrices=[path], algorithm="inpo", steps=200)
    assert result["game"] == "coin"
    assert result["last"][0][1] > 0.999  # the second action beats the first
    with pytest.raises(ValueError, match="actions and players are those of the matrix files"):
        stage.run(matrices=[path], algorithm="inpo", actions=2)


def test_run_errors_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'condorcet'"):
        stage.run(preset="condorcette", algorithm="inpo")
    with pytest.raises(ValueError, match="did you mean 'egpo'"):
        stage.run(preset="rps", algorithm="epgo")
    with pytest.raises(ValueError, match="no figure format 'svgg'"):
        stage.run(preset="rps", algorithm="inpo", steps=10, figures=[Path("gaps.svgg")])


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    names = ["gaps.svg", "gaps.png", "gaps.csv"]
    for run in ("one", "two"):
        svg, png, csv = (tmp_path / run / name for name in names)
        stage.run(preset="rps", algorithm="onpo", steps=100, table=csv, figures=[svg, png])
    one, two = ([(tmp_path / run / name).read_bytes() for name in names] for run in ("one", "two"))
    assert one == two
    assert one[0].startswith(SVG) and one[1].startswith(PNG)
    table = pd.read_csv(tmp_path / "one" / "gaps.csv")
    assert list(table) == ["step", "player", "gap_last", "gap_average", "plain_gap_last", "plain_gap_average"]
    assert table.step.iloc[-1] == 100


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        (lambda t: t**-0.5, True),
        (lambda t: 1 / t, True),
        (lambda t: 0.9**t, True),
        (lambda t: 0 * t, True),
        (lambda t: np.exp(-t / 20) + 0.001, False),  # reaches a bias
        (lambda t: 0 * t + 0.3, False),
        (lambda t: 0.5 + 0.5 * np.sin(t / 7), False),
        (lambda t: t**0.1, False),
    ],
)
def test_converges(gaps: object, verdict: bool) -> None:
    assert callable(gaps)
    assert stage.converges(gaps(np.arange(1, 2001.0))) is verdict


@pytest.fixture(scope="module")
def theory(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("theory")
    rows = stage.theory(table=folder / "theory.csv", figures=[folder / "theory.svg"], steps=400)
    assert (folder / "theory.svg").read_bytes().startswith(SVG)
    table = pd.read_csv(folder / "theory.csv")
    assert len(table) == len(rows)
    return table


def test_theory_covers_every_game_and_algorithm(theory: pd.DataFrame) -> None:
    assert list(theory) == list(stage.COLUMNS)
    assert set(theory.game) == set(games.PRESETS)
    assert set(theory.algorithm) == set(ALGORITHMS)
    key = ["game", "tau", "algorithm", "weights", "comparisons", "player"]
    assert not theory[key].duplicated().any()
    numbers = theory.select_dtypes("number").drop(columns="steps_to_tiny")
    assert np.isfinite(numbers.to_numpy()).all() and (numbers >= 0).all().all()


def test_theory_says_what_converges(theory: pd.DataFrame) -> None:
    def verdicts(algorithm: str, tau: float, column: str, game: str = "rps") -> set[bool]:
        chosen = theory[(theory.algorithm == algorithm) & (theory.tau == tau) & (theory.game == game)]
        return set(chosen[column])

    assert (
        verdicts("multiplicative-weights", 0, "last_converges") == verdicts("td-mnpo", 0, "last_converges") == {False}
    )
    assert verdicts("multiplicative-weights", 0, "average_converges") == {True}
    assert verdicts("onpo", 0, "last_converges") == verdicts("egpo", 0, "last_converges") == {True}
    assert verdicts("td-mnpo", 0.1, "last_converges") == verdicts("inpo", 0.1, "last_converges") == {True}
    assert verdicts("ipo", 0.1, "last_converges") == verdicts("nash-md", 0.1, "last_converges") == {False}
    assert verdicts("nash-md", 0.1, "average_converges", "bradley-terry") == {
        False
    }  # it follows the biased last policy
    assert verdicts("ht-mnpo", 0.1, "last_converges", "condorcet") == {False}


def test_theory_steps_to_tiny(theory: pd.DataFrame) -> None:
    """The step is measured: one step earlier the gap is still above 1e-6."""
    row = theory[(theory.algorithm == "egpo") & (theory.tau == 0.1) & (theory.game == "random")].iloc[0]
    step = int(row.steps_to_tiny)
    trace = play(games.preset("random", tau=0.1), "egpo", 400, record=[step - 1, step])
    assert trace.gap_last[0, 0] > 1e-6 >= trace.gap_last[1, 0]


def test_theory_needs_steps() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        stage.theory(steps=50)
