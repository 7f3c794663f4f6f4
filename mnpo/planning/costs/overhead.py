"""What every job takes beside its work, however long that is: weights read, hashed, compiled for and saved."""

from __future__ import annotations

import math

from mnpo.planning.costs.assumptions import (
    CHECKPOINT_BYTES,
    CHECKPOINT_SECONDS,
    COMPILING,
    FILE_BYTES,
    HASHING,
    LOADING,
    SAVED_BYTES,
    STORING,
    WEIGHT_BYTES,
)
from mnpo.planning.costs.disk import saved_bytes
from mnpo.planning.costs.hardware import CPU
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.registry import Work


def loading(q: Quantities, work: Work) -> float:
    """Seconds until the weights are there."""
    return sum(_files(q, work)) / LOADING


def fixed(q: Quantities, work: Work, on: str, working: float) -> float:
    """Further seconds of a job with a model: hashing what it reads, compiling, saving and hashing what it makes.

    Args:
        on: the device.
        working: seconds of its work, which decide whether a training writes checkpoints meanwhile.
    """
    cpus, gpus = q.plan.config.resources.of(work.needs).cpus, max(1, q.plan.config.resources.of(work.needs).gpus)
    seconds = sum(_hashing(size, cpus) for size in _files(q, work, hashed=True))
    if on != CPU and _by_vllm(q, work):
        seconds += COMPILING
    if work.stage in ("train", "sft"):
        saved, checkpoint = saved_bytes(q, work), CHECKPOINT_BYTES * q.size(work.models[0])
        count = max(0, math.floor(working / CHECKPOINT_SECONDS) - 1)  # none is written with less than that to do
        seconds += saved / STORING + _hashing(saved, cpus)
        seconds += count * (checkpoint / STORING + checkpoint / gpus / HASHING)  # each rank hashes its own
    return seconds


def _files(q: Quantities, work: Work, hashed: bool = False) -> list[float]:
    """Bytes of the weights that a job reads, of each model.

    A trained policy is float32, but for readers in bfloat16 where it has a copy for them. What is fetched is not.
    `hashed`: bytes that it checks, which with all of a policy are those of its copy too.
    """
    c = q.plan.config
    read = q.plan.policies.fits[work.policy or ""].start if work.stage == "train" else work.policy
    how = q.learning(read) if work.stage != "sft" else None
    dtype = {"train": "float32", "sample": c.sampling.dtype, "logps": c.training.dtype}.get(
        work.stage, c.evaluation.dtype
    )
    first = WEIGHT_BYTES
    if how is not None and not (how.bfloat16_copy and dtype == "bfloat16"):
        first = SAVED_BYTES + WEIGHT_BYTES * bool(hashed and how.bfloat16_copy)
    return [(first if i == 0 else WEIGHT_BYTES) * q.size(model) for i, model in enumerate(work.models)]


def _hashing(size: float, cpus: int) -> float:
    """Seconds of SHA-256 of files of so many bytes together: a core for each file."""
    return size / HASHING / min(cpus, max(1, math.ceil(size / FILE_BYTES)))


def _by_vllm(q: Quantities, work: Work) -> bool:
    if work.stage == "sample":
        return q.plan.config.sampling.sampler == "vllm"
    return work.stage in ("answer", "harness", "evalscope") and q.plan.config.evaluation.backend == "vllm"
