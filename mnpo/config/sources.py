"""Blocks `prompts`, `models`, `datasets`: where data and models come from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mnpo.config.blocks import Block, Name, Positive
from mnpo.config.oracles import Judge, ReasoningEffort, TokenField, is_reasoning


class Prompts(Block):
    """Where prompts come from and how they are cut into the parts that the iterations train on."""

    source: Literal["demo", "file", "dataset", "none"] = "demo"
    """`demo`: the tiny world of mnpo/demo; `file`: local JSONL or Parquet; `dataset`: an entry of `datasets`; `none`:
    there are no prompts, and benchmarks of models are all there is."""
    path: str | None = None
    """For `file`: the JSONL or Parquet file."""
    dataset: Name | None = None
    """For `dataset`: which."""
    split: str = "train"
    """For `dataset`: the split to read."""
    heldout_split: str | None = None
    """For `dataset`: the split that held-out prompts come from; None keeps them aside from `split`."""
    column: str = "prompt"
    """The column that holds the prompt: a text, or a list of messages. Rows without a `prompt` are read by the columns
    `messages`, `conversations` or `instruction` (docs/data.md)."""
    further: list[str] | None = None
    """Further columns of the rows, which oracles get beside the prompt: an answer, constraints."""
    responses: str | None = None
    """The column with the rows' own responses, a list of texts, for iterations with `samples: dataset`. None: these
    learn from the rows' own `chosen` and `rejected` (docs/data.md)."""
    scores: list[str] | None = Field(None, min_length=2, max_length=2)
    """The columns with the scores of the rows' own `chosen` and `rejected`, for objectives that read scores."""
    seed: int = 42
    """`file` and `dataset`: seed of the shuffle before the cut. The demo's world follows the configuration's seed."""
    parts: int = Field(3, ge=1, le=1000)
    """How many disjoint train parts (T)."""
    part_size: int | None = Field(None, ge=1)
    """Prompts per part; None cuts all there are evenly (`file` and `dataset` only)."""
    heldout: int = Field(0, ge=0)
    """Prompts kept for evaluation, at least one; none of them is ever trained on."""
    demonstrations: int = Field(0, ge=0)
    """For `demo`: rows of SFT data."""
    expected: int | None = Field(None, ge=1)
    """About how many train prompts there are, for the plan (where part_size does not say it)."""

    @property
    def a_part(self) -> int | None:
        """Prompts of a part, as far as the configuration knows."""
        return self.part_size or (self.expected and self.expected // self.parts)

    @model_validator(mode="after")
    def _complete(self) -> Prompts:
        if self.source != "none" and self.heldout < 1:
            raise ValueError("heldout: how many prompts are kept for evaluation? At least 1")
        if self.source == "demo" and self.part_size is None:
            raise ValueError("source demo needs part_size: the demo's world makes as many prompts as it is told")
        for source, field in {"file": "path", "dataset": "dataset"}.items():
            if (source == self.source) != (getattr(self, field) is not None):
                verb = "needs" if source == self.source else "does not read"
                raise ValueError(f"source {self.source} {verb} {field}")
        return self


class Source(Block):
    """Where files come from: a pinned hub or GitHub repository, or a directory."""

    hub: str | None = None
    """Hub repository id."""
    github: str | None = None
    """GitHub repository, owner/name."""
    revision: str = "main"
    """Branch, tag or commit of it. What is not a commit needs config.lock.yaml (`mnpo pin`)."""
    files: list[str] | None = None
    """Patterns of the files to fetch; None fetches all."""
    gated: bool = False
    """Whether the hub asks for a token (HF_TOKEN in the environment)."""
    mirror: str | None = None
    """A local directory with the same files, used instead of the repository."""
    path: str | None = None
    """A local directory that is nobody's mirror."""
    gigabytes: Positive | None = None
    """Its size on disk, for the plan."""

    def origins(self) -> list[str]:
        """The keys that say where it comes from; exactly one is to be given."""
        return ["hub", "github", "path"]

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        given = [k for k in self.origins() if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(self.origins())} (got {', '.join(given) or 'none'})")
        if self.mirror is not None and given[0] not in ("hub", "github"):
            raise ValueError(f"mirror stands in for hub or github, and this source is a {given[0]}")
        return self

    @property
    def downloaded(self) -> bool:
        """Whether a rule fetches it."""
        return self.mirror is None and (self.hub or self.github) is not None

    @property
    def pinned(self) -> bool:
        """Whether its revision is a commit."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None


class Dataset(Source):
    """Prompts, questions or answers."""

    demo: Literal[True] | None = None
    """The small version of the data set with this name that the demo makes (mnpo/demo/benchmarks.py)."""

    def origins(self) -> list[str]:
        """The demo makes its own."""
        return [*super().origins(), "demo"]


Miniature = Literal["gemma-2", "armorm", "skywork", "athene"]
"""A published model whose architecture and files a small one of random weights has (mnpo/demo/miniatures.py)."""
Strip = Literal["think", "none"]
"""What is taken off a model's replies."""
ASKED = ("reasoning_effort", "temperature", "max_tokens", "token_field", "timeout")
"""Keys of a model that say how its endpoint is asked."""


class Model(Source):
    """A language or reward model: pinned files, a directory, random weights, or an endpoint."""

    architecture: dict[str, Any] | None = None
    """Random weights of this Gemma-2 architecture, with a tokenizer trained on the demonstrations (the demo)."""
    vocab_size: int = Field(512, ge=300)
    """Tokens of that tokenizer, at most."""
    miniature: Miniature | None = None
    """A small model of random weights in the files of a published one: for a rehearsal (configs/rehearsal.yaml)."""
    strip: Strip | None = None
    """What is taken off its replies before judges, oracles and benchmarks see them: `think`, all of
    `<think>...</think>`; `none`, nothing. None: `think`, where its chat template mentions these tags, or, behind an
    endpoint, where a reply begins with one. Policies that are trained from the model follow it."""
    api: str | None = None
    """A model behind an OpenAI-compatible endpoint: it can answer benchmarks and be judged, and nothing else."""
    endpoint: str = "https://api.openai.com/v1"
    """Of `api`."""
    key: str = "OPENAI_API_KEY"
    """Of `api`: the NAME of the environment variable that holds the key."""
    reasoning_effort: ReasoningEffort | None = None
    """Of `api`. A model that reasons is left to itself, as judges are: sent no temperature, and no limit but its own
    `max_tokens`."""
    temperature: Annotated[float, Field(ge=0)] | Literal["endpoint"] | None = None
    """Of `api`: in the place of the benchmark's. `endpoint` sends none (some models refuse it)."""
    max_tokens: int | None = Field(None, ge=1)
    """Of `api`: in the place of the benchmark's limit; reasoning counts."""
    token_field: TokenField | None = None
    """Of `api`: as for judges."""
    timeout: Positive | None = None
    """Of `api`: seconds that one request may take; None: as for judges."""
    parameters: Positive | None = None
    """Billions, for the plan."""
    label: str | None = None
    """How tables call it, when it is evaluated for itself."""

    def origins(self) -> list[str]:
        """A model can also be made from nothing, or be somebody else's."""
        return [*super().origins(), "architecture", "miniature", "api"]

    @model_validator(mode="after")
    def _asked(self) -> Model:
        if self.api is None and (given := [key for key in ASKED if getattr(self, key) is not None]):
            raise ValueError(f"{given[0]} is for a model behind an endpoint (api)")
        return self

    def as_judge(self) -> Judge:
        """A model behind an endpoint, as our client asks it."""
        assert self.api is not None
        how = {key: getattr(self, key) for key in ("reasoning_effort", "token_field", "timeout")}
        given = {key: value for key, value in how.items() if value is not None}
        return Judge(model=self.api, endpoint=self.endpoint, key=self.key, **given)

    def decoding(self, temperature: float, max_tokens: int) -> dict[str, float | int]:
        """What a request says for a benchmark's decoding; what it leaves out is left to the endpoint."""
        left = is_reasoning(self.reasoning_effort)
        usual: dict[str, float | int] = {} if left else {"temperature": temperature, "max_tokens": max_tokens}
        if self.temperature is not None:
            usual.pop("temperature", None)
        if isinstance(self.temperature, float):
            usual["temperature"] = self.temperature
        if self.max_tokens is not None:
            usual["max_tokens"] = self.max_tokens
        return usual


def directories(models: Iterable[Model]) -> list[Path]:
    """Where the files of a stage's models are; models without files have none."""
    return [Path(model.path) for model in models if model.path is not None]
