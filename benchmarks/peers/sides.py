"""One side of a part, in a process of its own: `python -m benchmarks.peers.sides '{...}'` prints what it took."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple


class Clock:
    """Adds up the seconds within it; of a function too."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._begun = 0.0

    def __enter__(self) -> Clock:
        self._begun = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent += time.monotonic() - self._begun

    def around(self, do: Any) -> Any:
        """`do`, timed."""

        def timed(*arguments: Any, **options: Any) -> Any:
            with self:
                return do(*arguments, **options)

        return timed


class Made(NamedTuple):
    """What a side made of a part."""

    seconds: dict[str, float]
    """By what is done."""
    tokens: int
    """That were drawn; 0 where nothing is."""
    values: list[Any]
    """What both sides must agree on: losses of the steps, log-probabilities, scores, greedy texts."""


def do(directory: Path, part: str, side: str, dtype: str, batch: int, opponents: int, greedy: bool) -> Made:
    """Run a side of a part; `batch` in the side's own unit (`PARTS`)."""
    from benchmarks.peers import LORA, theirs

    if side == "vllm":
        return theirs.vllm(directory, dtype, batch, greedy)
    _import_what_is_imported_late(directory, part, side)
    if side == "peer":
        return {
            "training": lambda: theirs.training(directory, dtype, batch),
            "lora": lambda: theirs.training(directory, dtype, batch, LORA),
            "logps": lambda: theirs.log_probabilities(directory, dtype, batch, opponents),
            "sampling": lambda: theirs.sampling(directory, dtype, batch, greedy),
            "scoring": lambda: theirs.scoring(directory, dtype, batch),
        }[part]()
    from benchmarks.peers import ours

    return {
        "training": lambda: ours.training(directory, dtype, batch),
        "lora": lambda: ours.training(directory, dtype, batch, LORA),
        "logps": lambda: ours.log_probabilities(directory, dtype, opponents),
        "sampling": lambda: ours.sampling(directory, dtype, batch, greedy),
        "scoring": lambda: ours.scoring(directory, dtype),
    }[part]()


OURS = ("pandas", "pyarrow.dataset", "mnpo.learning.training", "mnpo.models.thinking", "mnpo.oracles.reward_models",
        "mnpo.samplers.transformers", "mnpo.storage.resume")  # fmt: skip
PEERS = {"training": ("trl.trainer.dpo_trainer",), "lora": ("trl.trainer.dpo_trainer", "peft")}


def _import_what_is_imported_late(directory: Path, part: str, side: str) -> None:
    """Imports are no part of what is timed. transformers imports most of its own when a model is loaded."""
    from mnpo.models.checkpoints import load_model

    kind: Any = "classifier" if part == "scoring" else "causal"
    load_model(directory / ("classifier" if part == "scoring" else "model"), kind)
    for module in OURS if side == "ours" else ("pandas", "pyarrow.dataset", *PEERS.get(part, ())):
        import_module(module)


def main() -> None:
    """Run what the one argument asks for, as JSON; print what it took."""
    asked = json.loads(sys.argv[1])
    directory = Path(asked.pop("directory"))
    made = do(directory, **asked)
    import torch

    cuda = torch.cuda.is_available()
    gpu = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    print(json.dumps({**made._asdict(), "gpu": gpu, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
