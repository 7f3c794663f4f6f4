"""Cold start of the stages: what importing costs a job, by `python -X importtime`.

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.chain import configured, due
from benchmarks.measuring import environment, run, told
from mnpo.planning.plan import Plan

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


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with told("Start-up"), tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        print("| stage | seconds of imports | packages |\n|---|---|---|", flush=True)
        seen: set[str] = set()
        for stage, _, command in due(Plan(configured(Path(top), 6)), "ours"):
            if stage in seen:
                continue
            seen.add(stage)
            seconds = imported(command, Path(top))
            heavy = ", ".join(f"{package} {s:.2f}" for package, s in seconds.most_common(8) if s >= HEAVY)
            print(f"| {stage} | {sum(seconds.values()):.1f} | {heavy} |", flush=True)


if __name__ == "__main__":
    main()
