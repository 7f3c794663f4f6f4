"""A workflow whose jobs are forked, and what is left of it when it is killed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.helpers.checkouts import Checkout, until

SMALL = """\
extends: configs/demo.yaml
prompts: { demonstrations: 140, parts: 1, part_size: 14, heldout: 14 }
reference: { sft: { steps: 4 } }
runs:
  dpo: { label: DPO, objective: { name: dpo, beta: 1.0 }, oracle: overall, iterations: [{ parts: [1] }] }
evaluation: { benchmarks: [] }
"""


@pytest.mark.slow
def test_jobs_are_forked_and_a_killed_workflow_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNPO_WARM", "1")
    project = Checkout.of_project(tmp_path / "project", "small.yaml")
    (project.path / "small.yaml").write_text(SMALL)

    def warm(parent: int) -> list[psutil.Process]:
        """The children of a process that are a warm one or its forks."""
        found = psutil.process_iter(["ppid", "cmdline"])
        return [p for p in found if p.info["ppid"] == parent and "--warm" in (p.info["cmdline"] or [])]

    with project.started("--", "results/demo/tables/main.csv") as process:
        until(lambda: [job for server in warm(process.pid) for job in warm(server.pid)], "a job that is forked")
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(left, timeout=120)
        assert alive == []
    assert not (project.path / "results/demo/tables/main.csv").exists()
