"""How many responses memory has room for: by hand, and by what a process that draws them really takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mnpo.config.sampling import Decoding
from mnpo.samplers import Request, room, transformers
from mnpo.samplers.shared_prompts import room_for
from mnpo.samplers.transformers import draw
from tests.helpers.checkouts import ROOT
from tests.samplers.test_transformers import ARCHITECTURES, ragged, random_model

TAKEN = """
import json, re, sys
from transformers import AutoConfig, AutoModelForCausalLM
from mnpo.config.sampling import Decoding
from mnpo.samplers import Request, room
from mnpo.samplers.transformers import draw

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

kind, shape, budget, prompts = json.loads(sys.argv[1])
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape)).eval()
room.free_bytes = lambda model: budget
requests = [Request([3 + i % 50] * 64, 9 * i + k) for i in range(prompts) for k in range(640 // prompts)]
asked = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=32)
draw(model, requests[:1], asked, [], 1, "warm up")
before = peak()
rows = room.widest(model, requests, 32)
draw(model, requests[: 2 * rows], asked, [], "widest", "test")
print(json.dumps([rows, peak() - before]))
"""
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 8,
              "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64},
    "gpt2": {"vocab_size": 60, "n_embd": 256, "n_head": 4, "n_layer": 16, "n_positions": 256},
    "gpt_oss": {"vocab_size": 60, "hidden_size": 360, "intermediate_size": 360, "num_hidden_layers": 2,
                "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 16,
                "num_experts_per_tok": 4},
    "gemma2": {"vocab_size": 20_000, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4,
               "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
}  # fmt: skip
"""Where keys and values are most of it; where each row has a prompt of its own; where experts are; where logits are."""


@pytest.mark.parametrize(
    ("kind", "prompts"), [("llama", 640), ("llama", 4), ("gpt2", 640), ("gpt_oss", 640), ("gemma2", 640)]
)
def test_the_widest_batch_stays_within_memory_and_uses_it(kind: str, prompts: int) -> None:
    """All responses become as long as they may. Beside what was counted there is what the allocator keeps."""
    budget = 150e6
    command = [sys.executable, "-c", TAKEN, json.dumps([kind, SHAPES[kind], budget, prompts])]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    rows, taken = json.loads(said.stdout.splitlines()[-1])
    assert rows >= 8
    assert taken <= 1.1 * budget
    if prompts > 4:  # where they are shared, less is kept than was counted on
        assert taken >= 0.15 * budget


@pytest.mark.parametrize(("kind", "token"), [("llama", 384), ("gemma2", 384), ("gpt2", 768)])
def test_what_is_kept_of_a_token(kind: str, token: int) -> None:
    """Three layers of two heads of 8 numbers, keys and values, in float32: 3 * 2 * 2 * 8 * 4 bytes, of GPT-2 twice
    as many heads. What a sliding layer would drop is kept where prompts are shared, and else is not counted."""
    model = random_model(kind, **ARCHITECTURES.get(kind, {}))
    with torch.no_grad():
        assert room._kept(model, shared=kind != "gpt2") == (0, token)
        if kind == "gemma2":  # two of the layers slide, over 6 tokens, of which they keep 5, and how many there were
            assert room._kept(model, shared=False) == (2 * (5 * 128 + 8), 128)


@pytest.mark.parametrize(
    ("megabytes", "rows"), [(0, 1), (0.05, 1), (0.6, 4), (1.2, 8), (2.4, 16), (1e3, 64), (1e6, 64)], ids=str
)
def test_rows_are_a_power_of_two_and_no_more_than_there_are_requests(
    megabytes: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, of prompts of 20 tokens and room for 32: a row keeps 52 tokens of 384 bytes in three layers, one of
    which is there twice while it grows (4/3), looks at them with four heads of 12 + 2 * 8 * 4 bytes, and has 60 logits
    of 20 bytes: 43,632 bytes. Each of its prompt's tokens takes 4 * (8 * 32 + 3 * 48) + 2 * 384 + 12 * 4 * 20 = 3,328
    bytes while it is read. A row more is 110,192 bytes, so 4 rows take 0.44 MB, 8 rows 0.88, 16 rows 1.76."""
    monkeypatch.setattr(room, "free_bytes", lambda model: megabytes * 1e6)
    requests = [Request([5] * 20, i) for i in range(50)]
    assert room.widest(random_model("llama"), requests, 10) == rows
    assert room.widest(random_model("llama"), [], 10) == 1


def test_room_is_doubled() -> None:
    assert [room_for(n) for n in (1, 32, 33, 64, 65, 4096)] == [32, 32, 64, 64, 128, 4096]


def test_what_is_drawn_is_the_same_however_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, requests, asked = random_model("llama"), ragged(9), Decoding(temperature=3.0, max_new_tokens=20)
    plain = draw(model, requests, asked, [2, 3], 5, "test")
    assert draw(model, requests, asked, [2, 3], "widest", "test") == plain
    assert "test: 64 responses at once, as memory allows" in capsys.readouterr().err
    monkeypatch.setattr(room, "free_bytes", lambda model: 0)
    assert draw(model, requests, asked, [2, 3], "widest", "test") == plain
    assert "test: 1 responses at once" in capsys.readouterr().err


@pytest.mark.parametrize(("tokens", "passes"), [(10_000, 1), (40, 5), (1, 9)])
def test_prompts_are_read_so_many_tokens_at_a_time(tokens: int, passes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine prompts of 20 tokens, all at once, two at once, one at once: the same responses."""
    model, asked = random_model("qwen3"), Decoding(temperature=3.0, max_new_tokens=8)
    requests = [Request([5 + i, *range(10, 29)], 10 * i + k) for i in range(9) for k in range(3)]
    plain = draw(model, requests, asked, [2, 3], 2, "test")
    monkeypatch.setattr(transformers, "READ_TOKENS", tokens)
    widths: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, a, kw: widths.append(kw["input_ids"].shape[1]), with_kwargs=True)
    with hook:
        assert draw(model, requests, asked, [2, 3], 27, "test") == plain
    assert widths.count(20) == passes


def test_a_job_has_the_memory_that_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What SLURM says in megabytes, what a control group says in bytes, or the machine's share."""
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}
    monkeypatch.setattr(room.os, "sysconf", pages.get)
    monkeypatch.setattr(room.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: {0, 1})  # what the job may use are not all cores
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(room, "CGROUPS", tmp_path)
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert room.job_bytes() == 2**32 / 4
    (tmp_path / "memory.max").write_text("max\n")
    assert room.job_bytes() == 2**32 / 4
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "200")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert room.job_bytes() == 600 * 2**20
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    assert room.job_bytes() == 1000 * 2**20
    (tmp_path / "memory.max").write_text("500000000\n")
    assert room.job_bytes() == 5e8
    weights = torch.zeros(1_000_000)
    model = SimpleNamespace(device=torch.device("cpu"), parameters=lambda: [weights])
    assert room.free_bytes(model) == 2.5e8 - 4e6
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    (tmp_path / "memory.max").unlink()
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    assert room.job_bytes() == 2**32


class Differing:
    """A configuration whose layers differ."""

    intermediate_size = (8, 24, 16)
    num_attention_heads = None

    @property
    def head_dim(self) -> int:
        raise ValueError("ambiguous: ask a layer")


def test_what_a_configuration_does_not_tell_is_assumed() -> None:
    assert room._number(Differing(), "intermediate_size", 5) == 24
    for name in ("num_attention_heads", "head_dim", "hidden_size"):
        assert room._number(Differing(), name, 5) == 5
