"""What orchestration costs: a dry run, a run without change, `mnpo why` and `status`, and starting a CPU-only job.

    python benchmarks/orchestration.py                    # tables on standard output; minutes
    python benchmarks/orchestration.py --only demo paper --repeats 3
    python benchmarks/orchestration.py --jobs DIRECTORY   # a checkout whose run of tests/workflow/small.yaml is done

Finished runs are fabricated: outputs of a few bytes, recorded by `snakemake --touch` as if jobs had made them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")
ROOT = Path(__file__).resolve().parents[1]
COPIED = ("Snakefile", "config.yaml", "config.lock.yaml", "workflow", "mnpo", "configs", "envs", "profiles",
          "results/paper", "tests/workflow/small.yaml")  # fmt: skip
CONFIGURATIONS = {
    "demo": ("tests/workflow/small.yaml", None),
    "paper": ("config.yaml", None),
    "grid": ("grid.yaml", "extends: config.yaml\nseeds: 10\n"),
}
FILES = (".parquet", ".json", ".jsonl", ".csv", ".md", ".tex", ".html", ".svg", ".png")
STAGES = ("prompts", "score", "pair", "tabulate", "plot", "costs", "theory")
"""Those that need no GPU."""


class Checkout:
    """A copy of the project for one configuration."""

    def __init__(self, path: Path, config: str) -> None:
        self.path, self.config = path, config
        self.environment = os.environ | {
            "PYTHONPATH": str(path),
            "MNPO_CACHE": str(path / "cache"),
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.path, env=self.environment, capture_output=True, text=True
        )
        if result.returncode:
            raise SystemExit(result.stdout[-3000:] + result.stderr[-3000:])
        return result.stdout

    def snakemake(self, *options: str) -> str:
        return self.run("snakemake", "--configfile", self.config, "--cores", "1", *options)


def finished(path: Path, name: str) -> tuple[Checkout, int]:
    """A checkout whose run counts as finished, and how many jobs that is."""
    for item in COPIED:
        source, target = ROOT / item, path / item
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    config, text = CONFIGURATIONS[name]
    if text is not None:
        (path / config).write_text(text)
    checkout = Checkout(path, config)
    plan = checkout.snakemake("--dry-run")
    for outputs in re.findall(r"^    output: (.*)$", plan, re.M):
        for output in outputs.split(", "):
            file = path / output
            directory = file.suffix not in FILES
            (file if directory else file.parent).mkdir(parents=True, exist_ok=True)
            (file / "content" if directory else file).write_text("{}" if file.suffix == ".json" else output)
    checkout.snakemake("--touch", "--forceall", "--no-hooks", "--notemp", "--quiet", "all")
    total = re.search(r"^total +(\d+)$", plan, re.M)
    return checkout, int(total[1]) if total else 0


def measured(repeats: int, work: Callable[[], Result]) -> tuple[list[float], list[float], list[Result]]:
    """Seconds by the clock, and of CPU in child processes, of each repetition, and what it returned."""
    clock, cpu, results = [], [], []
    for _ in range(repeats):
        started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        results.append(work())
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock.append(time.monotonic() - started)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return clock, cpu, results


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} [{min(values):.1f} to {max(values):.1f}]"


def workflows(names: Sequence[str], repeats: int) -> None:
    print("| configuration | jobs | what | seconds | CPU seconds | load |\n|---|---|---|---|---|---|", flush=True)
    for name in names:
        with tempfile.TemporaryDirectory() as directory:
            checkout, jobs = finished(Path(directory), name)
            target = sorted(str(p.relative_to(checkout.path)) for p in checkout.path.glob("results/*/tables/*.csv"))[0]
            asked = {
                "dry run": partial(checkout.snakemake, "--dry-run"),
                "run without change": checkout.snakemake,
                "`mnpo why` of a table": partial(checkout.run, "mnpo", "why", target, "--config", checkout.config),
                "`mnpo status`": partial(checkout.run, "mnpo", "status", "--config", checkout.config),
            }
            if "\nrule " in checkout.snakemake("--dry-run"):
                raise SystemExit(f"{name}: the fabricated run does not count as finished")
            for what, work in asked.items():
                clock, cpu, _ = measured(repeats, work)
                print(
                    f"| {name} | {jobs} | {what} | {spread(clock)} | {spread(cpu)} | {os.getloadavg()[0]:.1f} |",
                    flush=True,
                )


def stages(path: Path, repeats: int) -> None:
    """Each CPU-only stage's command again, as Snakemake recorded it, against the seconds in its manifests."""
    print("| stage | seconds | CPU seconds | of them its own work | overhead | heaviest imports |")
    print("|---|---|---|---|---|---|", flush=True)
    commands = {}
    for record in (path / ".snakemake/metadata").rglob("*"):
        if record.is_file():
            facts = json.loads(record.read_text())
            commands[facts["rule"], facts["log"][0] if facts["log"] else ""] = facts["shellcmd"]
    checkout = Checkout(path, "")
    for stage in STAGES:
        of_stage = (c for (rule, log), c in sorted(commands.items()) if rule == stage and f"/{stage}" in log)
        command = next(of_stage).partition(" 2>&1")[0].removeprefix("exec ").removeprefix("python ")
        clock, cpu, works = measured(repeats, partial(own_work, f"{sys.executable} {command}", checkout))
        overheads = [total - own for total, own in zip(clock, works, strict=True)]
        print(
            f"| {stage} | {spread(clock)} | {spread(cpu)} | {spread(works)} | {spread(overheads)} "
            f"| {imports(f'{sys.executable} -X importtime {command}', checkout)} |",
            flush=True,
        )


def own_work(command: str, checkout: Checkout) -> float:
    """The seconds that a stage says it took, of all its outputs."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout.path, env=checkout.environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return sum(float(seconds) for seconds in re.findall(r" in ([\d.]+) s\b", done.stdout + done.stderr))


def imports(command: str, checkout: Checkout) -> str:
    """Seconds that the heaviest packages' own modules took to import."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=checkout.path, env=checkout.environment, capture_output=True, text=True
    )
    seconds = Counter[str]()
    for own, module in re.findall(r"^import time: +(\d+) \| +\d+ \| +(\S+)$", done.stderr, re.M):
        seconds[module.split(".")[0]] += int(own) / 1e6
    return ", ".join(f"{package} {value:.2f}" for package, value in seconds.most_common(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGURATIONS), default=list(CONFIGURATIONS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--jobs", type=Path, help="A checkout whose run of tests/workflow/small.yaml is done.")
    options = parser.parse_args()
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores; Python {platform.python_version()},")
    print(
        f"snakemake {version('snakemake')}; load when begun {os.getloadavg()[0]:.1f}; "
        f"median [lowest to highest] of {options.repeats}\n"
    )
    if options.only:
        workflows(options.only, options.repeats)
    if options.jobs:
        print()
        stages(options.jobs.resolve(), options.repeats)


if __name__ == "__main__":
    main()
