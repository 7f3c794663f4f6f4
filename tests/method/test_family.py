"""The family as data: what each member fixes and leaves open, the two forms of eta, weights, and what is refused."""

import math
import subprocess
import sys
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo.config import runs
from mnpo.method.family import FAMILY, SETTINGS, Distance, Objective, member, normalised

# What each member needs before it is an objective at all.
NEEDED: dict[str, dict[str, Any]] = {name: {"eta": 0.5} if {"eta"} <= SETTINGS[name] else {} for name in FAMILY}
ANY = [pytest.param(name, id=name) for name in FAMILY]


# ----------------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize(
    ("name", "opponents", "distance", "target"),
    [
        ("simpo", "none", "bernoulli-kl", math.inf),
        ("cpo", "none", "bernoulli-kl", math.inf),
        ("dpo", "reference", "bernoulli-kl", math.inf),
        ("ipo", "reference", "squared", 1.0),
        ("dno-prct", "policy", "bernoulli-kl", math.inf),
        ("spin", "policy", "bernoulli-kl", math.inf),
        ("sppo", "policy", "squared", 1.0),
        ("inpo", "policy", "squared", 1.0),
        ("onpo", "policy", "squared", 1.0),
        ("egpo", "policy", "squared", 1.0),
        ("td-mnpo", "history", "squared", 1.0),
        ("ht-mnpo", "players", "squared", 1.0),
        ("eo-mnpo", "external", "squared", 1.0),
    ],
)
def test_a_member_is_its_row_of_the_papers_table(name: str, opponents: str, distance: str, target: float) -> None:
    """With eta = 1/2, whose gap 1 / (2 eta) is 1."""
    objective = member(name, **NEEDED[name])
    assert (objective.opponents, objective.distance, objective.target) == (opponents, distance, target)
    assert (objective.beta, objective.ratio, objective.margin, objective.reward_scale) == (1.0, 0.0, 0.0, None)
    assert objective.length_normalised == (name == "simpo")
    assert objective.per_response == (name == "sppo")
    assert objective.nll_weight == (1.0 if name == "cpo" else 0.0)


def test_distill_dpo_follows_the_rewards() -> None:
    """The paper's Table 1 prints an infinite gap under a squared distance; Fisch et al. regress on r_w - r_l."""
    assert member("distill-dpo") == Objective("reference", "squared", reward_scale=1.0)


def test_every_member_says_what_it_reads_and_only_fields_of_an_objective() -> None:
    assert set(SETTINGS) == set(FAMILY)
    assert set().union(*SETTINGS.values()) <= set(Objective.__dataclass_fields__) | {"eta", "eta_rate"}


def test_a_run_can_name_every_member() -> None:
    assert set(get_args(runs.Objective.model_fields["name"].annotation)) == set(FAMILY)


@pytest.mark.parametrize("name", ANY)
def test_settings_arrive_and_none_leaves_the_members_own(name: str) -> None:
    values = {"beta": 0.25, "ratio": 0.75, "margin": 0.5, "nll_weight": 2.0, "distance": "bernoulli-kl"}
    for key in SETTINGS[name] & set(values):
        assert getattr(member(name, **NEEDED[name], **{key: values[key]}), key) == values[key]
        assert member(name, **NEEDED[name], **{key: None}) == member(name, **NEEDED[name])


def test_zero_is_a_value_and_not_an_absence() -> None:
    assert member("cpo", nll_weight=0).nll_weight == 0


@pytest.mark.parametrize("name", [n for n in FAMILY if "eta" in SETTINGS[n]])
def test_the_two_forms_of_eta_meet_at_each_others_inverse(name: str) -> None:
    """1 / (2 * 1/e) = e / 2; at e = 8 in the last bit."""
    assert member(name, eta=1 / 8) == member(name, eta_rate=8.0)
    assert member(name, eta=1 / 8).target == 4.0
    assert member(name, eta=1 / 133).target == pytest.approx(member(name, eta_rate=133).target)


def test_the_papers_eta_is_the_inverse_form() -> None:
    """1 / (2 * .0075) = 66.67 nats."""
    assert member("td-mnpo", eta=0.0075).target == pytest.approx(66.6667, abs=1e-4)


def test_ipos_eta_is_tau() -> None:
    """1 / (2 tau), tau = .1."""
    assert member("ipo", eta=0.1).target == pytest.approx(5)


