"""Python commands that begin with their libraries loaded, so that each costs its own work and not their imports.

The standard library's fork server imports them once for each test worker; a command is a fork of it, and a process as
any other: its signals, files and exit code are its own. Nothing of mnpo is loaded before: a checkout's own code runs.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

LIBRARIES = (
    "pandas", "pyarrow.parquet", "pydantic", "scipy.stats", "snakemake.cli", "snakemake.dag", "torch", "transformers",
    "transformers.models.gemma2.modeling_gemma2", "typer", "yaml",
)  # fmt: skip
STARTING = multiprocessing.get_context("forkserver")
STARTING.set_forkserver_preload(list(LIBRARIES))


class Command:
    """A running `python -m MODULE ARGUMENTS`, and where its words go."""

    def __init__(self, module: str, *arguments: str, cwd: Path, environment: Mapping[str, str], words: Path) -> None:
        self._out, self._err = words / "stdout", words / "stderr"
        given = (module, arguments, cwd, dict(environment), self._out, self._err)
        self.process: Any = STARTING.Process(target=_run, args=given)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        """As of `subprocess`: None while it runs, minus the signal that ended it."""
        return self.process.exitcode

    def signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.process.pid, number)

    def done(self, timeout: float = 900) -> CompletedProcess[str]:
        """Wait for its end; killed, and an error, after `timeout` seconds."""
        self.process.join(timeout)
        if self.returncode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"no end within {timeout} s: {self._err.read_text()[-4000:]}")
        words = (file.read_text() if file.exists() else "" for file in (self._out, self._err))
        return CompletedProcess([], self.returncode, *words)


@contextmanager
def started(
    module: str, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Command]:
    """A command that runs meanwhile; it does not outlive this. In this process's directory and environment, if none."""
    with tempfile.TemporaryDirectory() as words:
        command = Command(
            module, *arguments, cwd=cwd or Path.cwd(), environment=environment or os.environ, words=Path(words)
        )
        try:
            yield command
        finally:
            command.signal(signal.SIGKILL)
            command.process.join()


def run(module: str, *arguments: str, **where: Any) -> CompletedProcess[str]:
    """A command to its end, and what it said."""
    with started(module, *arguments, **where) as command:
        return command.done()


def _run(module: str, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], *words: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, file in enumerate(words, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    found = [str(cwd), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = found + [path for path in sys.path if path not in found]
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a fork of the server would leave out
