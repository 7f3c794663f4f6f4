"""Start-up of the stages: what a job imports (`python -X importtime`), and what a fork of a warm process costs instead.

python -m benchmarks.startup                               # the demo's policy
python -m benchmarks.startup --model models/smollm2-135m   # after `make smollm2`
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.chain import configured, due
from benchmarks.measuring import ROOT, environment, run, spread, told
from mnpo.config.configuration import Config
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


def seconds(command: list[str], directory: Path, sockets: str, how: str = "") -> float:
    """Of a whole command, by itself or by the warm process that has its socket there."""
    own = dict.fromkeys(server.THREADS, "1") | {client.DIRECTORY: sockets, server.ASKED: how}
    began = time.monotonic()
    subprocess.run(
        ["python", "-m", "mnpo", "--log", "log", *command],
        cwd=directory, env=environment(1) | own, capture_output=True, check=True,
    )  # fmt: skip
    return time.monotonic() - began


def warm(how: str) -> str:
    """Where the socket of a process is that has all libraries loaded."""
    os.environ[server.ASKED] = how
    server.start({1}, server.LIBRARIES)
    sockets = os.environ[client.DIRECTORY]
    while not Path(sockets, "1").exists():
        time.sleep(0.1)
    return sockets


def planned(directory: Path, model: Path | None) -> Plan:
    """A small chain of the demo's policy, or of a model as it is."""
    if model is None:
        return Plan(configured(directory, 6))
    content = json.loads(configured(directory, 6).model_dump_json(exclude_none=True, exclude_unset=True))
    content["models"]["tiny"] = {"path": str(model)}
    content["reference"] = {"model": "tiny"}
    content["text"] = {"max_length": 160, "max_prompt_length": 112}
    return Plan(Config.model_validate(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a checkpoint directory in place of the demo's policy")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = options.model and options.model.resolve()
    with told("Start-up"), tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        os.environ["PYTHONPATH"] = str(ROOT)
        os.chdir(top)
        sides = {"": "", "1": warm("1"), server.MODELS: warm(server.MODELS)}
        print(
            "| stage | seconds | forked | its policy held | of imports | packages |\n|---|---|---|---|---|---|",
            flush=True,
        )
        seen: set[str] = set()
        for stage, _, command in due(planned(Path(top), model), "ours"):
            if stage in seen:
                continue
            seen.add(stage)
            imports = imported(command, Path(top))
            for _ in range(2):  # the first says how its policy is loaded, and the second has it held
                seconds(command, Path(top), sides[server.MODELS], server.MODELS)
            taken: dict[str, list[float]] = {how: [] for how in sides}
            for _ in range(options.repeats):
                for how, sockets in sides.items():
                    taken[how].append(seconds(command, Path(top), sockets, how))
            heavy = ", ".join(f"{package} {s:.2f}" for package, s in imports.most_common(8) if s >= HEAVY)
            cells = [stage, *(spread(some) for some in taken.values()), f"{sum(imports.values()):.1f}", heavy]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
