"""The typed configuration: one class per block of config.yaml, one clear message for whatever is wrong.

Nothing here imports torch: a configuration is read and refused in well under a second.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from mnpo.errors import BadInput

REFERENCE = "sft"  # the policy that every run starts from
DEMO = "demo"  # the endpoint of a judge that the stage starts itself
DATASET = "dataset"  # whose responses came with the prompts


class ConfigError(BadInput):
    """A configuration that cannot be run; the message names file, key, value and remedy."""


def _number(value: Any) -> Any:
    """Accept ``1/3`` beside ``0.3333``: YAML reads it as a string (docs/ledger.md, point 5)."""
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

    source: Literal["demo", "file", "dataset"] = "demo"
    """`demo`: the tiny world of mnpo/demo; `file`: local JSONL or Parquet; `dataset`: an entry of `datasets`."""
    path: str | None = None
    """For `file`: the JSONL or Parquet file."""
    dataset: Name | None = None
    """For `dataset`: which."""
    split: str = "train"
    """For `dataset`: the split to read."""
    heldout_split: str | None = None
    """For `dataset`: the split that held-out prompts come from; None keeps them aside from `split`."""
    column: str = "prompt"
    """The column that holds the prompt's text."""
    responses: str | None = None
    """The column with the rows' own responses, a list of texts, for iterations with `samples: dataset`."""
    seed: int = 42
    """`file` and `dataset`: seed of the shuffle before the cut. The demo's world follows the configuration's seed."""
    parts: int = Field(3, ge=1)
    """How many disjoint train parts (T)."""
    part_size: int | None = Field(None, ge=1)
    """Prompts per part; None cuts all there are evenly (`file` and `dataset` only)."""
    heldout: int = Field(ge=1)
    """Prompts kept for evaluation; none of them is ever trained on."""
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
    """The small version of the benchmark with this name that the demo makes (mnpo/demo/benchmarks.py)."""

    def origins(self) -> list[str]:
        """The demo makes its own."""
        return [*super().origins(), "demo"]


class Model(Source):
    """A language or reward model: pinned files, a directory, random weights, or an endpoint."""

    architecture: dict[str, Any] | None = None
    """Random weights of this Gemma-2 architecture, with a tokenizer trained on the demonstrations (the demo)."""
    vocab_size: int = Field(512, ge=300)
    """Tokens of that tokenizer, at most."""
    api: str | None = None
    """A model behind an OpenAI-compatible endpoint: it can answer benchmarks and be judged, and nothing else."""
    endpoint: str = "https://api.openai.com/v1"
    """Of `api`."""
    key: str = "OPENAI_API_KEY"
    """Of `api`: the NAME of the environment variable that holds the key."""
    parameters: Positive | None = None
    """Billions, for the plan."""
    label: str | None = None
    """How tables call it, when it is evaluated for itself."""

    def origins(self) -> list[str]:
        """A model can also be made from nothing, or be somebody else's."""
        return [*super().origins(), "architecture", "api"]


