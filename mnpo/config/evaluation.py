"""Blocks `evaluation`, `tables` and `exploitability`: how policies are measured and what is printed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mnpo.config.blocks import REFERENCE, Block, Name, Parts, Positive

Benchmark = Literal[
    "alpaca-eval", "arena-hard", "mt-bench",
    "ifeval", "gpqa", "mmlu", "arc", "hellaswag", "truthfulqa", "winogrande",
    "gsm8k", "minerva", "aime24", "humaneval",
]  # fmt: skip
EvaluationProtocol = Literal["harness", "evalscope"]
"""Whose prompts and scores: those of a benchmark's own package, or of EvalScope, the paper's harness."""
RatingReading = Literal["stated", "fastchat"]
"""Which number in a judge's reply is its rating."""
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
    ratings: RatingReading = "stated"
    """How MT-Bench's ratings are read. `stated`: the last in double brackets, never a number that a reply only mentions
    before it is cut. `fastchat`: as FastChat reads, the first, be it quoted or an index in code."""
    judges: list[Name] = []
    """Who judges AlpacaEval 2, Arena-Hard, MT-Bench and EvalScope's Minerva-Math, entries of the block `judges`. Tables
    2 to 6 show the first."""
    max_empty: float = Field(0.2, ge=0, lt=1)
    """The largest share of empty answers of a policy behind an endpoint (cut while it thinks, filtered, refused) that a
    judge is shown; beyond it the stage `answer` stops."""
    repeats: int = Field(1, ge=1, le=100)
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

    oracle: Name | None = None
    """Decides wins on held-out prompts. One that compares (a judge, a pair model, a vote) is shown a policy's response
    and the reference's to the same prompt. None: nothing that is made needs one."""
    scores: list[Name] = []
    """Oracles whose mean score is reported; of those that compare, the win rate over the reference."""
    accuracy: Name | None = None
    """An oracle whose score 1 means exactly right: its share is the accuracy."""
    majority: Name | None = None
    """An oracle of kind majority, whose Condorcet cycles are counted."""
    responses: int = Field(4, ge=1)
    """Sampled responses per held-out prompt."""
    bootstrap: int = Field(1000, ge=100)
    """Resamples of the held-out prompts behind every interval."""
    confidence: float = Field(0.95, gt=0.5, lt=1)

    @property
    def asked(self) -> list[str]:
        """Every oracle that judges held-out responses."""
        return list(dict.fromkeys(filter(None, [self.oracle, *self.scores, self.accuracy, self.majority])))

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
    Table, "policies", "heldout", "players", "exploitability", "preferences", "benchmarks", "figures", "costs",
    "theory", "study", "rehearsal", "examples",
]  # fmt: skip
DECIDED: tuple[Target, ...] = ("heldout", "players", "figures", "examples")
"""Those that `evaluation.oracle` decides."""


def _without_dropped(rows: Any) -> Any:
    return {row: of for row, of in rows.items() if of is not None} if isinstance(rows, dict) else rows or {}


class Tables(Block):
    """What is printed."""

    targets: list[Target] = ["heldout", "preferences", "figures", "costs", "theory"]
    """What `snakemake` makes when no target is named."""
    rows: dict[Table, Annotated[dict[str, str], BeforeValidator(_without_dropped)]] = {}
    """The paper's row -> the run (its last policy), the reference or the model that is to be compared with it. `null`
    drops a row, or all rows of a table, that an extended configuration has."""
    rehearsal_of: str = "config.yaml"
    """For the target `rehearsal`: the configuration file that this one is a small version of."""
    win_against: list[str] = [REFERENCE]
    """Policies that every policy is compared with in the main held-out table."""
    examples: int = Field(8, ge=1)
    """For the target `examples`: how many held-out prompts are shown, drawn by the configuration's name and seed."""
    examples_of: list[str] | None = Field(None, min_length=1)
    """Whose responses to them; None: the reference's and those of every run's last policy."""


class Exploitability(Block):
    """Best responses, each trained against one fixed policy for a stated budget: `snakemake exploitability`."""

    policies: list[str] | None = Field(None, min_length=1)
    """Whose exploitability; None: the last policy of every run."""
    oracle: Name | None = None
    """Who decides; None: whom the policy was trained for."""
    parts: list[Parts] | None = Field(None, min_length=1)
    """The budget: train parts of each iteration of a best response. None: an iteration on every part."""
    rate: Positive = 5.0
    """How far an iteration goes: `pi' ∝ pi * exp(rate * P(y > policy))`."""
    training: dict[str, Any] = {}
    """Replaces keys of the common `training` block."""
