"""The plan: a configuration unrolled, from which policies exist to which files mean them.

A plan reads nothing but the digests of users' own functions, and writes nothing; nothing heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.planning.files import Files
from mnpo.planning.measurements import Measurements
from mnpo.planning.name_limits import require_short
from mnpo.planning.oracles import Oracles
from mnpo.planning.policies import Policies
from mnpo.planning.settings import modules_of, settings_of
from mnpo.planning.targets import Targets
from mnpo.storage import code_digests
from mnpo.storage.artifacts import beside
from mnpo.storage.hub import Lock


class Plan:
    """A configuration, unrolled.

    Attributes:
        policies: who exists, who trains from whom against whom.
        files: what everything is called on disk.
        oracles: who judges, and what that needs.
        measurements: results on public benchmarks.
        targets: tables and figures, and what they are made of.

    Raises:
        ConfigError: weights that do not fit, an objective's settings that contradict, opponents that do not exist,
            names that are too long for the files that are called by them, functions that are not there.
    """

    def __init__(self, config: Config, lock: Lock | None = None) -> None:
        self.config, self.lock = config, lock or Lock()
        self.policies = Policies(config)
        self.files = Files(config, self.lock)
        self.oracles = Oracles(config, self.files)
        self.measurements = Measurements(config, self.files, self.policies)
        self.targets = Targets(config, self.files, self.policies, self.measurements)
        require_short(self)
        self.oracles.functions  # noqa: B018 - looks for them
        self.oracles.require_constraints()

    def settings(self, stage: str, **of: str) -> str:
        """The settings that a stage reads for one job, as canonical JSON: what is here decides what reruns."""
        return settings_of(self, stage, **of)

    def code(self, stage: str, oracles: Iterable[str] = ()) -> str:
        """The digest of the code behind a stage; `oracles` adds the modules of the kinds of oracle it uses."""
        return code_digests.digest(*modules_of(self, stage, oracles))

    def resources(self, stage: str) -> dict[str, Any]:
        """What a job of a stage asks for, in Snakemake's words; a further try gets twice the time and half as much
        memory again."""
        needs = self.config.resources.of(stage)
        asked = {
            "mem_mb": lambda wildcards, attempt: round(needs.memory_gb * 1000 * (1 + 0.5 * (attempt - 1))),
            "runtime": lambda wildcards, attempt: round(needs.hours * 60 * attempt),
            "cpus_per_task": needs.cpus,
        }
        return asked | ({"gres": f"gpu:{needs.gpus}"} if needs.gpus else {})

    def threads(self, stage: str) -> int:
        """Cores of a job of a stage."""
        return self.config.resources.of(stage).cpus


@contextmanager
def drafted(file: Path, text: str) -> Iterator[Plan]:
    """Write a configuration's file, unless it cannot be planned or the body refuses its plan. Raises ConfigError."""
    partial = beside(file, "partial")
    partial.write_text(text, encoding="utf-8")
    try:
        yield Plan(load(partial))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
