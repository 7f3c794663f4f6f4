"""Which policies exist, what each is for, and how tables call it."""

from __future__ import annotations

from functools import cached_property

from mnpo.config.blocks import DATASET, REFERENCE, ConfigError, nearest
from mnpo.config.configuration import Config
from mnpo.config.runs import Run
from mnpo.planning.fits import AGAINST, Fit, exploiters, replica, unroll, weights_of


class Policies:
    """The policies of a configuration.

    Raises:
        ConfigError: weights that do not fit, an objective's settings that contradict, opponents that do not exist.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fits: dict[str, Fit] = {}
        for seed in range(1, config.seeds + 1):
            for name, run in config.runs.items():
                self.fits |= {fit.policy: fit for fit in unroll(config, replica(name, seed), run)}
        for policy, oracle in self.exploited.items():
            self.fits |= {fit.policy: fit for fit in exploiters(config, policy, oracle)}
        self._require_opponents()
        self._require_compared()
        self._require_labels()

    def _require_opponents(self) -> None:
        for fit in self.fits.values():
            for other in {fit.start, fit.sampler, *fit.scorers} - {DATASET}:
                if other not in self.fits and other not in self.prepared and not self.config.is_used_in_place(other):
                    raise ConfigError(
                        f"runs.{fit.run}, iteration {fit.iteration}: opposed by {other}, which no run makes"
                        f"{nearest(other, [*self.fits, *self.prepared])}"
                    )

    def _require_compared(self) -> None:
        tables = self.config.tables
        for key, policies in (("win_against", tables.win_against), ("examples_of", tables.examples_of or [])):
            for policy in policies:
                if policy not in self.evaluated:
                    raise ConfigError(f"tables.{key}: unknown policy {policy!r}{nearest(policy, self.evaluated)}")
        known = [REFERENCE, *self.config.runs, *self.config.models]
        for table, rows in self.config.tables.rows.items():
            for row, name in rows.items():
                if name not in known:
                    raise ConfigError(f"tables.rows.{table}.{row}: unknown run or model {name!r}{nearest(name, known)}")

    def _require_labels(self) -> None:
        labels: dict[str, str] = {}
        for policy in self.evaluated:
            label = self.label(policy)
            if (other := labels.setdefault(label, policy)) != policy:
                raise ConfigError(f"{other} and {policy} have the same label {label!r}; give each run its own label")

    @property
    def prepared(self) -> dict[str, str]:
        """Policies that the sft stage makes, and the model each starts as: the reference, and models of random weights
        that oppose or are evaluated."""
        fits = [fit for fit in self.fits.values() if fit.objective.name == "eo-mnpo"]
        external = [name for fit in fits for name, _ in fit.opponents]
        others = {
            name: name for name in [*external, *self.config.evaluation.models] if not self.config.is_used_in_place(name)
        }
        return others | {REFERENCE: self.config.reference.model}

    @property
    def evaluated(self) -> list[str]:
        """The policies of the held-out tables: the reference and every iteration of every run, or its last alone."""
        return [REFERENCE, *(policy for policy in self.whole if self._is_evaluated(policy))]

    @property
    def whole(self) -> list[str]:
        """The policies that end an iteration of a run."""
        return [policy for policy in self.of_runs if "-" not in policy.rsplit(".", 1)[-1]]

    def _is_evaluated(self, policy: str) -> bool:
        run = self._run_of(policy)
        return run.measured != "last" or self.fits[policy].iteration == len(run.iterations)

    def _run_of(self, policy: str) -> Run:
        return self.config.runs[policy.partition(".")[0]]

    @property
    def of_runs(self) -> list[str]:
        """The policies that runs train, half steps and anchors too."""
        return [policy for policy, fit in self.fits.items() if fit.exploits is None]

    @cached_property
    def replicas(self) -> dict[str, list[str]]:
        """Every run, of every seed -> its policies, in order."""
        runs = [replica(name, seed) for seed in range(1, self.config.seeds + 1) for name in self.config.runs]
        evaluated = self.evaluated
        return {run: [p for p in evaluated if p.rpartition(".")[0] == run] for run in runs}

    @property
    def exploited(self) -> dict[str, str]:
        """The policies whose exploitability is estimated -> the oracle that decides. Raises ConfigError."""
        e = self.config.exploitability
        if e is None:
            return {}
        for policy in e.policies or []:
            if policy not in self.evaluated:
                raise ConfigError(
                    f"exploitability.policies: unknown policy {policy!r}{nearest(policy, self.evaluated)}"
                )
        oracles = {p: e.oracle or self._oracle_of(p) for p in e.policies or self.lasts}
        for policy, oracle in oracles.items():
            if oracle is None:
                raise ConfigError(f"exploitability.oracle: {policy} was trained for none; name one")
        return {policy: oracle for policy, oracle in oracles.items() if oracle is not None}

    def _oracle_of(self, policy: str) -> str | None:
        """Whom a policy was trained for; None: for none."""
        return None if policy == REFERENCE else self._run_of(policy).oracle

    @property
    def judged_by(self) -> dict[str, str]:
        """The last policy of every run, of every seed -> the oracle that it was trained for, or that evaluates."""
        oracles = {policy: self._oracle_of(policy) or self.config.evaluation.oracle for policy in self.lasts}
        return {policy: oracle for policy, oracle in oracles.items() if oracle is not None}

    @property
    def exploiters(self) -> dict[str, list[str]]:
        """Each of them -> what its best response was after 0, 1, 2, ... iterations; the first is itself."""
        return {
            policy: [policy, *(name for name, fit in self.fits.items() if fit.exploits == policy)]
            for policy in self.exploited
        }

    @property
    def lasts(self) -> list[str]:
        """The last policy of every run, of every seed."""
        return [policies[-1] for policies in self.replicas.values()]

    @property
    def shown(self) -> list[str]:
        """The policies on the page of examples: those named, or the reference and the last of every run of one seed."""
        lasts = [self.replicas[run][-1] for run in self.config.runs]
        return list(dict.fromkeys(self.config.tables.examples_of or [REFERENCE, *lasts]))

    @cached_property
    def finals(self) -> list[str]:
        """The policies that the public benchmarks measure: the reference where there are runs, the last of every run
        that says nothing else, and other models."""
        last = [policy for policy in self.lasts if self._run_of(policy).measured == "all"]
        return [*([REFERENCE] if self.lasts else []), *last, *self.config.evaluation.models]

    def opponents(self, policy: str) -> dict[str, float]:
        """Whom a run's last policy plays, with weights: the other players' last policies, or itself."""
        fit = self.fits[policy]
        players = fit.objective.players if fit.objective.name == "ht-mnpo" else None
        if players is None:
            return {policy: 1.0}
        _, dot, seed = fit.run.partition(".")
        weights = weights_of(fit.objective, len(players), fit.protocol, f"runs.{fit.run}")
        return {self.replicas[name + dot + seed][-1]: w for name, w in zip(players, weights, strict=True)}

    @cached_property
    def passing(self) -> list[str]:
        """Policies that are deleted when the last job that reads them is done."""
        if self.config.checkpoints == "keep":
            return []
        lasts = set(self.lasts)
        return [policy for policy in self.fits if policy not in lasts]

    def has_files(self, policy: str) -> bool:
        """Whether a policy is a checkpoint, and not a model behind an endpoint."""
        return policy not in self.config.models or self.config.models[policy].api is None

    def model_of(self, policy: str) -> str:
        """The entry of `models` that a policy is or was trained from."""
        return policy if policy in self.config.models else self.config.reference.model

    def strip(self, policy: str) -> dict[str, str]:
        """The setting `strip` of that model, where it has one."""
        return self.config.models[self.model_of(policy)].model_dump(include={"strip"}, exclude_none=True)

    @property
    def paired(self) -> list[tuple[str, int, str]]:
        """Whose responses, to which part's prompts, are scored by which oracle and paired; each once."""
        return [of for of in self._pairs if of[2] != DATASET]

    @property
    def preferred(self) -> list[tuple[str, int, str]]:
        """Whose responses, to which part's prompts, are paired as the data prefer them; each once."""
        return [of for of in self._pairs if of[2] == DATASET]

    @property
    def _pairs(self) -> list[tuple[str, int, str]]:
        wanted = ((fit.sampler, part, fit.oracle) for fit in self.fits.values() for part in fit.parts)
        return list(dict.fromkeys(wanted))

    @property
    def annotated(self) -> list[tuple[str, int, str]]:
        """Those that are scored, of runs: without the best responses of an exploitability."""
        return [of for of in self.paired if AGAINST not in of[2]]

    def label(self, policy: str) -> str:
        """How tables and figures call a policy."""
        if policy == REFERENCE:
            return "SFT"
        if policy in self.config.models:
            return self.config.models[policy].label or policy
        run, _, t = policy.rpartition(".")
        name = self.run_label(run)
        return name if len(self.config.runs[run.partition(".")[0]].iterations) == 1 else f"{name} {t}"

    def run_label(self, run: str) -> str:
        """How tables and figures call a run."""
        name, _, seed = run.partition(".")
        return (self.config.runs[name].label or name.upper()) + (f" (seed {seed[1:]})" if seed else "")

    def sampler_label(self, policy: str) -> str:
        """How tables call whose responses were paired."""
        return "data set" if policy == DATASET else self.label(policy)