class Judge(Block):
    """A model behind an OpenAI-compatible endpoint that judges answers."""

    model: str
    label: str | None = None
    """How the paper's Table 7 calls it."""
    endpoint: str = "https://api.openai.com/v1"
    """`demo`: the demo's own judge, which the stage starts on this machine."""
    key: str = "OPENAI_API_KEY"
    """The NAME of the environment variable that holds the key."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = None
    temperature: float | None = Field(None, ge=0)
    """None leaves it to the endpoint (reasoning models refuse it)."""
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    concurrency: int = Field(8, ge=1)
    """Requests in flight at most."""
    retries: int = Field(6, ge=0)
    """Further tries after 429, 5xx and time-outs, with growing jittered waits."""
    timeout: Positive = 120.0
    """Seconds that one request may take."""
    reasks: int = Field(2, ge=0)
    """Times that an unparsable verdict is asked again before it counts as missing."""
    price_input: float = Field(0.0, ge=0)
    """US dollars per million input tokens."""
    price_output: float = Field(0.0, ge=0)
    """US dollars per million output tokens."""
    max_calls: int | None = Field(None, ge=1)
    """Paid calls of one job, at most."""
    max_cost: Positive | None = None
    """US dollars of one job, at most."""


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


COMPARING = (
    "majority",
    "pair-model",
    "judge",
    "annotator",
)  # oracles whose scores are wins among one policy's responses


class Oracle(Block):
    """Whoever prefers one response to another."""

    kind: Literal["rule", "weighted", "majority", "annotator", "reward-model", "pair-model", "judge"]
    """`rule`: ground truth of the demo's world; `weighted`: a sum of other oracles' scores;
    `majority`: pairwise majority vote of others; `annotator`: one of several others for each prompt;
    `reward-model`: a sequence classifier, ArmoRM or Athene; `pair-model`: a language model that compares two responses;
    `judge`: a language model behind an endpoint that does."""
    rule: Literal["correctness", "brevity", "courtesy"] | None = None
    weights: dict[Name, Number] | None = None
    """For `weighted`: oracle -> weight."""
    of: list[Name] | None = Field(None, min_length=1)
    """For `majority`: the voters; for `annotator`: those of whom one judges, drawn by the prompt's id."""
    model: Name | None = None
    """For `reward-model` and `pair-model`: an entry of `models`."""
    judge: Judge | None = None
    """For `judge`: who, with the keys of an entry of `judges`."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """For `reward-model` and `pair-model`: of its backbone; None is float32."""
    comparisons: int | None = Field(None, ge=1)
    """For `pair-model` and `judge`: of a prompt's pairs of responses, how many are compared; None: all."""
    temperature: Positive | None = None
    """For those that score: P(a > b) = logistic((score of a - score of b) / temperature), the Bradley-Terry model that
    SPPO reads; None: the higher score wins for certain."""

    @model_validator(mode="after")
    def _its_fields(self) -> Oracle:
        needed = {
            "rule": "rule",
            "weighted": "weights",
            "majority": "of",
            "annotator": "of",
            "reward-model": "model",
            "pair-model": "model",
            "judge": "judge",
        }
        optional = {
            "rule": ["temperature"],
            "weighted": ["temperature"],
            "reward-model": ["dtype", "temperature"],
            "pair-model": ["dtype", "comparisons"],
            "judge": ["comparisons"],
        }
        if getattr(self, needed[self.kind]) is None:
            raise ValueError(f"kind {self.kind} needs {needed[self.kind]}")
        known = {"kind", needed[self.kind], *optional.get(self.kind, [])}
        for field in type(self).model_fields:
            if field not in known and getattr(self, field) is not None:
                raise ValueError(f"kind {self.kind} does not read {field}")
        return self

    def members(self) -> list[str]:
        """The oracles that this one is made of."""
        return [*(self.weights or {}), *(self.of or [])]


# ------------------------------------------------------------------------------------------------------------- stages


class Lora(Block):
    """Low-rank adapters on all linear layers but the head; the policy is saved with them merged in."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


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
    """Of products; weights, their optimiser and the loss stay float32."""
    parallel: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    """How several processes share a training (docs/training.md); one process needs none of them."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    lora: Lora | None = None
    """Train adapters and leave the weights alone; None trains all weights."""


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

    sampler: Literal["transformers", "vllm"] = "transformers"
    responses: int = Field(5, ge=2)
    """K, responses per prompt."""
    truncated: Literal["keep", "drop"] = "keep"
    """Responses cut at max_new_tokens: `keep` them, marked and counted, or `drop` and count them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that the sampler computes with."""
    batch_size: int = Field(64, ge=1)
    """Sequences decoded together."""
    shards: int = Field(1, ge=1)
    """Jobs that one part's prompts are spread over, each with an engine of its own (data parallelism)."""
    prompts_a_job: int = Field(1, ge=1)
    """At least so many, in fewer jobs than `shards` if need be: an engine's start has to be worth it."""
    tensor_parallel: int = Field(1, ge=1)
    """For `vllm`: GPUs that share one engine. Shards scale better, for a model that fits one GPU."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """For `vllm`: its share of each GPU's memory."""
    logprobs: bool = False
    """Whether the sampler's log-probabilities are compared with training's, for the manifest's `mismatch`."""
    mismatch_warning: Positive = 0.05
    """Mean absolute difference, in nats per token, above which the comparison warns."""
    reuse_logprobs: bool = False
    """Whether the stage `logps` takes the sampler's log-probabilities (of `logprobs`) for those of the policy that drew
    the responses, where training reads the very same tokens. A shard above `mismatch_warning` is computed anyway."""

    @model_validator(mode="after")
    def _has_what_it_reuses(self) -> Sampling:
        if self.reuse_logprobs and not self.logprobs:
            raise ValueError("reuse_logprobs needs logprobs: true, which keeps them and compares them with training's")
        return self


