"""Whole or not at all: every output of a stage is written beside its place, described by a manifest, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mnpo import __version__
from mnpo.progress import say


class Artifact:
    """An output being made: write to `path`; `facts` become part of its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}


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
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".partial-{output.name}")
    _remove(partial)
    if directory:
        partial.mkdir()
    made, started, clock = Artifact(partial), time.time(), time.monotonic()
    try:
        yield made
        seconds = time.monotonic() - clock
        text = json.dumps(
            {
                "stage": stage,
                "settings": dict(settings),
                "inputs": {str(p): digest(p) for p in inputs},
                "digest": _content_digest(partial),
                **made.facts,
                **_cost(seconds, made.facts.get("tokens")),
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                **_surroundings(),
            },
            indent=1,
            ensure_ascii=False,
        )
        target = manifest_path(partial) if directory else manifest_path(output)
        target.write_text(text + "\n", encoding="utf-8")
        if directory:
            _remove(output)
        os.replace(partial, output)
    except BaseException:
        _remove(partial)
        raise
    facts = "".join(f", {name} {value}" for name, value in made.facts.items())
    say(f"{stage}: {output} in {seconds:.1f} s{facts}")


def manifest_path(artifact_path: str | Path) -> Path:
    """Where the manifest of a file or a directory is."""
    path = Path(artifact_path)
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


def manifest(artifact_path: str | Path) -> dict[str, Any]:
    """The manifest of a file or a directory, empty when it has none (made elsewhere)."""
    path = manifest_path(artifact_path)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def digest(path: str | Path) -> str:
    """The SHA-256 of an artifact's content: the manifest's, else computed. A missing input is FileNotFoundError."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such input; make it first, or check the path")
    return manifest(path).get("digest") or _content_digest(path)


def _content_digest(path: Path) -> str:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
        listing = "".join(f"{_content_digest(file)}  {file.relative_to(path)}\n" for file in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _cost(seconds: float, tokens: float | None) -> dict[str, float]:
    rate = {"tokens_per_second": round(tokens / seconds, 1)} if tokens and seconds > 0 else {}
    return {"seconds": round(seconds, 3), **rate}


def _surroundings() -> dict[str, Any]:
    """What a result may depend on beside its inputs: versions of the libraries in use, commit, device, host."""
    libraries = ("torch", "transformers", "pandas", "numpy")
    versions: dict[str, str] = {n: str(sys.modules[n].__version__) for n in libraries if n in sys.modules}
    torch = sys.modules.get("torch")
    gpu = torch is not None and torch.cuda.is_available()
    return {
        "versions": {"mnpo": __version__, "python": platform.python_version(), **versions},
        "git_commit": _git_commit(),
        "device": torch.cuda.get_device_name() if torch is not None and gpu else "cpu",
        "host": platform.node(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


@cache
def _git_commit() -> str | None:
    """The package's commit, `-dirty` when files differ from it; None outside git or without it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40", "--dirty", "--match", ""]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
