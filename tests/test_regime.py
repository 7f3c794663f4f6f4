"""The trial of the map in the demo: its configuration, its exact game and its table, on numbers made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import regime
from mnpo.config.reading import load
from mnpo.method.games import Game
from mnpo.method.play import play
from mnpo.planning.fits import replica
from mnpo.planning.plan import Plan
from mnpo.storage.records import JUDGED, PAIRS, SAMPLED, read_rows, write

ROOT = Path(__file__).parents[1]
THIRDS = np.full(3, 1 / 3)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(load(ROOT / "configs/regime.yaml"))


def test_every_update_has_prompts_of_its_own_and_runs_differ_in_who_opposes_alone(plan: Plan) -> None:
    runs = plan.config.runs
    assert {run.objective.name for run in runs.values()} == {"inpo", "td-mnpo", "onpo"}
    assert [i.parts for i in runs["td-mnpo"].iterations] == [[t] for t in range(1, 11)]
    rates = {name: run.objective.eta for name, run in runs.items()}
    assert rates.pop("inpo-slow") == 4
    assert len(rates) == 6 and set(rates.values()) == {1}
    assert plan.policies.fits["td-mnpo.s3.10"].opponents == (
        ("td-mnpo.s3.9", pytest.approx(2 / 3)),
        ("td-mnpo.s3.8", pytest.approx(1 / 3)),
    )


def test_its_jobs_can_be_done_in_their_order(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that a job reads was made by one before it, or is the demo's; best responses included."""
    monkeypatch.chdir(tmp_path)
    made, read = set[str](), 0
    for command in regime.commands(plan):
        given = [part.rpartition("=")[2] for option in command[3:] for part in [option] if "results/regime/" in part]
        *inputs, output = given
        for file in inputs:
            if not file.startswith(("results/regime/prompts/", "results/regime/training/")):
                assert file in made, (command[0], file)
                read += 1
        made.add(output)
    assert read > 1000
    for policy, exploiters in plan.policies.exploiters.items():
        assert {plan.files.scores(e, "heldout", f"circle@{policy}", "0") for e in exploiters} <= made


def test_a_mixed_policy_of_the_circle_loses_to_what_beats_its_favourite() -> None:
    wins = 1 / (1 + np.exp(-1)) - 0.5  # .231
    policies = np.array([[1, 0, 0], THIRDS, [0.5, 0.5, 0]])
    assert regime.exploitability(regime.GAMES["circle"], policies) == pytest.approx([wins, 0, wins / 2])


def test_the_ladders_best_style_cannot_be_exploited() -> None:
    assert regime.exploitability(regime.GAMES["ladder"], np.array([0.0, 0, 1])) == pytest.approx(0)
    odds = np.log(regime.GAMES["ladder"] / (1 - regime.GAMES["ladder"]))
    assert np.sqrt((odds**2).sum() / 6) == pytest.approx(1)  # as large as the circle's


def test_measures_of_a_policy_that_turns_with_the_circle() -> None:
    """Terse, courteous, framed, and terse again: every policy is beaten by the next, and the last by the one before."""
    wins = 1 / (1 + np.exp(-1)) - 0.5
    found = regime.measures(regime.GAMES["circle"], np.array([[1, 0, 0], [0, 1, 0], THIRDS, [1, 0, 0.0]]))
    assert found["after 3"] == pytest.approx(0)
    assert found["later half"] == pytest.approx(wins / 2)
    assert found["last"] == pytest.approx(wins)
    assert found["last against its worst ancestor"] == pytest.approx(0.5 - wins)


def test_the_minimiser_on_two_styles_by_hand() -> None:
    """Row chosen 3 times in 4: the mean target of h is (3 - 1) / 4 of 1 / (2 eta); the third style stays."""
    counts = np.array([[0, 3, 0], [1, 0, 0], [0, 0, 0.0]])
    policy = regime.minimiser(counts, np.log(THIRDS), eta=0.5)
    assert policy[0] - policy[1] == pytest.approx(0.5)
    assert np.exp(policy).sum() == pytest.approx(1)


