"""Runs programs that a model wrote, where they can do no harm, and scores HumanEval with them.

A program gets a Linux mount, network, process and IPC namespace of its own: a root directory with the Python
installation (read only) and an empty working directory, no network, no /proc, no environment, an unprivileged user,
limits on time, memory, processes and file sizes. Nothing of it outlives the call. Where the system does not permit
namespaces nothing is run at all: there is no mode without them.

What no such box prevents: a program that searches the interpreter for the token of `_RUNNER`, or whose results claim
to equal everything, passes tests that it should not. HumanEval shares that with every harness that runs the tests in
the program's own process.

This file is also the jailer, run as a script by its path: it may import nothing but the standard library at the top.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

REPORT = 4096  # bytes that a program's report may have
SYSTEM = ("/usr", "/bin", "/lib", "/lib64")  # what Python needs of the system, beside its own directory
UNUSED_USER = 2_000_000_000  # plus a process id: a user that owns nothing, another one for every program


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds (wall clock; as many of CPU time), bytes of memory, processes, bytes of files."""

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 8
    file_size: int = 1 << 20
    disk: int = 8 << 20


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end, else why not; and the seconds that it took."""

    passed: bool
    reason: str
    seconds: float


def run(program: str, limits: Limits | None = None) -> Outcome:
    """Run `program` (Python) in a sandbox. It passes when its last statement has been executed without an exception.

    What it prints goes nowhere. Ending early, with whatever exit code, is a failure.

    Raises:
        BadInput: this system permits no sandbox.
    """
    from mnpo.errors import BadInput

    limits = limits or Limits()
    if not sys.platform.startswith("linux"):
        raise BadInput(f"model-written code is run in Linux namespaces only, and this is {sys.platform}")
    with tempfile.TemporaryDirectory(prefix="sandbox-") as root:
        order = {"root": root, "program": program, "limits": asdict(limits), "prefix": sys.base_prefix}
        jailer = subprocess.run(
            [os.path.realpath(sys.executable), "-I", "-S", __file__],
            input=json.dumps(order).encode(),
            capture_output=True,
            env={},
            cwd="/",
            start_new_session=True,
            timeout=limits.seconds + 60,
        )
    if jailer.returncode:
        reason = jailer.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {jailer.returncode}"]
        raise BadInput(
            f"model-written code cannot be isolated on this machine ({reason[0]}), so it is not run; "
            "run this stage as root or where unprivileged user namespaces are enabled "
            "(sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces > 0), or leave humaneval out"
        )
    return Outcome(**json.loads(jailer.stdout))


def check_sandbox(limits: Limits | None = None) -> None:
    """Make sure that a sandbox runs what is right: where Python cannot even start, everything would count as wrong.

    Raises:
        BadInput: this system permits no sandbox, or one in which not even an empty program runs.
    """
    from mnpo.errors import BadInput

    if not (empty := run("", limits)).passed:
        raise BadInput(
            f"the sandbox for model-written code does not run an empty program ({empty.reason}); Python there sees "
            f"only {', '.join(SYSTEM)} and {sys.base_prefix}, and has {limits or Limits()}"
        )


def humaneval_program(problem: Mapping[str, Any], completion: str) -> str:
    """A completion after its problem's prompt, and the problem's tests."""
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def score_humaneval(
    problems: Sequence[Mapping[str, Any]], completions: Sequence[str], limits: Limits | None = None, workers: int = 2
) -> list[Outcome]:
    """Whether each completion, after its problem's prompt, passes the problem's tests.

    Args:
        problems: rows of HumanEval: prompt, test, entry_point.
        completions: what follows each prompt.
        limits: of each program.
        workers: programs run at a time.

    Raises:
        BadInput: this system permits no sandbox, or one in which not even an empty program runs.
    """
    from concurrent.futures import ThreadPoolExecutor

    check_sandbox(limits)
    programs = [humaneval_program(*of) for of in zip(problems, completions, strict=True)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda program: run(program, limits), programs))


# ----------------------------------------------------------------------------------------------------------- the jailer
# Four processes: this one waits and watches the clock; `init` is process 1 of the new process namespace, so that all
# are killed with it; the program runs below it. The token tells a report by the runner from one by the program.

_RUNNER = """
import os
def main(token):
    def report(text):
        os.write(3, token + text.encode("utf-8", "replace")[:400])
        os._exit(0)
    try:
        with open("/program.py", encoding="utf-8") as file:
            exec(compile(file.read(), "program.py", "exec"), {"__name__": "program"})
    except BaseException as error:
        report(f"{type(error).__name__}: {error}".rstrip(": "))
    report("passed")
