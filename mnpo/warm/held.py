"""Policies that are loaded once: a fork of the warm process loads one, and is forked for each job that reads it.

A command's first job loads its policy by itself, and says how: in which dtype, with which attention. From then on the
command finds the policy that it names loaded so. What it gets is its own: a fork's changes are nobody else's.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from mnpo.models import checkpoints
from mnpo.models.checkpoints import Asked
from mnpo.warm.forks import Forks, Words, dismiss, settle

MOST = 2
"""Policies that are held at a time: those that were asked for last."""
NAMED_BY = ("--policy", "--start")
REQUEST, NO_MORE, STOP = b"r", b"n", b"s"
"""What a holder is told: to run a command; that no more will come; that those at work are to stop."""


def policy_of(words: Sequence[str]) -> str | None:
    """The directory that a command reads its policy from."""
    apart = [word for text in words for word in (text.split("=", 1) if text.startswith("--") else [text])]
    return next((str(Path(value)) for option, value in pairwise(apart) if option in NAMED_BY), None)


class _Key(NamedTuple):
    """A policy, how it is loaded, and its files as they are."""

    asked: Asked
    files: tuple[tuple[str, int, int, int], ...]

    @classmethod
    def of(cls, asked: Asked) -> _Key:
        found = (file for file in sorted(Path(asked.path).rglob("*")) if file.is_file())
        return cls(asked, tuple((str(f), s.st_ino, s.st_size, s.st_mtime_ns) for f in found for s in [f.stat()]))


@dataclass(eq=False)
class _Holder:
    """A process that holds a policy."""

    ended: int
    channel: socket.socket


class Holders:
    """Those that hold a policy now, and how each command loads its own.

    Args:
        server: that is forked for them.
    """

    def __init__(self, server: Forks) -> None:
        self._server = server
        self._told, self._tell = os.pipe()
        self._how: dict[str, Asked] = {}
        self._held: dict[_Key, _Holder] = {}  # whose turn to go it is comes first
        self._all: set[_Holder] = set()
        server.watch(self._told, self._learn)

    @property
    def any_left(self) -> bool:
        """Whether some have not ended."""
        return bool(self._all)

    def serve(
        self, client: socket.socket, streams: list[int], environment: Mapping[str, str], words: Words
    ) -> tuple[bool, Words | None]:
        """Whether a holder runs a client's command; in a fork, its words."""
        if (key := self._key(words)) is None:
            return False, None
        channel = None
        try:
            # A file takes a request of any size, so this process does not wait for a holder that is loading.
            with open(os.memfd_create("request"), "w", encoding="utf-8") as request:
                json.dump([dict(environment), words], request)
                request.flush()
                if key not in self._held:
                    channel = self._begin(key)
                if channel is None:
                    holder = self._held[key] = self._held.pop(key)
                    while len(self._held) > MOST:
                        _say(self._held.pop(next(iter(self._held))), NO_MORE)
                    socket.send_fds(holder.channel, [REQUEST], [request.fileno(), client.fileno(), *streams])
        except OSError:  # too many files or processes, or the holder is gone
            self._held.pop(key, None)
            return False, None
        dismiss(client, streams)
        return True, _Serving(channel, key.asked, self._tell).run() if channel else None

    def listen(self, words: Words) -> None:
        """In a fork for a command: say how it loads its policy."""
        _say_how(self._tell, words)

    def stop(self) -> None:
        """No more commands, and those at work are told to stop."""
        for holder in self._all:
            _say(holder, STOP)
        self._held.clear()

    def let_go(self) -> None:
        """In a fork: close what is the server's own."""
        os.close(self._told)
        for holder in self._all:
            os.close(holder.ended)
            holder.channel.close()

    def _key(self, words: Words) -> _Key | None:
        policy, how = policy_of(words), self._how.get(words[2])
        if policy is None or how is None:
            return None
        try:
            return _Key.of(how._replace(path=policy)) if Path(policy).is_dir() else None
        except OSError:  # it is being written, or removed
            return None

    def _begin(self, key: _Key) -> socket.socket | None:
        """Fork a holder; in the fork, where its requests come from. The first is the one that it was forked for."""
        ours, theirs = socket.socketpair()
        if not (pid := self._server.fork()):
            ours.close()
            return theirs
        theirs.close()
        holder = self._held[key] = _Holder(os.pidfd_open(pid), ours)
        self._all.add(holder)
        self._server.watch(holder.ended, lambda: self._reap(pid, holder))
        return None

    def _learn(self) -> None:
        for line in os.read(self._told, 1 << 16).splitlines():
            command, *asked = json.loads(line)
            self._how[command] = Asked(*asked)

    def _reap(self, pid: int, holder: _Holder) -> None:
        self._all.discard(holder)
        self._held = {key: each for key, each in self._held.items() if each is not holder}
        self._server.unwatch(holder.ended)
        os.close(holder.ended)
        holder.channel.close()
        os.waitpid(pid, 0)


def _say(holder: _Holder, word: bytes) -> None:
    with suppress(OSError):
        holder.channel.sendall(word)


def _say_how(tell: int, words: Words) -> None:
    policy, command = policy_of(words), words[2]

    def told(asked: Asked) -> None:
        if asked.path == policy:
            checkpoints.WHEN_ASKED.clear()  # loaded again, as some jobs do, it is for something else
            with suppress(OSError):
                os.write(tell, json.dumps([command, *asked]).encode() + b"\n")

    checkpoints.WHEN_ASKED.append(told)


class _Serving(Forks):
    """What a holder does: it loads the policy, and forks for the commands that come through the channel."""

    def __init__(self, channel: socket.socket, asked: Asked, tell: int) -> None:
        super().__init__()
        self._channel, self._tell = channel, tell
        with suppress(Exception):  # whoever asked for it will see what is wrong
            checkpoints.HELD[asked] = checkpoints.load_model(*asked)
        settle()
        self.watch(channel.fileno(), self._receive)

    def let_go(self) -> None:
        self._channel.close()

    def _receive(self) -> Words | None:
        """Do as it is told. The end of the channel is that of the server, and so of this process."""
        word, descriptors, _, _ = socket.recv_fds(self._channel, 1, 5)
        if word == REQUEST:
            request, client, *streams = descriptors
            with open(request, "rb") as file:
                file.seek(0)
                environment, words = json.load(file)
            if self.begin(socket.socket(fileno=client), streams, environment):
                _say_how(self._tell, words)
                return words  # type: ignore[no-any-return]
            return None
        self.open = False
        if word != NO_MORE:
            self.unwatch(self._channel.fileno())
            self.stop_jobs()
        return None
