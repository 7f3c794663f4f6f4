"""How much there is: a model's parameters, and a configuration's prompts, responses, items and tokens."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mnpo.benchmarks.cards import CARDS
from mnpo.config.blocks import DATASET, REFERENCE, ConfigError
from mnpo.config.sources import Model, Prompts
from mnpo.config.training import Demonstrations, Optimisation
from mnpo.models import checkpoints
from mnpo.planning.costs.assumptions import DEMO_ITEMS
from mnpo.planning.files import HELDOUT
from mnpo.planning.plan import Plan
from mnpo.planning.registry import Work
from mnpo.storage import conversations
from mnpo.storage.records import read_rows


def parameters(model: Model) -> float:
    """Of an entry of `models`, which says them, or whose files do; 0 for one behind an endpoint. Raises ConfigError."""
    if model.api is not None:
        return 0.0
    if model.architecture is not None:
        return _gemma2(model.architecture, model.vocab_size)
    if model.parameters is not None:
        return model.parameters * 1e9
    here = model.mirror or model.path
    if here is not None and (counted := _in_files(here)):
        return float(counted)
    where = model.hub or model.github or model.path
    none = f", and {here} has no *.safetensors to count them in" if here else ""
    raise ConfigError(f"models: {where}: the plan needs its `parameters`, in billions{none}")


@cache
def _in_files(directory: str) -> int:
    """The weights that a directory holds, by the headers of its files."""
    return checkpoints.parameters(directory) if any(Path(directory).glob("*.safetensors")) else 0


def _gemma2(architecture: dict[str, Any], vocabulary: int) -> float:
    """Parameters of a Gemma-2 with tied embeddings; what is not given is as in gemma-2-2b."""
    usual = {
        "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256,
    }  # fmt: skip
    hidden, inner, layers, heads, shared, width = (architecture.get(key, value) for key, value in usual.items())
    attention = 2 * hidden * heads * width + 2 * hidden * shared * width
    return float(vocabulary * hidden + layers * (attention + 3 * hidden * inner + 4 * hidden) + hidden)


def _a_part(prompts: Prompts) -> int:
    """Prompts of a part, by the configuration or else by the file itself. Raises ConfigError."""
    if prompts.source == "none" or prompts.a_part is not None:
        return prompts.a_part or 0
    if prompts.path is None or not Path(prompts.path).is_file():
        missing = f"; {prompts.path}, to count them in, is not there" if prompts.path else ""
        raise ConfigError(
            f"prompts: the plan needs part_size, or expected (about how many train prompts there are){missing}"
        )
    there = _prompts(os.path.abspath(prompts.path), prompts.column, os.stat(prompts.path).st_mtime_ns)
    if there < prompts.heldout + prompts.parts:
        raise ConfigError(
            f"prompts: {prompts.path} has {there} different prompts, too few for heldout {prompts.heldout} and "
            f"{prompts.parts} parts; ask for fewer"
        )
    return (there - prompts.heldout) // prompts.parts


@cache
def _prompts(file: str, column: str, _changed: int) -> int:
    """Different prompts of a file, as the stage `prompts` counts them."""
    return len(conversations.distinct(read_rows(file), file, column))


def _in_file(data: Demonstrations) -> int:
    """Conversations of a file that are learnt, repeated and unusable ones too; 0 where there is none yet."""
    if data.file is None or not Path(data.file).is_file():
        return 0
    there = _rows(os.path.abspath(data.file), os.stat(data.file).st_mtime_ns)
    return max(0, there - data.kept_aside(there))


@cache
def _rows(file: str, _changed: int) -> int:
    return len(read_rows(file))


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt and of a response to it."""

    prompt: float
    response: float


class Quantities:
    """Prompts, responses and tokens of a configuration; its texts' lengths by `resources`, where none are known."""

    def __init__(self, plan: Plan, known: Lengths | None = None) -> None:
        c = plan.config
        self.plan = plan
        self.part = _a_part(c.prompts)
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
        """Of a prompt, when an oracle prefers and none is tied."""

    def size(self, model: str) -> float:
        """Parameters of an entry of `models`."""
        return parameters(self.plan.config.models[model])

    def learning(self, policy: str | None) -> Optimisation | None:
        """What made a policy's weights; None: it has those of the model that it was fetched with."""
        fit = self.plan.policies.fits.get(policy or "")
        return fit.training if fit else self.plan.config.reference.sft if policy == REFERENCE else None

    @property
    def demonstrations(self) -> int:
        """Of the reference's fine-tuning, each with all of its turns; 0 when neither configuration nor file says it."""
        c = self.plan.config
        data = c.reference.sft.data if c.reference.sft else None
        if data is None:
            return c.prompts.demonstrations
        return data.rows or data.expected or _in_file(data)

    def pairs_of(self, oracle: str) -> int:
        """Pairs of a part, as `oracle` prefers or, DATASET, the data do."""
        return self.part * (1 if oracle == DATASET else self.pairs)

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
