"""Cold start of the stages: what importing costs a job, by `python -X importtime`; and jobs forked from a warm process.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.chain import configured, due
from benchmarks.measuring import ROOT, environment, run, told
from mnpo.planning.plan import Plan
from mnpo.warm import client, server

HEAVY = 0.05  # seconds from which a package is named


def imported(command: list[str], directory: Path) -> Counter[str]:
    """Seconds that each package's own modules took to import."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mnpo", *command],
        cwd=directory, env=environment(1), capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    seconds = Counter[str]()
    for own, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.M):
        seconds[module.split(".")[0]] += int(own) / 1e6  # type: ignore[assignment]
    return seconds


def seconds(command: list[str], directory: Path, sockets: str) -> float:
    """Of a whole command, by itself or by the warm process that has its socket there."""
    threads = dict.fromkeys(server.THREADS, "1") | {client.DIRECTORY: sockets}
    began = time.monotonic()
    subprocess.run(
        ["python", "-m", "mnpo", "--log", "log", *command],
        cwd=directory, env=environment(1) | threads, capture_output=True, check=True,
    )  # fmt: skip
    return time.monotonic() - began


def warm(directory: Path) -> str:
    """Where the socket of a process is that has all libraries loaded."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    os.environ["PYTHONPATH"] = str(ROOT)
    os.chdir(directory)
    server.start({1}, server.LIBRARIES)
    sockets = os.environ[client.DIRECTORY]
    while not Path(sockets, "1").exists():
        time.sleep(0.1)
    return sockets


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with told("Start-up"), tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        sockets = warm(Path(top))
        print("| stage | seconds | forked | of imports | packages |\n|---|---|---|---|---|", flush=True)
        seen: set[str] = set()
        for stage, _, command in due(Plan(configured(Path(top), 6)), "ours"):
            if stage in seen:
                continue
            seen.add(stage)
            imports = imported(command, Path(top))
            alone, forked = (seconds(command, Path(top), where) for where in ("", sockets))
            heavy = ", ".join(f"{package} {s:.2f}" for package, s in imports.most_common(8) if s >= HEAVY)
            print(f"| {stage} | {alone:.1f} | {forked:.1f} | {sum(imports.values()):.1f} | {heavy} |", flush=True)


if __name__ == "__main__":
    main()
