"""The servers of the hub and of GitHub: what they list, where files are fetched from, and what their refusals mean.

Importing this costs nothing beyond mnpo.config: HTTP libraries are imported when a server is asked.

HF_ENDPOINT is the hub library's own variable, for mirrors of the hub. GitHub gets the same two: a site without a way
to github.com can name a proxy of it, and the tests a server on this machine. They are read at each use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from mnpo.config.blocks import validated
from mnpo.config.sources import Source
from mnpo.errors import BadInput
from mnpo.progress import say
from mnpo.storage.hub import Kind, Locked, page, repository, token, union

TIMEOUT = 30.0  # seconds without a byte


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