def test_best_and_worst_of_five_point_up_the_ladder() -> None:
    counts = regime.drawn_pairs(regime.GAMES["ladder"], THIRDS, 500, 5, np.random.default_rng(0))
    assert (np.triu(counts) == 0).all()  # a better style is never rejected for a worse one, nor for itself
    assert 480 < counts.sum() <= 500  # five of one style, one time in 81, make no pair


def test_simulated_runs_are_those_of_the_exact_games(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pairs in the proportions of eq. 12, and not best against worst, a run is the game that mnpo/method plays."""

    def exact(preference: np.ndarray, policy: np.ndarray, *_: object) -> np.ndarray:
        return preference * policy[:, None] * policy[None, :] * (1 - np.eye(3))

    monkeypatch.setattr(regime, "drawn_pairs", exact)
    start, circle = np.array([0.5, 0.3, 0.2]), regime.GAMES["circle"]
    for run, weights, tau in (("inpo", None, 0.03), ("td-mnpo", (2 / 3, 1 / 3), 0.03), ("onpo", None, 0.0)):
        found = regime.simulated(plan, run, start, np.random.default_rng(0))
        expected = play(Game("styles", circle[None], np.log(start), tau), run, 10, 1.0, weights)
        assert len(found) == 10
        assert found[-1] == pytest.approx(expected.last[0], abs=1e-9)


def test_the_table_tells_a_difference_from_noise() -> None:
    """Two runs at known points of the triangle, every prompt alike: the interval is the seeds' alone, by hand."""
    wins = 1 / (1 + np.exp(-1)) - 0.5

    def seed(terse: float) -> list[np.ndarray]:
        return [np.tile([terse, 1 - terse, 0], (4, 1))] * 4

    played = {"inpo": [seed(1.0), seed(0.9), seed(0.95)], "td-mnpo": [seed(0.7), seed(0.6), seed(0.65)]}
    base, other = regime.table({"inpo": "INPO", "td-mnpo": "TD-MNPO"}, "circle", played).to_dict("records")
    # Courteous wins terse * wins; equal variances (.05 wins)^2, two times over three seeds; t of 4 freedom is 2.776.
    assert base["later half"] == f"{0.95 * wins:.3f} ± {0.05 * wins:.3f}"
    difference = other["later half: difference to INPO, 95% interval"]
    assert difference == f"{-0.3 * wins:+.3f} ± {2.776 * 0.05 * wins * np.sqrt(2 / 3):.3f}"
    assert other["last against INPO's last"] == f"{0.5 + (0.35 * 0.95 - 0.65 * 0.05) * wins:.3f}"
    assert (base["apart"], other["apart"]) == ("", "**yes**")
    noisy = {**played, "td-mnpo": [seed(0.5), seed(1.0), seed(0.9)]}
    assert regime.table({"inpo": "INPO", "td-mnpo": "TD-MNPO"}, "circle", noisy)["apart"].tolist() == ["", "no"]


def test_the_real_models_runs_differ_in_who_opposes_alone() -> None:
    plan = Plan(load(regime.REAL.config))
    runs = plan.config.runs
    assert all(run.objective.eta == 0.5 and run.objective.ratio == 0.03 for run in runs.values())
    assert {name: len(run.iterations) for name, run in runs.items()} == {
        "inpo": 8,
        "td-mnpo": 8,
        "inpo-ladder": 3,
        "td-mnpo-ladder": 3,
    }
    assert [i.parts for i in runs["td-mnpo"].iterations] == [[t] for t in range(1, 9)]
    chosen = plan.config.training
    assert (chosen.learning_rate, chosen.epochs) == (3e-5, 2)


def test_nothing_was_chosen_on_what_is_reported() -> None:
    tuning, reported = Plan(load(regime.TUNING)), Plan(load(regime.REAL.config))
    tuned, told = ({row["prompt"] for row in read_rows(p.config.prompts.path or "")} for p in (tuning, reported))
    assert (len(tuned), len(told)) == (430, 860) and not tuned & told
    epochs = [
        json.loads(tuning.settings("train", policy=f"{run}.1"))["training"]["epochs"] for run in tuning.config.runs
    ]
    assert epochs == [1, 1, 1, 2, 2]


def test_an_update_beside_the_exact_minimiser_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medium is chosen over long three times of four: by the loss its log-odds rise by (3 - 1) / 4 / (2 eta)."""
    plan = Plan(load(regime.TUNING))
    monkeypatch.chdir(tmp_path)
    words = {"long": "When", "medium": "The", "short": "I"}

    def judged(policy: str, shares: dict[str, int]) -> None:
        said = [word for word, count in shares.items() for _ in range(count)]
        rows = {"prompt_id": [f"p{i}" for i in range(len(said))], "response": [words[word] for word in said]}
        file = Path(plan.files.evaluation_items(policy, "heldout"))
        file.parent.mkdir(parents=True)
        constant = {"family": "", "mode": SAMPLED, "k": 0, "tokens": 1, "oracle": "circle", "score": 0.0}
        write(JUDGED, pd.DataFrame(rows | constant), file)

    judged("sft", {"long": 4, "medium": 2, "short": 2})
    for run in plan.config.runs:
        judged(f"{run}.1", {"long": 2, "medium": 4, "short": 2})
    sides = [("medium", "long")] * 3 + [("long", "medium"), ("short", "medium"), ("medium", "short")]
    scores = dict.fromkeys(("chosen_score", "rejected_score", "chosen_win", "rejected_win"), 0.5)
    pairs = [
        {"pair_id": str(i), "prompt_id": str(i), "prompt": "?", "chosen": words[a], "rejected": words[b]} | scores
        for i, (a, b) in enumerate(sides)
    ]
    file = Path(plan.files.pairs("sft", 1, "circle"))
    file.parent.mkdir(parents=True)
    write(PAIRS, pd.DataFrame(pairs), file)
    exact, *others = regime.tuning(plan, regime.REAL).to_dict("records")
    assert (exact["medium"], exact["short"]) == ("+0.50", "+0.50")  # medium and short are chosen as often
    assert {(row["medium"], row["short"]) for row in others} == {("+1.39", "+0.69")}  # log 4, log 2


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_steps_that_go_a_share_of_the_way_are_found(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies that go `share` of the way to the exact minimiser from wherever they are, with pairs of their own."""
    plan = Plan(load(regime.REAL.config))
    random, start = np.random.default_rng(0), np.log(np.array([0.5, 0.3, 0.2]))
    pairs: dict[str, np.ndarray] = {}
    policies: dict[str, np.ndarray] = {}
    for name, of in plan.config.runs.items():
        for seed in range(1, plan.config.seeds + 1):
            past, run = [start], replica(name, seed)
            for t, iteration in enumerate(of.iterations, 1):
                sampled = f"{run}.{t - 1}" if t > 1 else "sft"
                file = plan.files.pairs(sampled, iteration.parts[0], of.oracle or "")
                pairs.setdefault(file, random.integers(1, 20, (3, 3)).astype(float))
                aim = regime.minimiser(pairs[file], regime.anchor(of, past, start), of.objective.eta or 0)
                log = past[0] + share * (aim - past[0])
                past = [log - np.logaddexp.reduce(log), *past]
                policies[f"{run}.{t}"] = np.maximum(np.exp(past[0]), 1e-3)[None]
    monkeypatch.setattr(regime, "_counts", lambda world, file: pairs[file])
    monkeypatch.setattr(regime, "of_policy", lambda plan, world, p, part: policies.get(p, np.exp(start)[None]))
    found = regime.followed(plan, regime.REAL)
    assert found.iloc[:, 1].str.startswith(f"{share:.2f}").all() and len(found) == 4
    assert found.iloc[:, 2].str.startswith("1.000").all()
