"""Fits: one preference optimisation each, unrolled from runs: who trains from whom, against whom, on whose samples.

A stage never decides who opposes whom; it obeys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from mnpo.config.blocks import DATASET, REFERENCE, ConfigError, nearest, validated
from mnpo.config.configuration import Config
from mnpo.config.evaluation import Exploitability
from mnpo.config.runs import NASH, PRESETS, Iteration, Objective, Protocol, Run
from mnpo.config.training import Training
from mnpo.method import family

AGAINST = "@"  # scores of {oracle}@{policy} are win rates against that policy's responses


@dataclass(frozen=True)
class Fit:
    """One preference optimisation: the policy it makes, and everything that it is made from."""

    policy: str
    run: str
    """The run's name; of a further seed, {run}.s{n}."""
    iteration: int
    start: str
    """The policy whose weights training starts from."""
    sampler: str
    """The policy whose samples become the pairs; DATASET: those that came with the prompts."""
    parts: tuple[int, ...]
    oracle: str
    """DATASET: none, the data themselves prefer."""
    opponents: tuple[tuple[str, float], ...]
    """(policy, lambda), newest first; lambda sums to one. Equal where `decides` finds it."""
    objective: Objective
    training: Training
    protocol: Protocol
    """Where it follows the paper's formulas, where its public code."""
    exploits: str | None = None
    """The fixed policy that it is a step of a best response to; None: a step of a run."""
    decides: str | None = None
    """The oracle of the game between the opponents, whose equilibrium is lambda (eq. 24); None: lambda is given."""

    @property
    def scorers(self) -> list[str]:
        """Whose log-probabilities of the pairs it reads: the opponents, and the reference if it has a share."""
        reference = [REFERENCE] if self.objective.ratio else []
        return list(dict.fromkeys([*(name for name, _ in self.opponents), *reference]))

    @property
    def games(self) -> list[tuple[str, str]]:
        """Who plays whom so that lambda is known: every two opponents once, whatever their order."""
        names = sorted(name for name, _ in self.opponents) if self.decides else []
        return list(combinations(names, 2))


def replica(run: str, seed: int) -> str:
    """What a run is called in its `seed`-th repetition (1, 2, ...); seeds derive from that name."""
    return run if seed == 1 else f"{run}.s{seed}"


def unroll(config: Config, name: str, run: Run) -> Iterable[Fit]:
    """The fits of a run, in order: one an iteration, or two where the algorithm is a scheme of two."""
    for t in range(1, len(run.iterations) + 1):
        scheme = {"onpo": _onpo, "egpo": _egpo}.get(run.objective.name, _plain_iteration)
        yield from scheme(config, name, run, t)


