"""Policies that are loaded once: a fork of the warm process loads one, and is forked for each job that reads it.

A command's first job loads its policy by itself, and says how: in which dtype, with which attention. From then on the
command finds the policy that it names loaded so. What it gets is its own: a fork's changes are nobody else's.
"""

from __future__ import annotations

import gc
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mnpo.models import checkpoints
from mnpo.models.checkpoints import Asked
from mnpo.warm.forks import Forks, Words, exactly

MOST = 2
"""Policies that are held at a time: those that were asked for last."""
NAMED_BY = ("--policy", "--start")


def policy_of(words: Sequence[str]) -> str | None:
    """The directory that a command reads its policy from."""
    apart = [word for text in words for word in (text.split("=", 1) if text.startswith("--") else [text])]
    return next((str(Path(value)) for option, value in pairwise(apart) if option in NAMED_BY), None)


class _Key(NamedTuple):
    """A policy, how it is loaded, and its files as they are."""

    asked: Asked
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, asked: Asked) -> _Key:
        found = (file for file in sorted(Path(asked.path).rglob("*")) if file.is_file())
        return cls(asked, tuple((str(file), s.st_size, s.st_mtime_ns) for file in found for s in [file.stat()]))


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

    def pass_on(
        self, client: socket.socket, streams: list[int], environment: Mapping[str, str], words: Words
    ) -> tuple[bool, Words | None]:
        """Whether a holder runs a client's command; in a fork, its words."""
        policy, how = policy_of(words), self._how.get(words[2])
        if policy is None or how is None or not Path(policy).is_dir():
            return False, None
        key = _Key.of(how._replace(path=policy))
        if not (holder := self._held.pop(key, None)):
            ours, theirs = socket.socketpair()
            if not (pid := self._server.fork()):
                client.close()
                for descriptor in streams:
                    os.close(descriptor)
                ours.close()
                return True, _Serving(theirs, key.asked, self._tell).run()
            theirs.close()
            holder = _Holder(os.pidfd_open(pid), ours)
            self._all.add(holder)
            self._server.watch(holder.ended, lambda: self._reap(pid, holder))
        self._held[key] = holder
        while len(self._held) > MOST:
            self._held.pop(next(iter(self._held))).channel.close()
        request = json.dumps([dict(environment), words]).encode()
        try:
            socket.send_fds(holder.channel, [len(request).to_bytes(8)], [client.fileno(), *streams])
            holder.channel.sendall(request)
        except OSError:  # it is gone
            self._held.pop(key).channel.close()
            return False, None
        client.close()
        for descriptor in streams:
            os.close(descriptor)
        return True, None

    def listen(self, words: Words) -> None:
        """In a fork for a command: say how it loads its policy."""
        _say_how(self._tell, words)

    def stop(self) -> None:
        """No more commands, and those at work are told to stop."""
        for holder in self._held.values():
            holder.channel.sendall((0).to_bytes(8))
            holder.channel.close()
        self._held.clear()

    def let_go(self) -> None:
        """In a fork: close what is the server's own."""
        os.close(self._told)
        for holder in self._all:
            os.close(holder.ended)
            holder.channel.close()

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


def _say_how(tell: int, words: Words) -> None:
    policy, command = policy_of(words), words[2]

    def told(asked: Asked) -> None:
        if asked.path == policy:
            with suppress(OSError):
                os.write(tell, json.dumps([command, *asked]).encode() + b"\n")

    checkpoints.WHEN_LOADED.append(told)


class _Serving(Forks):
    """What a holder does: it loads the policy, and forks for the commands that come through the channel."""

    def __init__(self, channel: socket.socket, asked: Asked, tell: int) -> None:
        super().__init__()
        self._channel, self._tell = channel, tell
        _hold(asked)
        self.watch(channel.fileno(), self._receive)

    def let_go(self) -> None:
        self._channel.close()

    def _receive(self) -> Words | None:
        head, descriptors, _, _ = socket.recv_fds(self._channel, 8, 4)
        if not (size := int.from_bytes(head)):  # the end of the channel, or a word to stop
            self.open = False
            self.unwatch(self._channel.fileno())
            if head:
                self.stop_jobs()
            return None
        environment, words = json.loads(exactly(self._channel, size))
        client, *streams = descriptors
        if not self.begin(socket.socket(fileno=client), streams, environment):
            return None
        _say_how(self._tell, words)
        return words  # type: ignore[no-any-return]


def _hold(asked: Asked) -> None:
    """Load a policy for forks of this process, without a second thread: a fork would miss it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model: Any = checkpoints.load_model(*asked)
    except Exception:  # whoever asked for it will see what is wrong
        return
    finally:
        torch.set_num_threads(threads)
    checkpoints.HELD[asked] = model
    gc.collect()
    gc.freeze()
