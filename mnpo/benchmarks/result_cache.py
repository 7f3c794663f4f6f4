"""A benchmark that is done stays done: its result is kept beside the outputs under the digest of what it rests on.

So neither a killed job nor one that is asked for a further benchmark measures it again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnpo.storage.artifacts import Spent, artifact, digest, manifest
from mnpo.storage.records import ITEMS, write

KEPT = ".measured"
Results = Iterator[tuple[str, dict[str, Any], list[dict[str, Any]]]]
"""The name, summary and per-item rows of each benchmark, as they are done."""


@dataclass(frozen=True)
class Measuring:
    """One stage's results of a policy, in the directory `output`."""

    stage: str
    settings: Mapping[str, Any]
    """How every benchmark is measured: settings, and the digest of the code."""
    benchmarks: Mapping[str, Any]
    """Benchmark -> what is its own of the settings."""
    policy: Path
    data: Mapping[str, Path]
    output: Path

    def run(self, results: Callable[[list[str]], Results]) -> None:
        """Write `{benchmark}.json` and `{benchmark}.parquet` for every benchmark; measure those that are not kept."""
        kept = {benchmark: self._kept(benchmark) for benchmark in self.benchmarks}
        started = Spent.now()
        if missing := [benchmark for benchmark in kept if not kept[benchmark].is_dir()]:
            for benchmark, summary, rows in results(missing):
                with artifact(kept[benchmark], self.stage, self.settings, [self.policy], directory=True) as made:
                    made.earlier = Spent.now() - started  # measured before there was something to write
                    (made.path / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
                    write(ITEMS, rows, made.path / "rows.parquet")
                started = Spent.now()
        for benchmark, directory in kept.items():
            self._publish(benchmark, directory)
        for old in set(self._all.iterdir()) - set(kept.values()):
            shutil.rmtree(old)

    @property
    def _all(self) -> Path:
        return self.output / KEPT / self.stage

    def _kept(self, benchmark: str) -> Path:
        """Named by what a benchmark's result rests on, and nothing else: not by which others are measured."""
        what = [self.settings, self.benchmarks[benchmark], digest(self.policy), digest(self.data[benchmark])]
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        return self._all / f"{benchmark}-{key[:16]}"

    def _publish(self, benchmark: str, kept: Path) -> None:
        summary = json.loads((kept / "summary.json").read_text(encoding="utf-8"))
        settings = {**self.settings, "benchmarks": self.benchmarks}
        for ending, name in ((".json", "summary.json"), (".parquet", "rows.parquet")):
            with artifact(
                self.output / f"{benchmark}{ending}", self.stage, settings, [self.policy, self.data[benchmark]]
            ) as made:
                shutil.copyfile(kept / name, made.path)
                made.facts = {k: summary[k] for k in ("items", "missing")}
                made.earlier = Spent.of(manifest(kept))
