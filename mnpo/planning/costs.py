"""What a piece of work costs: tokens, seconds, disk and judge calls, from parameters and tokens (docs/costs.md).

Pure but for `measured`, which reads manifests. Bytes, seconds, FLOP/s and US dollars; M and G are powers of ten.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

from mnpo.benchmarks.cards import CARDS
from mnpo.config.blocks import REFERENCE, ConfigError, nearest
from mnpo.config.configuration import Config
from mnpo.config.oracles import Judge
from mnpo.config.sources import Model
from mnpo.planning.files import HELDOUT
from mnpo.planning.fits import AGAINST
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work
from mnpo.storage.artifacts import Spent, manifest, manifest_path

# ------------------------------------------------------------------------------------------------------------ devices


@dataclass(frozen=True)
class Device:
    """A GPU type, by its vendor's data sheet."""

    flops: float
    """Peak of dense bfloat16 matrix products, FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""
    called: str
    """Part of the name by which the driver knows it."""


CPU = "cpu"
DEVICES = {
    "h100": Device(989e12, 3.35e12, 80e9, "H100"),
    "h200": Device(989e12, 4.8e12, 141e9, "H200"),
    "a100-80gb": Device(312e12, 2.039e12, 80e9, "A100"),
    "l40s": Device(362e12, 0.864e12, 48e9, "L40S"),
    CPU: Device(0.2e12, 0.02e12, 16e9, CPU),  # an assumption: two cores
}


def device(plan: Plan, stage: str) -> str:
    """What a stage's jobs compute on. Raises ConfigError for a GPU type that is not in DEVICES."""
    gpu = plan.config.resources.gpu
    if gpu not in DEVICES:
        raise ConfigError(f"resources.gpu: unknown GPU type {gpu!r}{nearest(gpu, DEVICES)}")
    return gpu if plan.config.resources.of(stage).gpus else CPU


def _known_as(name: str) -> str | None:
    """The entry of DEVICES that a manifest's device is."""
    return next((key for key, d in DEVICES.items() if d.called in name), None)


# -------------------------------------------------------------------------------------------------------- assumptions

READ_EFFICIENCY = 0.35
"""Share of the peak that reading texts reaches: scoring, log-probabilities, prompts."""
TRAIN_EFFICIENCY = 0.25
"""Share of the peak that training reaches, recomputation counted as work."""
WRITE_EFFICIENCY = 0.25
"""Share of the memory's bandwidth that writing token by token reaches, with nothing but the weights counted."""
OCCUPANCY = 0.5
"""Mean share of a batch that is still writing: a batch ends with its longest response."""
READ_FLOPS = 2
"""Per parameter and token: a forward pass."""
TRAIN_FLOPS = 6
"""Per parameter and token: a forward pass and a backward pass. With gradient checkpointing READ_FLOPS more."""
WEIGHT_BYTES = 2
"""Per parameter, where it computes (bfloat16)."""
SAVED_BYTES = 4
"""Per parameter of a policy on disk: float32, as it is trained (mnpo/models/checkpoints.py)."""
CHECKPOINT_BYTES = 12
"""Per parameter of a training's own checkpoint: weights and two moments of AdamW in float32 (storage/resume.py)."""
TRAIN_BYTES = 16
"""Per parameter in the GPUs' memory while training, activations left out: weights, gradients, moments in float32."""
START = {"gpu": 20.0, "cpu": 8.0, "small": 2.0}
"""Seconds until a job begins, with a model on a GPU, with one on a CPU, or with none: Python and its libraries."""
LOADING = 1e9
"""Bytes/s at which weights come from disk."""
DOWNLOADING = 50e6
"""Bytes/s."""
SMALL_JOB = 30.0
"""Seconds of a job without a model."""
LATENCY = 10.0
"""Seconds of one call."""
CONCURRENCY = 8
"""Calls of a policy behind an endpoint at once."""
TOKEN_BYTES = 4.5
"""Text of one token."""
ROW_BYTES = 100
"""Of a row without text: ids and numbers."""
CHOICE_TOKENS = 120
"""Of a reply to a multiple choice, where it is read from one (EvalScope): a letter, or steps before it."""
DEMO_ITEMS = 14
"""Of a benchmark's small version, at most (mnpo/demo/benchmarks.py)."""
DATASET_BYTES = 0.1e9
"""Of a data set whose configuration does not say `gigabytes`."""