def _plain_iteration(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    yield _fit(config, name, run, t, _policy(name, t), start=_policy(name, t - 1), sampler=_sampler(name, run, t))


def _onpo(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    """Optimistic: two fits on the same pairs, first of the anchor, then of the policy from the new anchor (ONPO)."""
    previous = REFERENCE if t == 1 else f"{_policy(name, t - 1)}-anchor"
    sampler, anchor = _sampler(name, run, t), f"{_policy(name, t)}-anchor"
    yield _fit(config, name, run, t, anchor, start=previous, sampler=sampler, opponents=[previous])
    yield _fit(config, name, run, t, _policy(name, t), start=anchor, sampler=sampler, opponents=[anchor])


def _egpo(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    """Extragradient: a half step from pi_t, then a full step from pi_t on pairs of the half step's policy (EGPO)."""
    current, half = _policy(name, t - 1), f"{_policy(name, t)}-half"
    yield _fit(config, name, run, t, half, start=current, sampler=_sampler(name, run, t), opponents=[current])
    yield _fit(config, name, run, t, _policy(name, t), start=current, sampler=half, opponents=[current])


def exploiters(config: Config, policy: str, oracle: str) -> Iterable[Fit]:
    """The steps of a best response to `policy`, which starts as `policy` itself: exact mirror ascent on
    `P(y > policy)`, with no reference to hold it back (docs/method.md, eq. 23)."""
    e = config.exploitability or Exploitability()
    objective = Objective(name="td-mnpo", reward_scale=e.rate)
    iterations = [Iteration(parts=parts) for parts in e.parts or [[t] for t in range(1, config.prompts.parts + 1)]]
    run = Run(objective=objective, oracle=oracle, iterations=iterations, training=e.training)
    current = policy
    for t in range(1, len(iterations) + 1):
        name = f"{policy}.exploiter"
        fit = _fit(config, name, run, t, f"{name}.{t}", start=current, sampler=current, opponents=[current])
        yield replace(fit, oracle=f"{oracle}{AGAINST}{policy}", exploits=policy)
        current = fit.policy


def _policy(run: str, t: int) -> str:
    return f"{run}.{t}" if t > 0 else REFERENCE


def _sampler(name: str, run: Run, t: int) -> str:
    """Whose responses iteration `t` learns from."""
    return DATASET if run.iterations[t - 1].samples == "dataset" else _policy(name, t - 1)


def _fit(
    config: Config,
    name: str,
    run: Run,
    t: int,
    policy: str,
    *,
    start: str,
    sampler: str,
    opponents: list[str] | None = None,
) -> Fit:
    iteration = run.iterations[t - 1]
    where = f"runs.{name}, iteration {t}"
    objective = validated(
        Objective, run.objective.model_dump(exclude_unset=True) | iteration.objective, f"{where}, objective"
    )
    protocol = _protocol(config, run, objective, where)
    training = validated(
        Training,
        config.training.model_dump() | protocol.training() | run.training | iteration.training,
        f"{where}, training",
    )
    if opponents is None:
        opponents = _opponents(config, name, objective, t)
    oracle = _oracle(config, run, iteration, sampler, where)
    try:
        member = family.member(**objective.member_settings())
        weights = weights_of(objective, len(opponents), protocol, where)
    except ValueError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    _require_samples(config, objective, member, iteration, oracle, where)
    together = _together(opponents, weights)
    return Fit(
        policy=policy,
        run=name,
        iteration=t,
        start=start,
        sampler=sampler,
        parts=tuple(iteration.parts),
        oracle=oracle,
        opponents=together,
        objective=objective,
        training=training,
        protocol=protocol,
        decides=_decides(run, objective, protocol, len(together), where),
    )


def _decides(run: Run, objective: Objective, protocol: Protocol, opponents: int, where: str) -> str | None:
    """Whose preferences weigh the opponents against each other; None: the configuration does."""
    if objective.weights != NASH:
        if objective.nash_tau is not None:
            raise ConfigError(f"{where}: nash_tau is read by weights: nash; leave it out")
        return None
    if objective.order is not None:
        raise ConfigError(f"{where}: order is of a list of weights, and weights: nash is none; leave it out")
    if run.oracle is None:
        raise ConfigError(
            f"{where}: weights: nash lets opponents play each other, and nothing says which response is better; name "
            "the run's oracle"
        )
    return run.oracle if opponents > 1 and not protocol.uniform_weights else None


def _oracle(config: Config, run: Run, iteration: Iteration, sampler: str, where: str) -> str:
    """Who prefers one of the sampler's responses to another; DATASET: the data themselves."""
    unscored = sampler == DATASET and None in (config.prompts.responses, run.oracle)
    if iteration.samples == "demonstrations" or unscored:
        return DATASET
    if run.oracle is None:
        raise ConfigError(
            f"{where}: learns from {sampler}'s responses, and nothing says which are better; name the run's oracle, or "
            "take pairs as the data have them (samples: dataset or demonstrations)"
        )
    return run.oracle


def _require_samples(
    config: Config, objective: Objective, member: family.Objective, iteration: Iteration, oracle: str, where: str
) -> None:
    """Whether the iteration's samples are what the objective can learn from."""
    if objective.name == "spin" and iteration.samples != "demonstrations":
        raise ConfigError(
            f"{where}: spin prefers demonstrations to its own responses; set samples: demonstrations "
            "(dno-prct is the same loss on an oracle's pairs)"
        )
    if oracle == DATASET and config.prompts.source == "demo":
        raise ConfigError(
            f"{where}: samples: {iteration.samples}, and the demo's prompts come with neither; "
            "set prompts.source to file or dataset"
        )
    if oracle == DATASET and member.reward_scale is not None:
        remedy = "name the columns that have them by prompts.scores"
        if iteration.samples == "demonstrations":
            remedy = "demonstrations have none; take another objective"
        elif config.prompts.scores is not None:
            return
        raise ConfigError(f"{where}: objective {objective.name} reads scores of chosen and rejected; {remedy}")


def _protocol(config: Config, run: Run, objective: Objective, where: str) -> Protocol:
    """The run's preset, with the fields that it replaces."""
    if run.preset == "official":
        if objective.name != "sppo":
            raise ConfigError(f"{where}: preset official is that of sppo's authors; of MNPO's it is official-code")
        oracle = config.oracles[run.oracle] if run.oracle else None
        if oracle is None or oracle.temperature is None or not oracle.own_response:
            raise ConfigError(
                f"{where}: preset official reads preferences as sppo's authors do: give oracles.{run.oracle} a "
                "temperature, and own_response: true"
            )
    preset = PRESETS[run.preset].model_dump(exclude_none=True)
    return validated(Protocol, preset | run.protocol, f"{where}, protocol")


def _opponents(config: Config, name: str, objective: Objective, t: int) -> list[str]:
    """Who opposes at iteration `t`, newest first: those that exist."""
    kind = family.FAMILY[objective.name].opponents
    _require_readers(config, name, objective, kind, f"runs.{name}, iteration {t}")
    if kind == "players":
        return [_policy(player, s) for player, s in _players(config, name, objective, t)]
    if kind == "external":
        return list(objective.players or [])
    past = [_policy(name, s) for s in range(t - 1, -1, -1)]
    return {"none": [], "reference": [REFERENCE], "policy": past[:1], "history": past[: objective.history]}[kind]


def _players(config: Config, name: str, objective: Objective, t: int) -> list[tuple[str, int]]:
    """Whom a player meets at iteration `t`, and each one's iteration: see `updates` in config/runs.py."""
    run, dot, seed = name.partition(".")  # players meet those of the same seed
    order = list(config.runs)
    moved = order[: order.index(run)] if objective.updates == "alternating" else []
    return [(player + dot + seed, t if player in moved else t - 1) for player in objective.players or []]


def _together(opponents: list[str], weights: list[float]) -> tuple[tuple[str, float], ...]:
    """Opponents with their weights, each once: before they have moved, several players are the reference."""
    pairs = list(zip(opponents, weights, strict=True))
    return tuple((name, math.fsum(w for other, w in pairs if other == name)) for name in dict.fromkeys(opponents))


def _require_readers(config: Config, name: str, objective: Objective, kind: str, where: str) -> None:
    """Whether the keys that say who opposes are the ones that `objective` reads, and name someone who can."""
    readers = {
        "history": ["history"],
        "order": ["history"],
        "weights": ["history", "players", "external"],
        "nash_tau": ["history", "players", "external"],
        "updates": ["players"],
    }
    for key, kinds in readers.items():
        if kind not in kinds and key in objective.model_fields_set and getattr(objective, key) is not None:
            reader = next(n for n, m in family.FAMILY.items() if m.opponents == kinds[0])
            raise ConfigError(f"{where}: objective {objective.name} does not read {key}; {reader} does")
    if (kind in ("players", "external")) != (objective.players is not None):
        verb = "needs" if objective.players is None else "does not read"
        raise ConfigError(f"{where}: objective {objective.name} {verb} players")
    runs, models = [r for r in config.runs if r != name.partition(".")[0]], list(config.models)
    for player in objective.players or []:
        known = runs if kind == "players" else models
        if player not in known:
            noun = "another run" if kind == "players" else "a model"
            raise ConfigError(f"{where}: player {player!r} is not {noun}{nearest(player, known)}")


def weights_of(objective: Objective, opponents: int, protocol: Protocol, where: str) -> list[float]:
    """lambda over the opponents that exist, newest first; what was configured must fit the number of players."""
    given = objective.weights
    if given is None or isinstance(given, str) or protocol.uniform_weights:
        return family.normalised([1.0] * opponents, opponents, where)
    players = len(objective.players) if objective.players is not None else objective.history
    if len(given) not in (opponents, players):
        raise ConfigError(
            f"{where}: weights {given} for {opponents} opponents (history {players}); give one weight for each"
        )
    weights = family.normalised(given, opponents, where)
    return weights[::-1] if objective.order == "oldest-first" else weights
