"""The typed configuration: one class per block of config.yaml, one clear message for whatever is wrong.

Nothing here imports torch: a configuration is read and refused in well under a second.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mnpo.errors import BadInput

REFERENCE = "sft"  # the policy that every run starts from


class ConfigError(BadInput):
    """A configuration that cannot be run; the message names file, key, value and remedy."""


def _number(value: Any) -> Any:
    """Accept ``1/3`` beside ``0.3333``: YAML reads it as a string (method ledger, point 5)."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*/\s*\d+\s*", value) and int(value.split("/")[1]):
        return float(Fraction(value.replace(" ", "")))
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
AnyBlock = TypeVar("AnyBlock", bound=BaseModel)
Value = TypeVar("Value")
# A mapping whose order matters: also given as pairs, which keep their order in canonical JSON.
Ordered = Annotated[dict[str, Value], BeforeValidator(dict)]


class Block(BaseModel):
    """A block of the configuration: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


# ----------------------------------------------------------------------------------------------------- data and models


class Prompts(Block):
    """Where prompts come from and how they are cut into the parts that the iterations train on."""

    source: Literal["demo", "file", "hub"] = "demo"
    """`demo`: the tiny world of mnpo/demo; `file`: local JSONL or Parquet; `hub`: a data set of the hub."""
    path: str | None = None
    """For `file`: the JSONL or Parquet file. For `hub`: the data set's id."""
    revision: str | None = None
    """For `hub`: the commit to read."""
    split: str = "train"
    """For `hub`: the split to read."""
    column: str = "prompt"
    """The column that holds the prompt's text."""
    seed: int = 42
    """`file` and `hub`: seed of the shuffle before the cut. The demo's world follows the configuration's seed."""
    parts: int = Field(3, ge=1)
    """How many disjoint train parts (T)."""
    part_size: int | None = Field(None, ge=1)
    """Prompts per part; None cuts all there are evenly (`file` and `hub` only)."""
    heldout: int = Field(ge=1)
    """Prompts kept for evaluation; none of them is ever trained on."""
    demonstrations: int = Field(0, ge=0)
    """For `demo`: rows of SFT data."""

    @model_validator(mode="after")
    def _complete(self) -> Prompts:
        if self.source == "demo" and self.part_size is None:
            raise ValueError("source demo needs part_size: the demo's world makes as many prompts as it is told")
        if self.source != "demo" and not self.path:
            raise ValueError(f"source {self.source} needs path")
        return self


