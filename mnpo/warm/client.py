"""`python -m mnpo` where there may be a warm process: it hands its command over, waits, and ends as the command ended.

Whatever is not as that process has it (Python, package, directory, environment, limits, ...) runs here, as it always
would: a library may have read it when it was imported. So does everything when nobody answers.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

DIRECTORY = "MNPO_WARM_SOCKETS"  # where the sockets are, each called as the number of threads of its process
SERVE = "--warm"
PATIENCE = 30.0  # seconds for an answer
COMING = ".coming"  # behind a socket's name: the one that is there while its process loads libraries
UNWAITING = ("prompts", "download", "pin")
"""Commands that do not wait for it: the first of a run, whose few libraries are there sooner, and those it refuses.
Others would load the same libraries beside it, and both would take longer."""
YES, NO = b"y", b"n"
OWN = ("TMPDIR", "TMP", "TEMP", "TEMPDIR", "PWD", "OLDPWD", "SHLVL", "_")
"""Variables that a command may have for itself: no library reads them when it is imported."""
FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP,
    signal.SIGCONT,
)  # fmt: skip


def begin() -> bool:
    """Return where the command runs in this process: True where it was forked from a warm one for that."""
    if sys.argv[1:2] == [SERVE]:
        from mnpo.warm import server

        sys.argv[1:] = server.serve(*sys.argv[2:])
        return True
    if directory := os.environ.get(DIRECTORY):
        path = os.path.join(directory, os.environ.get("OMP_NUM_THREADS", ""))
        if sys.argv[1:2] == ["--log"] and not set(sys.argv[3:4]) & {*UNWAITING}:
            _await(path)
        _ask(path)
    return False


def _await(path: str) -> None:
    """Wait while the warm process at `path` loads libraries, PATIENCE at most: it holds a socket that nobody answers,
    and closes it in the end, whatever end that is."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path + COMING)
        connection.recv(1)


def surroundings() -> dict[str, Any]:
    """All that a process inherits or was started with, beside its command, its streams and its `OWN` variables."""
    mask = os.umask(0o77)
    os.umask(mask)
    signals = sorted(signal.valid_signals())
    limits = (getattr(resource, name) for name in sorted(dir(resource)) if name.startswith("RLIMIT_"))
    return {
        "python": [sys.executable, sys.version, sys.prefix, *sys.flags, *sys.warnoptions, *map(str, sys._xoptions)],
        "package": str(Path(__file__).parent),
        "path": list(sys.path),
        "directory": os.getcwd(),
        "environment": {name: value for name, value in os.environ.items() if name not in OWN},
        "limits": [resource.getrlimit(limit) for limit in limits],
        "umask": mask,
        "nice": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "ignored": [int(number) for number in signals if signal.getsignal(number) == signal.SIG_IGN],
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    }


def _ask(path: str) -> None:
    """Let the warm process at `path` run this one's command. Returns if it does not; else ends as the command ended."""
    with socket.socket(socket.AF_UNIX) as connection:
        heard: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            heard.append(number)
            with suppress(OSError):
                connection.send(bytes([number]))
            if number == signal.SIGTSTP:
                os.kill(os.getpid(), signal.SIGSTOP)

        connection.settimeout(PATIENCE)
        try:
            connection.connect(path)
        except OSError:
            return
        handlers = {n: signal.signal(n, forward) for n in FORWARDED if signal.getsignal(n) != signal.SIG_IGN}
        try:
            request = json.dumps([surroundings(), dict(os.environ), sys.argv[1:]]).encode()
            socket.send_fds(connection, [len(request).to_bytes(8)], [0, 1, 2])
            connection.sendall(request)
            accepted = connection.recv(1) == YES
        except OSError:
            accepted = False
        if accepted:
            connection.settimeout(None)
            _end(connection.recv(4, socket.MSG_WAITALL))
    for name, handler in handlers.items():
        signal.signal(name, handler)
    for number in heard:
        os.kill(os.getpid(), number)


def _end(answer: bytes) -> NoReturn:
    """End as the command did; killed, where the warm process was, and the command with it."""
    code = os.waitstatus_to_exitcode(int.from_bytes(answer)) if answer else -signal.SIGKILL
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)
