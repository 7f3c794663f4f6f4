"""``mnpo.models.logprobs`` against the plain way: full logits, a float64 log-softmax, one text at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mnpo.models import head as head_module
from mnpo.models.head import token_logprobs
from mnpo.models.logprobs import ResponseLogprobs, response_logprobs, score_texts
from mnpo.models.packing import PASS, Row, batches, share_width, shared_rows, together

VOCAB = 97
TOLERANCE = 1e-5  # the one that the module states: nats per token, float32 models


@dataclass(frozen=True)
class Text:
    prompt: list[int]
    response: list[int]


SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,  # large, so that the distributions are far from uniform and masks matter
}
# The sliding windows are shorter than most texts below.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"sliding_window": 5, "final_logit_softcapping": 3.0}),
    "gemma2-wide-window": ("Gemma2", {"sliding_window": 64, "final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
}


def make(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Any:
    family, extra = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**SIZES, **extra)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(dtype).eval()


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(2, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def some_texts() -> list[Text]:
    """Two groups that share a prompt, interleaved, of unequal lengths; a response of one token; a text alone."""
    a, b = tokens(11, 1), tokens(7, 2)
    return [
        Text(a, tokens(6, 3)),
        Text(b, tokens(1, 4)),
        Text(a, tokens(3, 5)),
        Text(tokens(4, 6), tokens(12, 7)),
        Text(b, tokens(5, 8)),
        Text(a, tokens(9, 9)),
    ]


def plain(model: Any, text: Text) -> Tensor:
    """Per-token log-probabilities, float64, the straightforward way."""
    ids = torch.tensor([text.prompt + text.response])
    table = model(ids).logits[0].double().log_softmax(-1)
    return torch.stack([table[len(text.prompt) - 1 + k, y] for k, y in enumerate(text.response)])


def worst(ours: list[Tensor], theirs: list[Tensor]) -> float:
    assert [len(x) for x in ours] == [len(x) for x in theirs]
    return max((x - y).abs().max().item() for x, y in zip(ours, theirs, strict=True))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


# --- values ---------------------------------------------------------------------------------------------------------


# Gemma-2 caps its attention scores, which sdpa cannot.
@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "eager") for name in MODELS] + [(name, "sdpa") for name in MODELS if "gemma2" not in name],
)
def test_agrees_with_the_plain_way(name: str, attention: str) -> None:
    model, texts = make(name, attention), some_texts()
    expected = [plain(model, text) for text in texts]
    for share in (True, False):
        got = response_logprobs(model, texts, reduction="none", share_prompts=share)
        assert all(x.dtype == torch.float32 for x in got)
        assert worst(got, expected) < TOLERANCE


def test_sharing_happens_and_is_refused_where_it_should_be() -> None:
    texts = some_texts()
    scored = score_texts(make("gemma2"), texts, max_tokens=1000)
    assert scored.needed == scored.separate - 2 * 11 - 7  # two more responses to prompt a, one more to prompt b
    assert share_width(make("llama", "sdpa").config) == 32
    flash = make("llama")
    flash.config._attn_implementation = "flash_attention_2"
    assert share_width(flash.config) is None
    gpt2 = transformers.AutoModelForCausalLM.from_config(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1))
    assert share_width(gpt2.config) is None  # learned positions


def test_sharing_stops_paying_when_responses_are_long() -> None:
    """Joining saves p = 4 prompt tokens (worth 24 * width cells) and adds 2 * reads * others - p^2 cells."""
    long = [Text(tokens(4, 1), tokens(101, seed)) for seed in (2, 3)]
    assert len(shared_rows(long, 8)) == 2  # 2 * 100 * 100 - 16 > 6 * 8 * 4
    assert len(shared_rows(long, 1000)) == 1  # 19_984 <= 24_000
    assert len(shared_rows(long, 1000, max_tokens=203)) == 2  # 4 + 100 + 100 = 204 do not fit
    assert len(shared_rows(long, None)) == 2


@pytest.mark.parametrize("chunk", [1, 4, 6, 9, 36, 1000])  # the six texts have 36 response tokens
def test_chunk_size_does_not_matter(chunk: int) -> None:
    model, texts = make("gemma2"), some_texts()
    got = response_logprobs(model, texts, reduction="none", chunk_tokens=chunk)
    assert worst(got, [plain(model, text) for text in texts]) < TOLERANCE


def test_sum_and_mean_are_over_the_response() -> None:
    model, texts = make("llama"), some_texts()
    expected = [plain(model, text) for text in texts]
    sums, means = (response_logprobs(model, texts, reduction=how) for how in ("sum", "mean"))
    assert sums.shape == means.shape == (6,)
    torch.testing.assert_close(sums.double(), torch.stack([x.sum() for x in expected]), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(means.double(), torch.stack([x.mean() for x in expected]), atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def gemma() -> Any:
    return make("gemma2")


@settings(max_examples=30, deadline=None)
@given(company=st.lists(st.integers(0, 5), max_size=6), place=st.integers(0, 6), pad=st.integers(0, VOCAB - 1))
def test_company_does_not_matter(gemma: Any, company: list[int], place: int, pad: int) -> None:
    """The same text alone and among any others, some with its prompt, some its very copies."""
    texts = some_texts()
    batch = [texts[i] for i in company]
    place = min(place, len(batch))
    batch.insert(place, texts[2])
    [alone] = response_logprobs(gemma, [texts[2]], reduction="none")
    among = response_logprobs(gemma, batch, reduction="none", pad_id=pad)[place]
    assert worst([among], [alone]) < TOLERANCE


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma2", "llama", "qwen2-tied", "qwen2-untied"])
@pytest.mark.parametrize("share", [True, False])
def test_gradients_agree_with_the_plain_way(name: str, share: bool) -> None:
    """Every parameter's, for a loss that weighs responses differently and one of them not at all."""
    texts, weights = some_texts(), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -0.3], dtype=torch.float64)
    model = make(name, dtype=torch.float64)
    (weights * torch.stack([plain(model, text).sum() for text in texts])).sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    (weights * response_logprobs(model, texts, chunk_tokens=5, share_prompts=share)).sum().backward()
    for key, p in model.named_parameters():
        assert relative(p.grad, expected[key]) < 1e-5, key  # norms and softmaxes inside the body are float32


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("chunks", [(1, 1), (2, 4), (5, 11), (7, 12), (3, 10)])
def test_gradcheck(softcap: float | None, biased: bool, chunks: tuple[int, int]) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    bias = [torch.randn(11, dtype=torch.float64, requires_grad=True)] if biased else []
    targets = torch.tensor([0, 10, 4, 4, 7])

    def f(h: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        tile = {"chunk_tokens": chunks[0], "chunk_vocab": chunks[1]}
        return token_logprobs(h, w, targets, bias=b, softcap=softcap, **tile)

    assert torch.autograd.gradcheck(f, (hidden, weight, *bias))
    logits = hidden @ weight.T + (bias[0] if biased else 0)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    torch.testing.assert_close(f(hidden, weight, *bias), logits.log_softmax(1)[range(5), targets])


def test_a_frozen_head_gets_no_gradient_and_the_body_still_does() -> None:
    model, texts = make("qwen2-untied", dtype=torch.float64), some_texts()
    response_logprobs(model, texts).sum().backward()
    expected = model.model.layers[0].mlp.up_proj.weight.grad.clone()
    model.zero_grad()
    model.lm_head.requires_grad_(False)
    response_logprobs(model, texts).sum().backward()
    assert model.lm_head.weight.grad is None
    torch.testing.assert_close(model.model.layers[0].mlp.up_proj.weight.grad, expected)


# --- precision ------------------------------------------------------------------------------------------------------


def test_the_normaliser_is_float32_whatever_the_products_are() -> None:
    """Zero states give a uniform distribution: exactly -log(vocab), which bfloat16 would round to 8.3125 or 8.375."""
    hidden, weight, targets = torch.zeros(3, 4), torch.randn(4099, 4), torch.tensor([0, 1, 4098])
    in_bf16 = token_logprobs(hidden.bfloat16(), weight.bfloat16(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        in_autocast = token_logprobs(hidden, weight, targets, softcap=30.0)
    for got in (in_bf16, in_autocast):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, torch.full((3,), -math.log(4099)), atol=2e-6, rtol=0)


@pytest.mark.parametrize("how", ["bf16", "autocast"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_bf16_products_stay_near_the_exact_ones(how: str, softcap: float | None) -> None:
    """Logits of size z are rounded to z * 2^-9; here |z| < 8, so each token is off by less than about 0.03 nats."""
    torch.manual_seed(2)
    hidden, weight, targets = torch.randn(40, 16).bfloat16(), torch.randn(211, 16).bfloat16() / 2, torch.arange(40)
    upstream = torch.linspace(-1, 1, 40)

    def value_and_gradients(h: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, w = h.clone().requires_grad_(), w.clone().requires_grad_()
        values = token_logprobs(h, w, targets, softcap=softcap, chunk_tokens=16, chunk_vocab=50)
        (values * upstream).sum().backward()
        assert h.grad is not None and w.grad is not None
        assert h.grad.dtype == h.dtype and w.grad.dtype == w.dtype
        return values, h.grad, w.grad

    exact = value_and_gradients(hidden.double(), weight.double())
    if how == "bf16":
        got = value_and_gradients(hidden, weight)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = value_and_gradients(hidden.float(), weight.float())
    torch.testing.assert_close(got[0].double(), exact[0], atol=0.03, rtol=0)
    for ours, theirs in zip(got[1:], exact[1:], strict=True):
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()


def test_a_backward_pass_inside_autocast_keeps_the_forwards_dtype() -> None:
    hidden, weight = torch.randn(6, 5, requires_grad=True), torch.randn(13, 5)
    values = [token_logprobs(hidden, weight, torch.arange(6)).sum() for _ in range(2)]
    [outside] = torch.autograd.grad(values[0], hidden)
    with torch.autocast("cpu", torch.bfloat16):
        [inside] = torch.autograd.grad(values[1], hidden)
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("name", ["gemma2", "llama"])
def test_bf16_and_autocast_models_run_and_stay_near(name: str) -> None:
    texts = some_texts()
    exact = response_logprobs(make(name), texts, reduction="mean")
    in_bf16 = response_logprobs(make(name, dtype=torch.bfloat16), texts, reduction="mean")
    model = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        in_autocast = response_logprobs(model, texts, reduction="mean")
        in_autocast.sum().backward()
    for got in (in_bf16, in_autocast):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, exact, atol=0.2, rtol=0)  # four layers of bf16 noise on wide logits
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# --- memory ---------------------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most elements that any operation's result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_iter(out) if isinstance(x, Tensor))])
        return out


def test_no_tensor_holds_every_tokens_logits() -> None:
    """Forward and backward, nothing is larger than the head's weight, and no more than that is made of logits."""
    vocab, width, n, chunk = 1009, 8, 60, 4
    hidden = torch.randn(n, width, requires_grad=True)
    head = nn.Linear(width, vocab, bias=False)
    head.weight.requires_grad_(False)
    targets = torch.arange(n)
    with Largest() as ours:
        token_logprobs(hidden, head.weight, targets, softcap=30.0, chunk_tokens=20, chunk_vocab=100).sum().backward()
    assert ours.elements == 20 * 100
    with Largest() as fallback:
        for part in head_module._slices(n, chunk):
            head_module._through_head(head, hidden[part], targets[part], 30.0).sum().backward()
    assert fallback.elements == vocab * max(width, chunk)
    with Largest() as usual:
        head(hidden).log_softmax(-1).gather(1, targets[:, None]).sum().backward()
    assert usual.elements == n * vocab


# --- heads that cannot be read --------------------------------------------------------------------------------------


class Adapted(nn.Linear):
    """A head whose forward is more than its weight, as LoRA's is."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7 * super().forward(x) + x.sum(-1, keepdim=True) * torch.arange(VOCAB, dtype=x.dtype) / VOCAB


def adapt(model: Any) -> Any:
    head = Adapted(32, VOCAB, bias=False, dtype=model.dtype)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    return model


def hook(model: Any) -> Any:
    model.lm_head.register_forward_hook(lambda module, args, out: out.flip(-1))
    return model


@pytest.mark.parametrize("wrap", [adapt, hook])
def test_a_wrapped_head_is_called_not_read(wrap: Any) -> None:
    texts, model = some_texts(), wrap(make("gemma2", dtype=torch.float64))
    expected = [plain(model, text) for text in texts]
    torch.stack([x.sum() for x in expected]).sum().backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    got = response_logprobs(model, texts, reduction="none", chunk_tokens=5)
    assert worst(got, expected) < TOLERANCE
    torch.cat(got).sum().backward()
    assert relative(model.lm_head.weight.grad, gradient) < 1e-5


def test_a_head_that_zero3_cut_and_that_is_more_than_its_weight_is_refused() -> None:
    """Its calls would be as many as its chunks, each a collective."""
    model = adapt(make("gemma2"))
    model.lm_head.weight.ds_id = 0
    with pytest.raises(ValueError, match=r"under ZeRO-3 .* an? Adapted, .* parallel: fsdp"):
        response_logprobs(model, some_texts())


def test_models_that_rescale_their_logits_are_refused() -> None:
    MODELS["cohere"] = ("Cohere", {"logit_scale": 0.5})
    with pytest.raises(ValueError, match="logit_scale"):
        response_logprobs(make("cohere"), some_texts())


def _sharded_rank(rank: int, store: str) -> None:
    """One of two ranks: FSDP2 over ResponseLogprobs gives this rank's values, and the mean of both ranks' gradients."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    texts = [some_texts()[:2], some_texts()[2:]]  # ranks with different numbers of response tokens
    whole = make("gemma2", dtype=torch.float64)
    values = [response_logprobs(whole, share, chunk_tokens=5) for share in texts]
    (sum(v.sum() for v in values) / 2).backward()  # type: ignore[union-attr]

    model, mesh = make("gemma2", dtype=torch.float64), dist.device_mesh.init_device_mesh("cpu", (2,))
    module = ResponseLogprobs(model)
    for part in (*model.model.layers, module):
        fully_shard(part, mesh=mesh)
    got = module(texts[rank], chunk_tokens=5)
    torch.testing.assert_close(got, values[rank])
    got.sum().backward()
    for (key, sharded), reference in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert relative(sharded.grad.full_tensor(), reference.grad) < 1e-5, key
    dist.destroy_process_group()


def test_fsdp_sharded_model_with_a_tied_head(tmp_path: Path) -> None:
    mp.spawn(_sharded_rank, args=(str(tmp_path / "store"),), nprocs=2)  # type: ignore[attr-defined]


# --- many texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 30, 60, 10_000])
def test_score_texts_agrees_in_input_order(budget: int) -> None:
    model, texts = make("gemma2").train(), some_texts()
    seen: list[tuple[int, int]] = []
    scored = score_texts(model, texts, max_tokens=budget, progress=lambda done, of: seen.append((done, of)))
    expected = [plain(model, text) for text in texts]
    assert scored.sums.dtype == torch.float32 and not scored.sums.requires_grad
    torch.testing.assert_close(scored.sums.double(), torch.stack([x.sum() for x in expected]), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(scored.means.double(), torch.stack([x.mean() for x in expected]), atol=1e-5, rtol=0)
    assert scored.counts.tolist() == [6, 1, 3, 12, 5, 9]
    assert seen[-1] == (6, 6) and seen == sorted(seen)
    assert model.training


def test_padding_and_sharing_are_counted_by_hand() -> None:
    """Rows read 3+2+2 (a shared pair), 4+0 and 5+1 tokens; a budget of 14 puts 7 and 6 in one batch, 4 in another."""
    p = tokens(3, 1)
    texts = [Text(p, tokens(3, 2)), Text(tokens(4, 3), tokens(1, 4)), Text(p, tokens(3, 5)), Text(tokens(5, 6), [7, 8])]
    scored = score_texts(make("llama"), texts, max_tokens=14)
    assert (scored.computed, scored.needed, scored.separate) == (2 * 7 + 4, 17, 20)
    assert scored.padding == pytest.approx(1 / 18)
    assert scored.shared == pytest.approx(3 / 20)


def test_batches_without_gradients_are_small_where_a_cpus_cache_would_not_hold_them() -> None:
    """16,384 tokens times 256 numbers of 4 bytes are 16 MiB, which it holds. Prompts stay shared."""

    def model(width: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        config = transformers.LlamaConfig(
            vocab_size=99, hidden_size=16, intermediate_size=width, num_hidden_layers=1, num_attention_heads=2
        )
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).to(dtype)

    assert together(model(256), 16384) == together(model(512, dtype=torch.bfloat16), 16384) == 16384
    assert together(model(257), 16384) == 1024 and together(model(257), 600) == 600
    assert together(model(257, "meta"), 16384) == 16384
    texts = [Text(tokens(700, 1), tokens(300, 2 + i)) for i in range(4)]
    scored = score_texts(model(257), texts, max_tokens=16384)
    assert scored.computed == 700 + 4 * 299 and scored.separate == 4 * 999


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 300), min_size=1), budget=st.integers(1, 2000))
def test_batches_keep_the_budget_and_lose_nothing(lengths: list[int], budget: int) -> None:
    found = list(batches([Row([0] * n, [i], n) for i, n in enumerate(lengths)], budget))
    assert sorted(i for batch in found for row in batch for i in row.members) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(row.length for row in batch) <= budget for batch in found)
    for batch, after in zip(found, [*found[1:], [Row([], [], 0)]], strict=True):
        room = [batch[0].length - row.length for row in batch]
        assert sum(room) <= PASS
        full = (len(batch) + 1) * batch[0].length > budget
        assert full or after[0].length == 0 or sum(room) + batch[0].length - after[0].length > PASS


# --- errors ---------------------------------------------------------------------------------------------------------


def test_errors_name_the_row_and_the_setting(gemma: Any) -> None:
    good = Text([5, 6], [7])
    with pytest.raises(ValueError, match="row 2: the response has no tokens"):
        response_logprobs(gemma, [good, good, Text([5], [])])
    with pytest.raises(ValueError, match="row 1: the response has no tokens"):
        score_texts(gemma, [good, Text([5], [])], max_tokens=10)
    with pytest.raises(ValueError, match="row 1: the prompt has no tokens"):
        response_logprobs(gemma, [good, Text([], [5])])
    with pytest.raises(ValueError, match="no texts"):
        response_logprobs(gemma, [])
    with pytest.raises(ValueError, match="no texts"):
        score_texts(gemma, [], max_tokens=10)
    with pytest.raises(ValueError, match="vocabulary of 97"):  # a response's last token is not embedded, only predicted
        response_logprobs(gemma, [Text([5, 6], [7, VOCAB])])
    with pytest.raises(ValueError, match="chunk_tokens"):
        response_logprobs(gemma, [good], chunk_tokens=0)
    with pytest.raises(ValueError, match="reduction"):
        response_logprobs(gemma, [good], reduction="total")  # type: ignore[call-overload]
