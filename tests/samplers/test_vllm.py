"""What of the vLLM sampler needs no vLLM; the rest is in tests/vllm."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnpo.config.sampling import Decoding, Sampling
from mnpo.errors import BadInput, Interrupted
from mnpo.models.checkpoints import save_copy
from mnpo.samplers import Request, Response, kept_or_drawn, longest_first, vllm
from mnpo.samplers.vllm import Engine, draw
from mnpo.storage.resume import Session, resumable


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_message_names_the_environment_that_has_it(sft_policy: Path) -> None:
    asked = Sampling(sampler="vllm", max_new_tokens=4)
    with pytest.raises(BadInput, match=r"No module named 'vllm'.*envs/infer\.txt.*sampling\.sampler: transformers"):
        draw(sft_policy, [Request([2, 3], 0)], asked, [1], 60, "test")


def test_flashinfers_sampler_is_not_compiled_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM 0.32 builds it while it warms up, which needs nvcc on the node."""
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM"):
        monkeypatch.setenv(name, "")  # they are put back
    monkeypatch.setenv("VLLM_USE_FLASHINFER_SAMPLER", "1")
    vllm.before_import()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "1"
    monkeypatch.delenv("VLLM_USE_FLASHINFER_SAMPLER")
    vllm.before_import()
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


class Started(Exception):
    """The engine would start now."""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an engine is told that ends as it starts."""
    told: dict[str, Any] = {}

    def engine(**how: Any) -> None:
        told.update(how)
        raise Started

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=engine))
    return told


@pytest.mark.parametrize(("dtype", "read"), [("bfloat16", "bfloat16"), ("float32", "")])
def test_the_engine_reads_the_copy_where_it_computes_in_bfloat16(
    dtype: str, read: str, random_policy: Path, tmp_path: Path, told: dict[str, Any]
) -> None:
    policy = shutil.copytree(random_policy, tmp_path / "policy")
    save_copy(policy)
    (policy / "manifest.json").write_text("{}")
    with pytest.raises(Started):
        draw(policy, [Request([2, 3], 0)], Sampling(sampler="vllm", dtype=dtype), [1], 60, "test")
    assert (told["model"], told["dtype"], told["max_num_seqs"]) == (str(policy / read), dtype, 64)


def test_the_widest_batch_is_left_to_the_engine(sft_policy: Path, told: dict[str, Any]) -> None:
    """Where it is told None, vLLM chooses by the GPU's memory."""
    with pytest.raises(Started):
        draw(sft_policy, [Request([2, 3], 0)], Sampling(sampler="vllm", batch_size="widest"), [1], 60, "test")
    assert told["max_num_seqs"] is None


def test_no_requests_need_no_engine(sft_policy: Path) -> None:
    assert draw(sft_policy, [], Sampling(sampler="vllm"), [1], 60, "test") == []


def test_the_longest_prompts_go_first_and_a_prompts_requests_together() -> None:
    lengths = [2, 2, 5, 5, 2, 2, 7, 7]
    assert longest_first([Request([9] * n, i) for i, n in enumerate(lengths)]) == [6, 7, 2, 3, 0, 1, 4, 5]


def test_what_was_drawn_comes_back_from_the_journal_as_it_was(tmp_path: Path) -> None:
    """Log-probabilities are floats that survive JSON to the last bit."""
    requests = [Request([1, 2], 2**63 - 1), Request([3], 0)]
    drawn = [Response([5, 1], "stop", [-0.1, -1 / 3]), Response([6, 7], "length", None)]
    calls: list[list[Request]] = []

    def counted(asked: list[Request]) -> list[Response]:
        calls.append(asked)
        return drawn

    with resumable(tmp_path / "out", "sample", {}, []) as (made, session):
        journal = session.journal("batches")
        assert kept_or_drawn(requests, counted, journal) == drawn
        assert kept_or_drawn(requests, counted, session.journal("batches")) == drawn
        assert kept_or_drawn(requests[:1], lambda asked: drawn[:1], journal) == drawn[:1]
        assert calls == [requests]
        made.path.write_text(json.dumps(len(journal)))
    assert (tmp_path / "out").read_text() == "2"


# ------------------------------------------------------------------------------------------------- one queue, and stops


