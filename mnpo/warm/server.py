"""The warm process: it loads libraries, then forks itself for every command that it is handed.

It computes nothing. So no library has begun to use threads or a GPU, and a fork is as good as a new process. A command
ends with whoever handed it over, with the process that started this one, and with this one.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import IO, Any

from mnpo.errors import BadInput
from mnpo.planning import environments
from mnpo.warm.client import COMING, DIRECTORY, NO, PATIENCE, SERVE, YES, surroundings
from mnpo.warm.forks import Forks, dismiss, exactly, settle
from mnpo.warm.held import Holders
from mnpo.warm.shelf import Shelf

ASKED = "MNPO_WARM"  # in the environment and not in the settings, for it changes no result; profiles/demo sets it
MODELS = "models"
THREADS = ("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
           "NUMEXPR_NUM_THREADS")  # fmt: skip
"""Variables that Snakemake sets to the number of a job's threads."""
LIBRARIES = {
    "pandas": ("pandas", "pyarrow.parquet"),
    "scipy": ("scipy.stats", "scipy.optimize"),
    "matplotlib": ("matplotlib.pyplot", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    "tabulate": ("tabulate",),
    "alpaca_eval": ("datasets", "openai", "sklearn.linear_model"),  # of alpaca_eval itself logging does not recover
    "torch": ("torch", "safetensors.torch"),
    "tensorboard": ("torch.utils.tensorboard",),
    "transformers": (
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.gemma2.modeling_gemma2",
        "transformers.models.llama.modeling_llama",
    ),
    "lm_eval": ("datasets", "sklearn.metrics"),
}
"""Package that a job needs -> what is imported for it, in this order: nothing that leaves traces in other libraries."""
CODE = ("mnpo.config.reading", "mnpo.storage.records", "mnpo.storage.resume")  # that import no model's libraries
SHELVED = {"torch": (), "transformers": ("torch",), "deepspeed": ("torch",)}
"""Package that others look for where it is imported, manifests for its version -> which others it imports."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 1 << 30  # bytes


def asked() -> bool:
    """Whether commands are to be forked: MNPO_WARM=1 or MNPO_WARM=models, and one environment for all stages.

    Raises:
        BadInput: MNPO_WARM is something else.
    """
    how = os.environ.get(ASKED) or "0"
    if how not in ("0", "1", MODELS):
        raise BadInput(f"{ASKED}={how}: expected 0, 1 or {MODELS} (docs/environments.md#without-a-start-up)")
    return how != "0" and environments.VARIABLE not in os.environ


def start(threads: Iterable[int], packages: Iterable[str]) -> None:
    """Start a warm process for each number of threads of jobs of this machine, and tell the jobs where they are.

    Args:
        threads: of those jobs.
        packages: that the jobs import.
    """
    os.environ[DIRECTORY] = directory = tempfile.mkdtemp(prefix="mnpo-warm-")
    wanted = {*packages}
    # A training shows itself where it can, and to save it, transformers asks whoever may have cut the weights.
    if "torch" in wanted:
        wanted |= {name for name in ("tensorboard", "deepspeed") if find_spec(name)}
    for number in sorted(set(threads)):
        path = f"{directory}/{number}"
        with socket.socket(socket.AF_UNIX) as coming:
            try:
                coming.bind(path + COMING)
            except OSError:  # the directory's name is too long for sockets: commands run by themselves
                os.rmdir(directory)
                return
            coming.listen(128)
            process = subprocess.Popen(
                ["python", "-m", "mnpo", SERVE, path, str(coming.fileno()), *sorted(wanted)],
                env=os.environ | dict.fromkeys(THREADS, str(number)),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[coming.fileno()],
                start_new_session=True,
            )
            assert process.stdin is not None
            _INPUTS.append(process.stdin)


_INPUTS: list[IO[bytes]] = []  # the standard inputs: a warm process ends when its own does, and that with this process


def serve(path: str, coming: str, *packages: str) -> list[str]:
    """Load what belongs to `packages`, and fork for commands that come to the socket `path`, until standard input ends.

    Args:
        coming: the number of a socket on which commands wait until then (client.COMING).

    Returns:
        In each fork, the words of its command.
    """
    here = surroundings()
    with socket.socket(fileno=int(coming)) as waiting:
        waiting.set_inheritable(False)
        try:
            commands = _load(packages)
            server = _Server(path, here, commands, "torch" in packages and _models_asked())
        finally:
            os.unlink(path + COMING)
    return server.run()


def _load(packages: Iterable[str]) -> set[str]:
    """Load libraries as stages would, and the command line; the commands that may be forked."""
    from mnpo.cli import FAMILIES, put_together
    from mnpo.cli.stages import STAGES, before_libraries

    before_libraries()
    stages = (f"mnpo.stages.{name}" for name in STAGES)
    chosen = (modules for package, modules in LIBRARIES.items() if package in packages)
    for module in (*CODE, *stages, *chain.from_iterable(chosen)):
        import_module(module)
    put_together()
    if "transformers" in packages:
        _know_checkpoints()
    if "deepspeed" in packages and not _sees_gpus():  # it would look for them here
        with suppress(Exception):  # where it cannot be imported, that is for whoever needs it to say
            import_module("deepspeed")
    if not _gpus_left_alone():
        sys.exit("a library has begun to use a GPU, and a fork could not")
    Shelf(SHELVED)
    settle()
    _keep_what_is_freed()
    return {name for name in FAMILIES if name not in STAGES or STAGES[name].offline}


def _know_checkpoints() -> None:
    """Let transformers find out which weights have other names in checkpoints, as it does when it first loads one."""
    with suppress(ImportError, AttributeError):
        import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("gemma2")


def _keep_what_is_freed() -> None:
    """Let forks keep the memory that they free. To give it back and fetch it again, page by page, costs a training of a
    small model up to a tenth of its time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; some take no more than 32 MiB
    if mallopt and any(mallopt(M_MMAP_THRESHOLD, size) for size in (KEPT, 32 << 20)):
        mallopt(M_TRIM_THRESHOLD, KEPT)


def _gpus_left_alone() -> bool:
    """Whether a fork of this process could still use CUDA."""
    return "torch" not in sys.modules or not _a_fork_says(lambda torch: torch.cuda._is_in_bad_fork())


def _models_asked() -> bool:
    """Whether policies are held too: MNPO_WARM=models, where loading begins no thread and no GPU that a fork lacks."""
    one = os.environ.get(THREADS[0]) == "1"
    return os.environ.get(ASKED) == MODELS and one and not _sees_gpus()


def _sees_gpus() -> bool:
    """Whether there is one that torch could use."""
    return _a_fork_says(lambda torch: torch.cuda.is_available())


def _a_fork_says(of: Callable[[Any], bool]) -> bool:
    """What torch says of this process, which is not to begin with a GPU by asking; yes, where it cannot say."""
    if not (pid := os.fork()):
        said = True
        with suppress(Exception):
            said = of(import_module("torch"))
        os._exit(said)
    return os.waitpid(pid, 0)[1] != 0


class _Server(Forks):
    """One socket, its commands at work, and whoever started all this."""

    def __init__(self, path: str, here: dict[str, Any], commands: set[str], hold: bool) -> None:
        super().__init__()
        self._path, self._here, self._commands = Path(path), json.loads(json.dumps(here)), commands
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(128)
        self._holders = Holders(self) if hold else None
        self.watch(0, self._stop)
        self.watch(self._listener.fileno(), self._accept)

    def waits(self) -> bool:
        return self._holders is not None and self._holders.any_left

    def leave(self) -> None:
        with suppress(OSError):
            self._path.parent.rmdir()

    def let_go(self) -> None:
        self._listener.close()
        if self._holders:
            self._holders.let_go()

    def _accept(self) -> list[str] | None:
        """Fork for a command, let a holder of its policy do so, or refuse it."""
        client, _ = self._listener.accept()
        streams: list[int] = []
        try:
            client.settimeout(PATIENCE)
            size, streams, _, _ = socket.recv_fds(client, 8, 3)
            there, environment, words = json.loads(exactly(client, int.from_bytes(size)))
            logged = len(words) > 2 and words[0] == "--log"  # as every command of a rule
            welcome = there == self._here and logged and words[2] in self._commands
            client.sendall(YES if welcome else NO)
        except (OSError, ValueError):
            welcome = False
        if not welcome:
            dismiss(client, streams)
            return None
        if self._holders:
            passed, of_fork = self._holders.serve(client, streams, environment, words)
            if passed:
                return of_fork
        if not self.begin(client, streams, environment):
            return None
        if self._holders:
            self._holders.listen(words)
        return words  # type: ignore[no-any-return]

    def _stop(self) -> None:
        """Whoever started this has ended: no more commands, and those at work are told to stop."""
        self.open = False
        self.unwatch(0)
        self.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self.stop_jobs()
        if self._holders:
            self._holders.stop()
