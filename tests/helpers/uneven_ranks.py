"""One rank of tests/learning/test_uneven_ranks.py: by every engine, a training whose texts are not alike on the ranks.

What it finds goes to `{directory}/{case}-{rank}.json`: each step's loss and gradient norm, together and alone (which
every rank is for itself), and how far the weights are apart then, as a share of the way that they went.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import Gemma2Config, Gemma2ForCausalLM

from mnpo.config.training import Training
from mnpo.errors import Interrupted
from mnpo.learning import distributed
from mnpo.learning.training import Trained, optimise, prepared
from mnpo.ranks import barrier, leaving, process_group, rank
from mnpo.storage.resume import Session, resumable

CHUNK = 4
RESPONSES = (39, 30, 6, 6, 6, 6, 6, 6)
"""Tokens. In micro-batches of 16, with the prompts: 39, 6 + 6, 6 + 6 on rank 0; 30, 6 + 6, then nothing on rank 1."""
CASES: dict[str, dict[str, Any]] = {
    **{f"{way}-{head}": {"parallel": way} for way in ("ddp", "fsdp", "zero2", "zero3") for head in ("tied", "untied")},
    "zero3-lora": {"parallel": "zero3", "lora": {"rank": 2, "alpha": 4}, "gradient_checkpointing": True},
    "zero3-bfloat16": {"parallel": "zero3", "dtype": "bfloat16", "gradient_checkpointing": True},
}
CASES |= {f"{way}-rmsprop": {"parallel": way, "optimiser": "rmsprop", "clip": 0} for way in ("fsdp", "zero2", "zero3")}
CASES |= {
    f"{way}-compiled": {"parallel": way, "compile": True, "gradient_checkpointing": True}
    for way in ("ddp", "fsdp", "zero2", "zero3")
}
CASES["zero3-compiled-lora"] = CASES["zero3-lora"] | {"compile": True}
CASES["zero3-compiled-bfloat16"] = CASES["zero3-bfloat16"] | {"compile": True}
STOPPED = ("ddp", "fsdp", "zero2", "zero3")
settings_of = distributed._deepspeed_settings
compiled = torch.compile


def as_if_compiled(function: Any, **how: Any) -> Any:
    """Traced, forward and backward, but run by torch: minutes less, and what is compiled knows nothing of ranks."""
    return compiled(function, **how, backend="aot_eager")


class Text(NamedTuple):
    prompt: Sequence[int]
    response: Sequence[int]


def as_if_large(optimisation: Any, stage: int) -> dict[str, Any]:
    """DeepSpeed leaves weights below a size whole, as all of these are; here it cuts every one."""
    cut = {"stage": stage, "stage3_param_persistence_threshold": 0}
    return {**settings_of(optimisation, stage), "zero_optimization": cut}


def model(tied: bool) -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)
    config._attn_implementation = "eager"
    return Gemma2ForCausalLM(config).train()


def losses(module: Any, rows: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
    texts = [Text([2, 5 + r], [(7 * i + r) % 60 + 3 for i in range(RESPONSES[r])]) for r in rows]
    return -module(texts, chunk_tokens=CHUNK, reduction="mean"), {}


def trained(start: Gemma2ForCausalLM, optimisation: Training, session: Session | None = None) -> Trained:
    module = prepared(copy.deepcopy(start), optimisation)
    return optimise(
        module,
        optimisation,
        losses,
        [2 + n for n in RESPONSES],
        3,
        names=[f"row {n}" for n in RESPONSES],
        seed=1,
        what="uneven",
        session=session,
    )


def alone(start: Gemma2ForCausalLM, optimisation: Training) -> Trained:
    """The same by one process."""
    group = {name: os.environ.pop(name) for name in ("RANK", "WORLD_SIZE")}
    try:
        return trained(start, optimisation)
    finally:
        os.environ.update(group)


def compare(case: str, directory: Path) -> None:
    schedule = {"schedule": "constant", "warmup": 0.0, "batch_size": len(RESPONSES), "micro_batch_tokens": 16}
    optimisation = Training(learning_rate=1e-3, **schedule, **CASES[case])
    start = model(tied=not case.endswith("untied"))
    torch.manual_seed(1)
    one = alone(start, optimisation.model_copy(update={"compile": None}))
    torch.manual_seed(1)
    torch._dynamo.reset()  # another case has compiled these layers
    before = counters["stats"]["unique_graphs"]
    two = trained(start, optimisation)
    graphs = counters["stats"]["unique_graphs"] - before
    found: dict[str, Any] = {"one": one.history, "two": two.history, "graphs": graphs}
    if rank() == 0:
        torch.manual_seed(1)
        begun = prepared(copy.deepcopy(start), optimisation).state_dict()
        ways = [torch.cat([w[n].flatten() for n in two.weights]) for w in (begun, one.weights, two.weights)]
        found["apart"] = float((ways[2] - ways[1]).norm() / (ways[1] - ways[0]).norm())
    (directory / f"{case}-{rank()}.json").write_text(json.dumps(found))


def stopped(way: str, directory: Path) -> None:
    """A training that rank 1 is asked to stop in its first step, and that goes on; and one whose checkpoint is damaged.

    Each rank says which files of the checkpoint it answers for.
    """
    schedule = {"schedule": "constant", "warmup": 0.0, "batch_size": len(RESPONSES), "micro_batch_tokens": 16}
    optimisation = Training(learning_rate=1e-3, parallel=way, **schedule)  # type: ignore[arg-type]
    start = model(tied=True)
    found: dict[str, Any] = {}

    def session(name: str, signal_comes: bool) -> Trained:
        torch.manual_seed(1)
        output = directory / f"{way}-{name}"
        with resumable(output, "train", {}, [], directory=True) as (made, session):
            if signal_comes and rank() == 1:
                session.asked = "SIGTERM"
            result = trained(start, optimisation, session)
            if rank() == 0:
                (made.path / "weights").write_text("whole")
        return result

    whole = session("whole", signal_comes=False)
    for name in ("continued", "damaged"):
        try:
            session(name, signal_comes=True)
        except Interrupted as stop:
            found[f"{name} stopped"] = str(stop)
        checkpoint = directory / f".work-{way}-{name}" / "checkpoint-1"
        index = checkpoint / ("index-1.json" if rank() else "index.json")
        own = found["own"] = sorted(json.loads(index.read_text())["files"])
        found["files"] = sorted(str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file())
        barrier()
        if name == "damaged" and rank() == 1:
            file = checkpoint / own[-1]
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        barrier()
        again = session(name, signal_comes=False)
        found[name] = again.history == whole.history
        found[f"{name} weights"] = all(torch.equal(w, whole.weights[n]) for n, w in again.weights.items())
        found[f"{name} facts"] = json.loads((directory / f"{way}-{name}" / "manifest.json").read_text())
    (directory / f"stopped-{way}-{rank()}.json").write_text(json.dumps(found))


def slow_save(directory: Path) -> None:
    """Rank 0 is slow to make its output whole, and the other gets a signal meanwhile."""
    output = directory / "slow"
    process = directory / "process"
    if rank() == 1:
        process.write_text(str(os.getpid()))
    barrier()
    with resumable(output, "train", {}, [], directory=True) as (made, _):
        if rank() == 0:
            time.sleep(1)
            os.kill(int(process.read_text()), signal.SIGTERM)
            time.sleep(1)
            (made.path / "weights").write_text("whole")
    (directory / f"left-{rank()}.json").write_text(json.dumps((output / "manifest.json").exists()))


with leaving(), process_group():
    distributed._deepspeed_settings = as_if_large
    torch.compile = as_if_compiled  # type: ignore[assignment]
    asked = Path(sys.argv[1])
    slow_save(asked)
    for way in STOPPED:
        stopped(way, asked)
    for case in CASES:
        compare(case, asked)
