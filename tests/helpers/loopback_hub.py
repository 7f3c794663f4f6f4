"""A model hub and a GitHub on 127.0.0.1: the parts of their HTTP APIs that downloads use, with faults on demand.

Large files are served, as the hub does, by a redirect to another host (here another port) that must see no token.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import struct
import termios
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A repository's commits; `gate` says what a token is needed for."""

    gate: Literal["open", "files", "all"] = "open"
    large: frozenset[str] = frozenset()
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        listing = "".join(f"{git_blob(content)} {name}\n" for name, content in sorted(files.items()))
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass(frozen=True)
class Served:
    """What one request was, and what it got."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int
    sent: int


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. `after`: bytes of the body that are sent before."""

    kind: Literal["status", "close", "reset", "corrupt", "short", "no-ranges", "page"]
    status: int = 200
    after: int = 0


class LoopbackHub:
    """Both servers, their repositories, the faults to come (by the end of a path), and a log of what was served."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # models/a/b, datasets/a/b, github/a/b
        self.tokens: set[str] = set()  # that may read gated repositories
        self.strangers: set[str] = set()  # valid tokens of accounts without access
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.rate: float | None = None  # bytes per second of a body
        self._log: list[Served] = []
        self._busy = 0
        self._idle = threading.Condition()
        self.large: dict[str, bytes] = {}
        self.truncated_trees = False
        self._servers = [_server(self, handler) for handler in (_Hub, _Storage)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a request is served."""
        with self._idle:
            self._busy += 1
        try:
            yield
        finally:
            with self._idle:
                self._busy -= 1
                self._idle.notify_all()

    @property
    def log(self) -> list[Served]:
        """What was served, when everything is: a client has its answer before the server has noted it."""
        with self._idle:
            assert self._idle.wait_for(lambda: self._busy == 0, timeout=60)
        return self._log

    def environment(self) -> dict[str, str]:
        """What sends mnpo here."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "MNPO_GITHUB_API": f"{self.endpoint}/github-api",
            "MNPO_GITHUB_RAW": f"{self.endpoint}/github-raw",
        }

    def add(self, address: str, files: dict[str, bytes], large: Any = (), gate: Any = "open") -> str:
        """A repository with one commit on main; its sha."""
        repository = self.repositories.setdefault(address, Repository(gate=gate, large=frozenset(large)))
        return repository.commit(files)

    def fail(self, path_end: str, *faults: Fault) -> None:
        """What happens to the next requests of a file's or an API's content, one fault a request."""
        self.faults[path_end].extend(faults)

    def sent(self, path_end: str = "") -> int:
        """Bytes of the bodies of files whose path ends so."""
        return sum(s.sent for s in self.files(path_end))

    def files(self, path_end: str = "") -> list[Served]:
        """Requests that got (a part of) a file."""
        return [s for s in self.log if s.status in (200, 206) and "/api/" not in s.path and s.path.endswith(path_end)]

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@contextmanager
def loopback_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    try:
        yield hub
    finally:
        hub.close()


def _server(hub: LoopbackHub, handler: type[_Handler]) -> ThreadingHTTPServer:
    class Bound(handler):  # type: ignore[misc, valid-type]
        pass

    Bound.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Refused(Exception):
    def __init__(self, status: int, code: str | None = None, message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        with self.hub.busy():
            self._serve()

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _serve(self) -> None:
        self.path_ = unquote(urlsplit(self.path).path)
        self.sent, self.status = 0, 0
        try:
            if fault := self._fault("status"):
                raise _Refused(fault.status, message="as told")
            if self._fault("page"):
                self._send(b"<html>Please log in</html>", {"Content-Type": "text/html"})
            else:
                self.route()
        except _Refused as refused:
            self._refuse(refused)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.hub._log.append(
                Served(self.command, self.path_, self.headers.get("Range"), self.token, self.status, self.sent)
            )

    def route(self) -> None:
        raise NotImplementedError

    def _fault(self, *kinds: str) -> Fault | None:
        for end, faults in self.hub.faults.items():
            if self.path_.endswith(end) and faults and faults[0].kind in kinds:
                return faults.popleft()
        return None

    def _refuse(self, refused: _Refused) -> None:
        # A server that repeats what it was sent, in a header and in the body: none of it may reach a log.
        echo = f"{refused.message} ({self.headers.get('Authorization')})"
        headers = {"X-Error-Message": echo, "Content-Type": "application/json"}
        if refused.message == "Invalid credentials in Authorization header":
            headers["X-Error-Message"] = refused.message
        if refused.code:
            headers["X-Error-Code"] = refused.code
        if refused.status == 429:
            headers["Retry-After"] = "0"
        self._send(json.dumps({"error": echo, "message": echo}).encode(), headers, refused.status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.sent = len(body)

    def _send_file(self, body: bytes, headers: dict[str, str]) -> None:
        """A file or its part, with the fault that is due."""
        fault = self._fault("close", "reset", "corrupt", "short", "no-ranges")
        if fault and fault.kind == "corrupt":
            body = bytes(b ^ 1 for b in body[:1]) + body[1:]
        if fault and fault.kind == "short":
            body = body[: fault.after]
        start, whole = 0, len(body)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked and not (fault and fault.kind == "no-ranges"):
            start = int(asked[1])
            if start >= whole:
                raise _Refused(416)
            headers = {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.status = 206 if "Content-Range" in headers else 200
        self.send_response(self.status)
        for name, value in {**headers, "Content-Length": str(whole - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.end_headers()
        cut = fault.after if fault and fault.kind in ("close", "reset") else None
        self._pour(body[start:] if cut is None else body[start : start + cut])
        if cut is not None:
            self.close_connection = True
            if fault and fault.kind == "reset":
                while struct.unpack("i", fcntl.ioctl(self.connection, termios.TIOCOUTQ, b"    "))[0]:
                    time.sleep(0.001)  # until the other side has what was sent: a reset drops the rest
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())

    def _pour(self, body: bytes) -> None:
        step = 1 << 16
        for at in range(0, len(body), step):
            chunk = body[at : at + step]
            self.wfile.write(chunk)
            self.sent += len(chunk)
            if self.hub.rate:
                time.sleep(len(chunk) / self.hub.rate)


class _Hub(_Handler):
    """huggingface.co, api.github.com and raw.githubusercontent.com."""

    def route(self) -> None:
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/api/(models|datasets)/([^/]+/[^/]+)/revision/(.+)", self._info),
            (r"/github-api/repos/([^/]+/[^/]+)/commits/(.+)", self._github_commit),
            (r"/github-api/repos/([^/]+/[^/]+)/git/trees/(\w+)", self._github_tree),
            (r"/github-raw/([^/]+/[^/]+)/(\w+)/(.+)", self._github_file),
            (r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", lambda *a: self._file("datasets", *a)),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", lambda *a: self._file("models", *a)),
        ]
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, self.path_):
                answer(*found.groups())
                return
        raise _Refused(404)

    # ------------------------------------------------------------------------------------------------ the hub

    def _repository(self, address: str, revision: str, content: bool) -> tuple[Repository, str]:
        """Says 401 of what is not there as long as nobody asks with a token, as the hub does."""
        known = self.hub.tokens | self.hub.strangers
        if self.token is not None and self.token not in known:
            raise _Refused(401, message="Invalid credentials in Authorization header")
        repository = self.hub.repositories.get(address)
        if repository is None:
            raise _Refused(401 if self.token is None else 404, "RepoNotFound", "Repository not found")
        closed = repository.gate == "all" or (repository.gate == "files" and content)
        if closed and self.token not in self.hub.tokens:
            raise _Refused(401 if self.token is None else 403, "GatedRepo", "Access to this model is restricted")
        commit = repository.at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", "Invalid rev id")
        return repository, commit

    def _info(self, kind: str, name: str, revision: str) -> None:
        repository, commit = self._repository(f"{kind}/{name}", revision, content=False)
        blobs = parse_qs(urlsplit(self.path).query).get("blobs") in (["true"], ["True"], ["1"])
        siblings = []
        for file, content in repository.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": file}
            if blobs:
                entry |= {"size": len(content), "blobId": git_blob(content)}
            if blobs and file in repository.large:
                sha256 = hashlib.sha256(content).hexdigest()
                pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n"
                entry |= {
                    "blobId": git_blob(pointer.encode()),
                    "lfs": {"sha256": sha256, "size": len(content), "pointerSize": len(pointer)},
                }
            siblings.append(entry)
        answer = {"id": name, "sha": commit, "gated": repository.gate != "open", "siblings": siblings}
        self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, kind: str, name: str, revision: str, file: str) -> None:
        repository, commit = self._repository(f"{kind}/{name}", revision, content=True)
        content = repository.commits[commit].get(file)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{git_blob(content)}"'}
        if file not in repository.large:
            self._send_file(content, headers)
            return
        key = hashlib.sha256(content).hexdigest()
        self.hub.large[key] = content
        where = f"{self.hub.storage}/{key}/{file}?X-Amz-Signature=signed-for-a-while"
        self._send(b"", {**headers, "Location": where}, 302)

    # ------------------------------------------------------------------------------------------------- GitHub

    def _github(self, name: str) -> Repository:
        repository = self.hub.repositories.get(f"github/{name}")
        if repository is None:
            raise _Refused(404, message="Not Found")
        return repository

    def _github_commit(self, name: str, revision: str) -> None:
        commit = self._github(name).at(revision)
        if commit is None:
            raise _Refused(422, message=f"No commit found for SHA: {revision}")
        tree = hashlib.sha1(f"tree of {commit}".encode()).hexdigest()
        self._send(json.dumps({"sha": commit, "commit": {"tree": {"sha": tree}}}).encode(), {})

    def _github_tree(self, name: str, tree: str) -> None:
        commits = self._github(name).commits
        [commit] = [c for c in commits if hashlib.sha1(f"tree of {c}".encode()).hexdigest() == tree]
        entries: list[dict[str, Any]] = [{"path": "submodule", "type": "commit", "mode": "160000", "sha": "0" * 40}]
        for folder in {name.rpartition("/")[0] for name in commits[commit]} - {""}:
            entries.append({"path": folder, "type": "tree", "mode": "040000", "sha": "1" * 40})
        for file, content in commits[commit].items():
            entry = {"path": file, "type": "blob", "mode": "100644", "sha": git_blob(content), "size": len(content)}
            entries.append(entry)
        self._send(json.dumps({"sha": tree, "tree": entries, "truncated": self.hub.truncated_trees}).encode(), {})

    def _github_file(self, name: str, commit: str, file: str) -> None:
        files = self._github(name).commits.get(commit, {})
        if file not in files:
            raise _Refused(404, message="404: Not Found")
        self._send_file(files[file], {"Content-Type": "text/plain"})


class _Storage(_Handler):
    """Where large files lie, behind signed addresses: a request that also carries a token is refused, as there."""

    def route(self) -> None:
        key = self.path_.split("/")[1]
        if self.token is not None:
            raise _Refused(400, message="Only one auth mechanism allowed")
        if key not in self.hub.large:
            raise _Refused(404)
        self._send_file(self.hub.large[key], {})
