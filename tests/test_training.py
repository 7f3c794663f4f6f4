"""The optimiser loop against AdamW written out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnpo.config import Optimisation
from mnpo.errors import Diverged
from mnpo.training import Losses, optimise, schedule, write_metrics

ROWS = 6
X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.25], [-2.0, 1.0], [0.0, 4.0], [1.5, 1.5]], dtype=torch.float64)
Y = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 2.0], dtype=torch.float64)
START = torch.tensor([0.3, -0.7], dtype=torch.float64)
NAMES = [f"row {i}" for i in range(ROWS)]


class Line(torch.nn.Module):
    """y = w . x, from a fixed start."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(START.clone())


def squares(model: Line) -> Losses:
    def losses(rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        error = X[rows] @ model.w - Y[rows]
        return error.square(), {"error": error}

    return losses


def train(
    steps: int = 1, losses: Losses | None = None, weights: list[float] | None = None, **settings: Any
) -> tuple[Tensor, list[dict[str, float]]]:
    model = Line()
    asked = Optimisation(**{"learning_rate": 0.01, "warmup": 0, "batch_size": ROWS, "clip": 1e9, **settings})
    lengths = [3, 1, 4, 1, 5, 2]
    history = optimise(
        model, asked, losses or squares(model), lengths, steps, weights=weights, names=NAMES, seed=0, what="test"
    )
    return model.w.detach(), history


# ------------------------------------------------------------------------------------------------------------- schedule


def test_the_schedule_rises_then_falls_as_a_cosine() -> None:
    """Ten steps, the first two of which rise: 1/2, 1; then (1 + cos(pi k/8)) / 2 for k = 0 .. 7."""
    values = [schedule(Optimisation(warmup=0.2), step, 10) for step in range(10)]
    assert values[:4] == [0.5, 1.0, 1.0, pytest.approx((1 + math.cos(math.pi / 8)) / 2)]
    assert values[6] == pytest.approx(0.5)  # halfway down
    assert values[9] == pytest.approx((1 + math.cos(7 * math.pi / 8)) / 2)
    assert values[2:] == sorted(values[2:], reverse=True)


def test_a_constant_schedule_rises_and_stays() -> None:
    settings = Optimisation(warmup=0.3, schedule="constant")
    assert [schedule(settings, step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_trainings_never_have_a_rate_of_zero_or_above_its_peak(steps: int) -> None:
    for warmup in (0.0, 0.1, 0.5, 1.0):
        assert all(0 < schedule(Optimisation(warmup=warmup), step, steps) <= 1 for step in range(steps))


def test_the_rate_in_the_metrics_is_the_schedules(tmp_path: Path) -> None:
    _, history = train(steps=10, learning_rate=0.2, warmup=0.2)
    assert [row["learning_rate"] for row in history] == pytest.approx(
        [0.2 * schedule(Optimisation(warmup=0.2), step, 10) for step in range(10)]
    )
    assert [row["step"] for row in history] == list(range(10))


# ------------------------------------------------------------------------------------------------------------ the steps


def adamw_by_hand(steps: int, rate: float, betas: tuple[float, float], decay: float, clip: float) -> Tensor:
    """Full-batch AdamW of the mean square error: decoupled weight decay, the gradient clipped by its norm."""
    w, m, v = START.clone(), torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for t in range(1, steps + 1):
        gradient = 2 * ((X @ w - Y)[:, None] * X).mean(0)
        gradient = gradient * min(1.0, clip / float(gradient.norm()))
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        w = w - rate * decay * w - rate * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("micro", [1, 8, 1000])
@pytest.mark.parametrize(("clip", "decay"), [(1e9, 0.0), (0.5, 0.1)])
def test_steps_are_those_of_adamw_however_the_batch_is_cut(micro: int, clip: float, decay: float) -> None:
    for steps in (1, 5):
        w, _ = train(
            steps, schedule="constant", micro_batch_tokens=micro, betas=(0.8, 0.95), weight_decay=decay, clip=clip
        )
        torch.testing.assert_close(w, adamw_by_hand(steps, 0.01, (0.8, 0.95), decay, clip), rtol=0, atol=1e-6)


def test_metrics_are_means_over_the_batch_before_the_step() -> None:
    error = X @ START - Y
    for micro in (1, 1000):
        _, history = train(micro_batch_tokens=micro)
        assert history[0]["loss"] == pytest.approx(float(error.square().mean()))
        assert history[0]["error"] == pytest.approx(float(error.mean()))
        assert history[0]["gradient_norm"] == pytest.approx(float((2 * (error[:, None] * X).mean(0)).norm()))


def test_rows_count_by_their_weights() -> None:
    weights = [1.0, 2.0, 0.0, 4.0, 1.0, 2.0]
    share = torch.tensor(weights, dtype=torch.float64) / 10
    error = X @ START - Y
    for micro in (1, 1000):
        _, history = train(weights=weights, micro_batch_tokens=micro)
        assert history[0]["loss"] == pytest.approx(float((share * error.square()).sum()))
        assert history[0]["gradient_norm"] == pytest.approx(float((2 * ((share * error)[:, None] * X).sum(0)).norm()))


def test_the_same_seed_gives_the_same_bits() -> None:
    one, same = (train(steps=7, batch_size=4)[0] for _ in range(2))
    assert torch.equal(one, same)


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_and_names_its_rows(value: float) -> None:
    model = Line()

    def losses(rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        bad = torch.tensor([value if r in (2, 4) else 0.0 for r in rows], dtype=torch.float64)
        return (X[rows] @ model.w) * 0 + bad, {}

    with pytest.raises(Diverged) as caught:
        train(losses=losses)
    text = str(caught.value)
    assert text.startswith("test: step 0: the loss is not finite on 2 rows: ") and "learning_rate" in text
    assert {name for name in NAMES if name in text} == {"row 2", "row 4"}


def test_a_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights() -> None:
    model = Line()

    def losses(rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return (model.w[0] * torch.zeros(len(rows), dtype=torch.float64)).sqrt(), {}  # 0, and a slope of 0/0

    with pytest.raises(Diverged, match="test: step 0: the gradient's norm is nan, on rows row "):
        optimise(model, Optimisation(batch_size=ROWS), losses, [1] * ROWS, 1, names=NAMES, seed=0, what="test")
    assert torch.equal(model.w.detach(), START)


def test_metrics_are_written_one_object_a_step(tmp_path: Path) -> None:
    _, history = train(steps=3)
    write_metrics(history, tmp_path / "metrics.jsonl")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
