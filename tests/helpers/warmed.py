"""A warm process for commands in a directory, and what a user's function sees of the command that calls it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from mnpo.stages.score import Settings
from mnpo.storage import user_code
from mnpo.storage.records import SAMPLES, write
from mnpo.warm.server import THREADS
from tests.helpers.checkouts import ROOT, until

STARTER = """\
import os, sys, time
from mnpo.warm import server
server.start({1}, sys.argv[1:])
print(os.environ["MNPO_WARM_SOCKETS"], flush=True)
time.sleep(600)
"""
PROBE = """\
import json, os, tempfile, time
from pathlib import Path

def probe(responses):
    found = {"pid": os.getpid(), "parent": os.getppid(), "environment": dict(os.environ), "tmp": tempfile.gettempdir()}
    Path("new.json").write_text(json.dumps(found))
    Path("new.json").rename("probe.json")
    while Path("hold").exists():
        time.sleep(0.01)
    return [len(response) for response in responses]
"""
PATIENCE = 300  # seconds, on a busy machine
TIMES = ("seconds", "started", "peak_memory_mb", "loading_seconds", "stop_seconds", "tokens_per_second")


class Warm:
    """A directory with samples and a user's function, and a warm process for commands there."""

    def __init__(self, directory: Path, *packages: str, **own: str) -> None:
        self.directory = directory
        self.environment = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONPATH": str(ROOT)} | own
        self.environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        starter = [sys.executable, "-c", STARTER, *packages]
        self.starter = subprocess.Popen(starter, cwd=directory, env=self.environment, stdout=subprocess.PIPE, text=True)
        assert self.starter.stdout is not None
        self.sockets = Path(self.starter.stdout.readline().strip())
        until((self.sockets / "1").exists, "the warm process")
        (self.server,) = psutil.Process(self.starter.pid).children()

    def __enter__(self) -> Warm:
        return self

    def __exit__(self, *how: object) -> None:
        self.starter.kill()
        self.starter.wait()
        gone(self.server)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def started(self, *command: str, cwd: Path | None = None, flags: tuple[str, ...] = (), **own: str) -> Any:
        """`python -m mnpo --log log COMMAND`, with `own` variables of its environment."""
        (self.directory / "probe.json").unlink(missing_ok=True)
        environment = self.environment | {"MNPO_WARM_SOCKETS": str(self.sockets), **own}
        words = ["python", *flags, "-m", "mnpo", "--log", "log", *command]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(words, cwd=cwd or self.directory, env=environment, text=True, **out)

    def run(self, *command: str, **how: Any) -> tuple[int, str]:
        """Exit code, and all that is said."""
        process = self.started(*command, **how)
        return process.wait(PATIENCE), process.stdout.read()

    def done(self, *command: str, **how: Any) -> str:
        """What a command says that has to succeed."""
        code, said = self.run(*command, **how)
        assert code == 0, said
        return said

    def probed(self) -> dict[str, Any]:
        """What the user's function saw, as soon as it runs."""
        until((self.directory / "probe.json").exists, "the command")
        return json.loads((self.directory / "probe.json").read_text())

    def forked(self) -> bool:
        """Whether the last command was the warm process's."""
        return self.probed()["parent"] == self.server.pid

    def held(self) -> tuple[Any, psutil.Process]:
        """A command in the middle of its work: who asked for it, and who does it."""
        (self.directory / "hold").touch()
        process = self.started(*self.scoring())
        worker = psutil.Process(self.probed()["pid"])
        assert self.forked()
        return process, worker

    def let_go(self) -> None:
        (self.directory / "hold").unlink()

    def scoring(self, oracle: str = "own", samples: str = "samples.parquet") -> list[str]:
        file = self.directory / "rewards.py"
        own = {"own": {"kind": "function", "file": str(file), "function": "probe"}}
        rule = {"brevity": {"kind": "rule", "rule": "brevity"}}
        functions = user_code.digests(file) if oracle == "own" else {}
        settings = Settings(oracle=oracle, oracles=own | rule, functions=functions)
        words = ["score", "--settings", settings.model_dump_json(exclude_none=True)]
        return [*words, f"--samples={samples}", "--output=scores.parquet"]


def filled(directory: Path) -> Path:
    truth = '{"answer": "cat", "family": "repeat"}'
    row = {"prompt_id": "p", "family": "repeat", "prompt": "Say cat", "truth": truth, "tokens": 5, "finish": "stop"}
    write(SAMPLES, [row | {"k": k, "response": "cat " * k, "seed": k} for k in range(3)], directory / "samples.parquet")
    (directory / "rewards.py").write_text(PROBE)
    return directory


def gone(process: psutil.Process) -> None:
    until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, f"the end of {process}")
