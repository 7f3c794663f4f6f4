"""`mnpo study`: rates chosen on other games than those reported, and gaps that equal `mnpo game`'s."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.method.games import Game, default_reference
from mnpo.method.play import play
from mnpo.stages import study


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study of a corner of the grid."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "CYCLIC": (0.5,),
            "TAUS": (0.1,),
            "HORIZONS": (3, 10),
            "TUNING": 4,
            "RATES": (1.0, 3.0),
        }.items():
            patch.setattr(study, name, value)
        study.run(table=folder / "study.csv", figures=[folder / "map.svg"], games=5)
    return folder


def test_every_contestant_has_a_row_at_every_cell(small: Path) -> None:
    table = pd.read_csv(small / "study.csv")
    assert list(table) == list(study.COLUMNS)
    kinds = len(study.ORACLES) * len(study.CONTESTANTS) + len(study.DIFFERENT) * len(study.PLAYERS)
    assert len(table) == kinds * 2
    assert not table.duplicated(["oracle", "steps", "algorithm"]).any()
    assert (table.groupby(["oracle", "steps"])["best"].sum() >= 1).all()
    inpo = table[table["algorithm"] == "INPO"]
    assert (inpo["ratio"] == 1).all() and (inpo["less_than_inpo"] == 0).all()
    assert (small / "map.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize("contestant", study.CONTESTANTS, ids=lambda c: c.label)
def test_gaps_are_those_of_one_game_played_alone(contestant: study.Contestant) -> None:
    preferences = study.drawn(0.5, None, 3, 0)
    own, plain = study.played(contestant, "exact", preferences, 0.1, 2.0, 0)
    for g in range(3):
        game = Game("one", preferences[:, g], default_reference(study.ACTIONS), 0.1)
        how = {"record": study.HORIZONS, "nash_tau": contestant.nash_tau}
        trace = play(game, contestant.algorithm, 100, 2.0, contestant.weights, **how)
        np.testing.assert_allclose(own[:, g], trace.gap_last[:, 0], atol=1e-12)
        np.testing.assert_allclose(plain[:, g], trace.plain_gap_last[:, 0], atol=1e-12)


def test_the_rate_is_chosen_on_games_that_are_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate 1 is better on the first two games, rate 3 on the two others: 1 is chosen, and the others' gaps reported."""
    gaps = {1.0: [1.0, 1.0, 9.0, 7.0], 3.0: [2.0, 2.0, 0.0, 0.0]}
    monkeypatch.setattr(study, "TUNING", 2)
    monkeypatch.setattr(study, "RATES", (1.0, 3.0))
    monkeypatch.setattr(study, "HORIZONS", (3,))
    monkeypatch.setattr(study, "played", lambda c, o, p, t, rate, s: (np.array([gaps[rate]]), np.array([gaps[rate]])))
    (found,) = study._tuned(study.BASELINE, "exact", np.empty(0), 0.1, 0)
    assert (found.rate, found.tuning, found.gap.tolist()) == (1.0, 1.0, [9.0, 7.0])


def test_a_noisy_oracle_draws_from_the_policy_and_a_stale_one_gives_the_policy_before() -> None:
    policy = np.log(np.tile([0.7, 0.2, 0.1], (4000, 1)))
    shares = study.Noisy(0)(policy)
    assert set(np.unique(shares * study.SAMPLES)) <= set(range(study.SAMPLES + 1))
    np.testing.assert_allclose(shares.mean(0), [0.7, 0.2, 0.1], atol=0.02)  # 20,000 draws: three standard errors .01
    stale = study.Stale(asks=1)
    first, second, third = (np.log(np.full((1, 2), p)) for p in (0.1, 0.2, 0.3))
    np.testing.assert_allclose([stale(first), stale(second), stale(third)], np.exp([first, first, second]))


def test_three_oracles_that_share_all_but_a_part(tmp_path: Path) -> None:
    """With nothing of their own the three are one; with everything, their log-odds are uncorrelated."""
    same = study.drawn(0.5, 0.0, 2, 0)
    np.testing.assert_allclose(same[0], same[1])
    apart = study.drawn(0.5, 1.0, 400, 0)
    odds = np.log(apart / (1 - apart)).reshape(3, -1)
    assert abs(np.corrcoef(odds)[0, 1]) < 0.05
    with pytest.raises(BadInput, match="games 1"):
        study.run(table=tmp_path / "study.csv", games=1)


def test_ahead_and_behind_leave_out_what_is_rounding() -> None:
    intervals = {"closer": (0.1, 0.2), "further": (-0.2, -0.1), "either": (-0.1, 0.1), "arrived": (1e-17, 1e-12)}
    rows = [
        {"algorithm": "TD", "oracle": oracle, "less_low": low, "less_high": high}
        for oracle in ("exact", "three 0.25", "three 1")
        for low, high in intervals.values()
    ]
    rows.append({"algorithm": "ONPO", "oracle": "exact", "less_low": 0.1, "less_high": 0.3})
    found = study.sides(rows)
    assert found.loc["TD"].to_dict() == {
        ("exact", "ahead"): 1,
        ("exact", "behind"): 1,
        ("three", "ahead"): 2,
        ("three", "behind"): 2,
    }
    assert found.loc["ONPO", ("exact", "ahead")] == 1 and pd.isna(found.loc["ONPO", ("three", "ahead")])
