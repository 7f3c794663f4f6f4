"""Small versions of the fourteen benchmarks: our own items in the demo's language, in the files and columns of the
real data, so that the demo measures its policies by the same code. And of what a rehearsal reads beside them
(configs/rehearsal.yaml): prompts with responses, NLTK's sentence model.

A policy of the demo reads 128 tokens; configs/demo.yaml has the settings that go with these data. Texts that a harness
brings itself stay as they are, so TruthfulQA's six examples are cut (and counted).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from mnpo.demo.harness_items import HARNESS
from mnpo.demo.judged_items import JUDGED
from mnpo.demo.questions import Maker
from mnpo.demo.rehearsed_data import REHEARSED
from mnpo.errors import BadInput


def make(directory: Path, benchmark: str, seed: int) -> None:
    """Write a benchmark's data into `directory`: the same seed writes the same bytes.

    `seed` is that of the demo's world, whose held-out prompts the questions are. Raises BadInput for an unknown name.
    """
    if benchmark not in DATA:
        raise BadInput(f"datasets.{benchmark}: demo: there is a small version of {', '.join(DATA)} only")
    for path, content in DATA[benchmark](random.Random(f"{seed}/{benchmark}"), seed).items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, content)


def _write(path: Path, content: Any) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(content), path)
    elif path.suffix == ".csv":
        import pandas as pd

        pd.DataFrame(content).to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


BENCHMARKS: dict[str, Maker] = JUDGED | HARNESS
DATA: dict[str, Maker] = BENCHMARKS | REHEARSED