class Model(Block):
    """A language or reward model: made from nothing, a directory, or a pinned hub repository."""

    hub: str | None = None
    """Hub repository id."""
    revision: str | None = None
    """Hub commit."""
    path: str | None = None
    """A local directory that transformers can load."""
    architecture: dict[str, Any] | None = None
    """Random weights of this Gemma-2 architecture, with a tokenizer trained on the demonstrations (the demo)."""
    vocab_size: int = Field(512, ge=300)
    """Tokens of that tokenizer, at most."""

    @model_validator(mode="after")
    def _one_origin(self) -> Model:
        given = [k for k in ("hub", "path", "architecture") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of hub, path, architecture (got {', '.join(given) or 'none'})")
        return self


class Text(Block):
    """Lengths in tokens, and what happens at them."""

    max_length: int = Field(2048, ge=8)
    """Prompt and response together."""
    max_prompt_length: int = Field(1800, ge=4)
    """The rendered prompt."""
    overflow: Literal["truncate", "error"] = "truncate"
    """A longer prompt: cut its text from the left, and count it, or stop."""

    @model_validator(mode="after")
    def _room(self) -> Text:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(f"max_prompt_length {self.max_prompt_length} leaves no room in {self.max_length}")
        return self


class Oracle(Block):
    """Whoever prefers one response to another."""

    kind: Literal["rule", "weighted", "majority", "reward-model"]
    """`rule`: ground truth of the demo's world; `weighted`: a sum of other oracles' scores;
    `majority`: pairwise majority vote of others; `reward-model`: a sequence classifier."""
    rule: Literal["correctness", "brevity", "courtesy"] | None = None
    weights: dict[Name, Number] | None = None
    """For `weighted`: oracle -> weight."""
    of: list[Name] | None = None
    """For `majority`: the voters."""
    model: Name | None = None
    """For `reward-model`: an entry of `models`."""

    @model_validator(mode="after")
    def _its_field(self) -> Oracle:
        needed = {"rule": "rule", "weighted": "weights", "majority": "of", "reward-model": "model"}
        for kind, field in needed.items():
            if (kind == self.kind) != (getattr(self, field) is not None):
                verb = "needs" if kind == self.kind else "does not read"
                raise ValueError(f"kind {self.kind} {verb} {field}")
        return self

    def members(self) -> list[str]:
        """The oracles that this one is made of."""
        return [*(self.weights or {}), *(self.of or [])]


# ------------------------------------------------------------------------------------------------------------- stages


class Optimisation(Block):
    """How weights are moved: AdamW, one learning-rate cycle, batches of whole rows."""

    learning_rate: Positive = 5e-7
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Share = 0.1
    """Share of the steps in which the learning rate rises from zero."""
    batch_size: int = Field(128, ge=1)
    """Rows (demonstrations, or pairs) of one optimiser step."""
    micro_batch_tokens: int = Field(16384, ge=1)
    """Padded tokens of one forward pass; gradients accumulate over the batch."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    clip: Positive = 1.0
    """Largest gradient norm."""
    dtype: Literal["float32", "bfloat16"] = "float32"


class SFT(Optimisation):
    """Supervised fine-tuning of the base model on the demonstrations."""

    steps: int = Field(ge=1)


class Training(Optimisation):
    """Preference optimisation of one iteration."""

    epochs: int = Field(1, ge=1)


class Reference(Block):
    """The SFT policy every run starts from: `model`, fine-tuned on the demonstrations when `sft` is given."""

    model: Name
    sft: SFT | None = None


class Decoding(Block):
    """How a response is drawn."""

    temperature: float = Field(0.8, ge=0)
    """0 is greedy."""
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(4096, ge=1)


class Sampling(Decoding):
    """Responses that preferences are taken over."""

    sampler: Literal["transformers"] = "transformers"
    responses: int = Field(5, ge=2)
    """K, responses per prompt."""
    batch_size: int = Field(64, ge=1)
    """Sequences decoded together."""
    shards: int = Field(1, ge=1)
    """Jobs that one part's prompts are spread over."""


class Pairing(Block):
    """How scored responses become pairs."""

    min_gap: float = Field(0.0, ge=0)
    """A pair whose scores differ by no more than this is a tie: skipped and counted."""


class Objective(Block):
    """A member of the family in mnpo/objectives.py, by name, and the settings it leaves open."""

    name: Literal[
        "simpo", "cpo", "dpo", "distill-dpo", "ipo", "dno-prct", "sppo", "inpo", "onpo", "egpo",
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
    """lambda of the opponents, newest first; scaled to one over those that exist. None: equal."""
    players: list[Name] | None = None
    """ht-mnpo: the runs whose current policies oppose; eo-mnpo: the models that do."""

    def member_settings(self) -> dict[str, Any]:
        """What of it `family.member` takes: all that does not say who opposes."""
        return self.model_dump(exclude={"history", "weights", "players"})


class TextForm(Block):
    """How a scored text becomes tokens."""

    render: Literal["chat", "raw"] = "chat"
    bos: bool = True

    def tag(self) -> str:
        """Its name in file names."""
        return self.render if self.bos else f"{self.render}-nobos"


class Protocol(Block):
    """Where the paper's formulas and its public code part ways; the presets are two values of it."""

    length_normalised: bool = False
    """Log-probabilities are means over response tokens instead of sums (ledger, point 2)."""
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

    parts: list[int] = Field(min_length=1)
    objective: dict[str, Any] = {}
    """Replaces keys of the run's objective in this iteration."""
    training: dict[str, Any] = {}
    """Replaces keys of the run's training in this iteration."""


class Run(Block):
    """A row of the tables: an objective, an oracle, and the iterations that apply them."""

    label: str | None = None
    """How tables and figures call it."""
    objective: Objective
    oracle: Name
    iterations: list[Iteration] = Field(min_length=1)
    training: dict[str, Any] = {}
    """Replaces keys of the common `training` block."""
    preset: Literal["paper", "official-code"] = "paper"


class Evaluation(Block):
    """Held-out evaluation by the oracles."""

    oracle: Name
    """Decides wins."""
    scores: list[Name] = []
    """Oracles whose mean score is reported."""
    accuracy: Name | None = None
    """An oracle whose score 1 means exactly right: its share is the accuracy."""
    majority: Name | None = None
    """An oracle of kind majority, whose Condorcet cycles are counted."""
    responses: int = Field(4, ge=1)
    """Sampled responses per held-out prompt."""
    bootstrap: int = Field(1000, ge=100)
    """Resamples of the held-out prompts behind every interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)


class Tables(Block):
    """What the printed tables show."""

    win_against: list[str] = [REFERENCE]
    """Policies that every policy is compared with in the main table."""


class Config(Block):
    """A whole configuration."""

    name: Name
    """Results are written below results/{name}/."""
    seed: int = 0
    """Every seed derives from this one and the name of what it seeds."""
    prompts: Prompts
    models: dict[Name, Model]
    text: Text = Text()
    reference: Reference
    oracles: dict[Name, Oracle]
    sampling: Sampling = Sampling()
    pairing: Pairing = Pairing()
    training: Training = Training()
    runs: dict[Name, Run]
    evaluation: Evaluation
    tables: Tables = Tables()

    @field_validator("runs")
    @classmethod
    def _reserved(cls, runs: dict[str, Run]) -> dict[str, Run]:
        if REFERENCE in runs:
            raise ValueError(f"a run cannot be called {REFERENCE}: that is the reference's name")
        return runs

    @model_validator(mode="after")
    def _references_exist(self) -> Config:
        known_oracles, known_models = list(self.oracles), list(self.models)
        _known("reference.model", self.reference.model, known_models, "model")
        for name, oracle in self.oracles.items():
            for member in oracle.members():
                _known(f"oracles.{name}", member, known_oracles, "oracle")
            if oracle.model is not None:
                _known(f"oracles.{name}.model", oracle.model, known_models, "model")
        _acyclic({name: oracle.members() for name, oracle in self.oracles.items()})
        for name, run in self.runs.items():
            _known(f"runs.{name}.oracle", run.oracle, known_oracles, "oracle")
            for t, iteration in enumerate(run.iterations, 1):
                for part in iteration.parts:
                    if not 1 <= part <= self.prompts.parts:
                        raise ValueError(
                            f"runs.{name}.iterations[{t}].parts: no part {part}; prompts.parts is {self.prompts.parts}"
                        )
        e = self.evaluation
        for oracle_name in (e.oracle, *e.scores, e.accuracy, e.majority):
            if oracle_name is not None:
                _known("evaluation", oracle_name, known_oracles, "oracle")
        for oracle_name in filter(None, (e.oracle, *e.scores, e.accuracy)):
            parts = _closure(oracle_name, self.oracles)
            if voting := [m for m in parts if self.oracles[m].kind == "majority"]:
                raise ValueError(
                    f"evaluation: {oracle_name} rests on the majority vote {voting[0]}: its score compares a policy's "
                    "responses with each other, not with those of another; name an oracle that scores"
                )
        if e.majority and self.oracles[e.majority].kind != "majority":
            raise ValueError(f"evaluation.majority: {e.majority} is not an oracle of kind majority")
        return self


def _known(where: str, name: str, known: list[str], noun: str) -> None:
    if name not in known:
        raise ValueError(f"{where}: unknown {noun} {name!r}{nearest(name, known)}")


def _closure(name: str, oracles: Mapping[str, Oracle]) -> list[str]:
    """An oracle and all that it is made of."""
    return [name, *(inner for member in oracles[name].members() for inner in _closure(member, oracles))]


def _acyclic(edges: Mapping[str, list[str]]) -> None:
    def visit(node: str, path: tuple[str, ...]) -> None:
        if node in path:
            raise ValueError(f"oracles: a cycle, {' -> '.join((*path[path.index(node) :], node))}")
        for following in edges[node]:
            visit(following, (*path, node))

    for node in edges:
        visit(node, ())


# ------------------------------------------------------------------------------------------------------------ reading


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the nearest known one, else all of them."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, which plain YAML lets the last one win silently."""


def _unique_mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
        if key in seen:
            raise ConfigError(
                f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}: key {key!r} given twice"
            )
        seen.add(key)
    return loader.construct_mapping(node)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
# YAML 1.1 reads 5e-7 as a string; every reader of a learning rate expects a number.
_UniqueKeys.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError naming file and line."""
    try:
        with open(path, encoding="utf-8") as stream:
            loader = _UniqueKeys(stream)
            content = loader.get_single_data()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name a configuration that exists") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of blocks, found {type(content).__name__}")
    return content


def _extended(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in `path`, on top of what it `extends`: a block's keys are replaced one by one, but `runs`,
    `oracles` and `models` are replaced whole, so that an overlay's runs are its own and not added to the paper's."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    content = read_yaml(path)
    base_name = content.pop("extends", None)
    if base_name is None:
        return content
    if not isinstance(base_name, str):
        raise ConfigError(f"{path}: extends: expected the name of one file (got {json.dumps(base_name, default=str)})")
    base = _extended(path.parent / base_name, (*seen, path.resolve()))
    return overlay(base, content)


WHOLE = ("runs", "oracles", "models")


def overlay(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` on top: see `extends` in docs/configuration.md."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both and key not in WHOLE else value
    return merged


def load(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration in `path`, with `extends` resolved and `changes` (a command line's) on top.

    Raises:
        ConfigError: one message per mistake, each with the path of the key, the value and the nearest valid name.
    """
    path = Path(path)
    content = overlay(_extended(path), changes or {})
    return validated(Config, content, str(path))


def validated(block: type[AnyBlock], content: Any, where: str) -> AnyBlock:
    """`content` as a `block`. Raises ConfigError, a line per mistake."""
    try:
        return block.model_validate(content)
    except ValidationError as error:
        lines = [_explained(block, e) for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explained(block: type[BaseModel], error: ErrorDetails) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        return f"{path}: unknown key{nearest(str(key), _fields(block, parents))}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{path}: required, and missing"
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {json.dumps(error['input'], default=str)})"


def _fields(block: type[BaseModel], parents: Iterable[Any]) -> list[str]:
    """The keys that the block at `parents` knows."""
    current: Any = block
    for step in parents:
        if isinstance(current, type) and issubclass(current, BaseModel) and step in current.model_fields:
            current = current.model_fields[step].annotation
        else:  # a key of a mapping or an index of a list: go to what it holds
            current = get_args(current)[-1]
        while get_origin(current) not in (None, dict, list) and get_args(current):
            current = get_args(current)[0]  # Optional[X], Annotated[X, ...]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def schema() -> str:
    """The JSON schema of a configuration, for editors; configs/schema.json is this text."""
    content = Config.model_json_schema()
    content["properties"]["extends"] = {
        "type": "string",
        "description": "Another configuration that this one replaces keys of.",
    }
    content["required"] = ["name"]
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
