"""One side of a part, in a process of its own: `python -m benchmarks.peers.sides '{...}'` prints what it took."""

from __future__ import annotations

import json
import sys
import time
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
    from benchmarks.peers import theirs

    if side == "vllm":
        return theirs.vllm(directory, dtype, batch, greedy)
    _import_what_is_imported_late(directory, part, side)
    if side == "peer":
        return {
            "training": lambda: theirs.training(directory, dtype, batch),
            "logps": lambda: theirs.log_probabilities(directory, dtype, batch, opponents),
            "sampling": lambda: theirs.sampling(directory, dtype, batch, greedy),
            "scoring": lambda: theirs.scoring(directory, dtype, batch),
        }[part]()
    from benchmarks.peers import ours

    return {
        "training": lambda: ours.training(directory, dtype, batch),
        "logps": lambda: ours.log_probabilities(directory, dtype, opponents),
        "sampling": lambda: ours.sampling(directory, dtype, batch, greedy),
        "scoring": lambda: ours.scoring(directory, dtype),
    }[part]()


def _import_what_is_imported_late(directory: Path, part: str, side: str) -> None:
    from mnpo.models.checkpoints import load_model

    if part == "scoring":
        load_model(directory / "classifier", "classifier")
    else:
        load_model(directory / "model")
    if (part, side) == ("training", "peer"):
        import trl.trainer.dpo_trainer  # noqa: F401


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
