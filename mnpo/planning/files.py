"""Names of files: each says what a file IS, not who asked for it first, so that runs share what is the same."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from mnpo.config.blocks import DATASET, REFERENCE
from mnpo.config.configuration import Config
from mnpo.config.runs import UNCAPPED
from mnpo.config.sources import Dataset, Model, Source
from mnpo.config.training import Demonstrations
from mnpo.models.named_templates import NAMED
from mnpo.planning.fits import AGAINST, Fit
from mnpo.storage import hub
from mnpo.storage.hub import Lock

HELDOUT = "heldout"


def part_name(part: str | int) -> str:
    """How files call a part: 1, 2, ... are part1, part2, ..."""
    return f"part{part}" if str(part).isdigit() else str(part)


class Files:
    """The files of a configuration's results, and of what it reads."""

    def __init__(self, config: Config, lock: Lock) -> None:
        self.config, self.lock = config, lock
        self.root = f"results/{config.name}"

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
        if isinstance(entry, Model) and entry.miniature:
            return self.miniature_model(name)
        local = entry.mirror or entry.path
        return local or self.cached(*hub.address(kind, entry, self.lock))

    def miniature(self, benchmark: str) -> str:
        """The demo's small version of a benchmark's data."""
        return f"{self.root}/benchmarks/{benchmark}"

    def miniature_model(self, model: str) -> str:
        """A small model of random weights in the files of a published one."""
        return f"{self.root}/models/{model}"

    def downloads(self, directory: str) -> dict[str, Source]:
        """The entries whose files are fetched into `directory`."""
        entries = {f"{kind}.{name}": (kind, name, e) for kind in ("models", "datasets")
                   for name, e in getattr(self.config, kind).items()}  # fmt: skip
        return {k: e for k, (kind, name, e) in entries.items() if e.downloaded and self.source(kind, name) == directory}

    def model_sources(self, names: Iterable[str]) -> list[str]:
        """The directories of models that have files."""
        models = self.config.models
        return [self.source("models", n) for n in names if models[n].architecture is None and models[n].api is None]

    def is_external(self, file: str) -> bool:
        """Whether a file or directory is one that no rule makes: a source's `mirror` or `path`, the file of prompts."""
        return file in self._external and not Path(os.path.abspath(file)).is_relative_to(os.path.abspath(self.root))

    @cached_property
    def _external(self) -> set[str | None]:
        entries = [*self.config.models.values(), *self.config.datasets.values()]
        own = self._sft_data
        files = [self.config.prompts.path, own.file if own else None, *self.template]
        return {*files, *(entry.mirror or entry.path for entry in entries)} - {None}

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
        return [*parts, self.prompts(HELDOUT), f"{self.root}/prompts/demonstrations.parquet", *own]

    @property
    def responses(self) -> str:
        """The responses that came with the prompts."""
        return f"{self.root}/prompts/responses.parquet"

    @property
    def demonstrations(self) -> str:
        """The SFT data: the demo's own, or those of `reference.sft.data`."""
        return self.sft_data("train") if self._sft_data else f"{self.root}/prompts/demonstrations.parquet"

    @property
    def heldout_demonstrations(self) -> list[str]:
        """SFT data that are kept aside."""
        return [self.sft_data(HELDOUT)] if self._sft_data and self._sft_data.heldout else []

    def sft_data(self, name: str) -> str:
        """Conversations of `reference.sft.data`: `train`, or `heldout`."""
        return f"{self.root}/demonstrations/{name}.parquet"

    @property
    def sft_sources(self) -> list[str]:
        """The file or directory that they are read from."""
        own = self._sft_data
        if own is None:
            return []
        return [own.file] if own.file else [self.source("datasets", own.dataset or "")]

    @property
    def template(self) -> list[str]:
        """The file of the chat template that the reference gets, where it is one."""
        given = self.config.text.template
        return [given] if given is not None and given not in NAMED and "{" not in given else []

    @property
    def _sft_data(self) -> Demonstrations | None:
        sft = self.config.reference.sft
        return sft.data if sft else None

    def policy(self, policy: str) -> str:
        """A checkpoint's directory."""
        return (
            self.source("models", policy) if self.config.is_used_in_place(policy) else f"{self.root}/policies/{policy}"
        )

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

    def judged(self, benchmark: str, judge: str, repeat: int = 1) -> str:
        """What a benchmark is called in file names together with who judged it, for the how-manieth time."""
        return f"{benchmark}.{judge}" if repeat == 1 else f"{benchmark}.{judge}.r{repeat}"

    def judgements(self, policy: str, benchmark: str, judge: str) -> str:
        """Every answer of a judge, kept for good: no call is paid twice."""
        return self._store(f"{self.root}/judgements/{judge}/{policy}.{benchmark}.sqlite")

    def said(self, policy: str, benchmark: str) -> str:
        """Every answer of a policy behind an endpoint, kept in the same way."""
        return self._store(str(Path(self.answers(policy, benchmark)).with_suffix(".sqlite")))

    def opinions(self, policy: str, part: str | int, oracle: str, shard: str | int) -> str:
        """Every answer of the judges that an oracle asks, kept in the same way."""
        return self._store(str(Path(self.scores(policy, part, oracle, shard)).with_suffix(".judge.sqlite")))

    def heldout_opinions(self, policy: str) -> str:
        """Every answer of the judges that evaluation asks about held-out responses, kept in the same way."""
        return self._store(str(Path(self.evaluation(policy, HELDOUT)).with_suffix(".judge.sqlite")))

    def _store(self, file: str) -> str:
        """`file`, or what is called so beneath `stores`."""
        return file if self.config.stores is None else str(Path(self.config.stores).expanduser() / file)

    def evaluation(self, policy: str, benchmark: str) -> str:
        """A policy's result on a benchmark (`judged` names one with its judge); per-item rows lie beside it."""
        return f"{self.root}/evals/{policy}/{benchmark}.json"

    def evaluation_items(self, policy: str, benchmark: str) -> str:
        """Its per-item rows."""
        return f"{self.root}/evals/{policy}/{benchmark}.parquet"

    def opposing(self, policy: str, over_reference: Iterable[str]) -> list[str]:
        """The reference's responses to held-out prompts, where oracles compare a policy's with them."""
        return [self.evaluation_items(REFERENCE, HELDOUT)] if policy != REFERENCE and [*over_reference] else []

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

    @property
    def shards(self) -> int:
        """Jobs that a part's prompts are spread over."""
        sampling, prompts = self.config.sampling, self.config.prompts.a_part
        return sampling.shards if prompts is None else max(1, min(sampling.shards, prompts // sampling.prompts_a_job))

    def sample_shards(self, policy: str, part: str | int) -> list[str]:
        """All shards of a policy's samples on a part."""
        return [self.samples(policy, part, s) for s in range(self.shards)]

    def own_samples(self, policy: str, part: str | int) -> list[str]:
        """The samples in pairs that the data prefer: a policy's; none where both sides came with the prompts."""
        return [] if policy == DATASET else self.sample_shards(policy, part)

    def score_shards(self, policy: str, part: str | int, oracle: str) -> list[str]:
        """All shards of an oracle's scores of them."""
        return [self.scores(policy, part, oracle, s) for s in range(self.shards)]

    def reused_logprobs(self, policy: str, part: str | int, text: str, scorer: str) -> list[str]:
        """What the sampler said of its own responses, where that stands for log-probabilities under `scorer`."""
        if scorer != policy or not self.config.sampling.reuse_logprobs or text.endswith(UNCAPPED):
            return []
        return [self.sampler_logps(policy, part, s) for s in range(self.shards)]

    def against(self, part: str | int, oracle: str, shard: str | int) -> list[str]:
        """The samples that scores of `oracle` compare with; nothing where they compare with none."""
        _, _, policy = oracle.partition(AGAINST)
        return [self.samples(policy, part, shard)] if policy else []

    def game(self, policy: str) -> str:
        """Who beats whom among those who oppose a policy's training, and their weights in the equilibrium."""
        return f"{self.root}/games/{policy}.json"

    def fit_game(self, fit: Fit) -> list[str]:
        """That file, where a fit reads one."""
        return [self.game(fit.policy)] if fit.games else []

    def game_scores(self, fit: Fit) -> list[str]:
        """What it is made of: game by game, part by part, how often the first's responses beat the second's."""
        return [
            file
            for first, second in fit.games
            for part in fit.parts
            for file in self.score_shards(first, part, f"{fit.decides}{AGAINST}{second}")
        ]

    def fit_pairs(self, fit: Fit) -> list[str]:
        """The pair files of a fit."""
        return [self.pairs(fit.sampler, part, fit.oracle) for part in fit.parts]

    def fit_logps(self, fit: Fit) -> list[str]:
        """The log-probability files of a fit: scorer by scorer, part by part."""
        text = fit.protocol.reading()
        return [self.logps(fit.sampler, p, fit.oracle, text, s) for s in fit.scorers for p in fit.parts]

    def made_of(self, model: str) -> dict[str, Any]:
        """What of a model's entry its readers need: not what the plan alone reads."""
        spec = self.config.models[model]
        if spec.architecture is not None:
            return spec.model_dump(include={"architecture", "vocab_size"})
        return {"path": self.source("models", model)}
