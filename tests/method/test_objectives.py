"""The losses against numbers worked out on paper, identities between members, gradients, properties, dtypes, errors."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mnpo.method.family import FAMILY, SETTINGS, Objective, member
from mnpo.method.objectives import Outcome, Pair, bernoulli_kl, preference_loss, squared

# One pair under five models; all numbers are exact in binary, so what is derived below is the floating-point result.
LOGS = {
    "policy": (-1.0, -3.0),  #    m_pi    =  2
    "current": (-2.0, -2.5),  #   m_t     =  1/2
    "previous": (-1.5, -2.5),  #  m_{t-1} =  1
    "reference": (-3.0, -2.0),  # m_ref   = -1
    "flat": (-2.0, -2.0),  #      m       =  0
}
REWARDS = (1.5, 0.25)  #          r(y_w) - r(y_l) = 1.25


def pair(values: tuple[float, float], dtype: torch.dtype = torch.float64) -> Pair:
    return Pair(*(torch.tensor([v], dtype=dtype) for v in values))


@dataclass(frozen=True)
class Case:
    """A member with its settings on the pair above, and the loss that a pencil gives it."""

    name: str
    settings: dict[str, Any]
    opponents: dict[str, float]
    loss: float
    wins: tuple[float, float] | None = None
    label: str = ""
    objective: Objective = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", member(self.name, **self.settings))

    def __str__(self) -> str:
        return f"{self.name}{self.label and '-'}{self.label}"

    def on(self, policy: Pair) -> Outcome:
        dtype = policy.chosen.dtype
        return preference_loss(
            self.objective,
            policy,
            [pair(LOGS[q], dtype) for q in self.opponents],
            list(self.opponents.values()),
            pair(LOGS["reference"], dtype) if self.objective.ratio else None,
            rewards=pair(REWARDS, dtype) if self.objective.reward_scale else None,
            win_probability=None if self.wins is None else pair(self.wins, dtype),
        )


# -log s(z) = ln(1 + e^-z), by hand:
#   z = 1     e^-1    = .36787944   ln 1.36787944 = .31326169        z = 2    e^-2    = .13533528   ln = .12692801
#   z = 1.25  e^-1.25 = .28650480   ln 1.28650480 = .25192908        z = 3    e^-3    = .04978707   ln = .04858735
#   z = 1.5   e^-1.5  = .22313016   ln 1.22313016 = .20141328        z = 3.5  e^-3.5  = .03019738   ln = .02975042
CASES = [
    # h = 2 * 2 - .5 = 3.5
    Case("simpo", {"beta": 2.0, "margin": 0.5}, {}, 0.02975042),
    # h = .5 * 2 = 1, and the negative log-likelihood of y_w is 1: .31326169 + 1, or + .25 * 1
    Case("cpo", {"beta": 0.5}, {}, 1.31326169),
    Case("cpo", {"beta": 0.5, "nll_weight": 0.25}, {}, 0.56326169, label="quarter-nll"),
    # h = .5 * (2 - -1) = 1.5
    Case("dpo", {"beta": 0.5}, {"reference": 1.0}, 0.20141328),
    # h = 1.5 as in DPO; (1.5 - 1.25)^2, and with the rewards doubled (1.5 - 2.5)^2
    Case("distill-dpo", {"beta": 0.5}, {"reference": 1.0}, 0.0625),
    Case("distill-dpo", {"beta": 0.5, "reward_scale": 2.0}, {"reference": 1.0}, 1.0, label="doubled"),
    # h = 2 - -1 = 3, delta = 1 / (2 * .25) = 2
    Case("ipo", {"eta": 0.25}, {"reference": 1.0}, 1.0),
    # h = 2 * (2 - .5) = 3
    Case("dno-prct", {"beta": 2.0}, {"current": 1.0}, 0.04858735),
    # h = 2 - .5 = 1.5
    Case("spin", {}, {"current": 1.0}, 0.20141328),
    # log-ratios: y_w: -1 + 2 = 1; y_l: -3 + 2.5 = -.5. Hard targets (1 - .5)/.25 = 2, -2: 1^2 + 1.5^2
    Case("sppo", {"eta": 0.25}, {"current": 1.0}, 3.25, label="hard"),
    # eta = .5, soft targets (.75 - .5)/.5 = .5 and (.625 - .5)/.5 = .25: .5^2 + .75^2 = .25 + .5625
    Case("sppo", {"eta": 0.5}, {"current": 1.0}, 0.8125, wins=(0.75, 0.625), label="soft"),
    # the same by eta_rate: targets 2 (.75 - .5) = .5 and 2 (.625 - .5) = .25
    Case("sppo", {"eta_rate": 2.0}, {"current": 1.0}, 0.8125, wins=(0.75, 0.625), label="rate"),
    # h = 2 - .25 * -1 - .75 * .5 = 1.875, delta = 1
    Case("inpo", {"eta": 0.5, "ratio": 0.25}, {"current": 1.0}, 0.765625),
    # the same number: a half step of EGPO at rate 2 and tau = 1/8, ratio = 2 * 1/8
    Case("egpo", {"eta_rate": 2.0, "ratio": 0.25}, {"current": 1.0}, 0.765625),
    # one fit of ONPO against the anchor: h = 1.5, delta = 2 / 2
    Case("onpo", {"eta_rate": 2.0}, {"current": 1.0}, 0.25),
    # opponents mix to .75 * .5 + .25 * 1 = .625; h = 2 + .25 - .75 * .625 = 1.78125, delta = 1: .78125^2
    Case("td-mnpo", {"eta": 0.5, "ratio": 0.25}, {"current": 0.75, "previous": 0.25}, 0.6103515625),
    # reward-aware: delta = 1.25: .53125^2
    Case(
        "td-mnpo",
        {"reward_scale": 1.0, "ratio": 0.25},
        {"current": 0.75, "previous": 0.25},
        0.2822265625,
        label="reward-aware",
    ),
    # beta scales h and not delta: h = 2 * 1.78125 = 3.5625, delta = 1: 2.5625^2
    Case(
        "td-mnpo",
        {"eta": 0.5, "ratio": 0.25, "beta": 2.0},
        {"current": 0.75, "previous": 0.25},
        6.56640625,
        label="beta",
    ),
    # no gap given: delta is infinite; h = 2 - .5 * .5 - .5 * 1 = 1.25
    Case("td-mnpo", {"distance": "bernoulli-kl"}, {"current": 0.5, "previous": 0.5}, 0.25192908, label="kl-infinite"),
    # h = 2, delta = 1 / (2 * .5) = 1. s(1) = .73105858, s(-1) = .26894142;
    # ln s(1) = -.31326169, ln s(-1) = -1.31326169, ln s(2) = -.12692801, ln s(-2) = -2.12692801:
    # .73105858 * -.18633368 + .26894142 * .81366632 = -.13622083 + .21882857
    Case("td-mnpo", {"distance": "bernoulli-kl", "eta": 0.5}, {"flat": 1.0}, 0.08260774, label="kl"),
    # the same delta from the rewards: .8 * 1.25 = 1
    Case(
        "td-mnpo",
        {"distance": "bernoulli-kl", "reward_scale": 0.8},
        {"flat": 1.0},
        0.08260774,
        label="kl-reward-aware",
    ),
    # two other players mix to .75; h = 2 - .5 * -1 - .5 * .75 = 2.125, delta = 2
    Case("ht-mnpo", {"eta": 0.25, "ratio": 0.5}, {"current": 0.5, "previous": 0.5}, 0.015625),
    # another model: h = 2 - 1, delta = 3 / 2
    Case("eo-mnpo", {"eta_rate": 3.0}, {"previous": 1.0}, 0.25),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


# ------------------------------------------------------------------------------------------------- numbers on paper


@each_case
def test_the_loss_is_the_number_on_paper(case: Case) -> None:
    assert case.on(pair(LOGS["policy"])).loss.item() == pytest.approx(case.loss, abs=1e-8)


def test_every_member_is_on_paper() -> None:
    assert {case.name for case in CASES} == set(FAMILY)


def test_implicit_rewards_and_margin_are_the_numbers_on_paper() -> None:
    """DPO, beta = 1/2: y_w: .5 * (-1 + 3) = 1; y_l: .5 * (-3 + 2) = -.5; their margin 1.5."""
    outcome = preference_loss(member("dpo", beta=0.5), pair(LOGS["policy"]), [pair(LOGS["reference"])], [1.0])
    assert [t.item() for t in outcome[1:]] == [1.0, -0.5, 1.5]


def test_simpos_margin_is_in_the_loss_and_not_in_the_margin_of_the_rewards() -> None:
    """beta = 2, gamma = .5: the rewards are -2 and -6, whose margin is 4; the loss is that of h = 3.5."""
    outcome = preference_loss(member("simpo", beta=2.0, margin=0.5), pair(LOGS["policy"]))
    assert [t.item() for t in outcome[1:]] == [-2.0, -6.0, 4.0]
    assert outcome.loss.item() == pytest.approx(math.log1p(math.exp(-3.5)))


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    """IPO, delta = 2, on m_pi - m_ref = 3, -3 and 1: losses 1, 25 and 1; margins as they are."""
    policy = Pair(torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-3.0, -1.0, -3.0]))
    reference = Pair(torch.tensor([-3.0, -2.0, -5.0]), torch.tensor([-2.0, -3.0, -5.0]))
    outcome = preference_loss(member("ipo", eta=0.25), policy, [reference], [1.0])
    assert outcome.margin.tolist() == [3.0, -3.0, 1.0]
    assert outcome.loss.tolist() == [1.0, 25.0, 1.0]


# -------------------------------------------------------------------------------------------------------- identities


def random_pair(seed: int, size: int = 1000, dtype: torch.dtype = torch.float32) -> Pair:
    """Sequence log-probabilities of a few hundred nats, as an LLM's are."""
    generator = torch.Generator().manual_seed(seed)
    return Pair(*(-400 * torch.rand(size, generator=generator, dtype=dtype) for _ in range(2)))


