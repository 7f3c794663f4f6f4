"""Finished parts of an output that is being made (mnpo/storage/resume.py): one line each, under a checksum."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.progress import say

if TYPE_CHECKING:
    from mnpo.storage.resume import Session

JOURNAL = "journal.jsonl"


class Journal:
    """Finished parts of an output, one line of JSON each under a checksum; a line that does not hold is done again."""

    def __init__(self, session: Session, unit: str) -> None:
        self._session, self._unit = session, unit
        self._path = session.directory / JOURNAL
        self._parts: dict[str, Any] = {}
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        whole = [line for line in lines if _holds(line)]
        for line in whole:
            part, value = json.loads(line[17:])
            self._parts[part] = value
        if len(whole) < len(lines):
            damaged = len(lines) - len(whole)
            say(f"{self._path}: {damaged} lines are damaged or half written; their {unit} are done again")
            replace(self._path, b"".join(whole))
        if whole:
            say(f"{self._path}: {len(whole)} {unit} were finished before, and are not done again")

    def __len__(self) -> int:
        return len(self._parts)

    def get(self, part: str) -> Any:
        """What was kept of a part, None if it is not finished."""
        return self._parts.get(part)

    def once(self, work: Any, do: Callable[[], Any]) -> Any:
        """What came of `work` (what it follows from, as JSON): kept by an earlier session, or done now and kept."""
        part = self.name(work)
        if part not in self._parts:
            self.add(part, do())
        return self._parts[part]

    @staticmethod
    def name(work: Any) -> str:
        """What a part is called that follows from `work`."""
        return hashlib.sha256(json.dumps(work).encode()).hexdigest()

    @property
    def stopping(self) -> bool:
        """Whether a signal has asked to stop: what is not kept now will be lost."""
        return self._session.asked is not None

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """For a body that keeps all that it does in a place of its own: a signal stops it at once."""
        self._session.at_once = True
        try:
            yield
        finally:
            self._session.at_once = False

    def add(self, part: str, value: Any) -> None:
        """Keep what came of a part: JSON values. Raises Interrupted when a signal has asked to stop."""
        self.add_all({part: value})

    def add_all(self, values: Mapping[str, Any]) -> None:
        """The same for several parts, in one write."""
        contents = [json.dumps(item).encode() for item in values.items()]
        with open(self._path, "ab") as stream:
            stream.write(b"".join(_checksum(content) + b" " + content + b"\n" for content in contents))
            stream.flush()
            os.fsync(stream.fileno())
        self._parts |= values
        self._session.record()
        self._session.safe_point(f"{len(self)} {self._unit}")


def replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and on the disk."""
    new = path.with_name(f"{path.name}.new")
    with open(new, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(new, path)


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:16].encode()


def _holds(line: bytes) -> bool:
    return line.endswith(b"\n") and line[:17] == _checksum(line[17:-1]) + b" "