def test_the_family_is_read_without_torch() -> None:
    """The plan reads it: building the DAG must not wait for torch."""
    code = (
        "import sys, mnpo.method.family; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pandas')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("td-mnop", {"eta": 1.0}, r"unknown objective 'td-mnop'; did you mean 'td-mnpo'\?"),
        ("qwerty", {}, "unknown objective 'qwerty'; known: cpo, .*, td-mnpo"),
        ("dpo", {"ratio": 0.5}, "objective 'dpo' does not read ratio; it reads beta"),
        ("dpo", {"eta": 0.5}, "objective 'dpo' does not read eta; it reads beta"),
        ("simpo", {"beta": 2.0, "margn": 1.0}, "does not read margn; it reads beta, margin"),
        ("inpo", {"eta": 1.0, "target": 3.0}, "does not read target; it reads eta, eta_rate, ratio"),
        ("inpo", {"eta": 0.5, "eta_rate": 3.0}, r"'inpo' got eta=0\.5 and eta_rate=3\.0 but has one target gap: give"),
        ("td-mnpo", {"eta": 0.5, "reward_scale": 3.0}, r"'td-mnpo' got eta=0\.5 and reward_scale=3\.0 but has one"),
        ("td-mnpo", {"eta_rate": 0.5, "reward_scale": 3.0}, r"got eta_rate=0\.5 and reward_scale=3\.0 but has one"),
        ("inpo", {}, "'inpo' regresses on a target gap: give eta or eta_rate$"),
        ("td-mnpo", {}, "'td-mnpo' regresses on a target gap: give eta or eta_rate or reward_scale$"),
        ("td-mnpo", {"eta": 1.0, "distance": "sqared"}, r"unknown distance 'sqared'; did you mean 'squared'\?"),
        ("inpo", {"eta": 1.0, "ratio": -0.1}, r"ratio = -0\.1: the reference's share must lie in \[0, 1\]"),
        ("inpo", {"eta": 1.0, "ratio": 1.1}, r"ratio = 1\.1: .* \[0, 1\]"),
        ("inpo", {"eta": 1.0, "ratio": math.nan}, r"ratio = nan: .* \[0, 1\]"),
        ("inpo", {"eta": 0.0}, r"eta = 0\.0: must be a positive number"),
        ("inpo", {"eta": -1.0}, r"eta = -1\.0: must be a positive number"),
        ("inpo", {"eta_rate": math.inf}, "eta_rate = inf: must be a positive number"),
        ("ipo", {"eta": math.nan}, "eta = nan: must be a positive number"),
        ("dpo", {"beta": 0.0}, r"beta = 0\.0: must be a positive number"),
        ("distill-dpo", {"reward_scale": -1.0}, r"reward_scale = -1\.0: must be a positive number"),
        ("simpo", {"margin": math.nan}, "margin = nan: must be a number"),
        ("cpo", {"nll_weight": -0.5}, r"nll_weight = -0\.5: must be a number >= 0"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        member(name, **settings)


@pytest.mark.parametrize("name", ANY)
def test_no_member_takes_a_setting_that_it_does_not_read(name: str) -> None:
    every = set(Objective.__dataclass_fields__) | {"eta", "eta_rate"}
    for key in sorted(every - SETTINGS[name]):
        with pytest.raises(ValueError, match=f"objective '{name}' does not read {key}"):
            member(name, **{key: 0.5})


def test_distances_are_the_two_of_the_paper() -> None:
    assert get_args(Distance) == ("squared", "bernoulli-kl")


# ----------------------------------------------------------------------------------------------------------- weights

WHERE = "runs.mine, iteration 2"


def test_weights_are_scaled_over_the_opponents_that_exist() -> None:
    """[1, 3] -> 1/4, 3/4; at iteration 1 only the first opponent exists and has all."""
    assert normalised([1, 3], 2, WHERE) == [0.25, 0.75]
    assert normalised([1, 3], 1, WHERE) == [1.0]
    assert normalised([0, 2], 2, WHERE) == [0.0, 1.0]
    assert normalised([], 0, WHERE) == []


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.floats(1e-3, 1e3))
def test_normalised_weights_sum_to_one_and_ignore_their_scale(weights: list[float], scale: float) -> None:
    shares = normalised(weights, len(weights), WHERE)
    assert sum(shares) == pytest.approx(1)
    assert normalised([scale * w for w in weights], len(weights), WHERE) == pytest.approx(shares)


@pytest.mark.parametrize(
    ("weights", "opponents", "message"),
    [
        ([0.5], 2, r"2 opponents but 1 weights \[0\.5\]; give one for each"),
        ([], 1, r"1 opponents but 0 weights \[\]; give one for each"),
        ([0.5, -0.5], 2, r"weight -0\.5 in \[0\.5, -0\.5\] is not a finite number >= 0"),
        ([0.5, -0.5], 1, r"weight -0\.5 in \[0\.5, -0\.5\]"),  # of an opponent that does not exist yet, too
        ([math.nan, 1.0], 2, r"weight nan in \[nan, 1\.0\]"),
        ([1.0, math.inf], 2, r"weight inf in \[1\.0, inf\]"),
        ([0.0, 0.0], 2, r"weights \[0\.0, 0\.0\] of the opponents that exist sum to zero; give one"),
        ([0.0, 1.0], 1, r"weights \[0\.0\] of the opponents that exist sum to zero; give one"),
    ],
)
def test_weights_that_cannot_be_shares_are_refused_by_run_and_iteration(
    weights: list[float], opponents: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^runs.mine, iteration 2: .*{message}"):
        normalised(weights, opponents, WHERE)
