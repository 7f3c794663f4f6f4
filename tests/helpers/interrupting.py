"""Signals that come at a known point of a computation."""

from __future__ import annotations

import signal
from types import ModuleType
from typing import Any

import pytest


class Signalled:
    """A function that does as before and counts its calls; before call number `at` (from 0) comes a SIGTERM."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        self._function = getattr(module, name)
        self.calls, self.at = 0, -1
        monkeypatch.setattr(module, name, self)

    def __call__(self, *given: Any, **options: Any) -> Any:
        if self.calls == self.at:
            signal.raise_signal(signal.SIGTERM)
        self.calls += 1
        return self._function(*given, **options)

    def again(self, at: int = -1) -> None:
        """Count from 0, with the signal before call `at`; never, if negative."""
        self.calls, self.at = 0, at
