"""The optimiser loop against AdamW written out by hand."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma2Config, Gemma2ForCausalLM, get_scheduler

from mnpo.config.training import Optimisation
from mnpo.errors import DiskFull, Diverged, Interrupted
from mnpo.learning.training import Losses, optimise, precision, prepared, schedule, write_metrics
from mnpo.models.chat import Encoded
from mnpo.storage.resume import resumable

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
    def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        error = X[rows] @ model.w - Y[rows]
        return error.square(), {"error": error}

    return losses


def train(
    steps: int = 1, losses: Losses | None = None, weights: list[float] | None = None, **settings: Any
) -> tuple[Tensor, list[dict[str, float]]]:
    model = Line()
    asked = Optimisation(**{"learning_rate": 0.01, "warmup": 0, "batch_size": ROWS, "clip": 1e9, **settings})
    lengths = [3, 1, 4, 1, 5, 2]
    trained = optimise(
        model, asked, losses or squares(model), lengths, steps, weights=weights, names=NAMES, seed=0, what="test"
    )
    return model.w.detach(), trained.history


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


def transformers_rates(kind: str, steps: int, warmup: float) -> list[float]:
    """The rate of each step as transformers' own scheduler sets it, from a peak of 1."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    scheduler = get_scheduler(kind, optimiser, math.ceil(warmup * steps), steps)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimiser.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "warmup"), [(78, 0.1), (26, 0.1), (74, 0.1), (10, 0.0), (1, 0.1)])
def test_a_rise_from_zero_is_transformers_own(kind: Any, steps: int, warmup: float) -> None:
    settings = Optimisation(warmup=warmup, schedule=kind, warmup_from_zero=True)
    ours = [schedule(settings, step, steps) for step in range(steps)]
    assert ours == pytest.approx(transformers_rates(kind, steps, warmup), abs=1e-12)


@pytest.mark.parametrize(("steps", "rise", "more"), [(78, 8, 1 / 39), (26, 3, 1 / 13)])
def test_our_rise_sums_to_one_peak_more(steps: int, rise: int, more: float) -> None:
    """Of a rise of W steps, ``sum (s + 1) / W - sum s / W = 1``; a cosine of n steps sums to (n + 1) / 2. So
    transformers' rates sum to (W - 1) / 2 + (S - W + 1) / 2 = S / 2, and ours to one more (ledger, point 46)."""
    ours, theirs = (
        sum(schedule(Optimisation(warmup_from_zero=zero), step, steps) for step in range(steps))
        for zero in (False, True)
    )
    assert round(0.1 * steps) == math.ceil(0.1 * steps) == rise
    assert theirs == pytest.approx(steps / 2) and ours == pytest.approx(steps / 2 + 1)
    assert ours / theirs - 1 == pytest.approx(more)


