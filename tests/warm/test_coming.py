"""Who waits for a warm process that is loading libraries, and who does not."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mnpo.cli.stages import STAGES
from mnpo.warm.client import COMING, UNWAITING, YES
from mnpo.warm.server import THREADS
from tests.helpers.checkouts import ROOT, until
from tests.helpers.warmed import PATIENCE, STARTER


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """Of a warm process that loads libraries."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/1{COMING}")
        listener.listen()
        yield listener


def asked(tmp_path: Path, *command: str) -> subprocess.Popen[str]:
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"MNPO_WARM_SOCKETS": str(tmp_path)}
    words = [sys.executable, "-m", "mnpo", "--log", str(tmp_path / "log"), *command]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def waits(listener: socket.socket) -> bool:
    return bool(select.select([listener], [], [], PATIENCE)[0])


@pytest.mark.parametrize("command", ["sft", "tabulate"])
def test_a_command_waits_and_is_answered(command: str, listener: socket.socket, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as answering:
        client = asked(tmp_path, command)
        assert waits(listener)
        answering.bind(f"{tmp_path}/1")
        answering.listen()
        listener.close()
        connection, _ = answering.accept()
        assert command in connection.recv(1 << 20).decode(errors="replace") + connection.recv(1 << 20).decode()
        connection.sendall(YES + (7 << 8).to_bytes(4))
        assert client.wait(PATIENCE) == 7


def test_when_it_does_not_come_the_command_runs_by_itself(listener: socket.socket, tmp_path: Path) -> None:
    client = asked(tmp_path, "logps", "--nonsense")
    assert waits(listener)
    time.sleep(0.2)
    assert client.poll() is None
    listener.close()
    assert client.wait(PATIENCE) == 2 and "--nonsense" in client.stdout.read()


def test_whoever_is_refused_does_not_wait() -> None:
    assert {name for name, stage in STAGES.items() if not stage.offline} <= {*UNWAITING}


def test_the_first_command_of_a_run_does_not_wait(listener: socket.socket, tmp_path: Path) -> None:
    client = asked(tmp_path, "prompts", "--nonsense")
    assert client.wait(PATIENCE) == 2
    assert not select.select([listener], [], [], 0)[0]


def test_a_warm_process_says_that_it_comes_until_it_is_there(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": str(ROOT), "PATH": path}
    command = [sys.executable, "-c", STARTER, "pandas"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as starter:
        sockets = Path(starter.stdout.readline().strip())
        until((sockets / f"1{COMING}").exists, "the word that it comes")
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(sockets / f"1{COMING}"))
            assert not (sockets / "1").exists()
            with suppress(ConnectionResetError):
                assert waiting.recv(1) == b""
        assert (sockets / "1").exists() and not (sockets / f"1{COMING}").exists()
        starter.kill()
    until(lambda: not sockets.exists(), "its end")
