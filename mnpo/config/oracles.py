"""Blocks `oracles` and `judges`: whoever prefers one response to another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from mnpo.config.blocks import Block, Name, Number, Positive
from mnpo.config.constraints import checked

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high"]
TokenField = Literal["max_tokens", "max_completion_tokens"]


def is_reasoning(effort: ReasoningEffort | None) -> bool:
    """Whether a model of this effort refuses a temperature, and gives no log-probabilities."""
    return effort not in (None, "none")


class Judge(Block):
    """A model behind an OpenAI-compatible endpoint that judges answers."""

    model: str
    label: str | None = None
    """How the paper's Table 7 calls it."""
    endpoint: str = "https://api.openai.com/v1"
    """`demo`: the demo's own judge, which the stage starts on this machine."""
    key: str = "OPENAI_API_KEY"
    """The NAME of the environment variable that holds the key."""
    reasoning_effort: ReasoningEffort | None = None
    temperature: float | None = Field(None, ge=0)
    """None leaves it to the endpoint (reasoning models refuse it)."""
    max_tokens: int | None = Field(None, ge=1)
    token_field: TokenField | None = None
    """What the endpoint calls that limit; None: `max_completion_tokens` for OpenAI's and with a reasoning_effort."""
    seed: int | None = None
    concurrency: int = Field(8, ge=1)
    """Requests in flight at most."""
    retries: int = Field(6, ge=0)
    """Further tries after 429, 5xx and time-outs, with growing jittered waits."""
    timeout: Positive = 120.0
    """Seconds that one request may take."""
    reasks: int = Field(2, ge=0)
    """Times that an unparsable verdict is asked again before it counts as missing."""
    max_missing: float = Field(0.2, ge=0, lt=1)
    """The largest share of missing verdicts, unparsable or refused, that a figure or a score is made of; beyond it,
    none is. A fifth left out moves a win rate of 50 by up to 10 points either way: enough to notice that something is
    broken, not a promise of precision."""
    price_input: float = Field(0.0, ge=0)
    """US dollars per million input tokens."""
    price_output: float = Field(0.0, ge=0)
    """US dollars per million output tokens."""
    max_calls: int | None = Field(None, ge=1)
    """Paid calls of one job, at most."""
    max_cost: Positive | None = None
    """US dollars of one job, at most."""

    @model_validator(mode="after")
    def _limit_has_prices(self) -> Judge:
        """Here, and not when the judge is asked, which is after all trainings."""
        if self.max_cost is not None and not (self.price_input or self.price_output):
            raise ValueError(
                f"judge {self.model}: max_cost {self.max_cost:g} limits nothing without prices; give price_input and "
                "price_output (US$ per million tokens), or max_calls"
            )
        return self


COMPARING = (
    "majority",
    "pair-model",
    "judge",
    "annotator",
)  # oracles whose scores are wins among one policy's responses
SCORED = ("prompts", "responses", "columns", "turns")
"""What a function that gives numbers can be given."""
COMPARED = ("prompts", "first", "second", "columns", "turns")
"""What a function that compares can be given."""


class Oracle(Block):
    """Whoever prefers one response to another."""

    kind: Literal[
        "rule", "weighted", "majority", "annotator", "reward-model", "pair-model", "judge", "function", "constraints",
        "likelihood",
    ]  # fmt: skip
    """`rule`: ground truth of the demo's world; `weighted`: a sum of other oracles' scores;
    `majority`: pairwise majority vote of others; `annotator`: one of several others for each prompt;
    `reward-model`: a sequence classifier, ArmoRM or Athene; `pair-model`: a language model that compares two responses;
    `judge`: a language model behind an endpoint that does; `function`: a Python function of your own;
    `constraints`: the share of constraints that a response satisfies, by IFEval's checkers;
    `likelihood`: a language model's mean log-probability of a response's tokens (docs/oracles.md)."""
    rule: Literal["correctness", "brevity", "courtesy"] | None = None
    weights: dict[Name, Number] | None = None
    """For `weighted`: oracle -> weight."""
    of: list[Name] | None = Field(None, min_length=1)
    """For `majority`: the voters; for `annotator`: those of whom one judges, drawn by the prompt's id."""
    model: Name | None = None
    """For `reward-model`, `pair-model` and `likelihood`: an entry of `models`."""
    judge: Judge | None = None
    """For `judge`: who, with the keys of an entry of `judges`."""
    file: str | None = None
    """For `function`: the Python file that has it."""
    function: str | None = None
    """For `function`: its name there. Of `prompts, responses, columns, turns` it is given what its parameters name, a
    list each, and returns a list of numbers, higher is better."""
    compare: Literal[True] | None = None
    """For `function`: it compares. It is given `first` and `second` in the place of `responses`, and returns numbers
    from 0 to 1: P(the first is better)."""
    constraints: list[Annotated[dict[str, Any], AfterValidator(checked)]] | None = Field(None, min_length=1)
    """For `constraints`: those of every prompt, such as `{id: "length_constraints:number_words", num_words: 50,
    relation: less than}`; None: each row has its own, in its further columns `instruction_id_list` and `kwargs`."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """For `reward-model`, `pair-model` and `likelihood`: of its backbone; None is float32."""
    comparisons: int | None = Field(None, ge=1)
    """For `pair-model`, `judge` and a `function` that compares: of a prompt's pairs of responses, how many are
    compared; None: all."""
    temperature: Positive | None = None
    """For those that score: P(a > b) = logistic((score of a - score of b) / temperature), the Bradley-Terry model that
    SPPO reads; None: the higher score wins for certain."""
    own_response: bool | None = None
    """true: P(y > pi), estimated by the prompt's responses, counts a response against itself too, at 1/2, as SPPO's
    authors do (docs/ledger.md, point 48)."""

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
            "function": "function",
            "constraints": "kind",
            "likelihood": "model",
        }
        optional = {
            "rule": ["temperature"],
            "weighted": ["temperature"],
            "reward-model": ["dtype", "temperature"],
            "pair-model": ["dtype", "comparisons"],
            "judge": ["comparisons"],
            "constraints": ["constraints", "temperature"],
            "likelihood": ["dtype", "temperature"],
            "function": ["file", "compare", "comparisons" if self.compare else "temperature"],
        }
        if getattr(self, needed[self.kind]) is None:
            raise ValueError(f"kind {self.kind} needs {needed[self.kind]}")
        if self.kind == "function" and self.file is None:
            raise ValueError("kind function needs file")
        known = {"kind", "own_response", needed[self.kind], *optional.get(self.kind, [])}
        for field in type(self).model_fields:
            if field not in known and getattr(self, field) is not None:
                how = " that compares" if self.compare else ""
                raise ValueError(f"kind {self.kind}{how} does not read {field}")
        return self

    @property
    def compares(self) -> bool:
        """Whether its scores are wins among the responses that it is given, and mean nothing beside others'."""
        return self.kind in COMPARING or self.compare is True

    def members(self) -> list[str]:
        """The oracles that this one is made of."""
        return [*(self.weights or {}), *(self.of or [])]


def over_reference(oracles: Mapping[str, Oracle], names: Iterable[str | None]) -> list[str]:
    """Those of the oracles `names` that compare: their figure for a policy is a win rate over the reference."""
    return [name for name in dict.fromkeys(filter(None, names)) if comparing(oracles, name)]


def comparing(oracles: Mapping[str, Oracle], name: str) -> str | None:
    """The oracle that makes `name` one that compares: itself, or one that it is made of; None where none does."""
    if oracles[name].compares:
        return name
    return next((found for member in oracles[name].members() if (found := comparing(oracles, member))), None)