POLICY, CURRENT, PREVIOUS, REFERENCE = (random_pair(seed) for seed in range(4))


def assert_identical(one: Outcome, other: Outcome) -> None:
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("tau", "eta"), [(0.0025, 0.0075), (0.1, 0.3), (0.0, 0.5), (0.5, 0.5)])
def test_td_mnpo_against_pi_t_with_ratio_tau_over_eta_is_inpo(tau: float, eta: float) -> None:
    """Bit for bit; and INPO is its own paper's formula, written here without this package (row by row, float64)."""
    arguments = ([CURRENT], [1.0], REFERENCE)
    inpo = preference_loss(member("inpo", eta=eta, ratio=tau / eta), POLICY, *arguments)
    assert_identical(preference_loss(member("td-mnpo", eta=eta, ratio=tau / eta), POLICY, *arguments), inpo)

    models = [[side.tolist() for side in model] for model in (POLICY, CURRENT, REFERENCE)]
    for row, loss in enumerate(inpo.loss.tolist()):
        policy, current, reference = (chosen[row] - rejected[row] for chosen, rejected in models)
        h = policy - tau / eta * reference - (eta - tau) / eta * current
        assert loss == pytest.approx((h - 1 / (2 * eta)) ** 2, rel=1e-4, abs=1e-2)


