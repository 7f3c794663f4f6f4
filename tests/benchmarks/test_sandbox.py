"""Hostile programs are contained, fail, and leave nothing behind; right ones pass."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnpo.benchmarks.sandbox import UNUSED_USER, Limits, run, score_humaneval
from mnpo.errors import BadInput

PROBLEMS = Path(__file__).resolve().parents[3] / "shared" / "benchmarks" / "human_eval" / "HumanEval.jsonl.gz"
QUICK = Limits(seconds=2)
PROBLEM = {
    "prompt": "def double(x):\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "double",
}


def left_behind() -> list[str]:
    """Processes of the users that sandboxes invent, and those that carry this test's mark; not those of sandboxes that
    the tests beside this one hold open."""
    us = psutil.Process()
    beside = {process.pid for process in (us.parent() or us).children()} - {us.pid}
    found = []
    for process in psutil.process_iter(["uids", "cmdline"]):
        uids, command = process.info["uids"], process.info["cmdline"] or []
        if (uids and uids.real >= UNUSED_USER) or MARK in command:
            with contextlib.suppress(psutil.NoSuchProcess):
                if beside.isdisjoint(parent.pid for parent in process.parents()):
                    found.append(" ".join(command))
    return found


MARK = uuid.uuid4().hex


# ---------------------------------------------------------------------------------------------------- ordinary programs


def test_a_program_that_runs_to_its_end_passes() -> None:
    outcome = run("import math, json, collections, hashlib, re\nassert math.gcd(12, 18) == 6")
    assert outcome.passed and outcome.reason == "passed"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("exit()", "SystemExit"),
        ("import os; os._exit(0)", "ended before its tests did"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended before its tests did"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("\ud800", "SyntaxError"),
    ],
)
def test_whatever_else_happens_is_a_failure_with_its_reason(program: str, reason: str) -> None:
    outcome = run(program)
    assert not outcome.passed and outcome.reason.startswith(reason)


def test_it_works_in_an_empty_directory_with_nothing_in_the_environment() -> None:
    program = "import os; raise Exception([os.getcwd(), os.listdir('.'), sorted(os.environ), os.listdir('/tmp')])"
    assert run(program).reason == "Exception: ['/work', [], ['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED'], []]"


def test_it_may_write_there() -> None:
    assert run("open('x', 'w').write('1'); assert open('x').read() == '1'").passed


# ----------------------------------------------------------------------------------------------------- hostile programs


def test_an_endless_loop_that_swallows_everything_is_ended() -> None:
    program = (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass\n"
    )
    outcome = run(program, QUICK)
    assert (outcome.passed, outcome.reason) == (False, "not done after 2 s")
    assert not left_behind()


def test_a_fork_bomb_stays_small_and_is_ended() -> None:
    outcome = run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n", QUICK)
    assert not outcome.passed
    assert not left_behind()


def test_no_more_processes_than_allowed() -> None:
    program = (
        "import os, time\nn = 0\ntry:\n    while n < 100:\n        if os.fork() == 0:\n            time.sleep(60)\n"
        "        n += 1\nexcept OSError:\n    raise Exception(n)\n"
    )
    assert run(program, Limits(processes=5)).reason == "Exception: 4"  # and itself


def test_a_daemon_does_not_outlive_its_program() -> None:
    program = (
        "import os, sys\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(300)', '{MARK}'])\n"
        "    os._exit(0)\nimport time; time.sleep(0.5)\nos._exit(0)\n"
    )
    outcome = run(program)
    assert (outcome.passed, outcome.reason) == (False, "ended before its tests did")
    assert not left_behind()


def test_secrets_of_environment_home_and_other_processes_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"sk-{uuid.uuid4().hex}"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "key").write_text(secret)
    monkeypatch.setenv("HOME", str(home))
    program = f"""
import os, glob
found = str(dict(os.environ))
for path in [{str(home / "key")!r}, "/proc/self/environ", "/proc/1/environ", "/etc/passwd", "/etc/hostname",
             *glob.glob("/proc/[0-9]*/environ"), *glob.glob("/root/.*"), *glob.glob("/home/*/.*")]:
    try:
        found += open(path, errors="replace").read()
    except OSError:
        pass
