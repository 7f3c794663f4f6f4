"""What is checked before anything is submitted: the machine's driver, and users' own functions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput
from mnpo.planning.plan import Plan
from mnpo.planning.preflight import require_driver, require_functions


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