def test_td_mnpo_against_the_reference_is_ipo() -> None:
    ipo = preference_loss(member("ipo", eta=0.1), POLICY, [REFERENCE], [1.0])
    assert_identical(preference_loss(member("td-mnpo", eta=0.1), POLICY, [REFERENCE], [1.0]), ipo)
    # also as all of the anchor beside an opponent that has no share left
    whole = preference_loss(member("inpo", eta=0.1, ratio=1.0), POLICY, [CURRENT], [1.0], REFERENCE)
    assert_identical(whole, ipo)


def test_td_mnpo_with_an_infinite_gap_is_dpo_spin_and_dno() -> None:
    for name, opponent in (("dpo", REFERENCE), ("spin", CURRENT), ("dno-prct", CURRENT)):
        special = preference_loss(member(name, beta=0.1), POLICY, [opponent], [1.0])
        general = member("td-mnpo", beta=0.1, distance="bernoulli-kl")
        assert_identical(preference_loss(general, POLICY, [opponent], [1.0]), special)


def test_td_mnpo_with_the_rewards_gap_is_distill_dpo() -> None:
    rewards = random_pair(9)
    special = preference_loss(member("distill-dpo", beta=0.1), POLICY, [REFERENCE], [1.0], rewards=rewards)
    general = member("td-mnpo", beta=0.1, reward_scale=1.0)
    assert_identical(preference_loss(general, POLICY, [REFERENCE], [1.0], rewards=rewards), special)


