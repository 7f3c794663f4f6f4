"""Hub and GitHub sources: what config.lock.yaml says of them, where they are cached, and what their servers list.

Importing this costs nothing beyond mnpo.config: HTTP libraries are imported when a server is asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote, urlsplit

import yaml
from pydantic import Field, field_validator, model_validator

from mnpo.config.blocks import Block, validated
from mnpo.config.reading import read_yaml
from mnpo.config.sources import Dataset, Source
from mnpo.errors import BadInput
from mnpo.progress import say

Kind = Literal["models", "datasets", "github"]
LOCK = Path("config.lock.yaml")
PREAMBLE = "# Written by `mnpo pin`: the commit behind every revision, and each file's size and hash. Keep it in git.\n"
TIMEOUT = 30.0  # seconds without a byte


# ----------------------------------------------------------------------------------------------------------- the lock


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


# ------------------------------------------------------------------------------------------------- sources and places


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


# ------------------------------------------------------------------------------------------- what is needed beforehand


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


# --------------------------------------------------------------------------------------------------------- the servers
# HF_ENDPOINT is the hub library's own variable, for mirrors of the hub. GitHub gets the same two: a site without a way
# to github.com can name a proxy of it, and the tests a server on this machine. They are read at each use.


def endpoint() -> str:
    """The hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def github_api() -> str:
    """GitHub's API: commits and listings."""
    return (os.environ.get("MNPO_GITHUB_API") or "https://api.github.com").rstrip("/")


def github_raw() -> str:
    """GitHub's files."""
    return (os.environ.get("MNPO_GITHUB_RAW") or "https://raw.githubusercontent.com").rstrip("/")


def file_url(kind: Kind, source: Source, commit: str, name: str) -> str:
    """Where a file is fetched from."""
    if kind == "github":
        return f"{github_raw()}/{repository(source)}/{commit}/{quote(name)}"
    from huggingface_hub import hf_hub_url

    url: str = hf_hub_url(repository(source), name, repo_type=kind[:-1], revision=commit, endpoint=endpoint())
    return url


def headers(kind: Kind) -> dict[str, str]:
    """Of a request. The token goes to the hub only; when the hub redirects elsewhere, the client leaves it out."""
    from huggingface_hub.utils import build_hf_headers

    secret = token() if kind != "github" else None
    made: dict[str, str] = build_hf_headers(token=secret or False, library_name="mnpo")
    return made


def resolve(kind: Kind, source: Source, also: Sequence[str] | None = ()) -> Locked:
    """Ask the server for the commit behind a source's revision, and for the files that the source asks for; and those
    that the patterns `also` ask for.

    Raises:
        BadInput: no network, no such repository or revision, no access, or no such file; with the remedy.
    """
    try:
        with explained(kind, source):
            commit, listing = _github_listing(source) if kind == "github" else _hub_listing(kind, source)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        host = urlsplit(github_api() if kind == "github" else endpoint()).netloc
        raise BadInput(
            f"{repository(source)}: {host} did not answer as it should ({type(error).__name__}); is there a proxy or a "
            "login page in between?"
        ) from None
    _check_patterns(source, listing)
    patterns = union(source.files, also)
    files = {name: listing[name] for name in _matching(listing, patterns)}
    where = f"{page(kind, source)} at {source.revision}"
    return validated(Locked, {"commit": commit, "patterns": patterns, "files": files}, where)


def _matching(names: Iterable[str], patterns: list[str] | None) -> list[str]:
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(names, allow_patterns=patterns))


def _check_patterns(source: Source, listing: Iterable[str]) -> None:
    """All patterns in vain are a mistake; some may be there because several entries share them."""
    idle = [pattern for pattern in source.files or [] if not _matching(listing, [pattern])]
    if not _matching(listing, source.files):
        raise BadInput(
            f"{repository(source)}: files {source.files or '*'} match nothing at revision {source.revision}, which has "
            f"{', '.join(sorted(listing)[:20]) or 'none'}"
        )
    if idle:
        say(f"{repository(source)}: at revision {source.revision} no file matches {', '.join(idle)}")


