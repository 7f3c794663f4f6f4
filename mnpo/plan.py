"""The plan: configuration -> which policies exist, who trains from whom, against whom, on what, and in which files.

Pure: nothing is read or written here, nothing heavy is imported. A stage never decides who opposes whom; it obeys.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mnpo import family, sources
from mnpo.config import (
    PRESETS,
    REFERENCE,
    Block,
    Config,
    ConfigError,
    Objective,
    Protocol,
    Run,
    Training,
    nearest,
    validated,
)
from mnpo.oracles import MODULES as ORACLE_MODULES
from mnpo.seeds import derive

HELDOUT = "heldout"
TABLES = ("main", "families", "wins")
TABLE_ENDINGS = ("csv", "md", "html")
FIGURES = ("win_rate", "families", "training", "win_matrix")


@dataclass(frozen=True)
class Fit:
    """One preference optimisation: the policy it makes, and everything that it is made from."""

    policy: str
    run: str
    iteration: int
    start: str
    """The policy whose weights training starts from."""
    sampler: str
    """The policy whose samples become the pairs."""
    parts: tuple[int, ...]
    oracle: str
    opponents: tuple[tuple[str, float], ...]
    """(policy, lambda), newest first; lambda sums to one."""
    objective: Objective
    training: Training
    protocol: Protocol
    """Where it follows the paper's formulas, where its public code."""

    @property
    def scorers(self) -> list[str]:
        """Whose log-probabilities of the pairs it reads: the opponents, and the reference if it has a share."""
        reference = [REFERENCE] if self.objective.ratio else []
        return list(dict.fromkeys([*(name for name, _ in self.opponents), *reference]))


