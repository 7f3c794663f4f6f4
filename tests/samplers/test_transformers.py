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
from mnpo.samplers.transformers import _choose, draw

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

# Tokens 2, 0, 3, 1 in order of probability.
PROBABILITIES = torch.tensor([[0.3, 0.05, 0.5, 0.15]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("top_p", "temperature", "uniform", "token"),
    [
        # The nucleus of 3/4 is {2, 0} with mass 4/5: token 2 below u = 5/8, then token 0, and never another.
        (0.75, 1.0, 0.0, 2),
        (0.75, 1.0, 0.624, 2),
        (0.75, 1.0, 0.626, 0),
        (0.75, 1.0, 0.9999999, 0),
        # Of 0.85 it is {2, 0, 3} with mass 0.95: steps at 10/19 and 16/19.
        (0.85, 1.0, 0.526, 2),
        (0.85, 1.0, 0.527, 0),
        (0.85, 1.0, 0.842, 0),
        (0.85, 1.0, 0.843, 3),
        (0.85, 1.0, 0.9999999, 3),
        # Everything: steps at 0.5, 0.8, 0.95.
        (1.0, 1.0, 0.949, 3),
        (1.0, 1.0, 0.951, 1),
        (1.0, 1.0, 1 - 2**-53, 1),
        # At temperature 1/2 probabilities are squared: .25 .09 .0225 .0025 of .365; steps at .68493, .93151, .99315.
        (1.0, 0.5, 0.684, 2),
        (1.0, 0.5, 0.686, 0),
        (1.0, 0.5, 0.931, 0),
        (1.0, 0.5, 0.932, 3),
        (1.0, 0.5, 0.994, 1),
        # A nucleus smaller than the first token is that token.
        (0.1, 1.0, 0.9999999, 2),
    ],
)
def test_a_choice_inverts_the_distribution_over_exactly_the_nucleus(
    top_p: float, temperature: float, uniform: float, token: int
) -> None:
    settings = Decoding(temperature=temperature, top_p=top_p, max_new_tokens=1)
    chosen = _choose(PROBABILITIES.log(), settings, torch.tensor([uniform], dtype=torch.float64))
    assert chosen.tolist() == [token]


def test_without_a_random_number_the_likeliest_token_is_chosen() -> None:
    assert _choose(PROBABILITIES.log(), Decoding(temperature=0), None).tolist() == [2]


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
