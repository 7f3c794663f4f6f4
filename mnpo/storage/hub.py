"""Hub and GitHub sources: what config.lock.yaml says of them, where they are cached, and what is needed beforehand."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, cast

import yaml
from pydantic import Field, field_validator, model_validator

from mnpo.config.blocks import Block, validated
from mnpo.config.reading import read_yaml
from mnpo.config.sources import Dataset, Source
from mnpo.errors import BadInput

Kind = Literal["models", "datasets", "github"]
LOCK = Path("config.lock.yaml")
PREAMBLE = "# Written by `mnpo pin`: the commit behind every revision, and each file's size and hash. Keep it in git.\n"


# ------------------------------------------------------------------------------------------------------------- the lock


class LockedFile(Block):
    """A file's size in bytes and one hash of its content."""

    size: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Of files in the hub's large-file storage."""
    blob: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Git's own hash, of all other files."""

    @model_validator(mode="after")
    def _one_hash(self) -> LockedFile:
        if (self.sha256 is None) == (self.blob is None):
            raise ValueError("give exactly one of sha256, blob")
        return self

    def __str__(self) -> str:
        return f"{self.size} bytes, " + (f"sha256 {self.sha256}" if self.sha256 else f"blob {self.blob}")

    def found(self, path: Path) -> LockedFile:
        """The size and the same kind of hash of the file at `path`."""
        size = path.stat().st_size
        with open(path, "rb") as stream:
            if self.sha256:
                return LockedFile(size=size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())
            header = b"blob %d\0" % size
            return LockedFile(size=size, blob=hashlib.file_digest(stream, lambda: hashlib.sha1(header)).hexdigest())


class Locked(Block):
    """A revision of a repository: its commit, and the files of it that are used."""

    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    patterns: list[str] | None = None
    """Which files these are; None: all."""
    files: dict[str, LockedFile]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, LockedFile]) -> dict[str, LockedFile]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or str(path) != name or name == ".":
                raise ValueError(f"{name!r} is not the name of a file inside a directory")
        if "manifest.json" in files:
            raise ValueError("manifest.json would be overwritten by the snapshot's own; leave it out with files:")
        return files

    def covers(self, patterns: list[str] | None) -> bool:
        """Whether the files that `patterns` ask for are among these."""
        return self.patterns is None or (patterns is not None and set(patterns) <= set(self.patterns))


Revisions = dict[str, Locked]


class Lock(Block):
    """config.lock.yaml: repository -> revision, as the configuration names it -> what it was when it was pinned."""

    models: dict[str, Revisions] = {}
    datasets: dict[str, Revisions] = {}
    github: dict[str, Revisions] = {}

    def revision(self, kind: str, source: Source) -> Locked | None:
        """What is locked of a source's revision, whichever files."""
        revisions: Mapping[str, Revisions] = getattr(self, _part(kind, source))
        return revisions.get(repository(source), {}).get(source.revision)

    def entry(self, kind: str, source: Source) -> Locked | None:
        """What is locked of a source; None when it is not, or not with all files that the source asks for."""
        locked = self.revision(kind, source)
        return locked if locked is not None and locked.covers(source.files) else None

    def with_entry(self, kind: str, source: Source, locked: Locked) -> Lock:
        """This lock with one entry more, or another."""
        part = _part(kind, source)
        repositories: dict[str, Revisions] = getattr(self, part)
        revisions = {**repositories.get(repository(source), {}), source.revision: locked}
        return self.model_copy(update={part: {**repositories, repository(source): revisions}})


def read_lock(path: Path = LOCK) -> Lock:
    """The lock in `path`; empty when there is none.

    Raises:
        ConfigError: not YAML, or not a lock; a line per mistake, with the path of the key and the value.
    """
    return validated(Lock, read_yaml(path), str(path)) if path.exists() else Lock()


