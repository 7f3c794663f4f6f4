"""The store of answers: SQLite, an answer on the disk before anyone uses it, and who is asking for which."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.requests import Answer, Request

BUSY = 60.0  # seconds to wait for another process that writes to the store
ELSEWHERE = "set `stores` in the configuration to a directory elsewhere, such as one on a local disk"


def require_locks(directory: Path) -> None:
    """Whether the file system of `directory` can lock files; of a directory that is yet to be made, where that will be.

    Raises:
        BadInput: it cannot, or no file can be made there.
    """
    there = next(place for place in (directory, *directory.parents) if place.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".locks-") as file:  # nobody else has it, so nobody holds it
            _lock(file.fileno(), there)
    except OSError as error:
        raise BadInput(
            f"{there}: no store of answers can be made here ({error.strerror}); make it writable and see that it has "
            f"room, or {ELSEWHERE}"
        ) from None


def _lock(file: int, directory: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise BadInput(
            f"{directory}: its file system does not lock files ({error.strerror}), as some NFS and Lustre mounts do "
            f"not, and the store of answers (SQLite) rests on locks; {ELSEWHERE}, or have it mounted with locks "
            f"(Lustre: the option flock; NFS: a lock daemon)"
        ) from None


class Store:
    """Answers by key, each on the disk before `add` returns. Several processes of one machine may share it.

    A process claims a question before it asks, so that nobody else pays for it meanwhile. A claim is void when its time
    is up, or its process is no more.
    """

    APPLICATION = 0x6D6E706F  # "mnpo" in the file's header: this is no other program's database

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = f"{_place()} {os.getpid()} {uuid.uuid4().hex}"
        self.claimed: set[str] = set()

    def __enter__(self) -> Store:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        require_locks(self.path.parent)
        with self._usable():
            self.database = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self.database.close()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(sqlite3.Error):  # it may be the store that has failed; then claims end by themselves
            for key in self.claimed:
                self._forget(key)
        self.database.close()

    def _prepare(self) -> None:
        if not self._is_ours():
            self.database.execute("BEGIN IMMEDIATE")
            if not self._is_ours():  # nor has another process made it just now
                self._make()
            self.database.execute("COMMIT")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL) STRICT"
        )
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = FULL")

    def _is_ours(self) -> bool:
        (application,) = self.database.execute("PRAGMA application_id").fetchone()
        return bool(application == self.APPLICATION)

    def _make(self) -> None:
        (tables,) = self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            raise sqlite3.DatabaseError("it is the database of something else")
        self.database.execute(f"PRAGMA application_id = {self.APPLICATION}")
        self.database.execute(
            "CREATE TABLE answers (key TEXT PRIMARY KEY, name TEXT NOT NULL, model TEXT NOT NULL, "
            "answer TEXT NOT NULL, arrived TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) STRICT"
        )

    def check(self) -> None:
        """Read it all. Raises BadInput when it is damaged."""
        with self._usable():
            (verdict,) = self.database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)

    def find(self, key: str) -> Answer | None:
        """The answer under `key`."""
        with self._usable():
            row = self.database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
            return None if row is None else _loaded(row[0])

    def add(self, key: str, request: Request, judge: Judge, answer: Answer) -> Answer:
        """Store an answer; returns the one that is stored, which is an earlier one when two processes asked at once."""
        with self._usable():
            self.database.execute("BEGIN IMMEDIATE")
            self.database.execute(
                "INSERT INTO answers (key, name, model, answer) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (key, request.name, judge.model, json.dumps(asdict(answer))),
            )
            self._forget(key)
            self.database.execute("COMMIT")
        self.claimed.discard(key)
        return self.find(key) or answer

    def claim(self, key: str, seconds: float) -> bool:
        """Have `key` to oneself for so long; False when there is an answer, or somebody else has it."""
        with self._usable():
            row = self.database.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
            if row is not None and _has_gone(row[0]):
                self.database.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, row[0]))
            now = time.time()
            made = self.database.execute(
                "INSERT INTO claims (key, owner, until) SELECT ?1, ?2, ?3 "
                "WHERE NOT EXISTS (SELECT 1 FROM answers WHERE key = ?1) "
                "ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, until = excluded.until "
                "WHERE claims.until < ?4",
                (key, self.owner, now + seconds, now),
            )
        if made.rowcount == 1:
            self.claimed.add(key)
        return made.rowcount == 1

    def release(self, key: str) -> None:
        """Let others ask: there was no answer."""
        with self._usable():
            self._forget(key)
        self.claimed.discard(key)

    def _forget(self, key: str) -> None:
        self.database.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner))

    def count(self) -> int:
        """How many answers there are."""
        with self._usable():
            return int(self.database.execute("SELECT count(*) FROM answers").fetchone()[0])

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise BadInput(
                f"{self.path}: the store of answers cannot be used ({error}); see that its directory is writable and "
                f"has room, and that no other process holds it"
            ) from None
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"{self.path}: not a readable store of answers ({reason}); it is left as it is: put a copy in its "
                f"place, or move it away (its answers are then asked, and paid for, again)"
            ) from None


def _place() -> str:
    """Where process ids are told apart: the machine, and its namespace of them."""
    with suppress(OSError):
        return f"{platform.node()}/{os.readlink('/proc/self/ns/pid')}".replace(" ", "-")
    return platform.node().replace(" ", "-")


def _has_gone(owner: str) -> bool:
    """Whether a claim's process was here, and is no more."""
    place, process, _ = owner.split()
    if place != _place():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _loaded(text: str) -> Answer:
    content = json.loads(text)
    logprobs = content.pop("logprobs")
    return Answer(logprobs=None if logprobs is None else tuple((t, p) for t, p in logprobs), **content)