def test_a_linear_schedule_falls_by_as_much_each_step() -> None:
    settings = Optimisation(warmup=0.2, schedule="linear")
    assert [schedule(settings, step, 10) for step in range(10)] == pytest.approx(
        [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


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


@pytest.mark.parametrize("off", [None, 0])
def test_without_clipping_the_largest_gradient_counts_whole(off: float | None) -> None:
    """Two steps by hand, with no bound on a norm that is above the default's."""
    w, history = train(2, schedule="constant", betas=(0.8, 0.95), clip=off)
    torch.testing.assert_close(w, adamw_by_hand(2, 0.01, (0.8, 0.95), 0.0, math.inf), rtol=0, atol=1e-6)
    assert history[0]["gradient_norm"] > 1


def test_rmsprop_is_torchs_with_its_own_constants() -> None:
    """v = .99 v + .01 g^2; w -= rate * g / (sqrt(v) + 1e-8), by hand."""
    w, v = START.clone(), torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        gradient = 2 * ((X @ w - Y)[:, None] * X).mean(0)
        v = 0.99 * v + 0.01 * gradient**2
        w = w - 0.01 * gradient / (v.sqrt() + 1e-8)
    trained, _ = train(3, schedule="constant", optimiser="rmsprop", betas=(0.1, 0.2))
    torch.testing.assert_close(trained, w, rtol=0, atol=1e-6)


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

    def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        bad = torch.tensor([value if r in (2, 4) else 0.0 for r in rows], dtype=torch.float64)
        return (X[rows] @ model.w) * 0 + bad, {}

    with pytest.raises(Diverged) as caught:
        train(losses=losses)
    text = str(caught.value)
    assert text.startswith("test: step 0: the loss is not finite on 2 rows: ") and "learning_rate" in text
    assert {name for name in NAMES if name in text} == {"row 2", "row 4"}


def test_a_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights() -> None:
    model = Line()

    def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        return (model.w[0] * torch.zeros(len(rows), dtype=torch.float64)).sqrt(), {}  # 0, and a slope of 0/0

    with pytest.raises(Diverged, match="test: step 0: the gradient's norm is nan, on rows row "):
        optimise(model, Optimisation(batch_size=ROWS), losses, [1] * ROWS, 1, names=NAMES, seed=0, what="test")
    assert torch.equal(model.w.detach(), START)


class Copies(TorchDispatchMode):
    """The weights' copies in bfloat16, and how many of them are in memory at most."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self._copies = 0, list[StorageWeakRef]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and isinstance(args[0], Parameter) and out.dtype == torch.bfloat16:
            self._copies = [c for c in self._copies if not c.expired()] + [StorageWeakRef(out.untyped_storage())]
            self.most = max(self.most, len(self._copies))
        return out


def gradients(context: torch.autocast, counting: Copies) -> list[Tensor]:
    """The losses of three texts and the gradients of a small Gemma-2 that computes its activations again."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1)
    config._attn_implementation = "eager"
    module = prepared(Gemma2ForCausalLM(config).train(), Optimisation(gradient_checkpointing=True))
    with context, counting:
        loss = module([Encoded([2, 3, 4], [*range(5, 5 + n)]) for n in (9, 4, 7)])
    loss.sum().backward()
    return [loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def test_bfloat16_has_the_bits_of_a_cache_of_weights_and_not_its_memory() -> None:
    asked = Optimisation(dtype="bfloat16")
    ours, cached = Copies(), Copies()
    got = gradients(precision(asked, Line()), ours)
    expected = gradients(torch.autocast("cpu", dtype=torch.bfloat16), cached)
    assert len(got) == len(expected) > 40
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert ours.most == 1 and cached.most == 4 * 7 + 1  # seven products in a layer, and the head


def test_metrics_are_written_one_object_a_step(tmp_path: Path) -> None:
    _, history = train(steps=3)
    write_metrics(history, tmp_path / "metrics.jsonl")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


# ------------------------------------------------------------------------------------------------------- interruptions

STEPS = 24
CUT = Optimisation(
    learning_rate=0.05, warmup=0.2, batch_size=4, micro_batch_tokens=6, betas=(0.8, 0.95), weight_decay=0.1, clip=1.0
)


class Dropped(torch.nn.Module):
    """A network whose every forward pass draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(2, 7), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(7, 1)
        )


class Trained:
    """A training of `Dropped` in sessions; `before` is called with the number of each micro-batch of a session."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.history: list[dict[str, float]] = []
        self.weights: dict[str, Tensor] = {}
        self.micro_batches = 0

    def session(self, before: Callable[[int], None] = lambda number: None) -> None:
        model = Dropped()
        torch.manual_seed(1)
        number = 0

        def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
            nonlocal number
            before(number)
            number += 1
            self.micro_batches += 1
            error = model.layers(X[rows].float())[:, 0] - Y[rows].float()
            return error.square(), {"error": error}

        with resumable(self.output, "train", {}, []) as (made, session):
            self.history = optimise(
                model, CUT, losses, [3, 1, 4, 1, 5, 2], STEPS, names=NAMES, seed=0, what="test", session=session
            ).history
            made.path.write_text("done")
        self.weights = model.state_dict()


def same(one: Trained, other: Trained) -> bool:
    assert one.weights and one.weights.keys() == other.weights.keys()
    return one.history == other.history and all(torch.equal(one.weights[k], other.weights[k]) for k in one.weights)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    whole = Trained(tmp_path_factory.mktemp("uninterrupted") / "out")
    whole.session()
    assert whole.micro_batches > 2 * STEPS  # a signal can come between the micro-batches of a step
    return whole


def test_a_training_draws_random_numbers_that_matter(uninterrupted: Trained, tmp_path: Path) -> None:
    """Without which the tests below would say nothing of the generators' states."""
    other = Trained(tmp_path / "out")
    other.session(lambda number: torch.manual_seed(9) and None if number == 30 else None)
    assert other.history[:5] == uninterrupted.history[:5] and not same(other, uninterrupted)


@pytest.mark.slow
def test_stopped_at_any_point_and_continued_it_is_the_uninterrupted_training(
    uninterrupted: Trained, tmp_path: Path
) -> None:
    """Every micro-batch of all 24 steps is the point where the signal comes, once."""
    for point in range(uninterrupted.micro_batches):
        stopped = Trained(tmp_path / str(point))
        number = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)[point % 3]
        with pytest.raises(Interrupted, match=rf"stopped by {number.name} after step \d+ of 24; to be continued"):
            stopped.session(lambda at, point=point, number=number: signal.raise_signal(number) if at == point else None)
        stopped.session()
        assert same(stopped, uninterrupted)
        assert stopped.micro_batches == uninterrupted.micro_batches  # no step is done twice


def test_stopped_after_every_step_it_is_the_uninterrupted_training(uninterrupted: Trained, tmp_path: Path) -> None:
    stopped = Trained(tmp_path / "out")
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            stopped.session(lambda at: signal.raise_signal(signal.SIGTERM) if at == 0 else None)
    stopped.session()
    assert same(stopped, uninterrupted) and stopped.micro_batches == uninterrupted.micro_batches


def killed(stopped: Trained, point: int) -> None:
    """A session of its own process that is killed at a micro-batch, as by `kill -9`."""
    if (child := os.fork()) == 0:
        try:
            stopped.session(lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == point else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("points", [(0,), (1,), (7,), (25,), (0, 12, 3, 11, 1)])
def test_killed_without_a_warning_it_goes_on_from_the_last_checkpoint(
    uninterrupted: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: tuple[int, ...]
) -> None:
    monkeypatch.setenv("MNPO_CHECKPOINT_MINUTES", "0")
    stopped = Trained(tmp_path / "out")
    for point in points:
        killed(stopped, point)
    stopped.session()
    assert same(stopped, uninterrupted)
    spared = uninterrupted.micro_batches - stopped.micro_batches
    assert (spared > 0) == (max(points) > 2)  # what had been kept is not done again


def test_a_training_that_diverges_after_a_checkpoint_diverges_again_and_costs_no_more_than_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNPO_CHECKPOINT_MINUTES", "0")
    model = Line()

    def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        calls.append(rows)
        return (X[rows] @ model.w - Y[rows]).square() * (math.nan if len(calls) > 5 else 1.0), {}

    calls: list[list[int]] = []
    for expected in (6, 7):  # batches computed so far
        with (
            pytest.raises(Diverged, match="test: step 5: the loss is not finite"),
            resumable(tmp_path / "out", "train", {}, []) as (_, session),
        ):
            optimise(model, Optimisation(), losses, [1] * ROWS, 9, names=NAMES, seed=0, what="test", session=session)
        assert len(calls) == expected


def test_a_disk_that_is_full_for_a_checkpoint_leaves_the_one_before(
    uninterrupted: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNPO_CHECKPOINT_MINUTES", "0")
    write, written = torch.save, []

    def save(content: Any, stream: Any) -> None:
        written.append(stream)
        if len(written) == 9:  # two files a checkpoint
            with open("/dev/full", "wb") as full:
                write(content, full)
        write(content, stream)

    stopped = Trained(tmp_path / "out")
    monkeypatch.setattr("mnpo.learning.training.torch.save", save)
    with pytest.raises(DiskFull, match=r"what was finished before is kept in .*\.work-out"):
        stopped.session()
    assert {p.name for p in (tmp_path / ".work-out").iterdir()} == {"checkpoint-4", "work.json"}
    stopped.session()
    assert same(stopped, uninterrupted)
