"""One rank of the trainings of tests/test_distributed.py: those of a JSON file, one after the other in one process.

Those called `...stopped` get a signal and go on; those called `...left` get one, and stay as they are.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from mnpo.errors import Interrupted
from mnpo.learning import distributed, training
from mnpo.ranks import process_group, rank
from mnpo.stages import sft
from mnpo.stages.train import Settings, run

asked = json.loads(Path(sys.argv[1]).read_text())
start, pairs, logps = (Path(asked[name]) for name in ("policy", "pairs", "logps"))
step, settings_of = training._step, distributed._deepspeed_settings


def as_if_large(optimisation: Any, stage: int) -> dict[str, Any]:
    """DeepSpeed leaves weights below a size whole, as all of these are; here it cuts every one."""
    return {
        **settings_of(optimisation, stage),
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }


distributed._deepspeed_settings = as_if_large


def signalled(*given: Any) -> Any:
    """The second rank gets a signal in the third step."""
    if given[-1].endswith("step 2") and rank() == 1:
        signal.raise_signal(signal.SIGTERM)
    return step(*given)


def train(name: str, settings: dict[str, Any]) -> None:
    run(Settings.model_validate(settings), start, [pairs], Path(asked["output"]) / name, [logps])


with process_group():
    for name, settings in asked["trainings"].items():
        if name.endswith(("stopped", "left")):
            training._step = signalled
            try:
                train(name, settings)
            except Interrupted as stopped:
                print(f"rank {rank()}: {stopped}", flush=True)
            training._step = step
        if not name.endswith("left"):
            train(name, settings)
    fine_tuning = sft.Settings.model_validate(asked["fine_tuning"])
    sft.run(fine_tuning, Path(asked["demonstrations"]), Path(asked["output"]) / "sft")
    for name, settings in asked["lessons"].items():
        train, heldout = (Path(asked["conversations"]) / f"{part}.parquet" for part in ("train", "heldout"))
        sft.run(sft.Settings.model_validate(settings), train, Path(asked["output"]) / name, heldout=heldout)