def test_history_players_and_external_models_are_one_loss() -> None:
    arguments = (POLICY, [CURRENT, PREVIOUS], [0.25, 0.75], REFERENCE)
    td, ht, eo = (preference_loss(member(f"{n}-mnpo", eta=0.1, ratio=0.3), *arguments) for n in ("td", "ht", "eo"))
    assert_identical(td, ht)
    assert_identical(td, eo)


def test_an_infinite_gap_leaves_the_logistic_loss() -> None:
    h = torch.linspace(-30, 30, 101)
    assert torch.equal(bernoulli_kl(h, math.inf), -torch.nn.functional.logsigmoid(h))


@pytest.mark.parametrize("delta", [2.0, 5.0, 10.0, 20.0, 30.0])
def test_a_large_gap_tends_to_the_logistic_loss(delta: float) -> None:
    """D(a, b) + log s(a) = a s(-b) - H(s(b)), and the entropy H(s(b)) <= e^-b (1 + b + e^-b).

    Together at most (|a| + b + 2) e^-b.
    """
    h = torch.linspace(-20, 20, 81, dtype=torch.float64)
    error = (bernoulli_kl(h, delta) - bernoulli_kl(h, math.inf)).abs()
    assert (error <= (h.abs() + delta + 2) * math.exp(-delta) + 1e-12).all()
    assert error.max() > math.exp(-delta) / 2  # and no faster: the finite gap is not ignored


def test_bernoulli_kl_of_a_tensor_and_a_number_agree() -> None:
    h = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(bernoulli_kl(h, torch.full((3,), 0.7)), bernoulli_kl(h, 0.7))


def test_backward_is_the_direction_of_the_divergence() -> None:
    """KL(s(delta) || s(h)) explodes with h when delta stays: s(0) = 1/2, h = 20: about .5 * 20 - ln 2; KL(s(h) || s(0))
    would stay below ln 2."""
    assert bernoulli_kl(torch.tensor([20.0]), 0.0).item() == pytest.approx(10 - math.log(2), abs=1e-6)


# --------------------------------------------------------------------------------------------------------- gradients


@each_case
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    def of(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, ...]:
        return tuple(case.on(Pair(chosen, rejected)))

    points = [torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in LOGS["policy"]]
    assert torch.autograd.gradcheck(of, points)


@pytest.mark.parametrize(
    ("name", "settings", "opponent", "chosen", "rejected"),
    [
        # 2 (h - delta) = 2 * .875 where INPO's pair is above its target: y_w goes down
        ("inpo", {"eta": 0.5, "ratio": 0.25}, "current", 1.75, -1.75),
        # -beta s(-h), h = 1.5: s(-1.5) = .22313016 / 1.22313016 = .18242552
        ("dpo", {"beta": 0.5}, "reference", -0.09121276, 0.09121276),
        # -beta s(-h) - 1 for y_w, h = 1: s(-1) = .26894142
        ("cpo", {"beta": 0.5}, None, -1.13447071, 0.13447071),
        # 2 (1 - 1) and 2 (-.5 + 1): the responses pull apart, each on its own
        ("sppo", {"eta": 0.5}, "current", 0.0, 1.0),
        # s(h) - s(delta) = s(2) - s(1) = .88079708 - .73105858
        ("td-mnpo", {"eta": 0.5, "distance": "bernoulli-kl"}, "flat", 0.14973850, -0.14973850),
    ],
)
def test_the_gradient_is_the_number_on_paper(
    name: str, settings: dict[str, Any], opponent: str | None, chosen: float, rejected: float
) -> None:
    case = Case(name, settings, {opponent: 1.0} if opponent else {}, loss=0.0)
    policy = Pair(*(t.requires_grad_() for t in pair(LOGS["policy"])))
    case.on(policy).loss.sum().backward()
    assert [t.grad.item() for t in policy if t.grad is not None] == pytest.approx([chosen, rejected], abs=1e-8)


