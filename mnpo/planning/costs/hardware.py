"""What jobs compute on: GPU types by their vendors' data sheets. FLOP/s, bytes/s and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from mnpo.config.blocks import ConfigError, nearest
from mnpo.planning.plan import Plan


@dataclass(frozen=True)
class Device:
    """A GPU type, by its vendor's data sheet."""

    flops: float
    """Peak of dense bfloat16 matrix products, FLOP/s."""
    bandwidth: float
    """Of its memory, bytes/s."""
    memory: float
    """Bytes."""
    called: str
    """Part of the name by which the driver knows it."""


CPU = "cpu"
DEVICES = {
    "h100": Device(989e12, 3.35e12, 80e9, "H100"),
    "h200": Device(989e12, 4.8e12, 141e9, "H200"),
    "a100-80gb": Device(312e12, 2.039e12, 80e9, "A100"),
    "l40s": Device(362e12, 0.864e12, 48e9, "L40S"),
    CPU: Device(0.2e12, 0.02e12, 16e9, CPU),  # an assumption: two cores
}


def device(plan: Plan, stage: str) -> str:
    """What a stage's jobs compute on. Raises ConfigError for a GPU type that is not in DEVICES."""
    gpu = plan.config.resources.gpu
    if gpu not in DEVICES:
        raise ConfigError(f"resources.gpu: unknown GPU type {gpu!r}{nearest(gpu, DEVICES)}")
    return gpu if plan.config.resources.of(stage).gpus else CPU


def known_as(name: str) -> str | None:
    """The entry of DEVICES that a manifest's device is."""
    return next((key for key, d in DEVICES.items() if d.called in name), None)
