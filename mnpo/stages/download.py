"""Stage `download`: a snapshot of a hub or GitHub repository, whole and verified, into the cache.

Plain HTTP, a file after another, for the hub as for GitHub. huggingface_hub's own downloads start every unfinished file
anew after a kill (2.4.0 names its temporary files at random), and a shard of weights is an hour of some links.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from mnpo.config.blocks import Block
from mnpo.config.sources import Source
from mnpo.errors import BadInput, DiskFull
from mnpo.progress import counter, say
from mnpo.storage import hub, servers
from mnpo.storage.artifacts import artifact, beside

OFFLINE = False
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the tries of a connection that breaks and breaks


class Settings(Block):
    """What this stage reads beside the lock."""

    kind: hub.Kind
    source: Source
    """Of entries that share a revision of a repository: `hub.merged` of them."""


def run(settings: Settings, output: Path, lock: Path = Path("config.lock.yaml")) -> None:
    """Fetch a pinned model or data set, and verify every file of it.

    Where the lock says nothing of it, what the server says now is fetched.

    Args:
        output: the directory of its files.
        lock: what `mnpo pin` wrote.
    """
    locked = hub.read_lock(lock).entry(settings.kind, settings.source)
    download(settings.source, settings.kind, locked, output)


def download(source: Source, kind: hub.Kind, locked: hub.Locked | None, target: Path) -> None:
    """Fetch a source's files into the directory `target`, which appears when all of them have the right size and hash.

    What has come so far stays in `.work-{name}` beside it, and the next call goes on from the last byte, also after a
    kill. It needs no key: every file is held against its hash, whichever session or commit it came with.

    Args:
        locked: The files. None (a source that may float, or is pinned to a commit by hand): asks the server, and
            verifies against its listing.

    Raises:
        BadInput: no network, no access, or a file that is twice not what it should be; with the remedy.
        DiskFull: no space, found before anything is fetched where the disk says so.
    """
    settings = {"kind": kind, "repository": hub.repository(source), "revision": source.revision, "files": source.files}
    with artifact(target, "download", settings, directory=True) as made:
        listed = locked or servers.resolve(kind, source)
        work = beside(target, "work")
        work.mkdir(exist_ok=True)
        _take_over(target, work, listed)
        _drop_others(work, listed)
        _fill(work, source, kind, listed)
        shutil.copytree(work, made.path, copy_function=_link, dirs_exist_ok=True)
        size = sum(file.size for file in listed.files.values())
        made.facts = {
            "commit": listed.commit, "locked": locked is not None, "files": len(listed.files), "bytes": size
        }  # fmt: skip


def _link(old: str, new: str) -> None:
    """Give a file a second name, so that it survives the removal of one; some file systems only let it move."""
    try:
        os.link(old, new)
    except OSError:
        os.rename(old, new)


def _take_over(target: Path, work: Path, listed: hub.Locked) -> None:
    """Share the files of an earlier snapshot that may still be right."""
    for name, file in listed.files.items():
        old, new = target / name, work / name
        if old.is_file() and old.stat().st_size == file.size and not new.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            with suppress(OSError):
                os.link(old, new)


def _fill(work: Path, source: Source, kind: hub.Kind, listed: hub.Locked) -> None:
    """Make `work` hold the listed files, and right."""
    label = f"{kind}/{hub.repository(source)}@{listed.commit[:12]}"
    kept = {name: _keep(work / name, file) for name, file in listed.files.items()}
    missing = {n: f for n, f in listed.files.items() if kept[n] < f.size or not (work / n).exists()}
    needed = sum(file.size - kept[name] for name, file in missing.items())
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DiskFull(
            f"{work.parent}: {label} needs {_size(needed)} more, and {_size(free)} are free; "
            "make room, or set cache: to a directory on another disk"
        )
    here = f", {_size(sum(kept.values()))} are here" if any(kept.values()) else ""
    say(f"download: {label}, {len(missing)} of {len(listed.files)} files, {_size(needed)} to fetch{here}")
    received = _progress(label, needed)
    with servers.explained(kind, source):
        for name, file in missing.items():
            url = servers.file_url(kind, source, listed.commit, name)
            _fetch_right(url, kind, work / name, file, f"{label}: {name}", received)


def _drop_others(work: Path, listed: hub.Locked) -> None:
    """Remove what is not listed: of another commit, of other patterns, or an old manifest."""
    for path in sorted(work.rglob("*"), reverse=True):  # a directory after what is in it
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif str(path.relative_to(work)) not in listed.files:
            path.unlink()


def _keep(path: Path, file: hub.LockedFile) -> int:
    """How many bytes of `path` stay: all of a right file, those of one that may be unfinished, none of a wrong one."""
    if not path.is_file():
        return 0
    size = path.stat().st_size
    if size > file.size or (size == file.size and file.found(path) != file):
        path.unlink()
        return 0
    return size


def _fetch_right(
    url: str, kind: hub.Kind, path: Path, file: hub.LockedFile, label: str, received: Callable[[int], None]
) -> None:
    """Fetch the rest of a file, and all of it once more when it is not what it should be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        _fetch(url, kind, path, file.size, received)
        found = file.found(path)
        if found == file:
            return
        path.unlink()
    raise BadInput(
        f"{label}: expected {file}, got {found}, twice; try again later, and if the repository has been rewritten, "
        "`mnpo pin` again. (If a proxy in between alters files, set mirror: to a copy made elsewhere)"
    )


def _fetch(url: str, kind: hub.Kind, path: Path, size: int, received: Callable[[int], None]) -> None:
    """Fetch what `path` lacks of its `size` bytes. A connection that breaks is taken up again where it broke, as long
    as that brings something now and then."""
    import httpx2

    waits = iter(WAITS)
    while True:
        before = path.stat().st_size if path.exists() else 0
        try:
            _stream(url, kind, path, before, received)
            return
        except httpx2.TransportError:
            after = path.stat().st_size if path.exists() else 0
            if after >= size:
                return  # broken after the last byte
            waits = iter(WAITS) if after > before else waits
            wait = next(waits, None)
            if wait is None:
                raise
            time.sleep(wait)


def _stream(url: str, kind: hub.Kind, path: Path, start: int, received: Callable[[int], None]) -> None:
    """Append to `path` the bytes of `url` from `start` on; all of them when the server does not do parts."""
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

    headers = {
        **servers.headers(kind),
        "Accept-Encoding": "identity",
        **({"Range": f"bytes={start}-"} if start else {}),
    }
    # It waits out 429 and 5xx; a broken body it cannot take up, so exceptions are left to the caller.
    with http_stream_backoff("GET", url, headers=headers, timeout=servers.TIMEOUT, retry_on_exceptions=()) as response:
        hf_raise_for_status(response)
        with open(path, "ab" if response.status_code == 206 else "wb") as stream:
            for chunk in response.iter_bytes():  # as they come, so that a break loses none
                stream.write(chunk)
                received(len(chunk))


def _progress(label: str, needed: int) -> Callable[[int], None]:
    """A callback that is told how many bytes came, and shows it now and then."""
    show, done = counter(f"download {label}", "MB"), 0

    def received(count: int) -> None:
        nonlocal done
        done += count
        show(math.ceil(done / 1e6), math.ceil(needed / 1e6))

    return received


def _size(count: float) -> str:
    """A number of bytes for a person."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.1f} GB"