@pytest.mark.parametrize("name", ["sppo", "inpo", "distill-dpo", "td-mnpo"])
def test_gradients_flow_to_the_policy_alone(name: str) -> None:
    """A loss whose opponents, rewards or win probabilities moved with it would train them, too."""
    leaves = {
        what: Pair(*(t.requires_grad_() for t in pair(values)))
        for what, values in {**LOGS, "rewards": REWARDS, "wins": (0.75, 0.625)}.items()
    }
    needed = {"sppo": {"eta": 1.0}, "distill-dpo": {}, "inpo": {"eta": 1.0, "ratio": 0.5}}
    objective = member(name, **needed.get(name, {"reward_scale": 1.0, "ratio": 0.5}))
    outcome = preference_loss(
        objective,
        leaves["policy"],
        [leaves["current"]],
        [1.0],
        leaves["reference"],
        rewards=leaves["rewards"],
        win_probability=leaves["wins"],
    )
    (outcome.loss + outcome.margin).sum().backward()
    moved = {
        what for what, (chosen, rejected) in leaves.items() if chosen.grad is not None or rejected.grad is not None
    }
    assert moved == {"policy"}


# -------------------------------------------------------------------------------------------------------- properties

log_probability = st.floats(-100, -1e-6)  # no subnormal numbers: halving those is not exact
shift = st.floats(-100, 100)
pairs = st.tuples(log_probability, log_probability).map(pair)
PAIRWISE = [case for case in CASES if not case.objective.per_response and not case.objective.nll_weight]
each_pairwise = pytest.mark.parametrize("case", PAIRWISE, ids=str)


def swapped(one: Pair) -> Pair:
    return Pair(one.rejected, one.chosen)


def play(
    objective: Objective,
    policy: Pair,
    opponents: list[Pair],
    weights: list[float],
    reference: Pair,
    rewards: Pair | None = None,
) -> Outcome:
    """Whatever the objective reads of this."""
    if objective.opponents == "none":
        opponents, weights = [], []
    return preference_loss(objective, policy, opponents, weights, reference, rewards=rewards)


@each_pairwise
@given(policy=pairs, one=pairs, other=pairs, reference=pairs)
def test_swapping_the_responses_negates_the_margin(
    case: Case, policy: Pair, one: Pair, other: Pair, reference: Pair
) -> None:
    """m -> -m exactly. So (h - d)^2 gains 4 h d, -log s(h) gains h; a gap that the rewards set turns with them."""
    objective, rewards = case.objective, pair(REWARDS)
    straight = play(objective, policy, [one, other], [0.25, 0.75], reference, rewards)
    turned = [swapped(p) for p in (policy, one, other, reference, rewards)]
    back = play(objective, turned[0], turned[1:3], [0.25, 0.75], turned[3], turned[4])
    assert torch.equal(back.margin, -straight.margin)
    assert torch.equal(back.chosen_reward, straight.rejected_reward)

    h = straight.margin - objective.margin
    if objective.reward_scale is not None:
        expected = straight.loss
    elif objective.distance == "squared":
        expected = straight.loss + 4 * h * objective.target
    elif math.isinf(objective.target):
        # back is -log s(-margin - gamma); without SimPO's gamma this is the loss plus h
        expected = -torch.nn.functional.logsigmoid(-h - 2 * objective.margin)
        if not objective.margin:
            torch.testing.assert_close(straight.loss + h, expected, rtol=1e-9, atol=1e-9)
    else:
        # D(-h, d) - D(h, d) = s(d) h - s(-d) h = h tanh(d / 2)
        expected = straight.loss + h * math.tanh(objective.target / 2)
    torch.testing.assert_close(back.loss, expected, rtol=1e-9, atol=1e-9)


