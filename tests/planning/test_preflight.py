"""What is checked before anything is submitted, of the machine: its driver."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnpo.errors import BadInput
from mnpo.planning.preflight import require_driver


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
