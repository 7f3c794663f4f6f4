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

    def forks() -> list[psutil.Process]:
        return [job for server in servers() for job in server.children()]

    def servers() -> list[psutil.Process]:
        return [child for child in psutil.Process(process.pid).children() if "--warm" in child.cmdline()]

    with project.started("--", "results/demo/tables/main.csv") as process:
        until(forks, "a job that is forked")
        (server,) = servers()
        left = [server, *psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(left, timeout=120)
        assert alive == []
    assert not (project.path / "results/demo/tables/main.csv").exists()