@dataclass(frozen=True)
class Judging:
    """How a benchmark asks its judge."""

    calls: int
    """Per item."""
    frame: int
    """Tokens of a call around question and answers: system prompt, template, reference answer."""
    answers: float
    """Answers shown in a call, the baseline's included."""
    output: int
    """Tokens of a verdict."""


GAME = Judging(calls=2, frame=150, answers=2, output=150)
"""How an oracle asks of two responses (mnpo/oracles/judges.py): in both orders, for a few sentences and a verdict."""
JUDGING = {
    "alpaca-eval": Judging(calls=1, frame=300, answers=2, output=16),
    "arena-hard": Judging(calls=2, frame=450, answers=2, output=700),
    "mt-bench": Judging(calls=2, frame=400, answers=1.5, output=200),
    "minerva": Judging(calls=1, frame=150, answers=2, output=1),  # EvalScope's; the reference solution is an answer
}

# ---------------------------------------------------------------------------------------------------- what is computed


@dataclass(frozen=True)
class Pass:
    """A model reads, writes or learns tokens."""

    kind: Literal["read", "write", "train"]
    parameters: float
    tokens: float
    batch: int = 1
    """Texts written together."""
    counted: bool = True
    """Whether a manifest's `tokens` are these."""
    again: bool = False
    """Whether the forward pass of a training is computed again (gradient checkpointing)."""


def parameters(model: Model) -> float:
    """Of an entry of `models`; 0 for one behind an endpoint. Raises ConfigError when the entry does not say."""
    if model.api is not None:
        return 0.0
    if model.architecture is not None:
        return _gemma2(model.architecture, model.vocab_size)
    if model.parameters is None:
        where = model.hub or model.github or model.path
        raise ConfigError(f"models: {where}: the plan needs its `parameters`, in billions")
    return model.parameters * 1e9


