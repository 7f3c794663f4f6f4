"""What is checked before anything is submitted: the machine's driver, the locks of its file systems, and users' own
functions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput
from mnpo.planning.plan import Plan
from mnpo.planning.preflight import require_driver, require_functions
from tests.helpers.without_locks import without_locks

CHECKING = """
import json, sys
from pathlib import Path
from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import preflight
from mnpo.planning.plan import Plan
config, changes, job = sys.argv[1:]
try:
    preflight.check(Plan(load(Path(config), json.loads(changes))), [json.loads(job)])
except BadInput as error:
    print(error)
"""
JUDGE = {"model": "demo", "endpoint": "http://127.0.0.1:1"}
ASKING: dict[str, dict[str, str]] = {
    "judge": {"policy": "sft", "benchmark": "mt-bench", "judge": "demo", "repeat": ""},
    "answer": {"policy": "api", "benchmark": "mt-bench"},
    "score_asking": {"policy": "sft", "part": "part1", "oracle": "llm@sft", "shard": "0"},
    "assess": {"policy": "sft"},
}


def nvidia_smi(directory: Path, script: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_driver_that_is_too_old_for_the_locked_torch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    require_driver()  # nothing answers
    nvidia_smi(tmp_path, "echo 580.65.06; echo 610.12")
    require_driver()
    nvidia_smi(tmp_path, "echo 'No devices were found'; exit 6")
    require_driver()
    nvidia_smi(tmp_path, "echo 580.65.06; echo 570.133.20")
    with pytest.raises(BadInput, match=r"driver 570\.133\.20.* 580"):
        require_driver()


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("rule", ASKING)
def test_a_file_system_without_locks_is_seen_before_anything_runs(
    rule: str, root: Path, demo: Path, tmp_path: Path
) -> None:
    """For every job that keeps paid answers; the setting that lets them lie elsewhere helps."""
    here = tmp_path / "checkout"
    here.mkdir()
    environment = without_locks(here, tmp_path) | {"PYTHONPATH": str(root)}

    def said(**changes: str) -> str:
        models = {"api": {"api": "someone", "endpoint": JUDGE["endpoint"]}}
        added = {"add": {"models": models, "oracles": {"llm": {"kind": "judge", "judge": JUDGE}}}}
        given = {"extends": str(demo), **added, "evaluation": {"models": ["api"], "oracle": "llm"}}
        (tmp_path / "config.json").write_text(json.dumps(given))
        command = [sys.executable, "-c", CHECKING, str(tmp_path / "config.json"), json.dumps(changes)]
        job = json.dumps([rule, ASKING[rule]])
        return subprocess.run(
            [*command, job], cwd=here, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said().startswith(".: its file system does not lock files (No locks available)")
    assert said(stores=str(tmp_path / "elsewhere")) == ""
    assert not list(here.iterdir()) and not (tmp_path / "elsewhere").exists()


def test_stores_lie_beneath_the_setting_by_the_names_that_they_have_without_it(
    planned: Callable[..., Plan], tmp_path: Path
) -> None:
    """And where they lie is in no job's settings: it makes nothing run again."""
    usual, moved = planned(), planned(stores=str(tmp_path))
    for files, below in ((usual.files, Path()), (moved.files, tmp_path)):
        assert (
            Path(files.judgements("sft", "mt-bench", "demo"))
            == below / "results/demo/judgements/demo/sft.mt-bench.sqlite"
        )
        assert Path(files.said("api", "mt-bench")) == below / "results/demo/answers/api/mt-bench.sqlite"
        assert Path(files.heldout_opinions("sft")) == below / "results/demo/evals/sft/heldout.judge.sqlite"
        assert Path(files.opinions("sft", 1, "llm", 0)) == below / "results/demo/scores/sft/part1/llm/0.judge.sqlite"
    of = {"policy": "sft", "benchmark": "mt-bench", "judge": "demo", "repeat": ""}
    assert usual.settings("judge", **of) == moved.settings("judge", **of)


def test_the_functions_that_jobs_are_going_to_ask_are_imported_first(
    tmp_path: Path, planned: Callable[..., Plan]
) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("def f(responses): return [0.0 for _ in responses]\n")
    bad.write_text("import no_such_package\nprint('imported')\ndef f(responses): ...\n")
    own: dict[str, Any] = {
        name: {"kind": "function", "file": str(file), "function": "f"} for name, file in (("good", good), ("bad", bad))
    }
    plan = planned(oracles={**planned().config.model_dump(exclude_none=True)["oracles"], **own})
    require_functions(plan, [("score", {"oracle": "good"}), ("score", {"oracle": "overall"}), ("assess", {})])
    with pytest.raises(
        BadInput, match=r"^.*bad\.py: cannot be imported \(ModuleNotFoundError: No module named .*install"
    ):
        require_functions(plan, [("score", {"oracle": "good"}), ("score", {"oracle": "bad@sft"})])
