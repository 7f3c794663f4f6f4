"""Commands as forks of a process: each with the streams, the signals and the end of whoever asked for it."""

from __future__ import annotations

import ctypes
import gc
import os
import selectors
import signal
import socket
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

PR_SET_PDEATHSIG = 1
Words = list[str]


@dataclass(eq=False)
class Job:
    """A command at work."""

    pid: int
    ended: int
    """A descriptor that says so."""
    client: socket.socket


class Forks:
    """The commands that a process has been forked for, and whatever else it waits for.

    `run` returns in forks, and there alone: with the words of the fork's command.
    """

    def __init__(self) -> None:
        self.open = True
        """Whether more may come."""
        self._jobs: set[Job] = set()
        self._libc = ctypes.CDLL(None)
        self._selector = selectors.DefaultSelector()

    def run(self) -> Words:
        """Serve to the end; returns in forks."""
        while self._jobs or self.open or self.waits():
            for key, _ in self._selector.select():
                if (words := key.data()) is not None:
                    return words  # type: ignore[no-any-return]
        self.leave()
        os._exit(0)

    def waits(self) -> bool:
        """Whether there is something else to wait for than jobs."""
        return False

    def leave(self) -> None:
        """The last thing that is done."""

    def let_go(self) -> None:
        """In a fork: close what is this process's own."""

    def watch(self, descriptor: int, do: Callable[[], Words | None]) -> None:
        """Call `do` whenever there is something to read."""
        self._selector.register(descriptor, selectors.EVENT_READ, do)

    def unwatch(self, descriptor: int) -> None:
        """No more."""
        self._selector.unregister(descriptor)

    def fork(self) -> int:
        """0 in the fork, which ends with this process and has nothing of it."""
        server = os.getpid()
        if pid := os.fork():
            return pid
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:
            os._exit(1)
        self._selector.close()
        for job in self._jobs:
            os.close(job.ended)
            job.client.close()
        self.let_go()
        return 0

    def begin(self, client: socket.socket, streams: list[int], environment: Mapping[str, str]) -> bool:
        """Fork for a client's command. Whether this is the fork; where there can be none, the client's call fails."""
        try:
            pid = self.fork()
        except OSError:
            dismiss(client, streams)
            return False
        if not pid:
            client.close()
            become(streams, environment)
            return True
        job = Job(pid, os.pidfd_open(pid), client)
        self._jobs.add(job)
        self.watch(job.ended, lambda: self._reap(job))
        self.watch(client.fileno(), lambda: self._pass_on(job))
        for stream in streams:
            os.close(stream)
        return False

    def stop_jobs(self) -> None:
        """Tell those at work to stop."""
        for job in self._jobs:
            for number in (signal.SIGTERM, signal.SIGCONT):
                os.kill(job.pid, number)

    def _pass_on(self, job: Job) -> None:
        """The signals that a client got; its own end is that of its command."""
        if job not in self._jobs:
            return
        try:
            signals = job.client.recv(64)
        except OSError:
            signals = b""
        for number in signals or [signal.SIGKILL]:
            os.kill(job.pid, signal.SIGSTOP if number == signal.SIGTSTP else number)
        if not signals:
            self.unwatch(job.client.fileno())
            job.client.close()

    def _reap(self, job: Job) -> None:
        """Say how a command ended."""
        self._jobs.discard(job)
        status = os.waitpid(job.pid, 0)[1]
        self.unwatch(job.ended)
        os.close(job.ended)
        if job.client.fileno() >= 0:
            self.unwatch(job.client.fileno())
            with suppress(OSError):
                job.client.sendall(status.to_bytes(4))
            job.client.close()


def settle() -> None:
    """Before this process is forked: a fork copies each page that it writes to, so it leaves alone what is here now.

    It does not look for garbage in it, and at its end it does nothing for it: that is for nobody to do.
    """
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    gc.collect()
    gc.freeze()


def become(streams: list[int], environment: Mapping[str, str]) -> None:
    """Make a fork what a new process would be."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=text is sys.stderr or text.isatty())  # type: ignore[union-attr]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()


def dismiss(client: socket.socket, streams: list[int]) -> None:
    """Close what is a client's, in a process that does nothing more for it."""
    client.close()
    for stream in streams:
        os.close(stream)


def exactly(peer: socket.socket, size: int) -> bytes:
    """So many bytes."""
    received = bytearray()
    while len(received) < size:
        if not (more := peer.recv(size - len(received))):
            raise OSError("the peer is gone")
        received += more
    return bytes(received)