class Plan:
    """A configuration, unrolled.

    Raises:
        ConfigError: weights that do not fit, an objective's settings that contradict, opponents that do not exist.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = f"results/{config.name}"
        self.fits: dict[str, Fit] = {}
        for name, run in config.runs.items():
            for fit in _unroll(config, name, run):
                self.fits[fit.policy] = fit
        for fit in self.fits.values():
            for other in [fit.start, fit.sampler, *fit.scorers]:
                if other not in self.fits and other not in self.prepared:
                    raise ConfigError(
                        f"runs.{fit.run}, iteration {fit.iteration}: opposed by {other}, which no run makes"
                        f"{nearest(other, [*self.fits, *self.prepared])}"
                    )
        for policy in config.tables.win_against:
            if policy not in self.evaluated:
                raise ConfigError(f"tables.win_against: unknown policy {policy!r}{nearest(policy, self.evaluated)}")
        labels: dict[str, str] = {}
        for policy in self.evaluated:
            label = self.label(policy)
            if (other := labels.setdefault(label, policy)) != policy:
                raise ConfigError(f"{other} and {policy} have the same label {label!r}; give each run its own label")

    # -------------------------------------------------------------------------------------------------------- policies

    @property
    def prepared(self) -> dict[str, str]:
        """Policies that are not trained by a run, and the model each is: the reference, and external opponents."""
        fits = [fit for fit in self.fits.values() if fit.objective.name == "eo-mnpo"]
        external = [name for fit in fits for name, _ in fit.opponents]
        return {**{name: name for name in external}, REFERENCE: self.config.reference.model}

    @property
    def evaluated(self) -> list[str]:
        """The policies of the tables: the reference and every iteration of every run."""
        return [REFERENCE, *(p for p in self.fits if "-" not in p.rsplit(".", 1)[-1])]

    def label(self, policy: str) -> str:
        """How tables and figures call a policy."""
        if policy == REFERENCE:
            return "SFT"
        run, _, t = policy.rpartition(".")
        name = self.run_label(run)
        return name if len(self.config.runs[run].iterations) == 1 else f"{name} {t}"

    def run_label(self, run: str) -> str:
        """How tables and figures call a run."""
        return self.config.runs[run].label or run.upper()

    # ----------------------------------------------------------------------------------------------------------- files

    def prompts(self, part: str | int) -> str:
        """Prompts of a train part (1, 2, ...) or of `heldout`."""
        return f"{self.root}/prompts/{part if part == HELDOUT else f'part{part}'}.parquet"

    @property
    def demonstrations(self) -> str:
        """The SFT data."""
        return f"{self.root}/prompts/demonstrations.parquet"

    def policy(self, policy: str) -> str:
        """A checkpoint's directory."""
        return f"{self.root}/policies/{policy}"

    def samples(self, policy: str, part: str | int, shard: str | int) -> str:
        """Responses of a policy to a shard of a part's prompts."""
        return f"{self.root}/samples/{policy}/part{part}/{shard}.parquet"

    def scores(self, policy: str, part: str | int, oracle: str, shard: str | int) -> str:
        """What an oracle thinks of those."""
        return f"{self.root}/scores/{policy}/part{part}/{oracle}/{shard}.parquet"

    def pairs(self, policy: str, part: str | int, oracle: str) -> str:
        """Chosen and rejected responses of a part."""
        return f"{self.root}/pairs/{policy}/part{part}/{oracle}.parquet"

    def logps(self, policy: str, part: str | int, oracle: str, text: str, scorer: str) -> str:
        """Log-probabilities of those pairs under the policy `scorer`, read as `text` (chat, raw, ...)."""
        return f"{self.root}/logps/{policy}/part{part}/{oracle}/{text}/{scorer}.parquet"

    def evaluation(self, policy: str, benchmark: str) -> str:
        """A policy's result on a benchmark; its per-item rows lie beside it as Parquet."""
        return f"{self.root}/evals/{policy}/{benchmark}.json"

    def evaluation_items(self, policy: str, benchmark: str) -> str:
        """Its per-item rows."""
        return f"{self.root}/evals/{policy}/{benchmark}.parquet"

    @property
    def tables(self) -> list[str]:
        """The printed tables."""
        return [f"{self.table(name)}.{ending}" for name in TABLES for ending in TABLE_ENDINGS]

    def table(self, name: str) -> str:
        """A printed table, without its ending."""
        return f"{self.root}/tables/{name}"

    def figure(self, name: str) -> str:
        """A figure, without its ending."""
        return f"{self.root}/figures/{name}"

    def sample_shards(self, policy: str, part: str | int) -> list[str]:
        """All shards of a policy's samples on a part."""
        return [self.samples(policy, part, s) for s in range(self.config.sampling.shards)]

    def score_shards(self, policy: str, part: str | int, oracle: str) -> list[str]:
        """All shards of an oracle's scores of them."""
        return [self.scores(policy, part, oracle, s) for s in range(self.config.sampling.shards)]

    def fit_pairs(self, policy: str) -> list[str]:
        """The pair files that a policy is trained on."""
        fit = self.fits[policy]
        return [self.pairs(fit.sampler, part, fit.oracle) for part in fit.parts]

    def fit_logps(self, policy: str) -> list[str]:
        """The log-probability files that a policy is trained on: scorer by scorer, part by part."""
        fit = self.fits[policy]
        text = fit.protocol.opponent_text.tag()
        return [self.logps(fit.sampler, p, fit.oracle, text, s) for s in fit.scorers for p in fit.parts]

    @property
    def artifacts(self) -> list[str]:
        """Everything that the tables rest on, in the order in which it is made."""
        made = [self.policy(p) for p in self.prepared]
        for fit in self.fits.values():
            for part in fit.parts:
                made += self.sample_shards(fit.sampler, part) + self.score_shards(fit.sampler, part, fit.oracle)
            made += [*self.fit_pairs(fit.policy), *self.fit_logps(fit.policy), self.policy(fit.policy)]
        made += [self.evaluation(p, HELDOUT) for p in self.evaluated]
        return list(dict.fromkeys(made))

    # ------------------------------------------------------------------------------------------------- what stages read

    def settings(self, stage: str, **of: str) -> str:
        """The settings that a stage reads for one job, as canonical JSON: what is here decides what reruns."""
        values = getattr(self, f"_{stage}_settings")(**of)
        return json.dumps(values, sort_keys=True, default=_plain)

    def _prompts_settings(self) -> dict[str, Any]:
        return {"prompts": self.config.prompts, "seed": self.config.seed}

    def _sft_settings(self, policy: str) -> dict[str, Any]:
        trained = self.config.reference.sft if policy == REFERENCE else None
        return {
            "policy": policy,
            "model": self.config.models[self.prepared[policy]],
            "sft": trained,
            "text": self.config.text,
            "seed": derive(self.config.seed, "sft", policy),
        }

    def _sample_settings(self, policy: str, part: str, shard: str) -> dict[str, Any]:
        return {
            "sampling": self.config.sampling,
            "text": self.config.text,
            "shard": int(shard),
            "seed": derive(self.config.seed, "sample", policy, part),
        }

    def _score_settings(self, oracle: str) -> dict[str, Any]:
        return self._oracles([oracle]) | {"oracle": oracle}

    def _pair_settings(self) -> dict[str, Any]:
        return {"pairing": self.config.pairing}

    def _logps_settings(self, text: str) -> dict[str, Any]:
        forms = {f.tag(): f for p in PRESETS.values() for f in (p.opponent_text, p.policy_text)}
        return {"form": forms[text], "text": self.config.text}

    def _train_settings(self, policy: str) -> dict[str, Any]:
        fit = self.fits[policy]
        chosen = {k: v for k, v in fit.objective.member_settings().items() if v is not None}
        return {
            "policy": policy,
            "start": fit.start,
            "objective": chosen,
            "opponents": list(fit.opponents),
            "scorers": fit.scorers,
            "training": fit.training,
            "length_normalised": fit.protocol.length_normalised,
            "form": fit.protocol.policy_text,
            "opponent_form": fit.protocol.opponent_text,
            "text": self.config.text,
            "seed": derive(self.config.seed, "train", policy),
        }

    def _evaluate_settings(self, policy: str, benchmark: str) -> dict[str, Any]:
        evaluation, sampling = self.config.evaluation, self.config.sampling
        return self._oracles(self.evaluation_oracles) | {
            "policy": policy,
            "oracle": evaluation.oracle,
            "scores": evaluation.scores,
            "majority": evaluation.majority,
            "responses": evaluation.responses,
            "decoding": sampling.model_dump(include={"temperature", "top_p", "max_new_tokens"}),
            "batch_size": sampling.batch_size,
            "text": self.config.text,
            "seed": derive(self.config.seed, "evaluate", benchmark),
        }

    @property
    def evaluation_oracles(self) -> list[str]:
        """Every oracle that judges held-out responses."""
        e = self.config.evaluation
        return list(dict.fromkeys(filter(None, [e.oracle, *e.scores, e.accuracy, e.majority])))

    def _tabulate_settings(self) -> dict[str, Any]:
        evaluation = self.config.evaluation
        return {
            "labels": [[p, self.label(p)] for p in self.evaluated],
            "win_against": self.config.tables.win_against,
            "oracle": evaluation.oracle,
            "scores": evaluation.scores,
            "accuracy": evaluation.accuracy,
            "bootstrap": evaluation.bootstrap,
            "confidence": evaluation.confidence,
            "seed": derive(self.config.seed, "tabulate"),
        }

    def _plot_settings(self) -> dict[str, Any]:
        return {
            "labels": [[p, self.label(p)] for p in self.evaluated],
            "runs": [[run, [p for p in self.evaluated if p.rpartition(".")[0] == run]] for run in self.config.runs],
            "run_labels": {run: self.run_label(run) for run in self.config.runs},
            "oracle": self.config.evaluation.oracle,
            "family_value": "accuracy, sampled" if self.config.evaluation.accuracy else "mean score, sampled",
        }

    def _oracles(self, names: Iterable[str]) -> dict[str, Any]:
        """The oracles `names` with all that they are made of, and the models these need."""
        needed: list[str] = []
        waiting = list(names)
        while waiting:
            name = waiting.pop(0)
            if name not in needed:
                needed.append(name)
                waiting += self.config.oracles[name].members()
        specs = {name: self.config.oracles[name] for name in needed}
        return {
            "oracles": {name: spec.model_dump(exclude_none=True) for name, spec in specs.items()},
            "models": {spec.model: self.config.models[spec.model] for spec in specs.values() if spec.model is not None},
        }

    def source(self, stage: str, oracles: Iterable[str] = ()) -> str:
        """The digest of the code behind a stage; `oracles` adds the modules of the kinds of oracle it uses."""
        kinds = {spec["kind"] for spec in self._oracles(oracles)["oracles"].values()}
        chosen = [f"mnpo.oracles.{ORACLE_MODULES[kind]}" for kind in sorted(kinds)]
        if stage == "prompts" and self.config.prompts.source == "demo":
            chosen.append("mnpo.demo.world")
        if stage == "sft" and any(m.architecture is not None for m in self.config.models.values()):
            chosen.append("mnpo.demo.model")
        return sources.digest(f"mnpo.stages.{stage}", *chosen)


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"{value!r} has no canonical form")


