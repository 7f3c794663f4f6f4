"""What every job takes beside its work, however long that is: weights read, hashed, compiled for and saved."""

from __future__ import annotations

import math

from mnpo.config.blocks import REFERENCE
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
    seconds = sum(_hashing(size, cpus) for size in _files(q, work))
    if on != CPU and _by_vllm(q, work):
        seconds += COMPILING
    if work.stage in ("train", "sft"):
        saved, checkpoint = (each * q.size(work.models[0]) for each in (SAVED_BYTES, CHECKPOINT_BYTES))
        count = max(0, math.floor(working / CHECKPOINT_SECONDS) - 1)  # none is written with less than that to do
        seconds += saved / STORING + _hashing(saved, cpus)
        seconds += count * (checkpoint / STORING + checkpoint / gpus / HASHING)  # each rank hashes its own
    return seconds


def _files(q: Quantities, work: Work) -> list[float]:
    """Bytes of the weights that a job reads, of each model: trained policies are float32, what is fetched is not."""
    fit, sft = work.policy in q.plan.policies.fits, q.plan.config.reference.sft
    start = q.plan.policies.fits[work.policy or ""].start if fit and work.stage == "train" else work.policy
    trained = start in q.plan.policies.fits or (start == REFERENCE and sft is not None and work.stage != "sft")
    first = SAVED_BYTES if trained else WEIGHT_BYTES
    return [(first if i == 0 else WEIGHT_BYTES) * q.size(model) for i, model in enumerate(work.models)]


def _hashing(size: float, cpus: int) -> float:
    """Seconds of SHA-256 of files of so many bytes together: a core for each file."""
    return size / HASHING / min(cpus, max(1, math.ceil(size / FILE_BYTES)))


def _by_vllm(q: Quantities, work: Work) -> bool:
    if work.stage == "sample":
        return q.plan.config.sampling.sampler == "vllm"
    return work.stage in ("answer", "harness", "evalscope") and q.plan.config.evaluation.backend == "vllm"