def write_lock(lock: Lock, path: Path = LOCK) -> None:
    """Write `lock`, sorted, a line per file, whole or not at all; a lock that says the same is not touched."""
    content = lock.model_dump(exclude_none=True, exclude_defaults=True)
    text = PREAMBLE + yaml.safe_dump(content, default_flow_style=None, sort_keys=True, width=10**9, allow_unicode=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


# --------------------------------------------------------------------------------------------------- sources and places


def kind_of(source: Source) -> Kind:
    """Which part of the lock and of the cache a downloaded source belongs to."""
    return _part("datasets" if isinstance(source, Dataset) else "models", source)


def _part(kind: str, source: Source) -> Kind:
    """The same, of a source in the configuration's block `kind`."""
    return "github" if source.github is not None else cast(Kind, kind)


def repository(source: Source) -> str:
    """The hub's or GitHub's id of a downloaded source."""
    name = source.github or source.hub
    assert name is not None, "asked only of sources that are downloaded"
    return name


def address(kind: str, source: Source, lock: Lock | None = None) -> tuple[str, str, str]:
    """Kind, owner--repo and revision of a source's snapshot, the names of its directories in the cache. The revision
    is the locked commit where there is one. `kind` is the configuration's, models or datasets."""
    locked = lock.entry(kind, source) if lock else None
    revision = locked.commit if locked else source.revision
    return _part(kind, source), repository(source).replace("/", "--"), revision.replace("/", "--")


def merged(sources: Iterable[Source]) -> Source:
    """Entries of one revision of one repository as one source, which asks for the files of all of them."""
    first, *others = sources
    files = union(first.files, *(other.files for other in others))
    return first.model_copy(update={"files": files, "gated": any(s.gated for s in (first, *others))})


def union(*patterns: Sequence[str] | None) -> list[str] | None:
    """Patterns of the files that any of these ask for; None asks for all."""
    return sorted({p for some in patterns for p in some or ()}) if all(p is not None for p in patterns) else None


# -------------------------------------------------------------------------------------------- what is needed beforehand


def require_pinned(sources: Mapping[str, Source], lock: Lock, allow_floating: bool = False) -> None:
    """Refuse sources (by their path in the configuration) whose revision is neither a commit nor locked.

    Raises:
        BadInput: one message that names all of them, and the remedy.
    """
    lines = []
    for name, source in sources.items():
        if not source.downloaded or source.pinned or lock.entry(kind_of(source), source):
            continue
        other_files = lock.revision(kind_of(source), source) is not None
        lines.append(
            f"{name}: {repository(source)}, revision {source.revision}, "
            + (f"is locked without files {source.files or '*'}" if other_files else "is not locked")
        )
    if lines and not allow_floating:
        raise BadInput(
            "\n".join(lines) + "\nThese could change between runs: `mnpo pin` on a machine with network writes "
            f"{LOCK}; `floating: true` in the configuration takes them as they come"
        )


def require_token(sources: Mapping[str, Source], cache: Path, lock: Lock) -> None:
    """Refuse gated sources (by their path in the configuration) that are not in the cache when there is no hub token.

    Raises:
        BadInput: one message that names all of them, where their licences are accepted, and the remedy.
    """
    lines = []
    for name, source in sources.items():
        if source.gated and source.downloaded and source.hub is not None:
            directory = cache.expanduser().joinpath(*address(kind_of(source), source, lock))
            if not directory.is_dir():
                lines.append(f"{name}: {source.hub} is gated; accept its licence at {page(kind_of(source), source)}")
    if lines and token() is None:
        raise BadInput(
            "\n".join(lines) + "\nThere is no token to fetch them with: make one at "
            "https://huggingface.co/settings/tokens, then `export HF_TOKEN=...` (or `hf auth login`)"
        )


def token() -> str | None:
    """The hub's token, from HF_TOKEN or the file that `hf auth login` writes; None without one.

    Raises:
        BadInput: it holds what no token holds. (HTTP libraries quote such a header in their messages.)
    """
    from huggingface_hub import get_token

    value: str | None = get_token()
    if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value):
        raise BadInput("HF_TOKEN: holds spaces or characters that no token has; copy it again (it is not shown here)")
    return value


def page(kind: Kind, source: Source) -> str:
    """Where a person looks at a repository."""
    if kind == "github":
        return f"https://github.com/{repository(source)}"
    return f"https://huggingface.co/{'datasets/' if kind == 'datasets' else ''}{repository(source)}"