def _hub_listing(kind: Kind, source: Source) -> tuple[str, dict[str, dict[str, Any]]]:
    url = f"{endpoint()}/api/{kind}/{quote(repository(source))}/revision/{quote(source.revision, safe='')}"
    answer = _json(url, headers(kind), blobs="true")
    return answer["sha"], {
        file["rfilename"]: {"size": file["lfs"]["size"], "sha256": file["lfs"]["sha256"]}
        if file.get("lfs")
        else {"size": file["size"], "blob": file["blobId"]}
        for file in answer["siblings"]
    }


def _github_listing(source: Source) -> tuple[str, dict[str, dict[str, Any]]]:
    url = f"{github_api()}/repos/{quote(repository(source))}"
    commit = _json(f"{url}/commits/{quote(source.revision)}", headers("github"))
    listing = _json(f"{url}/git/trees/{commit['commit']['tree']['sha']}", headers("github"), recursive="1")
    if listing["truncated"]:
        raise BadInput(
            f"{repository(source)}: GitHub cuts its list of files short; clone it and set mirror: to the clone"
        )
    files = {f["path"]: {"size": f["size"], "blob": f["sha"]} for f in listing["tree"] if f["type"] == "blob"}
    return commit["sha"], files


def _json(url: str, headers: dict[str, str], **params: str) -> Any:
    import httpx2
    from huggingface_hub.utils import hf_raise_for_status, http_backoff

    passing = (httpx2.TimeoutException, httpx2.ReadError, httpx2.RemoteProtocolError)  # no connection at all is no such
    response = http_backoff(
        "GET", url, headers=headers, params=params, timeout=TIMEOUT, max_retries=3, retry_on_exceptions=passing
    )
    hf_raise_for_status(response)
    return response.json()


# ---------------------------------------------------------------------------------------------------------- what failed


@contextmanager
def explained(kind: Kind, source: Source) -> Iterator[None]:
    """Turn what HTTP libraries raise into one message with a remedy.

    Their own messages are not passed on, nor kept as the cause: they may quote signed addresses and what servers echo.
    """
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set; unset it where sources are fetched, or set mirror:"
    except httpx2.HTTPError as error:
        answered = getattr(error, "response", None) is not None
        reason = (_refusal if answered else _silence)(kind, source, error)
    else:
        return
    raise BadInput(f"{repository(source)}: {reason}") from None


def _silence(kind: Kind, source: Source, error: Exception) -> str:
    import httpx2

    detail = f"{type(error).__name__}" + (f": {error}" if isinstance(error, httpx2.ConnectError) else "")
    hosts = [github_api(), github_raw()] if kind == "github" else [endpoint()]
    return (
        f"no answer from {' or '.join(urlsplit(h).netloc for h in hosts)} ({detail}); "
        "try again where there is network, or set mirror: to a local copy"
    )


def _refusal(kind: Kind, source: Source, error: Any) -> str:
    from huggingface_hub import errors

    status, where = error.response.status_code, page(kind, source)
    if kind == "github":
        if status in (403, 429):
            return "too many requests (GitHub takes 60 an hour without an account); try again later"
        if status in (404, 422):
            return f"GitHub has no such repository, or no revision {source.revision} of it; see {where}"
    elif isinstance(error, errors.RevisionNotFoundError):
        return f"no revision {source.revision}; see {where}"
    elif isinstance(error, errors.EntryNotFoundError):
        return f"{error.response.url.path} is gone; `mnpo pin` again, or set mirror:"
    elif status == 429:
        return "too many requests, says the hub; try again later"
    elif status in (401, 403, 404):
        return _no_access(kind, source, status, gated=source.gated or isinstance(error, errors.GatedRepoError))
    return f"the server answered {status}; try again later"


def _no_access(kind: Kind, source: Source, status: int, gated: bool) -> str:
    """The hub says 401 of a missing, a private and a gated repository alike when there is no token."""
    where = page(kind, source)
    if token() is None:
        if gated and status != 404:
            return f"gated, and there is no token; accept its licence at {where}, then `export HF_TOKEN=...`"
        return f"no such repository; check {where} (a private one needs `export HF_TOKEN=...`)"
    if status == 404:
        return f"no such repository, or the token in use may not see it; check {where}"
    if status == 401:
        return "the hub does not accept the token in use; make another at https://huggingface.co/settings/tokens"
    return (
        f"not open to the token in use; accept its licence at {where} with the token's account, and let the token "
        "read gated repositories (https://huggingface.co/settings/tokens)"
    )
