"""Block `runs`: objectives, presets and iterations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator

from mnpo.config.blocks import UNNAMED, Block, Name, Number, Parts, Positive, Share, nearest
from mnpo.config.text import TextForm
from mnpo.config.training import Batches, Clip, LastBatch, NullIsOff, Optimiser, Schedule

NASH = "nash"
Weights = Annotated[
    Annotated[list[Number], Tag(UNNAMED)] | Annotated[Literal["nash"], Tag(NASH)],
    Discriminator(lambda given: NASH if given == NASH else UNNAMED),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": "number"}},
                {"type": "object", "additionalProperties": {"type": "number"}},
                {"const": NASH},
            ]
        }
    ),
]


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
    weights: Weights | None = None
    """lambda of the opponents, scaled to one over those that exist: a list, of past policies in `order`, of players in
    that of `players`; or player: weight. None: equal. `nash`: the equilibrium of the game that the opponents play
    against each other on the iteration's prompts, as the run's oracle decides it (ours; docs/method.md, eq. 24)."""
    nash_tau: Positive | None = None
    """Of `weights: nash`: how strongly the equilibrium is drawn to equal weights; None: not at all."""
    order: Literal["newest-first", "oldest-first"] | None = None
    """Of a list of weights of past policies; None is newest-first. The public code has had both (docs/ledger.md, point
    41)."""
    players: list[Name] | None = None
    """ht-mnpo: the runs whose current policies oppose; eo-mnpo: the models that do."""
    updates: Literal["simultaneous", "alternating"] | None = None
    """ht-mnpo: at iteration t, `simultaneous` (None, the paper's): every player is opposed by the others' policies of
    iteration t - 1; `alternating`: by those of iteration t where the others come before it in `runs`."""

    @model_validator(mode="before")
    @classmethod
    def _weights_by_name(cls, content: Any) -> Any:
        """Players' weights in the players' order, whatever the order of their names."""
        named = content.get("weights") if isinstance(content, Mapping) else None
        if isinstance(named, str) and named != NASH:
            raise ValueError(f"weights: {named!r} is neither {NASH} nor a list of numbers{nearest(named, [NASH])}")
        if not isinstance(named, Mapping):
            return content
        players = content.get("players") or []
        if not players:
            raise ValueError(f"weights have names, but {content.get('name')} has no players; give a list and its order")
        if unknown := [name for name in named if name not in players]:
            raise ValueError(f"weights name {unknown[0]!r}, which is no player{nearest(unknown[0], players)}")
        if missing := [name for name in players if name not in named]:
            raise ValueError(f"weights leave out the player {missing[0]!r}; give it one, be it 0")
        return {**content, "weights": [named[name] for name in players]}

    def member_settings(self) -> dict[str, Any]:
        """What of it `family.member` takes: all that does not say who opposes."""
        return self.model_dump(exclude={"history", "weights", "nash_tau", "order", "players", "updates"})


class Protocol(Block):
    """Where the paper's formulas, or our choices, and public code part ways (docs/ledger.md); presets are values of it.

    A run's `protocol` replaces single fields of its preset. What is None is left to the run's `training`.
    """

    length_normalised: bool = False
    """Log-probabilities are means over response tokens instead of sums (point 2)."""
    opponent_text: TextForm = TextForm()
    """How opponents' log-probabilities read a text (points 3, 4)."""
    policy_text: TextForm = TextForm()
    """How training reads it."""
    uniform_weights: bool = False
    """The configured weights are ignored, every opponent counts the same (point 1)."""
    opponent_soft_cap: bool = True
    """Opponents' attention logits are capped where the model says so, as training's are (point 44)."""
    clip: Annotated[Clip | None, NullIsOff] = None
    """Largest gradient norm; null: not clipped (point 43)."""
    warmup_from_zero: bool | None = None
    """The first step's rate is zero (point 46)."""
    last_batch: LastBatch | None = None
    """What becomes of an epoch's incomplete last batch (point 47)."""
    batches: Batches | None = None
    """Which rows make a batch (point 45)."""
    optimiser: Optimiser | None = None
    schedule: Schedule | None = None
    """Both: SPPO's authors' (point 48)."""

    def training(self) -> dict[str, Any]:
        """The keys of `training` that it sets."""
        keys = {"clip", "warmup_from_zero", "last_batch", "batches", "optimiser", "schedule"}
        return self.model_dump(include=keys, exclude_none=True)

    def reading(self) -> str:
        """What file names call the way in which opponents read a text."""
        return self.opponent_text.tag() + ("" if self.opponent_soft_cap else UNCAPPED)


UNCAPPED = "-uncapped"
"""In file names: of log-probabilities under a model without its soft-cap."""
_TRANSFORMERS = {"clip": None, "warmup_from_zero": True, "last_batch": "drop"}  # its Trainer under DeepSpeed
PRESETS: dict[str, Protocol] = {
    "paper": Protocol(),
    "official-code": Protocol(
        length_normalised=True,
        opponent_text=TextForm(render="raw", bos=False),
        policy_text=TextForm(render="raw", bos=True),
        uniform_weights=True,
        opponent_soft_cap=False,
        **_TRANSFORMERS,
    ),
    "official": Protocol(optimiser="rmsprop", schedule="linear", **_TRANSFORMERS),
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
    preset: Literal["paper", "official-code", "official"] = "paper"
    """`paper`: the formulas; `official-code`: what the paper's public code does; `official`: what that of SPPO's
    authors does."""
    protocol: dict[str, Any] = {}
    """Replaces single fields of the preset."""
    measured: Literal["all", "heldout", "last"] = "all"
    """`all`: every iteration on held-out prompts, the last also on the public benchmarks; `heldout`: without these;
    `last`: the last iteration alone, on held-out prompts."""
