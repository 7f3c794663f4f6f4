"""A client of a loopback server, with short waits between its tries."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.oracles import Judge
from mnpo.demo.judge import Loopback
from mnpo.judging import session
from mnpo.judging.client import Client


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store" / "answers.sqlite"


@pytest.fixture
def client(store: Path) -> Callable[..., Client]:
    def _client(server: Loopback, **settings: Any) -> Client:
        return Client(Judge(model="demo", endpoint=server.url, **{"concurrency": 4, **settings}), store)

    return _client