@given(policy=pairs, current=pairs, wins=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(pair))
def test_swapping_the_responses_with_their_win_probabilities_leaves_sppo_alone(
    policy: Pair, current: Pair, wins: Pair
) -> None:
    objective = member("sppo", eta=0.1)
    straight = preference_loss(objective, policy, [current], [1.0], win_probability=wins)
    back = preference_loss(objective, swapped(policy), [swapped(current)], [1.0], win_probability=swapped(wins))
    assert torch.equal(back.loss, straight.loss)
    assert torch.equal(back.margin, -straight.margin)


@each_pairwise
@given(policy=pairs, one=pairs, other=pairs, reference=pairs, shifts=st.tuples(shift, shift, shift, shift))
def test_a_constant_on_all_log_probabilities_of_a_model_changes_nothing(
    case: Case, policy: Pair, one: Pair, other: Pair, reference: Pair, shifts: tuple[float, ...]
) -> None:
    """Of a prompt, that is: its normaliser, or a prompt token counted by mistake, cancels in every pair."""
    models = [policy, one, other, reference]
    moved = [Pair(m.chosen + c, m.rejected + c) for m, c in zip(models, shifts, strict=True)]
    before = play(case.objective, policy, [one, other], [0.25, 0.75], reference, pair(REWARDS))
    after = play(case.objective, moved[0], moved[1:3], [0.25, 0.75], moved[3], pair(REWARDS))
    torch.testing.assert_close(after.margin, before.margin, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-9, atol=1e-6)


def test_the_per_response_loss_and_the_likelihood_do_see_a_constant() -> None:
    """SPPO, hard, eta = 1/2, everything 1 nat up: (2 - 1)^2 + (.5 + 1)^2 = 3.25, not .25. CPO: one nat of NLL less."""
    up = pair((LOGS["policy"][0] + 1, LOGS["policy"][1] + 1))
    assert preference_loss(member("sppo", eta=0.5), up, [pair(LOGS["current"])], [1.0]).loss.item() == 3.25
    assert preference_loss(member("cpo", beta=0.5), up).loss.item() == pytest.approx(0.31326169, abs=1e-8)


