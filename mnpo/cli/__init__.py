"""`mnpo COMMAND ...`: plan, watch and show runs, and run every stage by hand.

A stage gets paths and settings; it knows nothing of Snakemake. The chain is prompts, sft, then sample, score, pair,
logps and train in every iteration; assess, harness, evalscope, answer and judge measure; the rest makes tables.

Exit codes: 0 done, 2 wrong usage, 3 a bad input, setting or file (one message says which), 4 training diverged,
5 stopped by a signal and to be continued by the same command, 6 the disk is full, 1 anything else.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from mnpo.cli import commands, stages
from mnpo.errors import EXPECTED, BadInput, Interrupted
from mnpo.planning import environments
from mnpo.progress import complain
from mnpo.ranks import leaving, rank

WAIT_FOR_LOG = 5  # seconds, at most, after the last line was written

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(stages.app)
app.add_typer(commands.app)
FAMILIES = stages.ENVIRONMENTS | commands.ENVIRONMENTS
"""Command -> which environment of envs/ it runs in; None: any."""


@app.callback()
def _options(
    context: typer.Context,
    log: Annotated[Path | None, typer.Option(help="Write everything that is printed here too.")] = None,
) -> None:
    _enter(FAMILIES.get(context.invoked_subcommand or ""))
    if log is not None and rank() == 0:
        _copy_to(log)


def _enter(family: str | None) -> None:
    """Go on in the virtual environment of a family of stages, in the directory that `make envs` made."""
    python = environments.interpreter(family)
    if python != Path(sys.executable) and Path(sys.prefix).resolve() != python.parents[1].resolve():
        os.execv(python, [str(python), "-m", "mnpo", *sys.argv[1:]])


def _copy_to(log: Path) -> None:
    """Copy output and errors to `log`, by a process in a session of its own: signals to the stage do not end it, and it
    ends when the stage does, with every line written.

    It ends when nobody can write to it any more. DeepSpeed leaves a copy of the error stream open in this process, and
    so would a helper that a library started and forgot; neither may hold up the end of a stage.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tee = subprocess.Popen(["tee", str(log)], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    terminal = os.dup(1), os.dup(2)
    for stream in (1, 2):
        os.dup2(tee.stdin.fileno(), stream)
    pipe = os.stat(tee.stdin.fileno())
    tee.stdin.close()

    def finish() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, original in zip((1, 2), terminal, strict=True):
            os.dup2(original, stream)
        _close_copies(pipe)
        try:
            tee.wait(WAIT_FOR_LOG)
        except subprocess.TimeoutExpired:
            tee.kill()

    atexit.register(finish)


def _close_copies(file: os.stat_result) -> None:
    """Close every descriptor of this process that is open on a file."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), file):
                os.close(int(name))


@cache
def put_together() -> Any:
    """The command line, which takes a moment to make of its commands."""
    return typer.main.get_command(app)


def main(forked: bool = False) -> None:
    """Run the command line; a mistake that a person can mend is one message and an exit code, not a traceback.

    Args:
        forked: whether this process is a fork of one that has libraries loaded (mnpo/warm/).
    """
    with leaving(forked):
        try:
            put_together()()
        except EXPECTED as error:
            complain(f"mnpo: {error}")
            if isinstance(error, Interrupted):
                from mnpo.planning import cluster

                cluster.requeue()
            sys.exit(error.exit_code)
        except FileNotFoundError as error:
            complain(f"mnpo: {error}")
            sys.exit(BadInput.exit_code)
