"""A whole configuration: all blocks, and whether what they name exists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mnpo.config.blocks import DATASET, REFERENCE, Block, Name, nearest
from mnpo.config.constraints import ID_COLUMN, KWARGS_COLUMN
from mnpo.config.evaluation import DECIDED, Evaluation, Exploitability, Tables
from mnpo.config.oracles import Judge, Oracle, comparing
from mnpo.config.resources import Resources
from mnpo.config.runs import Run
from mnpo.config.sampling import Pairing, Sampling
from mnpo.config.sources import Dataset, Model, Prompts
from mnpo.config.text import Text
from mnpo.config.training import Reference, Training


class Config(Block):
    """A whole configuration."""

    name: Name
    """Results are written below results/{name}/."""
    seed: int = 0
    """Every seed derives from this one and the name of what it seeds."""
    seeds: int = Field(1, ge=1, le=100)
    """Replicas of every run: the first is called {run}.{t}, the others {run}.s{n}.{t}; all share the reference."""
    cache: str = "~/.cache/mnpo"
    """Where downloads go; shared by configurations."""
    stores: str | None = None
    """A directory for the answers of judges and of models behind endpoints (SQLite files, which need a file system that
    locks files); beneath it they are called as they are without it. None: beside the results."""
    floating: bool = False
    """Whether sources may be fetched that are pinned neither here nor in config.lock.yaml."""
    checkpoints: Literal["keep", "temporary"] = "keep"
    """`temporary`: a policy that is in no table is deleted when the last job that reads it is done."""
    prompts: Prompts = Prompts(source="none")
    models: dict[Name, Model]
    datasets: dict[Name, Dataset] = {}
    judges: dict[Name, Judge] = {}
    text: Text = Text()
    reference: Reference
    oracles: dict[Name, Oracle] = {}
    sampling: Sampling = Sampling()
    pairing: Pairing = Pairing()
    training: Training = Training()
    runs: dict[Name, Run] = {}
    evaluation: Evaluation = Evaluation()
    tables: Tables = Tables()
    exploitability: Exploitability | None = None
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _nothing_but_benchmarks(cls, content: Any) -> Any:
        """Without runs nothing begins with a reference: the first model that is evaluated stands for it."""
        if not isinstance(content, dict) or content.get("runs") or "reference" in content:
            return content
        evaluation = content.get("evaluation")
        models = evaluation.get("models") if isinstance(evaluation, dict) else None
        return {**content, "reference": {"model": models[0]}} if isinstance(models, list) and models else content

    @field_validator("runs", "models", "oracles")
    @classmethod
    def _reserved(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for taken in {REFERENCE, DATASET} & set(entries):
            raise ValueError(f"nothing here can be called {taken}: that is the name of a policy or of the data set")
        return entries

    @model_validator(mode="after")
    def _references_exist(self) -> Config:
        known_oracles, known_models = list(self.oracles), list(self.models)
        _known("reference.model", self.reference.model, known_models, "model")
        if self.text.template is not None and self.models[self.reference.model].architecture is not None:
            raise ValueError(
                f"text.template: {self.reference.model} is made with a chat template of its own; leave this out"
            )
        for name, oracle in self.oracles.items():
            for member in oracle.members():
                _known(f"oracles.{name}", member, known_oracles, "oracle")
            if oracle.model is not None:
                _known(f"oracles.{name}.model", oracle.model, known_models, "model")
        _acyclic({name: oracle.members() for name, oracle in self.oracles.items()})
        sampled = self.exploitability is not None or any(
            iteration.samples == "policy" for run in self.runs.values() for iteration in run.iterations
        )
        if self.sampling.temperature == 0 and sampled:
            raise ValueError(
                f"sampling.temperature: 0 is greedy, so a prompt's {self.sampling.responses} responses would all be "
                "one, and none preferred to another; give one above 0"
            )
        if self.sampling.prompts_a_job > 1 and self.prompts.a_part is None:
            raise ValueError("sampling.prompts_a_job needs prompts.part_size, or prompts.expected")
        if self.prompts.dataset is not None:
            _known("prompts.dataset", self.prompts.dataset, list(self.datasets), "dataset")
        self._require_demonstrations()
        for name, run in self.runs.items():
            if run.oracle is not None:
                _known(f"runs.{name}.oracle", run.oracle, known_oracles, "oracle")
            for t, iteration in enumerate(run.iterations, 1):
                for part in iteration.parts:
                    if not 1 <= part <= self.prompts.parts:
                        raise ValueError(
                            f"runs.{name}.iterations[{t}].parts: no part {part}; prompts.parts is {self.prompts.parts}"
                        )
            for part in (part for parts in (self.exploitability and self.exploitability.parts) or [] for part in parts):
                if not 1 <= part <= self.prompts.parts:
                    raise ValueError(f"exploitability.parts: no part {part}; prompts.parts is {self.prompts.parts}")
        if self.exploitability is not None and self.exploitability.oracle is not None:
            _known("exploitability.oracle", self.exploitability.oracle, known_oracles, "oracle")
        e = self.evaluation
        for benchmark in e.benchmarks:
            _known("evaluation.benchmarks: datasets", benchmark, list(self.datasets), "dataset")
        for judge in e.judges:
            _known("evaluation.judges", judge, list(self.judges), "judge")
        if (judged := [b for b in e.benchmarks if e.judged(b)]) and not e.judges:
            raise ValueError(f"evaluation.judges: {', '.join(judged)} need a judge, and none is named")
        for model in e.models:
            _known("evaluation.models", model, known_models, "model")
        for oracle_name in e.asked:
            _known("evaluation", oracle_name, known_oracles, "oracle")
        if e.accuracy and (compares := comparing(self.oracles, e.accuracy)):
            raise ValueError(
                f"evaluation.accuracy: {e.accuracy} rests on {compares}, which compares responses and calls none "
                "right; name an oracle that scores"
            )
        if e.majority and self.oracles[e.majority].kind != "majority":
            raise ValueError(f"evaluation.majority: {e.majority} is not an oracle of kind majority")
        if e.oracle is None and (needing := [t for t in self.tables.targets if t in DECIDED]):
            raise ValueError(
                f"evaluation.oracle: required by tables.targets ({', '.join(needing)}); name who decides wins on "
                "held-out prompts, or leave these out and ask for `policies` instead"
            )
        return self

    def _require_demonstrations(self) -> None:
        sft = self.reference.sft
        if sft is None:
            return
        if sft.data is None and self.prompts.source != "demo":
            raise ValueError(
                f"reference.sft: prompts.source {self.prompts.source} has no demonstrations to learn from; "
                "say where they are by reference.sft.data (a file, or an entry of datasets)"
            )
        if sft.data is not None and sft.data.dataset is not None:
            _known("reference.sft.data.dataset", sft.data.dataset, list(self.datasets), "dataset")
        if not (sft.data and sft.data.heldout) and (sft.keep == "best" or sft.evaluate_every):
            key = "keep: best" if sft.keep == "best" else "evaluate_every"
            raise ValueError(f"reference.sft: {key} needs a held-out loss; set reference.sft.data.heldout")
        if sft.keep == "best" and not sft.evaluate_every:
            raise ValueError("reference.sft: keep: best needs evaluate_every, the steps from one loss to the next")

    @model_validator(mode="after")
    def _prompts_are_there(self) -> Config:
        targets = [target for target in self.tables.targets if target in (*DECIDED, "exploitability")]
        needing = [*(f"runs.{name}" for name in self.runs), *(f"tables.targets: {target}" for target in targets)]
        if self.prompts.source == "none" and needing:
            raise ValueError(f"prompts: required, and missing; {needing[0]} needs them")
        return self

    @model_validator(mode="after")
    def _oracles_know_the_prompts(self) -> Config:
        """What an oracle needs beside the prompt is there: the demo's truth, or the columns of constraints."""
        e, source = self.evaluation, self.prompts.source
        exploited = self.exploitability.oracle if self.exploitability else None
        asked = [*e.asked, exploited]
        for name in self.with_members(filter(None, [*(run.oracle for run in self.runs.values()), *asked])):
            oracle = self.oracles[name]
            if oracle.kind == "rule" and source != "demo":
                raise ValueError(
                    f"oracles.{name}: a rule judges prompts of the demo's world by what they were made of, and "
                    f"prompts.source is {source}; use an oracle of another kind, such as function"
                )
            if oracle.kind == "constraints" and oracle.constraints is None:
                for column in (ID_COLUMN, KWARGS_COLUMN):
                    if column not in (self.prompts.further or []) or source == "demo":
                        raise ValueError(
                            f"oracles.{name}: without `constraints`, each row has its own in the columns {ID_COLUMN} "
                            f"and {KWARGS_COLUMN}; name both in prompts.further (source file or dataset)"
                        )
        return self

    def is_used_in_place(self, policy: str) -> bool:
        """Whether a policy is a model that nothing has to be done to: its files are used where they are."""
        return policy in self.models and self.models[policy].architecture is None

    def with_members(self, names: Iterable[str]) -> list[str]:
        """Oracles, and all that they are made of, each once."""
        needed = dict.fromkeys(names)
        for name in list(needed):
            needed |= dict.fromkeys(self.with_members(self.oracles[name].members()))
        return list(needed)


def _known(where: str, name: str, known: Sequence[str], noun: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: unknown {noun} {name!r}{nearest(name, known)}")


def _acyclic(edges: Mapping[str, list[str]]) -> None:
    def visit(node: str, path: tuple[str, ...]) -> None:
        if node in path:
            raise ValueError(f"oracles: a cycle, {' -> '.join((*path[path.index(node) :], node))}")
        for following in edges[node]:
            visit(following, (*path, node))

    for node in edges:
        visit(node, ())
