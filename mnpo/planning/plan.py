"""The plan: configuration -> which policies exist, who trains from whom, against whom, on what, and in which files.

Pure: nothing is read or written here, nothing heavy is imported. A stage never decides who opposes whom; it obeys.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mnpo.config.blocks import DATASET, DEMO, REFERENCE, Block, ConfigError, nearest, validated
from mnpo.config.configuration import Config
from mnpo.config.evaluation import Benchmark, EvaluationProtocol, Exploitability
from mnpo.config.runs import PRESETS, Iteration, Objective, Protocol, Run
from mnpo.config.sampling import Pairing
from mnpo.config.sources import Dataset, Source
from mnpo.config.training import Training
from mnpo.method import family
from mnpo.oracles import modules
from mnpo.planning import paper_tables
from mnpo.seeds import derive
from mnpo.storage import code_digests, hub
from mnpo.storage.hub import Lock

HELDOUT = "heldout"
AGAINST = "@"  # scores of {oracle}@{policy} are win rates against that policy's responses
NLTK = "nltk"  # the entry of `datasets` with NLTK's sentence splitter
TABLES = ("main", "families", "wins")  # of held-out prompts
TABLE_ENDINGS = ("csv", "md", "html")
PAPER_TABLE_ENDINGS = ("csv", "md", "tex", "html")
PAPER_PARTS = ("significance", "gaps")  # which differences are more than noise: ours, and the published
FIGURES = ("win_rate", "length", "families", "oracles", "training", "win_matrix")


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
    opponents: tuple[tuple[str, float], ...]
    """(policy, lambda), newest first; lambda sums to one."""
    objective: Objective
    training: Training
    protocol: Protocol
    """Where it follows the paper's formulas, where its public code."""
    exploits: str | None = None
    """The fixed policy that it is a step of a best response to; None: a step of a run."""

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

    def __init__(self, config: Config, lock: Lock | None = None) -> None:
        self.config = config
        self.lock = lock or Lock()
        self.root = f"results/{config.name}"
        self.fits: dict[str, Fit] = {}
        for seed in range(1, config.seeds + 1):
            for name, run in config.runs.items():
                for fit in _unroll(config, replica(name, seed), run):
                    self.fits[fit.policy] = fit
        for policy, oracle in self.exploited.items():
            self.fits |= {fit.policy: fit for fit in _exploiters(config, policy, oracle)}
        for fit in self.fits.values():
            for other in {fit.start, fit.sampler, *fit.scorers} - {DATASET}:
                if other not in self.fits and other not in self.prepared and not self._as_it_is(other):
                    raise ConfigError(
                        f"runs.{fit.run}, iteration {fit.iteration}: opposed by {other}, which no run makes"
                        f"{nearest(other, [*self.fits, *self.prepared])}"
                    )
        for policy in config.tables.win_against:
            if policy not in self.evaluated:
                raise ConfigError(f"tables.win_against: unknown policy {policy!r}{nearest(policy, self.evaluated)}")
        known = [REFERENCE, *config.runs, *config.models]
        for table, rows in config.tables.rows.items():
            for row, name in rows.items():
                if name not in known:
                    raise ConfigError(f"tables.rows.{table}.{row}: unknown run or model {name!r}{nearest(name, known)}")
        labels: dict[str, str] = {}
        for policy in self.evaluated:
            label = self.label(policy)
            if (other := labels.setdefault(label, policy)) != policy:
                raise ConfigError(f"{other} and {policy} have the same label {label!r}; give each run its own label")

    # -------------------------------------------------------------------------------------------------------- policies

    @property
    def prepared(self) -> dict[str, str]:
        """Policies that the sft stage makes, and the model each starts as: the reference, and models of random weights
        that oppose or are evaluated."""
        fits = [fit for fit in self.fits.values() if fit.objective.name == "eo-mnpo"]
        external = [name for fit in fits for name, _ in fit.opponents]
        others = {name: name for name in [*external, *self.config.evaluation.models] if not self._as_it_is(name)}
        return others | {REFERENCE: self.config.reference.model}

    def _as_it_is(self, policy: str) -> bool:
        """Whether a policy is a model that nothing has to be done to: its files are used where they are."""
        return policy in self.config.models and self.config.models[policy].architecture is None

    @property
    def evaluated(self) -> list[str]:
        """The policies of the held-out tables: the reference and every iteration of every run, or its last alone."""
        return [REFERENCE, *(policy for policy in self._whole if self._is_evaluated(policy))]

    @property
    def _whole(self) -> list[str]:
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
            if policy == REFERENCE and e.oracle is None:
                raise ConfigError(f"exploitability.oracle: {REFERENCE} was trained for none; name one")
        return {policy: e.oracle or self.fits[policy].oracle for policy in e.policies or self.lasts}

    @property
    def exploiters(self) -> dict[str, list[str]]:
        """Each of them -> what its best response was after 0, 1, 2, ... iterations; the first is itself."""
        return {
            policy: [policy, *(name for name, fit in self.fits.items() if fit.exploits == policy)]
            for policy in self.exploited
        }

    @property
    def exploit_scores(self) -> list[str]:
        """Win rates on held-out prompts of those against these, shard by shard. Raises ConfigError for none."""
        if not self.exploited:
            raise ConfigError(
                "exploitability: whose? The configuration has no such block; configs/exploitability.yaml has"
            )
        return [
            file
            for policy, oracle in self.exploited.items()
            for exploiter in self.exploiters[policy]
            for file in self.score_shards(exploiter, HELDOUT, f"{oracle}{AGAINST}{policy}")
        ]

    @property
    def lasts(self) -> list[str]:
        """The last policy of every run, of every seed."""
        return [policies[-1] for policies in self.replicas.values()]

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
        weights = _weights(fit.objective, len(players), fit.protocol, f"runs.{fit.run}")
        return {self.replicas[name + dot + seed][-1]: w for name, w in zip(players, weights, strict=True)}

    @cached_property
    def passing(self) -> list[str]:
        """Policies that are deleted when the last job that reads them is done."""
        if self.config.checkpoints == "keep":
            return []
        lasts = set(self.lasts)
        return [policy for policy in self.fits if policy not in lasts]

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

    # ----------------------------------------------------------------------------------------------------------- files

    def prompts(self, part: str | int) -> str:
        """Prompts of a train part (1, 2, ...) or of `heldout`."""
        return f"{self.root}/prompts/{part_name(part)}.parquet"

    @property
    def cache(self) -> Path:
        """Where downloads go."""
        return Path(os.environ.get("MNPO_CACHE") or self.config.cache).expanduser()

    def cached(self, kind: str, repository: str, revision: str) -> str:
        """A downloaded snapshot; `kind` is models, datasets or github, `repository` owner--name."""
        return f"{self.cache}/{kind}/{repository}/{revision}"

    def source(self, kind: str, name: str) -> str:
        """The directory with the files of an entry of `models` or `datasets`."""
        entry: Source = getattr(self.config, kind)[name]
        if isinstance(entry, Dataset) and entry.demo:
            return self.miniature(name)
        local = entry.mirror or entry.path
        return local or self.cached(*hub.address(kind, entry, self.lock))

    def miniature(self, benchmark: str) -> str:
        """The demo's small version of a benchmark's data."""
        return f"{self.root}/benchmarks/{benchmark}"

    def downloads(self, directory: str) -> dict[str, Source]:
        """The entries whose files are fetched into `directory`."""
        entries = {f"{kind}.{name}": (kind, name, e) for kind in ("models", "datasets")
                   for name, e in getattr(self.config, kind).items()}  # fmt: skip
        return {k: e for k, (kind, name, e) in entries.items() if e.downloaded and self.source(kind, name) == directory}

    def model_sources(self, names: Iterable[str]) -> list[str]:
        """The directories of models that have files."""
        models = self.config.models
        return [self.source("models", n) for n in names if models[n].architecture is None and models[n].api is None]

    def benchmark_data(self, benchmarks: Iterable[str]) -> dict[str, str]:
        """The data of benchmarks: entry of `datasets` -> directory. IFEval also reads `nltk`, where there is one."""
        names = list(benchmarks)
        further = [NLTK] if "ifeval" in names and NLTK in self.config.datasets else []
        return {name: self.source("datasets", name) for name in [*names, *further]}

    def benchmark_sources(self, benchmarks: Iterable[str]) -> list[str]:
        """Their directories."""
        return list(self.benchmark_data(benchmarks).values())

    @property
    def prompt_sources(self) -> list[str]:
        """What prompts are read from, where that is an entry of `datasets`."""
        name = self.config.prompts.dataset
        return [] if name is None else [self.source("datasets", name)]

    @property
    def prompt_files(self) -> list[str]:
        """Everything that the prompts stage makes."""
        parts = [self.prompts(t) for t in range(1, self.config.prompts.parts + 1)]
        own = [self.responses] if self.config.prompts.responses is not None else []
        return [*parts, self.prompts(HELDOUT), self.demonstrations, *own]

    @property
    def responses(self) -> str:
        """The responses that came with the prompts."""
        return f"{self.root}/prompts/responses.parquet"

    @property
    def demonstrations(self) -> str:
        """The SFT data."""
        return f"{self.root}/prompts/demonstrations.parquet"

    def policy(self, policy: str) -> str:
        """A checkpoint's directory."""
        return self.source("models", policy) if self._as_it_is(policy) else f"{self.root}/policies/{policy}"

    def training(self, policy: str) -> str:
        """What a policy's training looked like, a JSON object a step; outlives a temporary policy."""
        return f"{self.root}/training/{policy}.jsonl"

    def samples(self, policy: str, part: str | int, shard: str | int) -> str:
        """Responses of a policy to a shard of a part's prompts."""
        return f"{self.root}/samples/{policy}/{part_name(part)}/{shard}.parquet"

    def scores(self, policy: str, part: str | int, oracle: str, shard: str | int) -> str:
        """What an oracle thinks of those; of {oracle}@{policy}, how often they beat that policy's."""
        return f"{self.root}/scores/{policy}/{part_name(part)}/{oracle}/{shard}.parquet"

    def pairs(self, policy: str, part: str | int, oracle: str) -> str:
        """Chosen and rejected responses of a part."""
        return f"{self.root}/pairs/{policy}/{part_name(part)}/{oracle}.parquet"

    def logps(self, policy: str, part: str | int, oracle: str, text: str, scorer: str) -> str:
        """Log-probabilities of those pairs under the policy `scorer`, read as `text` (chat, raw, ...)."""
        return f"{self.root}/logps/{policy}/{part_name(part)}/{oracle}/{text}/{scorer}.parquet"

    def sampler_logps(self, policy: str, part: str | int, shard: str | int) -> str:
        """What the sampler held its own responses' log-probabilities to be."""
        return f"{self.root}/logps/{policy}/{part_name(part)}/sampler/{shard}.parquet"

    def answers(self, policy: str, benchmark: str) -> str:
        """A policy's answers to the questions of a benchmark that a judge judges."""
        return f"{self.root}/answers/{policy}/{benchmark}.parquet"

    def judgements(self, policy: str, benchmark: str, judge: str) -> str:
        """Every answer of a judge, kept for good: no call is paid twice."""
        return f"{self.root}/judgements/{judge}/{policy}.{benchmark}.sqlite"

    def evaluation(self, policy: str, benchmark: str) -> str:
        """A policy's result on a benchmark (`judged` names one with its judge); per-item rows lie beside it."""
        return f"{self.root}/evals/{policy}/{benchmark}.json"

    def evaluation_items(self, policy: str, benchmark: str) -> str:
        """Its per-item rows."""
        return f"{self.root}/evals/{policy}/{benchmark}.parquet"

    @property
    def tables(self) -> list[str]:
        """The printed tables of held-out prompts."""
        return [f"{self.table(name)}.{ending}" for name in TABLES for ending in TABLE_ENDINGS]

    def table(self, name: str) -> str:
        """A printed table, without its ending."""
        return f"{self.root}/tables/{name}"

    @property
    def report(self) -> str:
        """The HTML report."""
        return f"{self.root}/report.html"

    def figure(self, name: str) -> str:
        """A figure, without its ending."""
        return f"{self.root}/figures/{name}"

    def sample_shards(self, policy: str, part: str | int) -> list[str]:
        """All shards of a policy's samples on a part."""
        return [self.samples(policy, part, s) for s in range(self.shards)]

    def score_shards(self, policy: str, part: str | int, oracle: str) -> list[str]:
        """All shards of an oracle's scores of them."""
        return [self.scores(policy, part, oracle, s) for s in range(self.shards)]

    @property
    def shards(self) -> int:
        """Jobs that a part's prompts are spread over."""
        sampling, prompts = self.config.sampling, self.config.prompts.a_part
        return sampling.shards if prompts is None else max(1, min(sampling.shards, prompts // sampling.prompts_a_job))

    def reused_logprobs(self, policy: str, part: str | int, scorer: str) -> list[str]:
        """What the sampler said of its own responses, where that stands for log-probabilities under `scorer`."""
        if scorer != policy or not self.config.sampling.reuse_logprobs:
            return []
        return [self.sampler_logps(policy, part, s) for s in range(self.shards)]

    def against(self, part: str | int, oracle: str, shard: str | int) -> list[str]:
        """The samples that scores of `oracle` compare with; nothing where they compare with none."""
        _, _, policy = oracle.partition(AGAINST)
        return [self.samples(policy, part, shard)] if policy else []

    @property
    def paired(self) -> list[tuple[str, int, str]]:
        """Whose responses, to which part's prompts, are scored by which oracle and paired; each once."""
        wanted = ((fit.sampler, part, fit.oracle) for fit in self.fits.values() for part in fit.parts)
        return list(dict.fromkeys(wanted))

    @property
    def annotated(self) -> list[tuple[str, int, str]]:
        """Those of runs: without the best responses of an exploitability."""
        return [of for of in self.paired if AGAINST not in of[2]]

    def fit_pairs(self, policy: str) -> list[str]:
        """The pair files that a policy is trained on."""
        fit = self.fits[policy]
        return [self.pairs(fit.sampler, part, fit.oracle) for part in fit.parts]

    def fit_logps(self, policy: str) -> list[str]:
        """The log-probability files that a policy is trained on: scorer by scorer, part by part."""
        fit = self.fits[policy]
        text = fit.protocol.opponent_text.tag()
        return [self.logps(fit.sampler, p, fit.oracle, text, s) for s in fit.scorers for p in fit.parts]

    # ------------------------------------------------------------------------------------------------------- benchmarks

    def judged(self, benchmark: str, judge: str, repeat: int = 1) -> str:
        """What a benchmark is called in file names together with who judged it, for the how-manieth time."""
        return f"{benchmark}.{judge}" if repeat == 1 else f"{benchmark}.{judge}.r{repeat}"

    @property
    def answered(self) -> list[Benchmark]:
        """The benchmarks that ask a judge: a job a policy and benchmark makes the answers, others judge them."""
        e = self.config.evaluation
        return [b for b in e.benchmarks if e.judged(b)]

    @property
    def harness(self) -> list[Benchmark]:
        """Those that need no judge and run by lm-eval: one job a policy measures them all."""
        return self._unjudged("harness")

    @property
    def evalscope(self) -> list[Benchmark]:
        """Those that need no judge and run by EvalScope: one job a policy measures them all."""
        return self._unjudged("evalscope")

    def _unjudged(self, protocol: EvaluationProtocol) -> list[Benchmark]:
        e = self.config.evaluation
        return [b for b in e.benchmarks if not e.judged(b) and e.protocol_of(b) == protocol]

    @property
    def measured(self) -> dict[str, tuple[str, str | None]]:
        """Every result that a policy gets on public benchmarks: its name in files -> benchmark and judge."""
        e = self.config.evaluation
        repeats = range(1, e.repeats + 1)
        judged = {self.judged(b, j, r): (b, j) for b in self.answered for j in e.judges for r in repeats}
        return {**{b: (b, None) for b in [*self.harness, *self.evalscope]}, **judged}

    def has_files(self, policy: str) -> bool:
        """Whether a policy is a checkpoint, and not a model behind an endpoint."""
        return policy not in self.config.models or self.config.models[policy].api is None

    def rows(self, table: str) -> dict[str, list[str]]:
        """The rows of a table of the paper that are configured and measured -> their policies, one a seed."""
        rows = {}
        for row, name in self.config.tables.rows.get(table, {}).items():  # type: ignore[call-overload]
            seeds = range(1, self.config.seeds + 1)
            policies = [self.replicas[replica(name, s)][-1] for s in seeds] if name in self.config.runs else [name]
            if policies[0] in self.finals:
                rows[row] = policies
        return rows

    def table_evaluations(self, table: str) -> list[str]:
        """The results that a table of the paper is made of: those that are configured."""
        benchmarks = {column.benchmark for column in paper_tables.TABLES[table].columns}
        judges = set(self.table_judges(table).values())
        return [
            self.evaluation(policy, stem)
            for policy in dict.fromkeys(p for policies in self.rows(table).values() for p in policies)
            for stem, (benchmark, judge) in self.measured.items()
            if benchmark in benchmarks and (judge in judges or (judge is None and self.has_files(policy)))
        ]

    @property
    def benchmark_evaluations(self) -> list[str]:
        """Every result on public benchmarks."""
        return [
            self.evaluation(policy, stem)
            for policy in self.finals
            for stem, (_, judge) in self.measured.items()
            if judge or self.has_files(policy)
        ]

    def table_judges(self, table: str) -> dict[str, str]:
        """The paper's name of a judge -> ours. Where the paper has one judge, ours is the first."""
        judges = self.config.evaluation.judges
        if "judge" in paper_tables.TABLES[table].key:
            return {self.config.judges[judge].label or judge: judge for judge in judges}
        return {paper_tables.JUDGE: judges[0]} if judges else {}

    @property
    def targets(self) -> list[str]:
        """Targets that several rules, or several jobs of one rule, make."""
        return [*paper_tables.TABLES, "heldout", "figures"]

    def published(self, table: str) -> str:
        """The published figures of a table of the paper; they are in git."""
        return f"results/paper/{paper_tables.TABLES[table].file}"

    @property
    def paper_tables(self) -> list[str]:
        """The tables of the paper."""
        return list(paper_tables.TABLES)

    def comparison(self, table: str) -> list[str]:
        """The files of a table of the paper."""
        further = [f"{self.table(table)}-{part}.{e}" for part in PAPER_PARTS for e in TABLE_ENDINGS]
        return [*(f"{self.table(table)}.{e}" for e in PAPER_TABLE_ENDINGS), *further]

    def target(self, name: str) -> list[str]:
        """The files behind a target of the workflow."""
        if name in paper_tables.TABLES:
            return self.comparison(name)
        return {
            "heldout": self.tables,
            "figures": [f"{self.figure(f)}.{ending}" for f in FIGURES for ending in ("svg", "png")],
            "players": [f"{self.table('players')}.{ending}" for ending in TABLE_ENDINGS],
            "exploitability": [f"{self.table('exploitability')}.{ending}" for ending in TABLE_ENDINGS],
            "preferences": [f"{self.table('preferences')}.{ending}" for ending in TABLE_ENDINGS],
            "benchmarks": [f"{self.table('benchmarks')}.{ending}" for ending in TABLE_ENDINGS],
            "costs": [f"{self.table('costs')}.{ending}" for ending in TABLE_ENDINGS],
            "theory": [self.table("theory") + ".csv", *(f"{self.figure('theory')}.{e}" for e in ("svg", "png"))],
        }[name]

    # ------------------------------------------------------------------------------------------------- what stages read

    def resources(self, stage: str) -> dict[str, Any]:
        """What a job of a stage asks for, in Snakemake's words; a further try gets twice the time and half as much
        memory again."""
        needs = self.config.resources.of(stage)
        asked = {
            "mem_mb": lambda wildcards, attempt: round(needs.memory_gb * 1000 * (1 + 0.5 * (attempt - 1))),
            "runtime": lambda wildcards, attempt: round(needs.hours * 60 * attempt),
            "cpus_per_task": needs.cpus,
        }
        return asked | ({"gres": f"gpu:{needs.gpus}"} if needs.gpus else {})

    def threads(self, stage: str) -> int:
        """Cores of a job of a stage."""
        return self.config.resources.of(stage).cpus

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
            "model": self._made_of(self.prepared[policy]),
            "sft": trained,
            "text": self.config.text,
            "seed": derive(self.config.seed, "sft", policy),
        }

    def _made_of(self, model: str) -> dict[str, Any]:
        """What of a model's entry its readers need: not what the plan alone reads."""
        spec = self.config.models[model]
        if spec.architecture is not None:
            return spec.model_dump(include={"architecture", "vocab_size"})
        return {"path": self.source("models", model)}

    def _sample_settings(self, policy: str, part: str, shard: str) -> dict[str, Any]:
        of_others = {"prompts_a_job": 1, "reuse_logprobs": False}  # what the other stages read
        return {
            "sampling": self.config.sampling.model_copy(update={"shards": self.shards, **of_others}),
            "text": self.config.text,
            "shard": int(shard),
            "seed": derive(self.config.seed, "sample", policy, part.removeprefix("part")),
        }

    def _score_settings(self, oracle: str) -> dict[str, Any]:
        return self._oracles([oracle]) | {"oracle": oracle.partition(AGAINST)[0]}

    def _pair_settings(self, oracle: str) -> dict[str, Any]:
        """`min_gap` is in the units of the oracle's scores; win rates against a policy have none."""
        return {"pairing": Pairing() if AGAINST in oracle else self.config.pairing}

    def _logps_settings(self, text: str) -> dict[str, Any]:
        forms = {f.tag(): f for p in PRESETS.values() for f in (p.opponent_text, p.policy_text)}
        return {"form": forms[text], "text": self.config.text, "dtype": self.config.training.dtype}

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

    def _assess_settings(self, policy: str) -> dict[str, Any]:
        evaluation, sampling = self.config.evaluation, self.config.sampling
        return self._oracles(self.evaluation_oracles) | {
            "policy": policy,
            "oracle": evaluation.oracle,
            "scores": evaluation.scores,
            "majority": evaluation.majority,
            "responses": evaluation.responses,
            "decoding": sampling.model_dump(include={"temperature", "top_p", "max_new_tokens"}),
            "batch_size": sampling.batch_size,
            "dtype": evaluation.dtype,
            "text": self.config.text,
            "seed": derive(self.config.seed, "evaluate", HELDOUT),
        }

    def _download_settings(self, directory: str) -> dict[str, Any]:
        source = hub.merged(self.downloads(directory).values())
        if locked := self.lock.entry(hub.kind_of(source), source):
            source = source.model_copy(update={"files": locked.patterns})  # other configurations' files too
        kept = source.model_dump(include={"hub", "github", "revision", "files", "gated"}, exclude_none=True)
        return {"kind": hub.kind_of(source), "source": kept}

    def _reuse_settings(self, shard: str) -> dict[str, Any]:
        return {"shard": int(shard), "shards": self.shards, "responses": self.config.sampling.responses}

    def _harness_settings(self, policy: str) -> dict[str, Any]:
        how = self._measuring(policy, "backend", "batch_size", "dtype", "max_length")
        chosen = {b: self.config.evaluation.of(b).model_dump(exclude_none=True) for b in self.harness}
        return {"harness": {**how, "benchmarks": chosen}, "code": self.code("harness")}

    def _evalscope_settings(self, policy: str) -> dict[str, Any]:
        how = self._measuring(policy, "backend", "batch_size", "dtype", "max_length")
        chosen = {b: self.config.evaluation.of(b).model_dump(exclude_none=True) for b in self.evalscope}
        answer = {**how, "seed": derive(self.config.seed, "answer", "evalscope")}
        return {
            "evalscope": {"policy": policy, "benchmarks": chosen},
            "answer": answer,
            "code": self.code("evalscope"),
        }

    def _answer_settings(self, policy: str, benchmark: str) -> dict[str, Any]:
        model = self.config.models.get(policy)
        endpoint = model.model_dump(include={"api", "endpoint", "key"}) if model and model.api else None
        chosen = self.config.evaluation.of(benchmark).model_dump(include={"limit", "max_new_tokens"}, exclude_none=True)
        how = self._measuring(policy, "backend", "batch_size", "dtype", "max_length")
        seed = derive(self.config.seed, "answer", benchmark)
        return {"asked": {**how, "benchmark": benchmark, "seed": seed, **chosen}, "endpoint": endpoint}

    def _measuring(self, policy: str, *keys: str) -> dict[str, Any]:
        """How a benchmark runs a policy."""
        how = self.config.evaluation.model_dump(include=set(keys), exclude_none=True)
        return {"policy": policy, **how}

    def _judge_settings(self, policy: str, benchmark: str, judge: str, repeat: str) -> dict[str, Any]:
        chosen = self.config.evaluation.of(benchmark).model_dump(include={"limit"}, exclude_none=True)
        seed = derive(self.config.seed, "judge", benchmark)
        how = {"policy": policy, "judge": judge, "repeat": int(repeat.removeprefix(".r") or 1), "seed": seed}
        spec = self.config.judges[judge].model_dump(exclude={"label"}, exclude_none=True)
        protocol = {"protocol": p} if (p := self.config.evaluation.protocol_of(benchmark)) != "harness" else {}
        return {"benchmark": benchmark, **protocol, "judged": {**how, **chosen}, "judge": spec}

    def _miniature_settings(self, benchmark: str) -> dict[str, Any]:
        return {"benchmark": benchmark, "seed": self.config.seed}  # of the world: its questions are held out there

    def _compare_settings(self, table: str) -> dict[str, Any]:
        return {
            "table": table,
            "rows": [[row, policies] for row, policies in self.rows(table).items()],
            "judges": [list(names) for names in self.table_judges(table).items()],
            "bootstrap": self.config.evaluation.bootstrap,
            "confidence": self.config.evaluation.confidence,
            "seed": derive(self.config.seed, "compare"),
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

    def _players_settings(self) -> dict[str, Any]:
        evaluation = self.config.evaluation
        return {
            "labels": [[p, self.label(p)] for p in self.evaluated],
            "players": [
                [policy, {"oracle": self.fits[policy].oracle, "opponents": list(self.opponents(policy).items())}]
                for policy in self.lasts
            ],
            "scores": list(dict.fromkeys([evaluation.oracle, *evaluation.scores])),
            "bootstrap": evaluation.bootstrap,
            "confidence": evaluation.confidence,
            "seed": derive(self.config.seed, "players"),
        }

    def _exploitability_settings(self) -> dict[str, Any]:
        evaluation = self.config.evaluation
        return {
            "exploited": [
                [p, {"label": self.label(p), "oracle": oracle, "exploiters": self.exploiters[p]}]
                for p, oracle in self.exploited.items()
            ],
            "shards": self.shards,
            "bootstrap": evaluation.bootstrap,
            "confidence": evaluation.confidence,
            "seed": derive(self.config.seed, "exploitability"),
        }

    def _preferences_settings(self) -> dict[str, Any]:
        return {"rows": [[self._sampler_label(p), part, oracle] for p, part, oracle in self.annotated]}

    def _sampler_label(self, policy: str) -> str:
        return "data set" if policy == DATASET else self.label(policy)

    def _benchmarks_settings(self) -> dict[str, Any]:
        return {"labels": [[p, self.label(p)] for p in self.finals], "benchmarks": list(self.measured)}

    def _plot_settings(self) -> dict[str, Any]:
        return {
            "labels": [[p, self.label(p)] for p in self.evaluated],
            "runs": [[run, [p for p in self.evaluated if p.rpartition(".")[0] == run]] for run in self.config.runs],
            "trainings": [[run, [p for p in self._whole if p.rpartition(".")[0] == run]] for run in self.config.runs],
            "run_labels": {run: self.run_label(run) for run in self.config.runs},
            "oracle": self.config.evaluation.oracle,
            "scores": list(dict.fromkeys([self.config.evaluation.oracle, *self.config.evaluation.scores])),
            "family_value": "accuracy, sampled" if self.config.evaluation.accuracy else "mean score, sampled",
        }

    def oracle_models(self, names: Iterable[str]) -> list[str]:
        """The models behind oracles, and behind all that these are made of."""
        models = [self.config.oracles[name].model for name in self._with_members(names)]
        return list(dict.fromkeys(m for m in models if m is not None))

    def _with_members(self, names: Iterable[str]) -> list[str]:
        return self.config.with_members(name.partition(AGAINST)[0] for name in names)

    @property
    def asking(self) -> list[str]:
        """The oracles that ask a judge, or are made of one that does: they need the internet."""
        specs = self.config.oracles
        return [name for name in specs if any(specs[part].kind == "judge" for part in self.config.with_members([name]))]

    def _oracles(self, names: Iterable[str]) -> dict[str, Any]:
        """What a stage reads of the oracles `names`, of all that they are made of, and of the models these need."""
        specs = {name: self.config.oracles[name] for name in self._with_members(names)}
        return {
            "oracles": {name: spec.model_dump(exclude_none=True) for name, spec in specs.items()},
            "models": {spec.model: self._made_of(spec.model) for spec in specs.values() if spec.model is not None},
        }

    def code(self, stage: str, oracles: Iterable[str] = ()) -> str:
        """The digest of the code behind a stage; `oracles` adds the modules of the kinds of oracle it uses."""
        kinds = {spec["kind"] for spec in self._oracles(oracles)["oracles"].values()}
        chosen = modules(kinds)
        if stage == "prompts" and self.config.prompts.source == "demo":
            chosen.append("mnpo.demo.world")
        if stage == "judge" and any(judge.endpoint == DEMO for judge in self.config.judges.values()):
            chosen.append("mnpo.demo.judge")
        if stage == "evalscope":
            chosen.append("mnpo.stages.answer")  # which it runs
        if stage == "sft" and any(m.architecture is not None for m in self.config.models.values()):
            chosen.append("mnpo.demo.model")
        return code_digests.digest(f"mnpo.stages.{stage}", *chosen)


def part_name(part: str | int) -> str:
    """How files call a part: 1, 2, ... are part1, part2, ..."""
    return f"part{part}" if str(part).isdigit() else str(part)


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"{value!r} has no canonical form")


# ------------------------------------------------------------------------------------------------------------ unrolling


def replica(run: str, seed: int) -> str:
    """What a run is called in its `seed`-th repetition (1, 2, ...); seeds derive from that name."""
    return run if seed == 1 else f"{run}.s{seed}"


def _unroll(config: Config, name: str, run: Run) -> Iterable[Fit]:
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


def _exploiters(config: Config, policy: str, oracle: str) -> Iterable[Fit]:
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
        opponents=_together(opponents, weights),
        objective=objective,
        training=training,
        protocol=protocol,
    )


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
    readers = {"history": ["history"], "weights": ["history", "players", "external"], "updates": ["players"]}
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
