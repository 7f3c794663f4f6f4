"""Blocks `sampling` and `pairing`: which responses are drawn, and which of them become pairs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from mnpo.config.blocks import Block, Positive

WIDEST: Final = "widest"


def _rows(value: Any) -> Any:
    """One message for a value that is neither."""
    whole = isinstance(value, float) and value.is_integer() or isinstance(value, str) and value.strip().isdecimal()
    number = int(value) if whole else value
    if value != WIDEST and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
        raise ValueError(f"expected how many responses are drawn at once, 1 or more, or {WIDEST}; it is {value!r}")
    return number


AtOnce = Annotated[Annotated[int, Field(ge=1)] | Literal["widest"], BeforeValidator(_rows)]


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
    batch_size: AtOnce = 64
    """Sequences decoded together. `widest`: as many as memory has room for if all become as long as they may, by the
    longest prompt; the job's log says how many, and the samples' manifest (`at_once`). With other memory it may be
    another number, and then what is drawn is the same up to rounding only. vLLM then takes as many as it sees fit."""
    shards: int = Field(1, ge=1, le=10_000)
    """Jobs that one part's prompts are spread over, each with an engine of its own (data parallelism)."""
    prompts_a_job: int = Field(1, ge=1)
    """At least so many, in fewer jobs than `shards` if need be: an engine's start has to be worth it."""
    tensor_parallel: int = Field(1, ge=1)
    """For `vllm`: GPUs that share one engine. Shards scale better, for a model that fits one GPU."""
    gpu_memory: float = Field(0.9, gt=0, le=1)
    """For `vllm`: its share of each GPU's memory."""
    logprobs: bool | Literal["first"] = False
    """Whether the sampler's log-probabilities are compared with training's, for the manifest's `mismatch`: those of
    every shard, or of the `first` shard of a policy's responses to a part, which stands for the others."""
    mismatch_warning: Positive = 0.05
    """Mean absolute difference, in nats per token, above which the comparison warns."""
    reuse_logprobs: bool = False
    """Whether the stage `logps` takes the sampler's log-probabilities (of `logprobs`) for those of the policy that drew
    the responses, where training reads the very same tokens. A shard above `mismatch_warning` is computed anyway."""

    @model_validator(mode="after")
    def _has_what_it_reuses(self) -> Sampling:
        if self.reuse_logprobs and self.logprobs is not True:
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
