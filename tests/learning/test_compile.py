"""Compiled decoder layers: the losses, gradients and weights of layers that are not compiled, to rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Gemma2Config, Gemma2ForCausalLM

from mnpo.config.training import Training
from mnpo.errors import BadInput
from mnpo.learning.distributed import engine
from mnpo.learning.training import Trained, optimise, prepared

STEPS = {"learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0, "batch_size": 4, "micro_batch_tokens": 64}
RESPONSES = (30, 9, 17, 12)


class Text(NamedTuple):
    prompt: list[int]
    response: list[int]


def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Of two responses a row, which share the prompt."""
    texts = [
        Text([2, 5 + r] * 9, [(7 * i + r + k) % 60 + 3 for i in range(RESPONSES[r])]) for r in rows for k in (0, 1)
    ]
    found = module(texts, reduction="mean")
    return (found[0::2] - found[1::2] - 1).square(), {}


def trained(**settings: Any) -> Trained:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=8)
    config._attn_implementation = "eager"
    optimisation = Training(**STEPS, **settings)
    module = prepared(Gemma2ForCausalLM(config).train(), optimisation)
    names = [f"row {n}" for n in RESPONSES]
    return optimise(
        module, optimisation, losses, [18 + 2 * n for n in RESPONSES], 2, names=names, seed=1, what="compile"
    )


def agree(**settings: Any) -> None:
    torch._dynamo.reset()
    plain = trained(**settings)
    before = counters["stats"]["unique_graphs"]
    compiled = trained(**settings, compile=True)
    assert counters["stats"]["unique_graphs"] > before  # or nothing was compiled
    assert list(compiled.weights) == list(plain.weights)
    for ours, theirs in zip(compiled.history, plain.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-4)
    begun = trained_weights(plain)
    apart = torch.cat([(compiled.weights[n] - w).flatten() for n, w in plain.weights.items()]).norm()
    assert apart < 1e-3 * begun


def trained_weights(plain: Trained) -> float:
    """How far two steps of Adam move this many weights at a rate of 1e-3, about."""
    return 2e-3 * sum(w.numel() for w in plain.weights.values()) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_by_compiled_layers_is_the_same(checkpointing: bool) -> None:
    agree(gradient_checkpointing=checkpointing)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"lora": {"rank": 2, "alpha": 4}}])
def test_layers_are_traced_whole(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, forward and backward, but run by torch, which takes seconds."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, **how, backend="aot_eager"))
    agree(**settings)


def test_rows_of_any_width_are_compiled_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of one row once more. torch would give up, without an error, after eight kinds of input."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, **how, backend="eager"))
    config = Gemma2Config(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, head_dim=8)
    config._attn_implementation = "eager"
    optimisation = Training(compile=True)
    module = engine(prepared(Gemma2ForCausalLM(config), optimisation), optimisation).module
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        for rows, width in ((2, 30), (3, 200), (4, 41), (1, 30), (1, 170), (2, 99), (5, 57)):
            module([Text([2, 3 + row], [5] * width) for row in range(rows)])
    assert counters["stats"]["unique_graphs"] - before == 2


def test_a_model_whose_layers_nobody_names_is_refused() -> None:
    with pytest.raises(BadInput, match="compile: true.*leave it out"):
        engine(nn.Linear(2, 2), Training(compile=True))
