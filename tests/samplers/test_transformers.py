"""What is drawn: the right distribution, the same whatever the company, the same as transformers where it is greedy."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mnpo.config.sampling import Decoding
from mnpo.config.text import Text
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.samplers import Request, Response
from mnpo.samplers.shared_prompts import shares_prompts
from mnpo.samplers.transformers import draw

PROMPTS = (
    "Say cat",
    "List 3 animals",
    "Hi. What is rum?",
    "Count words: cow cow pig",
    "Sort 3 1 2",
    "Not hot but",
    "Name 2 fruits",
)
STOPS = (1, 5)


@pytest.fixture(scope="module")
def model(sft_policy: Path) -> Any:
    return load_model(sft_policy)


@pytest.fixture(scope="module")
def prompts(sft_policy: Path) -> list[list[int]]:
    chat = Chat(load_tokenizer(sft_policy), Text(max_length=80, max_prompt_length=48))
    return [chat.prompt(p) for p in PROMPTS]


def decode(model: Any, requests: list[Request], batch_size: int = 64, **settings: Any) -> list[Response]:
    asked = Decoding(**{"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 16, **settings})
    return draw(model, requests, asked, STOPS, batch_size, "test")


# ----------------------------------------------------------------------------------------------------------- one choice


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.9), (1.5, 0.6), (1.0, 1.0)])
def test_drawn_tokens_have_the_frequencies_of_the_exact_distribution(
    model: Any, prompts: list[list[int]], temperature: float, top_p: float
) -> None:
    draws = 3000
    requests = [Request(prompts[0], seed) for seed in range(draws)]
    responses = decode(model, requests, 500, temperature=temperature, top_p=top_p, max_new_tokens=1)
    seen = Counter(r.tokens[0] for r in responses)

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompts[0]])).logits[0, -1].double().numpy()
    weights = np.exp((logits - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    order = np.argsort(-probabilities)
    size = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1
    nucleus = order[:size]
    expected = probabilities[nucleus] / probabilities[nucleus].sum() * draws
    assert set(seen) <= set(nucleus.tolist())

    common = expected >= 5  # rarer tokens share one cell, as the test asks for
    observed = [seen[int(t)] for t in nucleus[common]]
    cells, means = [*observed, draws - sum(observed)], [*expected[common], draws - expected[common].sum()]
    if means[-1] < 1e-6:
        assert cells.pop() == 0
        means.pop()
    assert len(cells) >= 4
    assert chisquare(cells, np.array(means) * draws / np.sum(means)).pvalue > 1e-3


# -------------------------------------------------------------------------------------------------------------- company


def test_what_is_drawn_does_not_depend_on_batch_size_or_order(model: Any, prompts: list[list[int]]) -> None:
    requests = [Request(p, 1000 * i + k) for i, p in enumerate(prompts) for k in range(5)]
    alone = decode(model, requests, 1)
    assert len({tuple(r.tokens) for r in alone}) > len(requests) / 2  # there is something to get wrong
    assert {r.finish for r in alone} == {"stop", "length"}  # rows leave the batch at different times
    for batch_size in (3, 64):
        assert decode(model, requests, batch_size) == alone
    shuffled = np.random.default_rng(0).permutation(len(requests))
    assert decode(model, [requests[i] for i in shuffled], 8) == [alone[i] for i in shuffled]


def test_seeds_decide_what_is_drawn(model: Any, prompts: list[list[int]]) -> None:
    same = decode(model, [Request(prompts[1], 7)] * 3)
    assert same[0] == same[1] == same[2]
    assert len({tuple(r.tokens) for r in decode(model, [Request(prompts[1], seed) for seed in range(10)])}) > 5


def test_no_requests_give_no_responses(model: Any) -> None:
    assert decode(model, []) == []


# --------------------------------------------------------------------------------------------------------------- greedy


def generated(model: Any, prompt: list[int], max_new_tokens: int) -> list[int]:
    """The same by transformers' own generate, one prompt at a time."""
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(STOPS),
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def test_greedy_is_what_transformers_generates(model: Any, prompts: list[list[int]]) -> None:
    expected = [generated(model, p, 20) for p in prompts]
    drawn = decode(model, [Request(p, 0) for p in prompts], temperature=0, max_new_tokens=20)
    assert [r.tokens for r in drawn] == expected