# ------------------------------------------------------------------------------------------------------------ unrolling


def _unroll(config: Config, name: str, run: Run) -> Iterable[Fit]:
    """The fits of a run, in order: one an iteration, or two where the algorithm is a scheme of two."""
    for t in range(1, len(run.iterations) + 1):
        scheme = {"onpo": _onpo, "egpo": _egpo}.get(run.objective.name, _plain_iteration)
        yield from scheme(config, name, run, t)


def _plain_iteration(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    current = _policy(name, t - 1)
    yield _fit(config, name, run, t, _policy(name, t), start=current, sampler=current)


def _onpo(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    """Optimistic: two fits on the same pairs, first of the anchor, then of the policy from the new anchor (ONPO)."""
    previous = REFERENCE if t == 1 else f"{_policy(name, t - 1)}-anchor"
    current, anchor = _policy(name, t - 1), f"{_policy(name, t)}-anchor"
    yield _fit(config, name, run, t, anchor, start=previous, sampler=current, opponents=[previous])
    yield _fit(config, name, run, t, _policy(name, t), start=anchor, sampler=current, opponents=[anchor])


def _egpo(config: Config, name: str, run: Run, t: int) -> Iterable[Fit]:
    """Extragradient: a half step from pi_t, then a full step from pi_t on pairs of the half step's policy (EGPO)."""
    current, half = _policy(name, t - 1), f"{_policy(name, t)}-half"
    yield _fit(config, name, run, t, half, start=current, sampler=current, opponents=[current])
    yield _fit(config, name, run, t, _policy(name, t), start=current, sampler=half, opponents=[current])


def _policy(run: str, t: int) -> str:
    return f"{run}.{t}" if t > 0 else REFERENCE


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
    training = validated(
        Training, config.training.model_dump() | run.training | iteration.training, f"{where}, training"
    )
    protocol = PRESETS[run.preset]
    if opponents is None:
        opponents = _opponents(config, name, objective, t)
    try:
        family.member(**objective.member_settings())
        weights = _weights(objective, len(opponents), protocol, where)
    except ValueError as error:
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    return Fit(
        policy=policy,
        run=name,
        iteration=t,
        start=start,
        sampler=sampler,
        parts=tuple(iteration.parts),
        oracle=run.oracle,
        opponents=tuple(zip(opponents, weights, strict=True)),
        objective=objective,
        training=training,
        protocol=protocol,
    )


def _opponents(config: Config, name: str, objective: Objective, t: int) -> list[str]:
    """Who opposes at iteration `t`, newest first: those that exist."""
    kind = family.FAMILY[objective.name].opponents
    _require_readers(config, name, objective, kind, f"runs.{name}, iteration {t}")
    if kind == "players":
        return [_policy(player, t - 1) for player in objective.players or []] if t > 1 else [REFERENCE]
    if kind == "external":
        return list(objective.players or [])
    past = [_policy(name, s) for s in range(t - 1, -1, -1)]
    return {"none": [], "reference": [REFERENCE], "policy": past[:1], "history": past[: objective.history]}[kind]


def _require_readers(config: Config, name: str, objective: Objective, kind: str, where: str) -> None:
    """Whether the keys that say who opposes are the ones that `objective` reads, and name someone who can."""
    readers = {"history": ["history"], "weights": ["history", "players", "external"]}
    for key, kinds in readers.items():
        if kind not in kinds and key in objective.model_fields_set and getattr(objective, key) is not None:
            raise ConfigError(f"{where}: objective {objective.name} does not read {key}; td-mnpo does")
    if (kind in ("players", "external")) != (objective.players is not None):
        verb = "needs" if objective.players is None else "does not read"
        raise ConfigError(f"{where}: objective {objective.name} {verb} players")
    for player in objective.players or []:
        known = (
            [r for r in config.runs if r != name] if kind == "players" else [m for m in config.models if m != REFERENCE]
        )
        if player not in known:
            noun = "another run" if kind == "players" else "a model"
            raise ConfigError(f"{where}: player {player!r} is not {noun}{nearest(player, known)}")


def _weights(objective: Objective, opponents: int, protocol: Protocol, where: str) -> list[float]:
    """lambda over the opponents that exist; what was configured must fit the number of players."""
    given = objective.weights
    if given is None or protocol.uniform_weights:
        return family.normalised([1.0] * opponents, opponents, where)
    players = len(objective.players) if objective.players is not None else objective.history
    if len(given) not in (opponents, players):
        raise ConfigError(
            f"{where}: weights {given} for {opponents} opponents (history {players}); give one weight for each"
        )
    return family.normalised(given, opponents, where)