main(os.read(0, 32))
"""

_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE, _RELATIME = 1, 2, 4, 32, 4096, 16384, 1 << 18, 1 << 21
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38


def _jailer() -> None:
    """Build the sandbox, run the program in it, print the outcome as JSON. Exit code 1: it cannot be built."""
    order = json.load(sys.stdin)
    limits = Limits(**order["limits"])
    parent = os.getppid()
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the caller has gone")
    user = _isolate()
    _furnish(Path(order["root"]), order["prefix"], order["program"], user, limits)
    token = os.urandom(16).hex().encode()
    reports, report = os.pipe()
    tokens, give = os.pipe()
    os.write(give, token)
    started = time.monotonic()
    init = os.fork()
    if init == 0:
        _init(order["root"], tokens, report, user, limits)
    os.close(report)
    message, late = _listen(reports, started + limits.seconds)
    seconds = time.monotonic() - started
    with contextlib.suppress(ProcessLookupError):
        os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)
    print(json.dumps(asdict(Outcome(*_verdict(message, token, late, limits), round(seconds, 3)))))


def _isolate() -> int:
    """Move this process into namespaces of its own; the user that the program shall run as."""
    spaces = _NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID | _NEW_NET
    real = os.getuid()
    every_user = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    if real == 0 and every_user:  # root of a container may own one user only, and is treated as that user
        _call("unshare", spaces)
        user = UNUSED_USER + os.getpid()
    else:
        group = os.getgid()
        _call("unshare", spaces | _NEW_USER)
        user = 65534
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {real} 1")
        Path("/proc/self/gid_map").write_text(f"{user} {group} 1")
    _call("mount", b"none", b"/", None, _REC | _PRIVATE, None)
    return user


def _furnish(root: Path, prefix: str, program: str, user: int, limits: Limits) -> None:
    """Mount a small file system at `root`: Python, the program, two devices, and an empty directory to work in."""
    options = f"size={limits.disk},mode=755".encode()
    _call("mount", b"tmpfs", bytes(root), b"tmpfs", _NOSUID | _NODEV, options)
    for source in (*SYSTEM, prefix):
        here = root / source.lstrip("/")
        if Path(source).is_symlink():
            here.symlink_to(os.readlink(source))
        elif Path(source).is_dir() and not here.exists():
            here.mkdir(parents=True)
            _bind(source, here)
    (root / "dev").mkdir()
    for device in ("/dev/null", "/dev/urandom"):
        (root / device.lstrip("/")).touch()
        _bind(device, root / device.lstrip("/"), writable=True)
    (root / "program.py").write_text(program, encoding="utf-8", errors="replace")
    for name in ("work", "tmp"):
        (root / name).mkdir()
        os.chown(root / name, user, -1)


def _bind(source: str, target: Path, writable: bool = False) -> None:
    """Show `source` at `target`. A remount must repeat the flags of the mount that it is in, or it is refused."""
    _call("mount", source.encode(), bytes(target), None, _BIND, None)
    if writable:
        return
    flags = os.statvfs(target).f_flag
    kept = flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME)
    relative = _RELATIME if flags & os.ST_RELATIME else 0
    _call("mount", None, bytes(target), None, _REMOUNT | _BIND | _RDONLY | _NOSUID | kept | relative, None)


def _init(root: str, tokens: int, report: int, user: int, limits: Limits) -> NoReturn:
    """Process 1: start the program and end with it, which ends all that it has started."""
    try:
        _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        worker = os.fork()
        if worker == 0:
            _program(root, tokens, report, user, limits)
        os.close(report)
        while os.wait()[0] != worker:
            pass
    finally:
        os._exit(0)


def _program(root: str, tokens: int, report: int, user: int, limits: Limits) -> NoReturn:
    """Become the program: unprivileged, limited, in its root directory, with nothing open but token and report."""
    try:
        os.chroot(root)
        os.chdir("/work")
        nowhere = os.open("/dev/null", os.O_RDWR)
        for source, target in ((tokens, 10), (report, 11), (nowhere, 12)):  # out of each other's way first
            os.dup2(source, target)
        for source, target in ((10, 0), (12, 1), (12, 2), (11, 3)):
            os.dup2(source, target)
        os.closerange(4, 1 << 16)
        cpu = math.ceil(limits.seconds)
        for which, value in (
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_AS, limits.memory),
            (resource.RLIMIT_NPROC, limits.processes),
            (resource.RLIMIT_FSIZE, limits.file_size),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(which, (value, value))
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/work", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
        os.execve(sys.executable, [sys.executable, "-I", "-c", _RUNNER], environment)
    finally:
        os._exit(1)


def _listen(reports: int, deadline: float) -> tuple[bytes, bool]:
    """What is reported until the last writer is gone, and whether the deadline came first."""
    message = b""
    while len(message) <= REPORT:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reports], [], [], left)[0]:
            return message, True
        chunk = os.read(reports, REPORT)
        if not chunk:
            break
        message += chunk
    return message, False


def _verdict(message: bytes, token: bytes, late: bool, limits: Limits) -> tuple[bool, str]:
    if late:
        return False, f"not done after {limits.seconds:g} s"
    if not message:
        return False, "ended before its tests did"
    if not message.startswith(token):
        return False, "a report that is not the runner's"
    text = message.removeprefix(token).decode("utf-8", "replace")
    return text == "passed", text


def _call(name: str, *arguments: Any) -> None:
    """A function of the C library, its failure as OSError."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


if __name__ == "__main__":
    _jailer()