def test_greedy_is_what_transformers_generates_beyond_the_sliding_window(
    tmp_path: Path, sft_policy: Path, model: Any, prompts: list[list[int]]
) -> None:
    policy = shutil.copytree(sft_policy, tmp_path / "policy")
    config = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps(config | {"sliding_window": 8}))
    narrow = load_model(policy)
    expected = [generated(narrow, p, 20) for p in prompts]
    assert expected != [generated(model, p, 20) for p in prompts]  # the window matters
    drawn = decode(narrow, [Request(p, 0) for p in prompts], 3, temperature=0, max_new_tokens=20)
    assert [r.tokens for r in drawn] == expected


# ------------------------------------------------------------------------------------------------------- shared prompts

SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 6},  # every other layer slides; logits of attention are capped
    "mistral": {"sliding_window": 6},  # every layer slides
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {},
    "phi3": {},
    "gemma3_text": {"sliding_window": 6},
    "olmo2": {},
}


def random_model(kind: str, **further: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **further)).eval()


def ragged(count: int) -> list[Request]:
    """Prompts of 3 to 20 tokens, five responses each."""
    generator = np.random.default_rng(1)
    prompts = [generator.integers(2, 60, size=size).tolist() for size in generator.integers(3, 21, size=count)]
    return [Request(prompt, 10 * i + k) for i, prompt in enumerate(prompts) for k in range(5)]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_probabilities_with_shared_prompts_are_those_of_each_whole_text(kind: str) -> None:
    """Of a plain forward pass over prompt and response, one by one; rows leave, others join, prompts are forgotten."""
    model = random_model(kind, **ARCHITECTURES[kind])
    assert shares_prompts(model)
    requests, asked = ragged(12), Decoding(temperature=5.0, max_new_tokens=40)
    responses = draw(model, requests, asked, range(2, 5), 16, "test", logprobs=True)
    assert len({len(r.tokens) for r in responses}) > 20 and max(len(r.tokens) for r in responses) == 40
    for request, response in zip(requests, responses, strict=True):
        ids = torch.tensor([[*request.prompt, *response.tokens]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0, len(request.prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(-1, ids[0, len(request.prompt) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt_oss", "gpt2"])
def test_a_model_whose_attention_we_cannot_replace_keeps_its_own(kind: str) -> None:
    """gpt-oss has a learnt sink in its softmax; GPT-2's positions are no rotation."""
    further = {"num_local_experts": 2, "num_experts_per_tok": 1} if kind == "gpt_oss" else {"n_layer": 2}
    model = random_model(kind, **further)
    requests = [Request([5, 6, 7, 8][: 2 + i % 3], i) for i in range(6)]
    drawn = draw(model, requests, Decoding(temperature=0, max_new_tokens=8), [1], 4, "test")
    for request, response in zip(requests, drawn, strict=True):
        assert response.tokens == generated(model, request.prompt, 8)[: len(response.tokens)]
        assert len(response.tokens) == 8 or response.tokens[-1] == 1


def test_rows_that_are_done_make_room_for_others(model: Any, prompts: list[list[int]]) -> None:
    """28 responses, 8 at once: a pass for each arrival of prompts, and for each token that rows go on by."""
    requests = [Request(p, 1000 * i + k) for i, p in enumerate(prompts) for k in range(4)]
    widths: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, a, kw: widths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    with hook:
        responses = decode(model, requests, 8)
    lengths = [[len(r.tokens) for r in responses[4 * i : 4 * i + 4]] for i in range(len(prompts))]
    waiting = [lengths[i] for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))]
    plain = sum(max(map(max, waiting[i : i + 2])) for i in range(0, len(waiting), 2))  # two prompts a batch, to the end
    left: list[int] = []
    steps = arrivals = 0
    while waiting or left:
        steps += bool(left)
        arrived: list[int] = []
        while waiting and len(left) + len(arrived) <= 4:
            arrived += waiting.pop(0)
        arrivals += bool(arrived)
        left = [n - 1 for n in [*left, *arrived] if n > 1]
    assert (widths.count(1), len(widths) - widths.count(1)) == (steps, arrivals)
    assert arrivals > 3 and steps + arrivals < plain


# -------------------------------------------------------------------------------------------------------------- endings


def test_responses_end_with_a_stop_token_or_at_the_limit(model: Any, prompts: list[list[int]]) -> None:
    responses = decode(model, [Request(p, seed) for p in prompts for seed in range(20)], max_new_tokens=9)
    assert {r.finish for r in responses} == {"stop", "length"}
    for tokens, finish, _ in responses:
        assert not set(tokens[:-1]) & set(STOPS)
        if finish == "stop":
            assert tokens[-1] in STOPS and len(tokens) <= 9
        else:
            assert tokens[-1] not in STOPS and len(tokens) == 9


def test_a_longer_limit_continues_the_same_response(model: Any, prompts: list[list[int]]) -> None:
    requests = [Request(p, 3) for p in prompts]
    for short, long in zip(decode(model, requests, max_new_tokens=4), decode(model, requests), strict=True):
        assert long.tokens[: len(short.tokens)] == short.tokens
        assert (short == long) == (short.finish == "stop")


# ---------------------------------------------------------------------------------------------------- log-probabilities


def test_log_probabilities_are_those_that_training_computes(
    sft_policy: Path, model: Any, prompts: list[list[int]]
) -> None:
    """Whatever temperature and top_p: both are the policy's own. Rows leave the batch at different times."""
    from mnpo.samplers.mismatch import mismatch

    requests = [Request(p, seed) for p in prompts for seed in range(20)]
    asked = Decoding(temperature=1.7, top_p=0.9, max_new_tokens=16)
    responses = draw(model, requests, asked, STOPS, 64, "test", logprobs=True)
    assert {r.finish for r in responses} == {"stop", "length"}
    assert [r._replace(logprobs=None) for r in responses] == draw(model, requests, asked, STOPS, 64, "test")
    facts = mismatch(sft_policy, requests, responses, warning=1e-5)
    assert facts["responses"] == 47 and facts["tokens"] == sum(len(r.tokens) for r in responses[::3])
    assert facts["mean"] <= facts["p99"] <= facts["max"] < 1e-4 and "warning" not in facts


@pytest.mark.parametrize(
    ("free", "dtype"), [(4.0, None), (3.99, "bfloat16"), (2.0, "bfloat16"), (1.99, "nothing")], ids=str
)
def test_the_comparison_takes_what_memory_the_sampler_has_left(
    sft_policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    dtype: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In bytes a parameter, beside 20 GB that a forward pass takes (10 in bfloat16)."""
    from mnpo.models import checkpoints
    from mnpo.samplers import mismatch

    size = checkpoints.parameters(sft_policy)
    beside = mismatch.WORK_BYTES / (1 if free >= 3.995 else 2)
    monkeypatch.setattr(mismatch, "_free_memory", lambda: free * size + beside)
    loaded: list[str] = []
    load = checkpoints.load_model
    monkeypatch.setattr(
        checkpoints, "load_model", lambda policy, dtype: loaded.append(dtype) or load(policy, dtype=dtype)
    )
    facts = mismatch.mismatch(sft_policy, [Request([2, 5], 0)], [Response([7, 1], "stop", [-1.0, -2.0])], warning=1e9)
    if dtype == "nothing":
        assert loaded == [] and "too little of the GPU's memory is free" in facts["warning"]
        assert facts["warning"] in capsys.readouterr().err
    else:
        assert loaded == [dtype or "float32"] and facts.get("dtype") == dtype and facts["tokens"] == 2