class FakeEngine:
    """As vLLM's offline engine: `batch` requests at once; each step writes a token of each; a seed is a length."""

    def __init__(self, batch: int) -> None:
        self.batch, self.steps, self.queues, self.number = batch, 0, 0, 100
        self.waiting: list[tuple[int, list[int], int]] = []
        self.running: list[list[Any]] = []
        self.drawn: list[int] = []
        self.llm_engine = self.engine_core = self
        self.ended = 0

    def shutdown(self) -> None:
        self.ended += 1

    def reset_prefix_cache(self) -> None:
        self.queues += 1

    def enqueue(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[str]:
        first = self.number
        for prompt, length in zip(prompts, params, strict=True):
            self.waiting.append((self.number, prompt["prompt_token_ids"], length))
            self.number += 1
        return [f"{number}-0f3a" for number in range(first, self.number)]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[Any]:
        self.steps += 1
        while self.waiting and len(self.running) < self.batch:
            self.running.append([*self.waiting.pop(0), []])
        for request in self.running:
            request[3].append(len(request[3]))
        done = [request for request in self.running if len(request[3]) == request[2]]
        self.running = [request for request in self.running if request not in done]
        self.drawn += [length for _, _, length, _ in done]
        return [
            SimpleNamespace(
                finished=True,
                request_id=str(number),
                prompt_token_ids=prompt,
                outputs=[SimpleNamespace(token_ids=tokens, finish_reason="stop", logprobs=None)],
            )
            for number, prompt, _, tokens in done
        ]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """In vLLM's place, with four requests at once."""
    fake = FakeEngine(4)
    monkeypatch.setattr(vllm, "_start", lambda *how: fake)
    monkeypatch.setattr(vllm, "_free", lambda: None)
    monkeypatch.setattr(vllm, "_params", lambda request, *how: request.seed)
    return fake


LENGTHS = [1 + i % 5 for i in range(199)] + [97]
ASKED = [Request([2, i], length) for i, length in enumerate(LENGTHS)]


def tokens(responses: Sequence[Response]) -> list[int]:
    return [len(response.tokens) for response in responses]


def test_all_requests_wait_in_one_queue(engine: FakeEngine) -> None:
    """The batch of four is full until the longest is left: its 97 tokens, and before that all the others."""
    responses = draw(Path("policy"), ASKED, Sampling(sampler="vllm", batch_size=4), [1], 99, "test")
    assert tokens(responses) == LENGTHS
    assert engine.queues == 1
    assert engine.steps <= sum(LENGTHS[:-1]) / 4 + 5 + 97


def test_what_is_finished_survives_a_stop_and_is_not_drawn_again(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(sampler="vllm", batch_size=4)
    sessions: list[Session] = []
    stepped = engine.step

    def step() -> list[Any]:
        if engine.steps == 100:
            sessions[-1].asked = "SIGTERM"
        return stepped()

    def run() -> list[Response]:
        with resumable(tmp_path / "out", "sample", {}, []) as (made, session):
            sessions.append(session)
            made.path.write_text("made")
            return draw(Path("policy"), ASKED, sampling, [1], 99, "test", session.journal("responses"))

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after [0-9]+ responses"):
        run()
    finished = list(engine.drawn)
    assert engine.steps == 101 and engine.ended == 1  # the step itself, and no other
    assert len(finished) > 100
    engine.drawn, engine.running, engine.waiting = [], [], []
    assert tokens(run()) == LENGTHS
    assert sorted(engine.drawn + finished) == sorted(LENGTHS)


def test_an_engine_answers_several_questions_and_starts_once(engine: FakeEngine, tmp_path: Path) -> None:
    """Other decoding is other work, in the journal too."""
    with resumable(tmp_path / "out", "answer", {}, []) as (made, session):
        journal = session.journal("answers")
        with Engine(Path("policy"), Sampling(sampler="vllm"), [1], 99) as answering:
            for temperature in (0.0, 0.7, 0.0):
                assert (
                    tokens(answering.draw(ASKED[:5], Decoding(temperature=temperature), "test", journal)) == LENGTHS[:5]
                )
        assert engine.queues == 2 and len(engine.drawn) == 10 and engine.ended == 1
        made.path.write_text("made")


def test_nobody_holds_the_engine_when_its_memory_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever did would keep its weights on the GPU, where training's float32 ones come next."""
    engines: list[weakref.ref[FakeEngine]] = []
    held: list[bool] = []

    def start(*how: Any) -> FakeEngine:
        fake = FakeEngine(4)
        engines.append(weakref.ref(fake))
        return fake

    def free() -> None:
        gc.collect()
        held.extend(engine() is not None for engine in engines)

    monkeypatch.setattr(vllm, "_start", start)
    monkeypatch.setattr(vllm, "_free", free)
    monkeypatch.setattr(vllm, "_params", lambda request, *how: request.seed)
    draw(Path("policy"), ASKED[:3], Sampling(sampler="vllm"), [1], 99, "test")
    assert held == [False]