class Pairing(Block):
    """How scored responses become pairs."""

    form: Literal["best-worst", "all", "each"] = "best-worst"
    """`best-worst`: one pair a prompt, as in the paper; `all`: every two of its responses; `each`: the best against the
    worst, the second against the second worst, and so on, so that a loss of single responses (SPPO) sees each text once
    (of an odd number the middle one is left out, and counted)."""
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

    parts: list[int] = Field(min_length=1)
    samples: Literal["policy", "dataset"] = "policy"
    """Whose responses become pairs: the current policy's, or those that came with the prompts (prompts.responses)."""
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
    measured: Literal["all", "heldout", "last"] = "all"
    """`all`: every iteration on held-out prompts, the last also on the public benchmarks; `heldout`: without these;
    `last`: the last iteration alone, on held-out prompts."""


Benchmark = Literal[
    "alpaca-eval", "arena-hard", "mt-bench",
    "ifeval", "gpqa", "mmlu", "arc", "hellaswag", "truthfulqa", "winogrande",
    "gsm8k", "minerva", "aime24", "humaneval",
]  # fmt: skip
EvaluationProtocol = Literal["harness", "evalscope"]
"""Whose prompts and scores: those of a benchmark's own package, or of EvalScope, the paper's harness."""
JUDGED: dict[EvaluationProtocol, tuple[Benchmark, ...]] = {
    "harness": ("alpaca-eval", "arena-hard", "mt-bench"),
    "evalscope": ("alpaca-eval", "arena-hard", "minerva"),
}
"""By a judge, of answers."""


class BenchmarkSettings(Block):
    """What of a benchmark's card (mnpo/benchmarks/cards.py) is changed; every change is named in its results."""

    shots: int | None = Field(None, ge=0)
    limit: int | None = Field(None, ge=1)
    """The first so many items only."""
    max_new_tokens: int | None = Field(None, ge=1)


class Evaluation(Block):
    """How policies are measured: on public benchmarks, and on held-out prompts by the oracles."""

    benchmarks: list[Benchmark] = []
    """Which of the fourteen; each reads the entry of `datasets` with its name."""
    settings: dict[Benchmark, BenchmarkSettings] = {}
    protocol: EvaluationProtocol | dict[Benchmark, EvaluationProtocol] = "harness"
    """`harness`: a benchmark's own package (lm-eval, alpaca_eval, ...). `evalscope`: the paper's harness, for all but
    MT-Bench, which it does not have. Or one for each benchmark, `harness` where none is given."""
    judges: list[Name] = []
    """Who judges AlpacaEval 2, Arena-Hard, MT-Bench and EvalScope's Minerva-Math, entries of the block `judges`. Tables
    2 to 6 show the first."""
    repeats: int = Field(1, ge=1)
    """Judgements of the same answers."""
    models: list[Name] = []
    """Models to evaluate beside the runs' policies: entries of `models` with hub, path or api."""
    backend: Literal["transformers", "vllm"] = "transformers"
    """Who runs a policy for them; held-out prompts are answered by transformers."""
    batch_size: int = Field(16, ge=1)
    """Sequences that a benchmark feeds the policy together."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_length: int | None = Field(None, ge=16)
    """Tokens of prompt and answer together; None: what the policy can."""

    oracle: Name
    """Decides wins on held-out prompts."""
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

    @field_validator("protocol")
    @classmethod
    def _has_it(cls, protocol: Any) -> Any:
        if isinstance(protocol, dict) and protocol.get("mt-bench") == "evalscope":
            raise ValueError("EvalScope has no mt-bench; leave it out, and it runs as FastChat's")
        return protocol

    def protocol_of(self, benchmark: str) -> EvaluationProtocol:
        """Whose prompts and scores a benchmark has."""
        if benchmark == "mt-bench":
            return "harness"
        if isinstance(self.protocol, str):
            return self.protocol
        return {str(name): protocol for name, protocol in self.protocol.items()}.get(benchmark, "harness")

    def judged(self, benchmark: str) -> bool:
        """Whether a benchmark asks a judge."""
        return benchmark in JUDGED[self.protocol_of(benchmark)]

    def of(self, benchmark: str) -> BenchmarkSettings:
        """What of a benchmark's card is changed."""
        return {str(name): settings for name, settings in self.settings.items()}.get(benchmark, BenchmarkSettings())


