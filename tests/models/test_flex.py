"""flex_attention with block masks of ours, against eager attention with the masks that torch adds to its logits.

Uncompiled, but for one test: compiling takes minutes, and what a GPU compiles is not what a CPU does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention
from transformers.integrations import flex_attention as integrations

from mnpo.config.training import Training
from mnpo.errors import BadInput
from mnpo.learning.distributed import engine
from mnpo.models.checkpoints import load_model
from mnpo.models.logprobs import ResponseLogprobs, response_logprobs, score_texts
from mnpo.models.packing import _masks, lay_out, share_width, shared_rows

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.3,  # large, so that logits run into the cap and masks matter
}
CAPPED = {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0}
# Windows are shorter than the rows, and than the responses that come after another.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"sliding_window": 24, **CAPPED}),
    "gemma2-no-groups": ("Gemma2", {"sliding_window": 24, **CAPPED, "num_key_value_heads": 4}),
    "gemma2-wide-heads": ("Gemma2", {"sliding_window": 24, **CAPPED, "head_dim": 256}),
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": 24}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
}


class Text(NamedTuple):
    prompt: list[int]
    response: list[int]


def texts() -> list[Text]:
    """Prompts with two responses, of one block of 128 tokens and of more, and a prompt alone."""
    numbers = torch.Generator().manual_seed(3)

    def some(n: int) -> list[int]:
        return torch.randint(2, 97, (n,), generator=numbers).tolist()

    found = []
    for prompt, *responses in ((40, 20, 33), (7, 50, 12), (130, 30, 31), (12, 60)):
        asked = some(prompt)
        found += [Text(asked, some(n)) for n in responses]
    return found


def models(name: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The same weights with eager attention and with flex_attention."""
    family, extra = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **extra})
    torch.manual_seed(0)
    eager = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").to(dtype).eval()
    flex = copy.deepcopy(eager)
    flex.set_attn_implementation("flex_attention")
    return eager, flex


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [True, False])
@torch.no_grad()
def test_flex_attention_agrees_with_eager(name: str, share: bool, uncompiled: None) -> None:
    """To float32 rounding, in nats a token, whether rows share their prompt or not."""
    eager, flex = models(name)
    assert share_width(flex.config) == 32
    ours, theirs = (response_logprobs(m, texts(), reduction="none", share_prompts=share) for m in (flex, eager))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5


@torch.no_grad()
def test_rows_share_their_prompts_under_flex_attention(uncompiled: None) -> None:
    scored = score_texts(models("gemma2")[1], texts(), max_tokens=1000)
    assert scored.separate - scored.needed == 40 + 7 + 130


@torch.no_grad()
def test_in_bfloat16_flex_attention_is_as_near_to_exact_as_eager(uncompiled: None) -> None:
    exact = response_logprobs(models("gemma2", torch.float64)[0], texts(), reduction="mean")
    eager, flex = (
        response_logprobs(model, texts(), reduction="mean").double() for model in models("gemma2", torch.bfloat16)
    )
    assert (flex - exact).abs().max() < 1.5 * (eager - exact).abs().max()


def test_a_block_that_nobody_reads_is_not_computed() -> None:
    """The second response's tokens do not read the first's; in layers with a window of 24, nor the prompt's start."""
    prompt, first, second = ([k] * 256 for k in (3, 4, 5))
    both = [Text(prompt, [*first, 9]), Text(prompt, [*second, 9])]
    masks = _masks(models("gemma2")[1], lay_out(both, shared_rows(both, 1000), 0, torch.device("cpu")))
    prompts, later = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
    assert masks["full_attention"].to_dense()[0, 0].tolist() == [
        *prompts,
        *later,
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert masks["sliding_attention"].to_dense()[0, 0].tolist() == [
        *prompts,
        [0, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_agrees_with_eager() -> None:
    """By torch's compiler for CPUs, which takes rows of one width."""
    torch._dynamo.reset()
    eager, flex = (response_logprobs(model, texts(), reduction="mean") for model in models("gemma2"))
    assert (flex - eager).abs().max() < 1e-5


@pytest.mark.slow
def test_gradients_through_flex_attention_agree_with_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own definition of its backward pass, traced and not compiled; torch refuses it on a CPU otherwise."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(integrations.WrappedFlexAttention, "_instance", None)  # it keeps what was compiled
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled(f, backend="aot_eager"))
    gradients = []
    for model in models("gemma2"):
        response_logprobs(model, texts()).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    eager, flex = gradients
    assert (flex - eager).norm() < 1e-5 * eager.norm()


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU it is taken")
@pytest.mark.parametrize("asked", ["flex_attention", None])
def test_flex_attention_is_refused_on_a_cpu(asked: str | None, tmp_path: Path) -> None:
    models("gemma2")[0].save_pretrained(tmp_path)
    if asked is None:
        config = tmp_path / "config.json"
        config.write_text(config.read_text().replace("{", '{"attn_implementation": "flex_attention",', 1))
    with pytest.raises(BadInput, match=r"'flex_attention' (was|is) asked for.*needs a GPU.*leave `attention` out"):
        load_model(tmp_path, attention=asked)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_layers_take_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """training.compile and flex_attention together: layers are traced whole, with what attention reads."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiled(f, **how, backend="aot_eager"))
    eager, flex = models("gemma2")
    module = engine(ResponseLogprobs(flex), Training(compile=True)).module
    before = counters["stats"]["unique_graphs"]
    for some in (texts(), texts()[:2], texts()[:4], texts()[2:]):
        ours, theirs = module(some, reduction="none"), response_logprobs(eager, some, reduction="none")
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert 0 < counters["stats"]["unique_graphs"] - before <= 8
