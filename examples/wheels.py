"""What the examples make of wheels of the package index, which are fetched and read, and never installed."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mnpo.errors import BadInput
from mnpo.storage import artifacts


def cache() -> Path:
    """Where wheels are kept, so that they are fetched once: under MNPO_CACHE, or the configurations' own default."""
    return Path(os.environ.get("MNPO_CACHE") or "~/.cache/mnpo").expanduser() / "wheels"


def fetch(wheels: dict[str, str], directory: Path) -> list[Path]:
    """The wheels in `directory`, fetched by pip where they are not there as they should be.

    Raises:
        BadInput: the package index does not answer, or has another file under that name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = {name: digest for name, digest in wheels.items() if not _is(directory / name, digest)}
    if missing:
        with tempfile.TemporaryDirectory(dir=directory) as new:
            pins = Path(new, "pins.txt")
            parts = {name: name.split("-") for name in missing}
            pins.write_text("".join(f"{p[0]}=={p[1]} --hash=sha256:{missing[name]}\n" for name, p in parts.items()))
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
            asked = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", new, "--requirement", str(pins)]
            done = subprocess.run([*pip, *asked], capture_output=True, text=True)
            if done.returncode:
                raise BadInput(
                    f"{', '.join(missing)}: not fetched from the package index; where there is none, put these files "
                    f"into {directory}. pip says:\n{done.stderr.strip()}"
                )
            for name in missing:
                os.replace(Path(new, name), directory / name)
    return [directory / name for name in wheels]


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and artifacts.digest(file) == digest


@contextmanager
def making(target: Path) -> Iterator[Path]:
    """A directory to work in, from which `target` is moved when it is whole. Raises BadInput: it exists already."""
    if target.exists():
        raise BadInput(f"{target}: exists already; remove it to have it made anew")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as work:
        yield Path(work)


def command(make: Callable[[Path], None], description: str | None) -> None:
    """Make the directory that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("target", type=Path, help="the directory to make")
    try:
        make(parser.parse_args().target)
    except BadInput as error:
        sys.exit(str(error))