Table = Literal["table2", "table3", "table4", "table5", "table6", "table7", "table8"]
Target = Literal[
    Table, "heldout", "players", "exploitability", "preferences", "benchmarks", "figures", "costs", "theory"
]


class Tables(Block):
    """What is printed."""

    targets: list[Target] = ["heldout", "preferences", "figures", "costs", "theory"]
    """What `snakemake` makes when no target is named."""
    rows: dict[Table, Annotated[dict[str, str], BeforeValidator(lambda rows: rows or {})]] = {}
    """The paper's row -> the run (its last policy), the reference or the model that is to be compared with it. `null`
    drops the rows of a table that an extended configuration has."""
    win_against: list[str] = [REFERENCE]
    """Policies that every policy is compared with in the main held-out table."""


class Exploitability(Block):
    """Best responses, each trained against one fixed policy for a stated budget: `snakemake exploitability`."""

    policies: list[str] | None = Field(None, min_length=1)
    """Whose exploitability; None: the last policy of every run."""
    oracle: Name | None = None
    """Who decides; None: whom the policy was trained for."""
    parts: list[list[int]] | None = Field(None, min_length=1)
    """The budget: train parts of each iteration of a best response. None: an iteration on every part."""
    rate: Positive = 5.0
    """How far an iteration goes: `pi' ∝ pi * exp(rate * P(y > policy))`."""
    training: dict[str, Any] = {}
    """Replaces keys of the common `training` block."""


class Needs(Block):
    """What one job of a stage asks for."""

    gpus: int = Field(0, ge=0)
    """Altogether; the cluster file says how many a node has."""
    cpus: int = Field(1, ge=1)
    """On each node."""
    memory_gb: Positive = 2
    """On each node; half as much again at a further try."""
    hours: Positive = 1
    """As much again at a further try."""


Stage = Literal["prompts", "sft", "sample", "score", "pair", "logps", "train", "answer", "judge", "harness", "assess",
                "tabulate"]  # fmt: skip


class Resources(Block):
    """What jobs ask the cluster for, and what the plan prices."""

    gpu: str = "h100"
    """The plan's GPU type, one of mnpo/costs.py."""
    gpus: int = Field(8, ge=1)
    """GPUs that run at once, for the plan's wall-clock."""
    cpus: int | None = Field(None, ge=1)
    """Cores that run at once, for the plan's wall-clock; None: whatever jobs ask for."""
    prompt_tokens: int = Field(190, ge=1)
    """The plan's estimate of a prompt's mean length."""
    response_tokens: int = Field(400, ge=1)
    """The plan's estimate of a response's mean length."""
    stages: dict[Stage, Needs] = {}

    def of(self, stage: str) -> Needs:
        """What a job of `stage` asks for; EvalScope's, what lm-eval's do."""
        return self.stages.get("harness" if stage == "evalscope" else stage, Needs())  # type: ignore[call-overload, no-any-return]


