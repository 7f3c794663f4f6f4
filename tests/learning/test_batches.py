"""Which rows go together: every row once an epoch, batches of the size asked for, within the budget."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice
from random import Random
from statistics import pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo.learning.batches import WINDOW, by_tokens, dealt, shuffled, steps

LENGTHS = [(7 * i) % 23 + 1 for i in range(60)]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_by_tokens_holds_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = by_tokens(lengths, budget)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= budget for b in batches)


def test_by_tokens_puts_the_longest_first_and_fills_batches() -> None:
    # 9 alone (two would be padded to 18); 5, 4 and 3 padded to 15; 2, 1.
    assert by_tokens([3, 9, 1, 5, 4, 2], 15) == [[1], [3, 4, 0], [5, 2]]
    assert by_tokens([20, 20], 15) == [[0], [1]]  # a row over the budget is a batch of its own
    assert by_tokens([2, 2, 2], 100) == [[0, 1, 2]]
    assert by_tokens([], 100) == []


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 8))
def test_ranks_share_a_steps_rows_in_as_many_micro_batches_each(lengths: list[int], budget: int, ranks: int) -> None:
    shares = dealt(lengths, budget, ranks)
    assert len(shares) == ranks and len({len(parts) for parts in shares}) == 1
    assert sorted(row for parts in shares for part in parts for row in part) == list(range(len(lengths)))
    assert all(len(p) < 2 or len(p) * max(lengths[i] for i in p) <= budget for parts in shares for p in parts)
    each = len(shares[0])
    assert (each - 1) * ranks < len(by_tokens(lengths, budget)) <= each * ranks  # no more than the budget makes
    padded = [len(p) * max(lengths[i] for i in p) for parts in shares for p in parts if len(p) > 1]
    if ranks > 1 and padded:  # and the largest is as small as can be: a lower limit would make too many
        assert len(by_tokens(lengths, max(padded) - 1)) > each * ranks


def test_micro_batches_are_cut_by_length_and_alike_on_the_ranks() -> None:
    # within 20 padded tokens 9 and 5, 4 and 2: 18 and 8. As many, but 9 alone, and 5, 4, 2: 9 and 15.
    assert dealt([4, 9, 2, 5], 20, 1) == [[[1, 3], [0, 2]]]
    assert dealt([4, 9, 2, 5], 20, 2) == [[[1]], [[3, 0, 2]]]
    # within 10 padded tokens 9; 5 and 4; 2: three, so four on two ranks, and each row by itself.
    assert dealt([4, 9, 2, 5], 10, 2) == [[[1], [0]], [[3], [2]]]


def test_a_rank_with_fewer_micro_batches_gets_empty_ones() -> None:
    assert dealt([4, 9], 10, 3) == [[[1]], [[0]], [[]]]
    assert dealt([7, 9, 8], 10, 2) == [[[1], [0]], [[2], []]]


def test_uniform_batches_lose_little_to_padding_on_eight_ranks() -> None:
    """Log-normal lengths, mean 973, standard deviation 379, in steps of 128: with rows dealt out one by one, by falling
    length, a rank's micro-batches were of unlike rows, and a step took 1.32 times its tokens; now 1.1 times."""
    rng = Random(0)
    lengths = [round(rng.lognormvariate(6.81, 0.375)) for _ in range(2560)]
    needed = waited = 0
    for rows in islice(shuffled(lengths, 128, seed=0), 20):
        step = [lengths[r] for r in rows]
        costs = [sum(len(p) * max(step[i] for i in p) for p in parts if p) for parts in dealt(step, 8192, 8)]
        needed, waited = needed + sum(step), waited + 8 * max(costs)
    assert waited / needed < 1.12


@pytest.mark.parametrize("size", [1, 4, 7, 16, 60])
def test_every_row_comes_once_before_any_comes_twice_too_often(size: int) -> None:
    """After as many batches as make up E whole epochs, every row was seen exactly E times."""
    for epochs in (1, 2, 3):
        steps, rest = divmod(epochs * len(LENGTHS), size)
        seen = Counter(chain(*islice(shuffled(LENGTHS, size, seed=1), steps)))
        assert sum(seen.values()) == steps * size
        assert max(seen.values()) <= epochs
        if rest == 0:
            assert set(seen.values()) == {epochs} and len(seen) == len(LENGTHS)


@pytest.mark.parametrize("size", [7, 16])
def test_batches_have_exactly_the_size_asked_for(size: int) -> None:
    assert {len(b) for b in islice(shuffled(LENGTHS, size, seed=1), 40)} == {size}


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert [sorted(b) for b in islice(shuffled([3, 1, 2], 16, seed=1), 3)] == [[0, 1, 2]] * 3


def test_the_order_depends_on_the_seed_and_nothing_else() -> None:
    one, same, other = (list(islice(shuffled(LENGTHS, 4, seed), 30)) for seed in (5, 5, 6))
    assert one == same != other
    assert one[:15] != one[15:]  # and epochs differ from each other


def test_windows_make_batches_of_similar_length_and_not_in_order_of_length() -> None:
    lengths = [(7919 * i) % 997 for i in range(4 * WINDOW)]
    batches = list(islice(shuffled(lengths, 4, seed=0, windows=True), WINDOW))
    spread = [max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches]
    assert sum(spread) / len(spread) < 997 / WINDOW  # sorted in one window, four neighbours are close
    longest = [max(lengths[i] for i in b) for b in batches]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_batches_are_drawn_uniformly_unless_asked_otherwise() -> None:
    """The batches are the shuffled rows, cut: their mean lengths vary as those of random draws (sigma / sqrt(size)).

    1,000 lengths 0 .. 999, so sigma is 288.7; batches of 25 then have means with a deviation of 288.7 / 5 * 0.988
    (drawn without replacement); sorted in windows they have nearly the lengths' own.
    """
    lengths, size = list(range(1000)), 25

    def deviation(windows: bool) -> float:
        batches = list(islice(shuffled(lengths, size, seed=3, windows=windows), 40 * 20))
        return pstdev(sum(lengths[i] for i in b) / size for b in batches)

    assert deviation(False) == pytest.approx(57.0, rel=0.05)
    assert deviation(True) == pytest.approx(288.7, rel=0.01)


@pytest.mark.parametrize("windows", [False, True])
def test_an_incomplete_last_batch_is_filled_or_dropped(windows: bool) -> None:
    """60 rows in batches of 16: filled, 15 batches are exactly four epochs; dropped, every epoch has three and leaves
    out twelve rows, other ones each time."""
    filled = list(islice(shuffled(LENGTHS, 16, seed=1, windows=windows), 15))
    assert set(Counter(chain(*filled)).values()) == {4}
    dropped = list(islice(shuffled(LENGTHS, 16, seed=1, windows=windows, fill=False), 12))
    epochs = [Counter(chain(*dropped[i : i + 3])) for i in range(0, 12, 3)]
    assert all(len(e) == 48 and set(e.values()) == {1} for e in epochs)
    assert len({frozenset(e) for e in epochs}) == 4


@pytest.mark.parametrize(
    ("rows", "size", "epochs", "filled", "dropped"),
    [(20000, 256, 1, 79, 78), (6667, 256, 1, 27, 26), (60, 16, 3, 12, 9), (64, 16, 2, 8, 8), (5, 16, 3, 3, 3)],
)
def test_steps_of_an_epoch(rows: int, size: int, epochs: int, filled: int, dropped: int) -> None:
    """transformers 4.44 counts `len(dataloader) // accumulation` updates: what `drop` does."""
    assert steps(rows, size, epochs) == filled
    assert steps(rows, size, epochs, fill=False) == dropped
