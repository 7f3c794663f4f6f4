"""Files that no rule made, as they are at this moment: their names, sizes and times decide what runs again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from mnpo.storage.artifacts import files_below

UNREADABLE = "not there, or not readable"
LISTED = 200
"""Files that are listed one by one; of more, a record of every job would hold thousands of lines."""


def state(path: str | Path) -> dict[str, str]:
    """File below `path` -> "{size} {time}", in bytes and in nanoseconds of its last change; "" is `path` itself, where
    that is a file, or cannot be read. Hidden files (.git, .cache, ...) are nobody's input, and left out.

    Of more than LISTED files one entry, "{number} files" -> "{bytes} {last time} {digest of the list}".
    """
    path = Path(path)
    try:
        files = {str(file.relative_to(path)): _looks(file) for file in files_below(path, hidden=False)}
    except NotADirectoryError:
        files = {"": _looks(path)}
    except OSError:
        files = {"": UNREADABLE}
    return files if len(files) <= LISTED else _together(files)


def _looks(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:  # gone since it was listed
        return UNREADABLE
    return f"{found.st_size} {found.st_mtime_ns}"


def _together(files: dict[str, str]) -> dict[str, str]:
    known = [tuple(map(int, what.split())) for what in files.values() if what != UNREADABLE]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]
    return {f"{len(files)} files": f"{sum(size for size, _ in known)} {max(time for _, time in known)} {digest}"}


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Between two states of a path: each file that is not what it was, and what it was and is, in words."""
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            yield name, f"({_words(old[name])}) is no longer there"
        elif name not in old:
            yield name, f"({_words(new[name])}) was not there"
        elif old[name] != new[name]:
            yield name, f"was {_words(old[name])} and is {_words(new[name])}"


def _words(what: str) -> str:
    if what == UNREADABLE:
        return what
    size, nanoseconds = map(int, what.split()[:2])
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{size} bytes of {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))}.{rest:09d}"