class Config(Block):
    """A whole configuration."""

    name: Name
    """Results are written below results/{name}/."""
    seed: int = 0
    """Every seed derives from this one and the name of what it seeds."""
    seeds: int = Field(1, ge=1)
    """Replicas of every run: the first is called {run}.{t}, the others {run}.s{n}.{t}; all share the reference."""
    cache: str = "~/.cache/mnpo"
    """Where downloads go; shared by configurations."""
    floating: bool = False
    """Whether sources may be fetched that are pinned neither here nor in config.lock.yaml."""
    checkpoints: Literal["keep", "temporary"] = "keep"
    """`temporary`: a policy that is in no table is deleted when the last job that reads it is done."""
    prompts: Prompts
    models: dict[Name, Model]
    datasets: dict[Name, Dataset] = {}
    judges: dict[Name, Judge] = {}
    text: Text = Text()
    reference: Reference
    oracles: dict[Name, Oracle]
    sampling: Sampling = Sampling()
    pairing: Pairing = Pairing()
    training: Training = Training()
    runs: dict[Name, Run]
    evaluation: Evaluation
    tables: Tables = Tables()
    exploitability: Exploitability | None = None
    resources: Resources = Resources()

    @field_validator("runs", "models")
    @classmethod
    def _reserved(cls, entries: dict[str, Any]) -> dict[str, Any]:
        for taken in {REFERENCE, DATASET} & set(entries):
            raise ValueError(f"nothing here can be called {taken}: that is the name of a policy")
        return entries

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
        if self.sampling.prompts_a_job > 1 and self.prompts.a_part is None:
            raise ValueError("sampling.prompts_a_job needs prompts.part_size, or prompts.expected")
        if self.prompts.dataset is not None:
            _known("prompts.dataset", self.prompts.dataset, list(self.datasets), "dataset")
        for name, run in self.runs.items():
            _known(f"runs.{name}.oracle", run.oracle, known_oracles, "oracle")
            for t, iteration in enumerate(run.iterations, 1):
                if iteration.samples == "dataset" and self.prompts.responses is None:
                    raise ValueError(f"runs.{name}.iterations[{t}].samples: dataset needs prompts.responses")
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
        for oracle_name in (e.oracle, *e.scores, e.accuracy, e.majority):
            if oracle_name is not None:
                _known("evaluation", oracle_name, known_oracles, "oracle")
        for oracle_name in filter(None, (e.oracle, *e.scores, e.accuracy)):
            parts = self.with_members([oracle_name])
            if comparing := [m for m in parts if self.oracles[m].kind in COMPARING]:
                raise ValueError(
                    f"evaluation: {oracle_name} rests on {comparing[0]}, which compares a policy's responses with each "
                    "other, not with those of another; name an oracle that scores"
                )
        if e.majority and self.oracles[e.majority].kind != "majority":
            raise ValueError(f"evaluation.majority: {e.majority} is not an oracle of kind majority")
        if e.majority and (asking := [m for m in self.with_members([e.majority]) if self.oracles[m].kind == "judge"]):
            raise ValueError(
                f"evaluation.majority: {e.majority} asks the judge {asking[0]}, whose answers have no place in the "
                "held-out evaluation; name voters that need none"
            )
        return self

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
    """The mapping in `path`, on top of what it `extends`: a block's keys are replaced one by one, but `runs` and the
    like (WHOLE) are replaced whole, so that an overlay's runs are its own; `add` says which come beside the base's."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: extends itself")
    content = read_yaml(path)
    base_name = content.pop("extends", None)
    if base_name is None:
        return content
    if not isinstance(base_name, str):
        raise ConfigError(f"{path}: extends: expected the name of one file (got {json.dumps(base_name, default=str)})")
    base = _extended(path.parent / base_name, (*seen, path.resolve()))
    added = content.pop("add", {})
    return _with_added(overlay(base, content), added, path)


WHOLE = ("runs", "oracles", "models", "datasets", "judges")


def _with_added(base: dict[str, Any], added: Any, path: Path) -> dict[str, Any]:
    """`base` with further runs, oracles, models, datasets and judges beside its own."""
    if not isinstance(added, Mapping):
        raise ConfigError(f"{path}: add: expected blocks such as runs (got {json.dumps(added, default=str)})")
    for block, entries in added.items():
        if block not in WHOLE or not isinstance(entries, Mapping):
            raise ConfigError(f"{path}: add.{block}: not entries of one of {', '.join(WHOLE)}")
        if twice := set(entries) & set(base.get(block, {})):
            raise ConfigError(
                f"{path}: add.{block}.{min(twice)}: the configuration it extends has one; change its name"
            )
        base = base | {block: {**base.get(block, {}), **entries}}
    return base


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
    content["properties"]["add"] = {
        "type": "object",
        "description": "Entries beside those of the configuration that this one extends.",
        "properties": {block: content["properties"][block] for block in WHOLE},
        "additionalProperties": False,
    }
    content["required"] = ["name"]
    return json.dumps(content, indent=1, sort_keys=True) + "\n"
