"""One choice of a token: the exact inverse of the distribution over the nucleus, however few tokens are looked at."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnpo.config.sampling import Decoding
from mnpo.errors import BadInput
from mnpo.samplers import choosing
from mnpo.samplers.choosing import choose

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
    chosen = choose(PROBABILITIES.log(), settings, torch.tensor([uniform], dtype=torch.float64))
    assert chosen.tolist() == [token]


def test_without_a_random_number_the_likeliest_token_is_chosen() -> None:
    assert choose(PROBABILITIES.log(), Decoding(temperature=0), None).tolist() == [2]


def inverse(logits: np.ndarray, decoding: Decoding, uniform: float) -> int:
    """The same choice by numpy, of one row: all tokens in order of probability, then of number."""
    weights = np.exp((logits - logits.max()) / decoding.temperature)
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    mass = np.cumsum(weights[order]) / weights.sum()
    size = min(int(np.searchsorted(mass, decoding.top_p)) + 1, len(order))
    return order[min(int(np.searchsorted(mass[:size], uniform * mass[size - 1], side="right")), size - 1)]


SCALES = pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 4.0], ids=["equal", "flat", "usual", "peaked"])


def check(vocabulary: int, scale: float, top_p: float, dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(rows, vocabulary, generator=generator)).to(dtype)
    logits[1::5, ::3] = -torch.inf  # tokens that a policy never says
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 0.9999])
    decoding = Decoding(temperature=0.9, top_p=top_p, max_new_tokens=1)
    given = logits.double().numpy()
    expected = [inverse(row, decoding, u) for row, u in zip(given, uniform.tolist(), strict=True)]
    assert choose(logits, decoding, uniform).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@SCALES
def test_a_choice_is_the_same_whether_or_not_the_likeliest_tokens_decide_it(
    scale: float, top_p: float, dtype: torch.dtype
) -> None:
    """Of 1001 tokens, where 32 are looked at first, and 256 next; in bfloat16 many are equally likely."""
    check(1001, scale, top_p, dtype, 200)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@SCALES
def test_a_large_vocabulary_is_not_sorted_and_the_choice_is_the_same(
    scale: float, top_p: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20,001 tokens, in slices of three rows. Sorted are all of them only where all are equally likely."""
    widths, sort = [], torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda self, *a, **kw: widths.append(self.shape[-1]) or sort(self, *a, **kw)
    )
    monkeypatch.setattr(choosing, "LOOKED_AT", 60_000)
    check(20_001, scale, top_p, dtype, 40)
    assert widths and (scale == 0 or max(widths) < 20_001 / 2)


@pytest.mark.parametrize("top_p", [1 - 1e-7, 1 - 5e-8, 1 - 1e-9])
def test_a_nucleus_of_nearly_everything_ends_where_the_tokens_do(top_p: float) -> None:
    """A sum in float32 may be below it."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        logits = 0.1 * torch.randn(1, 5000, generator=generator)
        decoding = Decoding(temperature=1.0, top_p=top_p, max_new_tokens=1)
        expected = inverse(logits.double().numpy()[0], decoding, 0.37)
        assert choose(logits, decoding, torch.tensor([0.37], dtype=torch.float64)).tolist() == [expected]


@pytest.mark.parametrize("vocabulary", [20, 5000])
@pytest.mark.parametrize("strange", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_refused(strange: float, vocabulary: int) -> None:
    logits = torch.zeros(2, vocabulary)
    logits[1, 7] = strange
    for uniform in (None, torch.rand(2, dtype=torch.float64)):
        with pytest.raises(BadInput, match="no finite numbers.*look at its training's loss"):
            choose(logits, Decoding(top_p=0.9, max_new_tokens=1), uniform)
