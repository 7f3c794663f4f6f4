"""What the benchmarks share: a process measured from outside, medians with their spread, the machine named."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


class Cost(NamedTuple):
    """Of a process."""

    seconds: float
    cpu: float
    """Seconds of all cores."""
    peak: float
    """Largest resident set, MiB."""


def environment(threads: int) -> dict[str, str]:
    """Of a process that uses this checkout."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads)}


def run(
    command: Sequence[str], threads: int = 1, cwd: Path | None = None, python: str = sys.executable
) -> tuple[Cost, str]:
    """What a Python process (`-m ...`) in the directory `cwd` cost, and its standard output.

    SystemExit with its errors when it fails.

    This process must stay small: until a child executes its own program, its resident set counts as the child's.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [python, *command],
        env=environment(threads),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    output = process.stdout.read()
    reader.join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))[:400]}\n{errors[0][-3000:]}")
    seconds = time.monotonic() - started
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024), output


def last_json(output: str) -> dict[str, Any]:
    """The JSON object on the last line that a process printed."""
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median [lowest to highest]."""
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f} to {max(values):,.{digits}f}]"


@contextmanager
def told(title: str, note: str = "") -> Iterator[None]:
    """A section: title, machine, versions and load above it; the load again below."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    print(f"### {title}\n\n{note}{' ' if note else ''}{model[1] if model else platform.processor()}, ", end="")
    print(f"{os.cpu_count()} cores; Python {platform.python_version()}, {versions}; ", end="")
    print(f"load when begun {os.getloadavg()[0]:.1f}; medians [lowest to highest].\n", flush=True)
    yield
    print(f"\nLoad at the end: {os.getloadavg()[0]:.1f}.\n", flush=True)


def markdown(rows: pd.DataFrame | Sequence[Mapping[str, object]]) -> str:
    """A table, its digits as they are."""
    import pandas as pd

    return str(pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True))


def put_between(page: Path, above: str, below: str, text: str) -> None:
    """Write `text` anew between two lines of a page, which stay."""
    head, _, rest = page.read_text(encoding="utf-8").partition(above)
    page.write_text(f"{head}{above}\n{text}\n{below}{rest.partition(below)[2]}", encoding="utf-8")