def _gemma2(architecture: dict[str, Any], vocabulary: int) -> float:
    """Parameters of a Gemma-2 with tied embeddings; what is not given is as in gemma-2-2b."""
    usual = {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256,
    }  # fmt: skip
    hidden, inner, layers, heads, shared, width = (architecture.get(key, value) for key, value in usual.items())
    attention = 2 * hidden * heads * width + 2 * hidden * shared * width
    return float(vocabulary * hidden + layers * (attention + 3 * hidden * inner + 4 * hidden) + hidden)


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a response to it."""

    prompt: float
    response: float


class Quantities:
    """Prompts, responses and tokens of a configuration; its texts' lengths by `resources`, where none are known."""

    def __init__(self, plan: Plan, known: Lengths | None = None) -> None:
        c = plan.config
        if c.prompts.a_part is None:
            raise ConfigError("prompts: the plan needs part_size, or expected (about how many train prompts there are)")
        self.plan = plan
        self.part = c.prompts.a_part
        self.train = self.part * c.prompts.parts
        self.heldout = c.prompts.heldout
        self.k = c.sampling.responses
        lengths = known or Lengths(c.resources.prompt_tokens, c.resources.response_tokens)
        self.prompt = min(lengths.prompt, c.text.max_prompt_length)
        self.response = min(lengths.response, c.text.max_length - self.prompt)
        self.sampled = min(lengths.response, c.sampling.max_new_tokens)
        self.text = self.prompt + self.response
        self.pair = self.prompt + 2 * self.response
        """Tokens that reading a pair computes: its prompt once."""
        self.pairs = {"best-worst": 1, "all": self.k * (self.k - 1) // 2, "each": self.k // 2}[c.pairing.form]
        """Of a prompt, when none is tied."""

    def size(self, model: str) -> float:
        """Parameters of an entry of `models`."""
        return parameters(self.plan.config.models[model])

    def prompts(self, work: Work) -> int:
        """Prompts of a part, or of the held-out ones."""
        return self.heldout if work.part == HELDOUT else self.part

    def items(self, benchmark: str) -> int:
        """Items of a benchmark that are asked."""
        limit = self.plan.config.evaluation.of(benchmark).limit
        card, by_evalscope = CARDS[benchmark], self.plan.config.evaluation.protocol_of(benchmark) == "evalscope"
        there = (by_evalscope and card.evalscope_items) or card.items
        if self.plan.config.datasets[benchmark].demo:
            there = DEMO_ITEMS
        return min(limit or there, there)

    def asked(self, benchmark: str) -> int:
        """Tokens of one prompt."""
        return min(CARDS[benchmark].prompt_tokens, self.plan.config.evaluation.max_length or sys.maxsize)

    def generated(self, benchmark: str) -> int:
        """Tokens of one reply."""
        e = self.plan.config.evaluation
        limits = (e.of(benchmark).max_new_tokens, e.max_length and e.max_length // 2)
        return min([CARDS[benchmark].generated_tokens, *filter(None, limits)])

    def requests(self, benchmark: str) -> int:
        """Times that a policy reads an item, all items together."""
        return self.items(benchmark) * CARDS[benchmark].requests


def passes(q: Quantities, work: Work) -> list[Pass]:
    """What models do for a piece of work; nothing, when it needs none."""
    make = PASSES.get(work.stage)
    return make(q, work) if make is not None and all(q.size(m) for m in work.models) else []


def _sft(q: Quantities, work: Work) -> list[Pass]:
    sft = q.plan.config.reference.sft
    if sft is None or work.policy != REFERENCE:
        return []
    return [
        Pass("train", q.size(work.models[0]), sft.steps * sft.batch_size * q.text, again=sft.gradient_checkpointing)
    ]


def _sample(q: Quantities, work: Work) -> list[Pass]:
    n, drawn, batch = q.size(work.models[0]), q.prompts(work) * q.k, q.plan.config.sampling.batch_size
    return [
        Pass("read", n, q.prompts(work) * q.prompt, counted=False),
        Pass("write", n, drawn * q.sampled, batch),
    ]


def _score(q: Quantities, work: Work) -> list[Pass]:
    """Reward models read a prompt once for all of its responses, pair models two responses at a time."""
    steps = []
    for oracle, share in judged(q.plan.config, work.oracle or "").items():
        spec = q.plan.config.oracles[oracle]
        if spec.model is not None:
            alone = q.prompt + _responses(q, work) * q.response
            tokens = alone if spec.kind == "reward-model" else _games(q, work, spec.comparisons) * q.pair
            steps.append(Pass("read", q.size(spec.model), share * q.prompts(work) * tokens))
    return steps


def judged(config: Config, oracle: str, share: float = 1.0) -> dict[str, float]:
    """An oracle and all that it is made of -> of how many of the prompts each judges the responses."""
    spec = config.oracles[oracle.partition(AGAINST)[0]]
    each = share / len(spec.members()) if spec.kind == "annotator" else share
    found = {oracle.partition(AGAINST)[0]: share}
    for member in spec.members():
        for name, part in judged(config, member, each).items():
            found[name] = max(part, found.get(name, 0.0))  # what several are made of answers once
    return found


def _responses(q: Quantities, work: Work) -> int:
    """To a prompt, those that they are compared with included."""
    return q.k * (2 if AGAINST in (work.oracle or "") else 1)


def _games(q: Quantities, work: Work, comparisons: int | None) -> int:
    """Of a prompt, between two responses, in both orders."""
    pairs = math.comb(_responses(q, work), 2)
    return GAME.calls * min(comparisons or pairs, pairs)


def _logps(q: Quantities, work: Work) -> list[Pass]:
    if not work.models:
        return []  # the sampler's own
    return [Pass("read", q.size(work.models[0]), q.part * q.pairs * q.pair)]


def _train(q: Quantities, work: Work) -> list[Pass]:
    fit = q.plan.policies.fits[work.policy or ""]
    tokens = q.part * len(fit.parts) * fit.training.epochs * q.pairs * q.pair
    return [Pass("train", q.size(work.models[0]), tokens, again=fit.training.gradient_checkpointing)]


def _assess(q: Quantities, work: Work) -> list[Pass]:
    """A greedy response, sampled ones and one for the divergence; their scores by every oracle; the divergence."""
    policy, *oracles = work.models
    drawn, n = 1 + q.plan.config.evaluation.responses, q.size(policy)
    return [
        Pass("read", n, q.heldout * (3 * q.prompt + 2 * q.text), counted=False),
        Pass("write", n, q.heldout * (drawn + 1) * q.sampled, q.plan.config.sampling.batch_size),
        *(
            Pass("read", q.size(oracle), q.heldout * (2 * q.prompt + drawn * q.response), counted=False)
            for oracle in oracles
        ),
    ]


def _answer(q: Quantities, work: Work) -> list[Pass]:
    return _asked(q, work, [work.benchmark or ""], reading_counts=False)


def _harness(q: Quantities, work: Work) -> list[Pass]:
    return _asked(q, work, q.plan.measurements.harness, reading_counts=True)


def _evalscope(q: Quantities, work: Work) -> list[Pass]:
    """Every item is asked once and replied to, choices too."""
    n, batch = q.size(work.models[0]), q.plan.config.evaluation.batch_size
    read = sum(q.items(b) * q.asked(b) for b in q.plan.measurements.evalscope)
    written = sum(q.items(b) * (q.generated(b) or CHOICE_TOKENS) for b in q.plan.measurements.evalscope)
    return [Pass("read", n, read, counted=False), Pass("write", n, written, batch)]


def _asked(q: Quantities, work: Work, benchmarks: Iterable[str], reading_counts: bool) -> list[Pass]:
    n, batch = q.size(work.models[0]), q.plan.config.evaluation.batch_size
    read = {b: q.requests(b) * q.asked(b) for b in benchmarks}
    written = {b: q.requests(b) * q.generated(b) for b in read}
    return [
        Pass("read", n, sum(read.values()), counted=reading_counts),
        *(Pass("write", n, tokens, batch) for tokens in [sum(written.values())] if tokens),
    ]


PASSES: dict[str, Callable[[Quantities, Work], list[Pass]]] = {
    "sft": _sft,
    "sample": _sample,
    "score": _score,
    "logps": _logps,
    "train": _train,
    "assess": _assess,
    "answer": _answer,
    "harness": _harness,
    "evalscope": _evalscope,
}


def seconds(step: Pass, on: Device, gpus: int = 1) -> float:
    """How long a pass takes by default, on `gpus` GPUs that share it evenly."""
    n = step.parameters
    if step.kind == "train":
        rate = on.flops * TRAIN_EFFICIENCY / ((TRAIN_FLOPS + READ_FLOPS * step.again) * n)
    elif step.kind == "read":
        rate = on.flops * READ_EFFICIENCY / (READ_FLOPS * n)
    else:
        weights = WEIGHT_BYTES * n / (on.bandwidth * WRITE_EFFICIENCY)
        products = READ_FLOPS * n * step.batch / (on.flops * READ_EFFICIENCY)
        rate = step.batch * OCCUPANCY / max(weights, products)
    return step.tokens / (rate * gpus)


# ---------------------------------------------------------------------------------------------------------- calls, disk


@dataclass(frozen=True)
class Calls:
    """What is asked of a judge, or of a policy behind an endpoint."""

    count: int = 0
    input_tokens: float = 0
    output_tokens: float = 0
    price: float = 0
    """US dollars."""

    @staticmethod
    def sum(some: Iterable[Calls]) -> Calls:
        """All together."""
        of = list(some)
        return Calls(
            sum(c.count for c in of),
            sum(c.input_tokens for c in of),
            sum(c.output_tokens for c in of),
            sum(c.price for c in of),
        )


def calls(q: Quantities, work: Work) -> Calls:
    """Of a piece of work. Reasoning tokens and questions asked again are not in it."""
    return Calls.sum(asked for asked, _ in _conversations(q, work))


def _conversations(q: Quantities, work: Work) -> list[tuple[Calls, int]]:
    """What a piece of work asks of each endpoint, and how many calls are made at once."""
    c, benchmark = q.plan.config, work.benchmark or ""
    if work.stage == "answer" and work.policy in c.models and c.models[work.policy].api is not None:
        asked = q.requests(benchmark)
        return [(Calls(asked, asked * q.asked(benchmark), asked * q.generated(benchmark)), CONCURRENCY)]
    if work.stage == "judge":
        how, judge = JUDGING[benchmark], c.judges[work.judge or ""]
        tokens = q.asked(benchmark) + how.answers * q.generated(benchmark)
        return [(_judging(how, judge, q.items(benchmark) * how.calls, tokens), judge.concurrency)]
    if work.stage == "score" and work.judge:
        tokens = q.prompt + GAME.answers * q.response
        return [
            (_judging(GAME, spec.judge, round(share * q.prompts(work) * games), tokens), spec.judge.concurrency)
            for name, share in judged(c, work.judge).items()
            if (spec := c.oracles[name]).judge is not None
            for games in [_games(q, work, spec.comparisons)]
        ]
    return []


def _judging(how: Judging, judge: Judge, count: int, tokens: float) -> Calls:
    """`count` calls that show `tokens` each."""
    read = count * (how.frame + tokens)
    written = count * float(min(how.output, judge.max_tokens or how.output))
    return Calls(count, read, written, (read * judge.price_input + written * judge.price_output) / 1e6)


def kept_bytes(q: Quantities, work: Work) -> float:
    """Disk that a piece of work's outputs take."""
    prompt, response = q.prompt * TOKEN_BYTES, q.response * TOKEN_BYTES
    sampled, row = q.prompts(work) * q.k, ROW_BYTES
    match work.stage:
        case "download":
            return max(_downloaded(q, name) for name in work.what.split())
        case "sft" if not _sft(q, work) and q.plan.config.models[work.models[0]].architecture is None:
            return 0.0  # links to the model's files
        case "sft" | "train":
            return SAVED_BYTES * q.size(work.models[0])
        case "prompts":
            own = q.k * response if q.plan.config.prompts.responses is not None else 0.0
            return (q.train + q.heldout) * prompt + q.train * own
        case "sample" | "reuse":
            return sampled * (prompt + response + row)
        case "score":
            asked = calls(q, work)
            return sampled * row + (asked.input_tokens + asked.output_tokens) * TOKEN_BYTES
        case "pair":
            return q.part * q.pairs * (prompt + 2 * response + row)
        case "logps":
            return float(q.part * q.pairs * row)
        case "answer":
            return q.requests(work.benchmark or "") * (q.generated(work.benchmark or "") * TOKEN_BYTES + row)
        case "assess":
            drawn = q.heldout * (1 + q.plan.config.evaluation.responses)
            return drawn * (prompt + response) + drawn * len(q.plan.oracles.of_evaluation) * row
        case "harness":
            return sum(q.requests(b) * (q.generated(b) * TOKEN_BYTES + row) for b in q.plan.measurements.harness)
        case "evalscope":
            return sum(q.items(b) * (q.generated(b) * TOKEN_BYTES + row) for b in q.plan.measurements.evalscope)
        case "judge":
            asked = calls(q, work)
            return (asked.input_tokens + asked.output_tokens) * TOKEN_BYTES
    return 0.0


def _downloaded(q: Quantities, name: str) -> float:
    c = q.plan.config
    if name in c.models:
        model = c.models[name]
        return model.gigabytes * 1e9 if model.gigabytes else WEIGHT_BYTES * parameters(model)
    stated = c.datasets[name].gigabytes
    return stated * 1e9 if stated else DATASET_BYTES


def passing_bytes(q: Quantities, work: Work) -> float:
    """Disk that a job takes beside its output while it runs: a training's checkpoint, and the next being written."""
    learns = any(step.kind == "train" for step in passes(q, work))
    return 2 * CHECKPOINT_BYTES * q.size(work.models[0]) if learns else 0.0


# --------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Rate:
    """What finished jobs of a stage on a device say."""

    value: float
    """Parameters x tokens a second and GPU; of jobs without a model: seconds a job."""
    jobs: int


@dataclass(frozen=True)
class Measured:
    """What manifests of finished jobs say."""

    rates: dict[tuple[str, str], Rate] = field(default_factory=dict)
    """(stage, device) -> parameters x tokens a second and GPU."""
    durations: dict[tuple[str, str], Rate] = field(default_factory=dict)
    """(stage, device) -> seconds a job, where nothing says how many tokens."""
    loading: dict[tuple[str, str], float] = field(default_factory=dict)
    """(stage, device) -> seconds of a job, of those that have a rate, in which libraries and weights are loaded."""
    tokens: dict[str, float] = field(default_factory=dict)
    """stage -> measured tokens per estimated one."""
    lengths: Lengths | None = None
    """Of what was sampled."""


def measured(plan: Plan, pieces: Iterable[Work]) -> Measured:
    """What those of `pieces` that are done say: the median over jobs of every (stage, device)."""
    pieces = list(pieces)
    q = Quantities(plan, lengths := _lengths(pieces))
    rates, durations, loading, tokens = (defaultdict(list) for _ in range(4))
    for work in pieces:
        steps = [step for step in passes(q, work) if step.counted]
        planned = sum(step.tokens for step in steps) / work.jobs
        units = sum(step.parameters * step.tokens for step in steps) / work.jobs
        for facts in _finished(work):
            key = work.stage, _known_as(str(facts.get("device", CPU))) or ""
            if steps and facts.get("tokens"):
                per_token = facts.get("parameters", units / planned)
                gpus = facts.get("gpus", max(1, plan.config.resources.of(work.needs).gpus))
                spent = Spent.of(facts)
                loading[key].append(spent.loading)
                rates[key].append(per_token * facts["tokens"] / (spent.seconds - spent.loading) / gpus)
                tokens[work.stage].append(facts["tokens"] / planned)
            elif not work.judge:  # whose verdicts may have come from its store
                durations[key].append(facts["seconds"])
    return Measured(
        {key: Rate(median(values), len(values)) for key, values in rates.items()},
        {key: Rate(median(values), len(values)) for key, values in durations.items()},
        {key: median(values) for key, values in loading.items()},
        {stage: median(values) for stage, values in tokens.items()},
        lengths,
    )


def _lengths(pieces: Iterable[Work]) -> Lengths | None:
    """What all finished jobs that drew samples say together."""
    said = [facts for work in pieces if work.stage == "sample" for facts in _finished(work)]
    sums = {key: sum(f.get(key, 0) for f in said) for key in ("prompts", "prompt_tokens", "drawn", "tokens")}
    if not sums["prompts"] or not sums["drawn"]:
        return None
    return Lengths(sums["prompt_tokens"] / sums["prompts"], sums["tokens"] / sums["drawn"])


def _finished(work: Work) -> list[dict[str, Any]]:
    """A manifest for each job that is done."""
    found = [facts for facts in map(_manifest, work.outputs) if facts.get("seconds")]
    if work.stage in (
        "harness",
        "evalscope",
    ):  # one job makes the results of all benchmarks, each with a manifest of its own
        whole = len(found) == len(work.outputs) and all(facts.get("tokens") for facts in found)
        return [found[0] | {key: sum(f[key] for f in found) for key in ("tokens", "seconds")}] if whole else []
    return found if work.jobs == len(work.outputs) else found[:1]


def _manifest(file: str) -> dict[str, Any]:
    return manifest(file) if manifest_path(Path(file)).is_file() else {}


# ------------------------------------------------------------------------------------------------------------ estimates

DEFAULT = "default"
"""The source of an estimate that nothing finished backs."""


@dataclass(frozen=True)
class Estimate:
    """What a piece of work costs."""

    work: Work
    device: str
    gpus: int
    """Of each job."""
    cpus: int
    start: float
    """Seconds until each job begins."""
    computing: float
    """Seconds of each job after that: what its manifest will say."""
    tokens: float
    """Read, written and learnt, by all jobs and models."""
    calls: Calls
    kept: float
    """Bytes of all outputs."""
    passing: float
    """Further bytes while it runs."""
    source: str
    """Where the seconds come from: DEFAULT, or measured (so many jobs)."""

    @property
    def seconds(self) -> float:
        """Of each job."""
        return self.start + self.computing

    @property
    def gpu_hours(self) -> float:
        """Of all jobs."""
        return self.work.jobs * self.gpus * self.seconds / 3600

    @property
    def job_hours(self) -> float:
        """Of all jobs, one after another."""
        return self.work.jobs * self.seconds / 3600


def estimate(plan: Plan, pieces: Sequence[Work], known: Measured | None = None) -> list[Estimate]:
    """What each of `pieces` costs, by what is `known` of finished jobs, else by default.

    Raises:
        ConfigError: the configuration does not say how many prompts there are, how large a model is, or names a GPU
            that is unknown.
    """
    known = known or Measured()
    q = Quantities(plan, known.lengths)
    return [_estimate(q, work, known) for work in pieces]


def _estimate(q: Quantities, work: Work, known: Measured) -> Estimate:
    steps, asked, on = passes(q, work), calls(q, work), device(q.plan, work.needs)
    needs, factor = q.plan.config.resources.of(work.needs), known.tokens.get(work.stage, 1.0)
    start, computing, source = _duration(q, work, steps, known, on)
    return Estimate(
        work,
        on,
        needs.gpus,
        needs.cpus,
        start,
        computing,
        sum(step.tokens * (factor if step.counted else 1.0) for step in steps),
        asked,
        kept_bytes(q, work),
        passing_bytes(q, work),
        source,
    )


def _duration(q: Quantities, work: Work, steps: list[Pass], known: Measured, on: str) -> tuple[float, float, str]:
    """Start and computation of each job in seconds, and where they come from."""
    key, gpus = (work.stage, on), max(1, q.plan.config.resources.of(work.needs).gpus)
    factor = known.tokens.get(work.stage, 1.0)
    start = START["small" if not steps else "cpu" if on == CPU else "gpu"]
    asking = sum(asked.count * LATENCY / at_once for asked, at_once in _conversations(q, work)) / work.jobs
    if steps and key in known.rates:
        units = sum(step.parameters * step.tokens for step in steps if step.counted) * factor
        rate = known.rates[key]
        return start, asking + known.loading.get(key, 0.0) + units / work.jobs / (rate.value * gpus), _said(rate)
    if key in known.durations and not asking:
        return start, known.durations[key].value, _said(known.durations[key])
    if steps:
        loading = sum(WEIGHT_BYTES * q.size(model) for model in work.models) / LOADING
        return start, asking + loading + sum(seconds(s, DEVICES[on], gpus) for s in steps) / work.jobs, DEFAULT
    if asking:
        return start, asking, DEFAULT
    if work.stage == "download":
        return start, kept_bytes(q, work) / DOWNLOADING, DEFAULT
    if work.stage == "sft":
        return start, kept_bytes(q, work) / LOADING, DEFAULT
    return start, SMALL_JOB, DEFAULT


def _said(rate: Rate) -> str:
    return f"measured ({rate.jobs} job{'s' * (rate.jobs > 1)})"
