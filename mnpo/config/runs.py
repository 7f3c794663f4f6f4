"""Block `runs`: objectives, presets and iterations."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from mnpo.config.blocks import Block, Name, Number, Parts, Positive, Share
from mnpo.config.text import TextForm


class Objective(Block):
    """A member of the family in mnpo/method/objectives.py, by name, and the settings it leaves open."""

    name: Literal[
        "simpo", "cpo", "dpo", "distill-dpo", "ipo", "dno-prct", "spin", "sppo", "inpo", "onpo", "egpo",
        "td-mnpo", "ht-mnpo", "eo-mnpo",
    ]  # fmt: skip
    eta: Positive | None = None
    """Inverse form: target gap 1/(2 eta) (INPO, MNPO; IPO's tau)."""
    eta_rate: Positive | None = None
    """Learning-rate form: target gap eta_rate/2 (ONPO). Never together with eta."""
    beta: Positive | None = None
    """Scale of the log-ratios."""
    ratio: Share | None = None
    """The reference's share beside the opponents, tau/eta."""
    distance: Literal["squared", "bernoulli-kl"] | None = None
    reward_scale: Positive | None = None
    """Reward-aware gap: this times the difference of the oracle's scores."""
    margin: Number | None = None
    """SimPO's gamma."""
    nll_weight: Number | None = None
    """CPO's alpha."""
    history: int = Field(1, ge=1)
    """Past policies that oppose, pi_t included (td-mnpo)."""
    weights: list[Number] | None = None
    """lambda of the opponents, newest first or in the order of `players`; scaled to one over those that exist.
    None: equal."""
    players: list[Name] | None = None
    """ht-mnpo: the runs whose current policies oppose; eo-mnpo: the models that do."""
    updates: Literal["simultaneous", "alternating"] | None = None
    """ht-mnpo: at iteration t, `simultaneous` (None, the paper's): every player is opposed by the others' policies of
    iteration t - 1; `alternating`: by those of iteration t where the others come before it in `runs`."""

    def member_settings(self) -> dict[str, Any]:
        """What of it `family.member` takes: all that does not say who opposes."""
        return self.model_dump(exclude={"history", "weights", "players", "updates"})


class Protocol(Block):
    """Where the paper's formulas and its public code part ways; the presets are two values of it."""

    length_normalised: bool = False
    """Log-probabilities are means over response tokens instead of sums (docs/ledger.md, point 2)."""
    opponent_text: TextForm = TextForm()
    """How opponents' log-probabilities read a text (points 3, 4)."""
    policy_text: TextForm = TextForm()
    """How training reads it."""
    uniform_weights: bool = False
    """The configured weights are ignored, every opponent counts the same (point 1)."""


PRESETS: dict[str, Protocol] = {
    "paper": Protocol(),
    "official-code": Protocol(
        length_normalised=True,
        opponent_text=TextForm(render="raw", bos=False),
        policy_text=TextForm(render="raw", bos=True),
        uniform_weights=True,
    ),
}


class Iteration(Block):
    """One round of a run: which train parts, and what differs from the run's settings."""

    parts: Parts
    samples: Literal["policy", "dataset", "demonstrations"] = "policy"
    """Whose responses become pairs. `policy`: the current policy's, as the oracle prefers them. `dataset`: those that
    came with the prompts, as the oracle prefers them (prompts.responses); without that key, or without an oracle, the
    rows' own `chosen` over `rejected`. `demonstrations`: the answers that came with the prompts, each over one of the
    current policy's."""
    objective: dict[str, Any] = {}
    """Replaces keys of the run's objective in this iteration."""
    training: dict[str, Any] = {}
    """Replaces keys of the run's training in this iteration."""


class Run(Block):
    """A row of the tables: an objective, an oracle where pairs need one, and the iterations that apply them."""

    label: str | None = None
    """How tables and figures call it."""
    objective: Objective
    oracle: Name | None = None
    """None where no iteration needs one (see `samples`)."""
    iterations: list[Iteration] = Field(min_length=1)
    training: dict[str, Any] = {}
    """Replaces keys of the common `training` block."""
    preset: Literal["paper", "official-code"] = "paper"
    measured: Literal["all", "heldout", "last"] = "all"
    """`all`: every iteration on held-out prompts, the last also on the public benchmarks; `heldout`: without these;
    `last`: the last iteration alone, on held-out prompts."""
