"""Stage `pin`: the commit behind every source's revision, and its files' sizes and hashes, into config.lock.yaml.

Entries that share a revision of a repository share its entry in the lock, which lists the files of all of them; files
that the lock already has for another configuration stay. So what a snapshot in the cache holds depends on the lock
alone, not on who asked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mnpo.config.sources import Source
from mnpo.errors import BadInput
from mnpo.progress import say
from mnpo.storage import hub, servers

OFFLINE = False


def pin(sources: Mapping[str, Source], path: Path = hub.LOCK) -> hub.Lock:
    """Resolve the hub and GitHub sources among `sources` (by their path in the configuration) into the lock at `path`.

    Every entry is written as soon as it is resolved; an unchanged one changes no byte.

    Raises:
        BadInput: at the end, one message that names every source that failed, with the reason and the remedy.
        ConfigError: the lock at `path` is malformed.
    """
    lock = hub.read_lock(path)
    groups: dict[tuple[str, ...], dict[str, Source]] = {}
    for name, source in sources.items():
        if source.downloaded:
            address = (hub.kind_of(source), hub.repository(source), source.revision)
            groups.setdefault(address, {})[name] = source
    failures = []
    for entries in groups.values():
        source = hub.merged(entries.values())
        try:
            lock = _with(source, lock)
        except BadInput as error:
            failures.append(f"{', '.join(entries)}: {error}")
            continue
        hub.write_lock(lock, path)
    if failures:
        raise BadInput("\n".join([*failures, f"{len(groups) - len(failures)} of {len(groups)} pinned in {path}"]))
    say(f"pin: {len(groups)} repositories in {path}")
    return lock


def _with(source: Source, lock: hub.Lock) -> hub.Lock:
    """`lock` with the entry of `source` as its server has it now."""
    kind = hub.kind_of(source)
    before = lock.revision(kind, source)
    locked = servers.resolve(kind, source, also=before.patterns if before else ())
    label = f"pin: {kind}/{hub.repository(source)}, revision {source.revision}"
    if before is None or before.commit != locked.commit:
        say(f"{label}: {f'{before.commit[:12]} -> ' if before else ''}{locked.commit[:12]}")
    if locked.patterns != hub.union(source.files):
        say(f"{label}: keeps the files {locked.patterns or '*'} that were asked for before; delete it to drop them")
    return lock.with_entry(kind, source, locked)