@given(policy=pairs, opponents=st.lists(pairs, min_size=3, max_size=3), reference=pairs, share=st.floats(0.01, 0.99))
def test_the_order_of_the_opponents_does_not_matter(
    policy: Pair, opponents: list[Pair], reference: Pair, share: float
) -> None:
    """Two opponents: bit for bit, for addition commutes. Three or more: up to rounding, for it does not associate."""
    objective = member("td-mnpo", eta=0.1, ratio=1 / 3)
    two = preference_loss(objective, policy, opponents[:2], [share, 1 - share], reference)
    assert_identical(preference_loss(objective, policy, opponents[1::-1], [1 - share, share], reference), two)

    weights = [share / 2, share / 2, 1 - share]
    three = preference_loss(objective, policy, opponents, weights, reference)
    for order in itertools.permutations(range(3)):
        again = preference_loss(
            objective, policy, [opponents[i] for i in order], [weights[i] for i in order], reference
        )
        for a, b in zip(again, three, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(policy=pairs, one=pairs, other=pairs, reference=pairs, share=st.floats(0.01, 0.99))
def test_an_opponent_split_in_two_halves_is_still_one(
    policy: Pair, one: Pair, other: Pair, reference: Pair, share: float
) -> None:
    """Alone, bit for bit: halves are exact. Beside another, up to rounding."""
    objective = member("td-mnpo", eta=0.1)
    whole = preference_loss(objective, policy, [one], [1.0])
    assert_identical(preference_loss(objective, policy, [one, one], [0.5, 0.5]), whole)

    objective = member("td-mnpo", eta=0.1, ratio=1 / 3)
    whole = preference_loss(objective, policy, [other, one], [1 - share, share], reference)
    halves = preference_loss(objective, policy, [other, one, one], [1 - share, share / 2, share / 2], reference)
    for a, b in zip(halves, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@each_case
@given(policy=pairs, one=pairs, other=pairs, reference=pairs)
def test_a_loss_is_not_negative(case: Case, policy: Pair, one: Pair, other: Pair, reference: Pair) -> None:
    """Squares and divergences; and log-probabilities are at most 0, so CPO's likelihood term is not either."""
    loss = play(case.objective, policy, [one, other], [0.25, 0.75], reference, pair(REWARDS)).loss
    assert loss.item() >= (0 if case.objective.distance == "squared" else -1e-12)


@given(h=st.floats(-30, 30), delta=st.floats(-30, 30))
def test_a_distance_is_zero_where_its_arguments_meet_and_positive_elsewhere(h: float, delta: float) -> None:
    """Pinsker: the divergence of two Bernoullis is at least twice the square of their probabilities' difference."""
    for distance in (squared, bernoulli_kl):
        assert distance(torch.tensor([delta], dtype=torch.float64), delta).item() == 0
    apart = torch.tensor([h, delta], dtype=torch.float64).sigmoid().diff().item()
    assert bernoulli_kl(torch.tensor([h], dtype=torch.float64), delta).item() >= 2 * apart**2 - 1e-12
    gap = h - delta
    assert squared(torch.tensor([h], dtype=torch.float64), delta).item() == gap * gap  # pow may round otherwise


@pytest.mark.parametrize("eta", [0.0075, 0.1, 0.5])
@pytest.mark.parametrize("name", ["ipo", "inpo", "onpo", "egpo", "td-mnpo", "ht-mnpo", "eo-mnpo"])
def test_where_all_players_are_equal_the_squared_loss_is_that_of_the_gap(name: str, eta: float) -> None:
    """Weights that are exact in binary: the margin is 0 to the last bit, the loss (1 / (2 eta))^2."""
    ratio = {"ratio": 0.25} if "ratio" in SETTINGS[name] else {}
    objective = member(name, eta=eta, **ratio)
    dtype = torch.float64
    same = random_pair(5, dtype=dtype)
    outcome = preference_loss(objective, same, [same, same], [0.5, 0.5], same)
    assert torch.equal(outcome.margin, torch.zeros(1000, dtype=dtype))
    assert torch.equal(outcome.loss, torch.full((1000,), (1 / (2 * eta)) ** 2, dtype=dtype))


@pytest.mark.parametrize("name", ["dpo", "dno-prct", "spin", "td-mnpo"])
def test_where_all_players_are_equal_the_logistic_loss_is_ln_2(name: str) -> None:
    objective = member(name, beta=0.1, **({"distance": "bernoulli-kl"} if name == "td-mnpo" else {}))
    outcome = preference_loss(objective, POLICY, [POLICY], [1.0])
    assert torch.equal(outcome.margin, torch.zeros(1000))
    torch.testing.assert_close(outcome.loss, torch.full((1000,), math.log(2)))


def test_weights_that_are_not_exact_in_binary_leave_a_margin_of_rounding() -> None:
    same = random_pair(5)
    outcome = preference_loss(member("td-mnpo", eta=0.1, ratio=1 / 3), same, [same, same], [0.1, 0.9], same)
    assert outcome.margin.abs().max() <= 4 * 400 * torch.finfo(torch.float32).eps


# ------------------------------------------------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_case
def test_half_precision_log_probabilities_are_computed_on_in_float32(case: Case, dtype: torch.dtype) -> None:
    """On values that both dtypes hold, bit for bit what float32 gives: no operation ran in half precision."""
    policy = pair((-100.5, -99.0), dtype)
    outcome, exact = case.on(policy), case.on(Pair(*(t.float() for t in policy)))
    assert all(t.dtype == torch.float32 for t in outcome)
    assert_identical(outcome, exact)


@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_costs_no_more_than_rounding_the_inputs(dtype: torch.dtype, step: float) -> None:
    """Each of 8 log-probabilities of at most 400 nats moves by half a unit in the last place, at most 400 * step."""
    models = [POLICY, CURRENT, PREVIOUS, REFERENCE]
    objective = member("td-mnpo", eta=0.5, ratio=1 / 3)

    def margin(cast: Callable[[Tensor], Tensor]) -> Tensor:
        policy, current, previous, reference = (Pair(*(cast(t) for t in m)) for m in models)
        return preference_loss(objective, policy, [current, previous], [0.25, 0.75], reference).margin

    moved = (margin(lambda t: t.to(dtype)) - margin(lambda t: t)).abs().max()
    assert 0 < moved <= 4 * 400 * step  # shares sum to 2 a response


@each_case
def test_float64_stays_float64(case: Case) -> None:
    assert {t.dtype for t in case.on(pair(LOGS["policy"]))} == {torch.float64}
    assert {t.dtype for t in case.on(pair(LOGS["policy"], torch.float32))} == {torch.float32}


@pytest.mark.parametrize("h", [-1e4, -300.0, 300.0, 1e4])
@pytest.mark.parametrize("delta", [-80.0, 0.0, 66.7, math.inf])
def test_far_from_the_target_losses_and_gradients_stay_finite(h: float, delta: float) -> None:
    for distance in (bernoulli_kl, squared) if math.isfinite(delta) else (bernoulli_kl,):
        point = torch.tensor([h], requires_grad=True)
        loss = distance(point, delta)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and point.grad is not None and torch.isfinite(point.grad).all()


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "settings", "change", "message"),
    [
        ("inpo", {"eta": 1.0, "ratio": 0.25}, {"reference": None}, r"ratio = 0\.25 needs the reference.*ratio 0"),
        ("distill-dpo", {"reward_scale": 2.0}, {"rewards": None}, r"reward_scale = 2\.0 needs the rewards"),
        ("td-mnpo", {"eta": 1.0}, {"weights": [0.5, 0.5]}, r"1 opponents but 2 weights \[0\.5, 0\.5\]; give one for"),
        ("td-mnpo", {"eta": 1.0}, {"weights": []}, r"1 opponents but 0 weights \[\]"),
        ("td-mnpo", {"eta": 1.0}, {"weights": [0.5]}, r"weights \[0\.5\] sum to 0\.5, not to one; .*normalised"),
        ("td-mnpo", {"eta": 1.0}, {"weights": [math.nan]}, r"weights \[nan\] sum to nan"),
        ("dpo", {}, {"opponents": [], "weights": []}, "plays against 'reference' but got no opponents; give one"),
        ("simpo", {}, {}, "plays alone but got 1 opponents; leave them out"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_said(
    name: str, settings: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {
        "opponents": [pair(LOGS["current"])],
        "weights": [1.0],
        "reference": pair(LOGS["reference"]),
        "rewards": pair(REWARDS),
    }
    with pytest.raises(ValueError, match=message):
        preference_loss(member(name, **settings), pair(LOGS["policy"]), **{**given, **change})


@pytest.mark.parametrize("what", ["opponents", "reference", "rewards", "win_probability"])
def test_shapes_that_would_broadcast_are_refused(what: str) -> None:
    """A column beside a row would make every pair of the batch meet every other."""
    policy = random_pair(0, size=3)
    column = Pair(*(t[:, None] for t in policy))
    given: dict[str, Any] = {"opponents": [policy], "reference": policy, "rewards": policy, "win_probability": policy}
    given[what] = [column] if what == "opponents" else column
    name = "sppo" if what == "win_probability" else "td-mnpo"
    settings = {"eta": 1.0} if what == "win_probability" else {"reward_scale": 1.0, "ratio": 0.5}
    with pytest.raises(ValueError, match=r"have shape \[3, 1\], the policy's log-probabilities \[3\]; give one number"):
        preference_loss(member(name, **settings), policy, weights=[1.0], **given)