raise Exception(len(found), {secret!r} in found, os.path.exists({str(home)!r}), os.getuid() != 0)
"""
    empty = {"PATH": "/usr/bin:/bin", "HOME": "/work", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    assert run(program).reason == f"Exception: ({len(str(empty))}, False, False, True)"


def test_there_is_no_network_not_even_to_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        outcome = run(f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)")
        assert not outcome.passed and outcome.reason.startswith("OSError: [Errno 101] Network is unreachable")
        with pytest.raises(TimeoutError):
            server.accept()
        socket.create_connection(("127.0.0.1", port)).close()  # the listener did listen
        server.accept()[0].close()


def test_files_outside_can_be_neither_deleted_nor_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("alive")
    victim.chmod(0o666)
    program = (
        f"import os, shutil\nshutil.rmtree({str(tmp_path)!r}, ignore_errors=True)\ntry:\n    os.remove(os.__file__)\n"
        f"except OSError as error:\n    raise Exception(error.errno, os.path.exists({str(victim)!r}))\n"
    )
    assert run(program).reason in ("Exception: (30, False)", "Exception: (13, False)")  # read only, or not permitted
    assert victim.read_text() == "alive" and Path(os.__file__).is_file()


def test_huge_memory_is_refused() -> None:
    assert run("x = bytearray(4 << 30)").reason == "MemoryError"


def test_a_huge_file_is_refused() -> None:
    assert run("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))").reason.startswith("OSError: [Errno 27]")
    many = "for i in range(64):\n    open(str(i), 'wb').write(bytes(1 << 20))"
    assert run(many).reason.startswith("OSError: [Errno 28]")  # many files, and the disk is full


def test_huge_output_goes_nowhere() -> None:
    program = (
        "import sys\nfor _ in range(100):\n    sys.stdout.write('x' * (1 << 20)); sys.stderr.write('y' * (1 << 20))"
    )
    assert run(program).passed
    endless = run("import os\nwhile True: os.write(3, b'passed' * 1000)", QUICK)
    assert (endless.passed, endless.reason) == (False, "a report that is not the runner's")
    assert not left_behind()


@pytest.mark.parametrize(
    "program",
    [
        "print('passed'); import os; os._exit(0)",
        "import os; os.write(3, b'passed'); os._exit(0)",
        "import os; os.write(3, b'0' * 32 + b'passed'); os._exit(0)",
        "import os; os.write(3, os.read(0, 32) + b'passed'); os._exit(0)",  # the runner has read the token already
    ],
)
def test_a_fake_sign_of_success_is_none(program: str) -> None:
    assert not run(program).passed


def test_the_way_out_of_a_root_directory_is_shut() -> None:
    program = (
        "import ctypes, os\nc = ctypes.CDLL(None)\nassert c.unshare(0x10000000) == -1\n"
        "assert c.mount(b'none', b'/tmp', b'tmpfs', 0, None) == -1\nassert c.setuid(0) == -1\n"
        "try: os.chroot('/tmp')\nexcept PermissionError: pass\nelse: raise Exception('chroot')\n"
    )
    outcome = run(program)
    assert outcome.passed, outcome.reason


def in_a_user_namespace(shell: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run `program` from a process that is root there and an ordinary user outside."""
    if shutil.which("unshare") is None:
        pytest.skip("util-linux' unshare is not installed")
    script = f"from mnpo.benchmarks.sandbox import run; print(run({program!r}))"
    command = ["unshare", "-Ur", "sh", "-c", f'{shell} exec "$0" -c "$1"', sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_who_may_not_become_another_user_gets_a_sandbox_too() -> None:
    result = in_a_user_namespace("", "import os; raise Exception(os.getuid(), os.path.exists('/root/.bashrc'))")
    assert "reason='Exception: (65534, False)'" in result.stdout, result.stderr


def test_without_namespaces_nothing_is_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    no_more = "echo 0 > /proc/sys/user/max_user_namespaces &&"
    result = in_a_user_namespace(no_more, f"open({str(target)!r}, 'w')")
    assert result.returncode == 1 and "BadInput: model-written code cannot be isolated" in result.stderr
    assert not target.exists()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BadInput, match="Linux namespaces only"):
        run("x = 1")


# -------------------------------------------------------------------------------------------------------------- scoring


def test_completions_are_scored_by_the_problems_tests() -> None:
    completions = ["    return 2 * x\n", "    return x + 2\n", "", "    return x * 2\n\nimport os\nos._exit(0)\n"]
    outcomes = score_humaneval([PROBLEM] * 4, completions)
    assert [o.passed for o in outcomes] == [True, False, False, False]


def test_a_sandbox_in_which_nothing_runs_is_no_score() -> None:
    with pytest.raises(BadInput, match=r"does not run an empty program \(ended before its tests did\)"):
        score_humaneval([PROBLEM], ["    return 2 * x\n"], Limits(memory=1 << 20))


def test_a_completion_that_brings_its_own_tests_gets_the_problems_all_the_same() -> None:
    own = "    return 0\n\ndef check(candidate):\n    pass\n"
    assert [o.passed for o in score_humaneval([PROBLEM], [own])] == [False]


@pytest.mark.slow
@pytest.mark.skipif(not PROBLEMS.is_file(), reason=f"{PROBLEMS} is not here")
def test_canonical_solutions_score_one_and_empty_completions_zero() -> None:
    with gzip.open(PROBLEMS, "rt", encoding="utf-8") as lines:
        problems: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert len(problems) == 164
    right = score_humaneval(problems, [p["canonical_solution"] for p in problems])
    assert [p["task_id"] for p, o in zip(problems, right, strict=True) if not o.passed] == []
    assert sum(o.passed for o in score_humaneval(problems, [""] * 164)) == 0
    assert not left_behind()
