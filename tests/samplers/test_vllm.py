"""What of the vLLM sampler needs no vLLM; the rest is in tests/vllm."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from mnpo.config.sampling import Sampling
from mnpo.errors import BadInput
from mnpo.samplers import Request, Response, kept_or_drawn, longest_first
from mnpo.samplers.vllm import draw
from mnpo.storage.resume import resumable


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_message_names_the_environment_that_has_it(sft_policy: Path) -> None:
    asked = Sampling(sampler="vllm", max_new_tokens=4)
    with pytest.raises(BadInput, match=r"No module named 'vllm'.*envs/infer\.txt.*sampling\.sampler: transformers"):
        draw(sft_policy, [Request([2, 3], 0)], asked, [1], 60, "test")


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
