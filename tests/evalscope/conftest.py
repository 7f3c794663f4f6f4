"""The demo's small data of every benchmark that EvalScope has."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnpo.benchmarks.evalscope_tasks import TASKS
from mnpo.demo import benchmarks


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("data")
    for name in TASKS:
        benchmarks.make(directory / name, name, seed=0)
    return {name: directory / name for name in TASKS}
