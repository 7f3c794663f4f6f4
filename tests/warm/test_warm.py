"""A command that a warm process runs is, for whoever waits for it, the command itself."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnpo.errors import BadInput, Interrupted
from mnpo.planning.plan import Plan
from tests.helpers.checkouts import ROOT, until
from tests.helpers.warmed import PATIENCE, TIMES, Warm, filled, gone


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(filled(tmp_path_factory.mktemp("warm")), "pandas") as warm:
        yield warm


def made(directory: Path) -> tuple[bytes, dict[str, Any], str]:
    """Scores, their manifest and the log; without times, which are never the same twice."""
    manifest = json.loads((directory / "scores.parquet.manifest.json").read_text())
    facts = {key: value for key, value in manifest.items() if key not in TIMES}
    log = re.sub(r"in \d+\.\d s", "in S s", (directory / "log").read_text())
    return (directory / "scores.parquet").read_bytes(), facts, log


def test_output_manifest_and_log_are_those_of_a_command_by_itself(warm: Warm) -> None:
    found = []
    for sockets in ("", str(warm.sockets)):
        for oracle in ("brevity", "own"):
            warm.done(*warm.scoring(oracle), MNPO_WARM_SOCKETS=sockets)
            found.append(made(warm.directory))
        assert warm.forked() == bool(sockets)
    assert found[0] == found[2] and found[1] == found[3] and found[0] != found[1]
    assert "scores.parquet in S s" in found[2][2]


def test_a_bad_input_is_one_line_and_its_exit_code(warm: Warm) -> None:
    alone = warm.run(*warm.scoring(samples="none.parquet"), MNPO_WARM_SOCKETS="")
    assert warm.run(*warm.scoring(samples="none.parquet")) == alone
    assert alone[0] == BadInput.exit_code and len(alone[1].splitlines()) == 1 and "none.parquet" in alone[1]


def test_wrong_usage_names_the_command_that_was_called(warm: Warm) -> None:
    alone = warm.run("score", "--nonsense", MNPO_WARM_SOCKETS="")
    assert warm.run("score", "--nonsense") == alone
    assert alone[0] == 2 and "python -m mnpo score" in alone[1]


def test_a_signal_reaches_the_command_which_goes_on_when_it_is_called_again(warm: Warm) -> None:
    process, _ = warm.held()
    process.send_signal(signal.SIGTERM)
    until(lambda: "SIGTERM: stops" in (warm.directory / "log").read_text(), "its answer")
    warm.let_go()
    assert process.wait(PATIENCE) == Interrupted.exit_code
    assert "stopped by SIGTERM after 1 batches; to be continued" in process.stdout.read()
    assert "1 batches were finished before" in warm.done(*warm.scoring())


def test_whoever_waits_for_a_command_that_is_killed_is_killed_alike(warm: Warm) -> None:
    process, _ = warm.held()
    process.send_signal(signal.SIGUSR2)  # which no stage waits for
    assert process.wait(PATIENCE) == -signal.SIGUSR2
    process, worker = warm.held()
    worker.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    warm.let_go()


def test_a_command_can_be_halted_and_goes_on(warm: Warm) -> None:
    process, worker = warm.held()
    process.send_signal(signal.SIGTSTP)
    until(lambda: worker.status() == psutil.STATUS_STOPPED, "the halt")
    process.send_signal(signal.SIGCONT)
    warm.let_go()
    assert process.wait(PATIENCE) == 0


def test_a_command_ends_with_whoever_asked_for_it(warm: Warm) -> None:
    process, worker = warm.held()
    process.kill()
    gone(worker)
    warm.let_go()
    process.wait()
    until(lambda: not warm.server.children(), "the zombie's end")
    warm.done(*warm.scoring())


@pytest.mark.parametrize("whom", ["starter", "server"])
def test_all_end_with_the_process_that_started_them(tmp_path: Path, whom: str) -> None:
    """Of a starter that is killed, the commands may end as they would for a SIGTERM; of the warm process, at once."""
    with Warm(filled(tmp_path), "pandas") as warm:
        process, worker = warm.held()
        (warm.server if whom == "server" else warm.starter).kill()
        if whom == "starter":
            until(lambda: "SIGTERM: stops" in (warm.directory / "log").read_text(), "the signal")
            assert warm.server.is_running()
            warm.let_go()
        assert process.wait(PATIENCE) == (Interrupted.exit_code if whom == "starter" else -signal.SIGKILL)
        gone(worker)
        gone(warm.server)
        assert warm.sockets.exists() == (whom == "server")


def test_what_is_not_as_the_warm_process_has_it_runs_by_itself(warm: Warm, tmp_path: Path) -> None:
    """And nothing of one command's environment is another's."""
    warm.done(*warm.scoring(), SECRET="of one", TMPDIR=str(tmp_path))
    assert not warm.forked() and warm.probed()["environment"]["SECRET"] == "of one"
    warm.done(*warm.scoring(), flags=("-O",))
    assert not warm.forked()
    warm.done(*warm.scoring(), OMP_NUM_THREADS="2")
    assert not warm.forked()
    own = {"TMPDIR": str(tmp_path), "MNPO_WARM_SOCKETS": str(warm.sockets)}
    warm.done(*warm.scoring(), TMPDIR=str(tmp_path))
    assert warm.forked() and warm.probed()["tmp"] == str(tmp_path)
    set_by_stages = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS")
    # tests that ran in this process may have set them, too
    sides = warm.probed()["environment"], warm.environment | own
    there, expected = ({key: value for key, value in side.items() if key not in set_by_stages} for side in sides)
    assert there == expected
    elsewhere = filled(tmp_path)
    (elsewhere / "probe.json").unlink(missing_ok=True)
    warm.done(*warm.scoring(), cwd=elsewhere)
    assert json.loads((elsewhere / "probe.json").read_text())["parent"] != warm.server.pid


def test_without_anybody_who_answers_commands_run_by_themselves(warm: Warm, tmp_path: Path) -> None:
    import socket

    (tmp_path / "file").mkdir()
    (tmp_path / "file/1").touch()
    (tmp_path / "left").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left/1"))
    for sockets in ("nowhere", "file", "left", "x" * 200):
        warm.done(*warm.scoring(), MNPO_WARM_SOCKETS=str(tmp_path / sockets))
        assert not warm.forked()


def threads(process: psutil.Process) -> set[str]:
    """Their names; the one of Arrow's allocator, jemalloc, knows of forks."""
    names = [file.read_text().strip() for file in Path(f"/proc/{process.pid}/task").glob("*/comm")]
    assert names.count("python") == 1
    return set(names) - {"jemalloc_bg_thd"}


def test_the_warm_process_has_one_thread_and_serves_no_command_that_needs_the_internet(warm: Warm) -> None:
    assert threads(warm.server) == {"python"}
    listed = "from mnpo.warm.server import _load; print(*_load(()))"
    served = subprocess.run([sys.executable, "-c", listed], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"train", "costs", "judge"} <= set(served.split()) and not {"download", "pin"} & set(served.split())


SPARED = """\
import resource, sys, tempfile, weakref
from mnpo.cli import put_together
from mnpo.cli.stages import STAGES
from mnpo.warm import server

class Kept: pass
kept = Kept()
finalizer = weakref.finalize(kept, print, "ended")
server._load(())
assert {f"mnpo.stages.{name}" for name in STAGES} <= sys.modules.keys()
assert not {"torch", "transformers", "scipy", "lm_eval", "alpaca_eval", "vllm", "evalscope"} & sys.modules.keys()
assert put_together.cache_info().currsize == 1
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size, before = 64 << 20, faults()
for _ in range(10):
    bytes(size)
print(round((faults() - before) / (size / resource.getpagesize())), finalizer.alive)
"""


def test_a_fork_finds_all_stages_loaded_keeps_what_it_frees_and_ends_nothing_of_others() -> None:
    done = subprocess.run([sys.executable, "-c", SPARED], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1 True\n", "")  # so much memory was fetched once, and not ten times


TRACES = """\
import logging, os, signal, sys
from mnpo.cli.stages import before_libraries
from mnpo.warm import server

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    root = logging.root
    return sys.path[:], handlers, sys.excepthook, sys.getrecursionlimit(), root.level, root.handlers[:], {*os.environ}

before_libraries()
before = state()
server._load([*server.LIBRARIES, "deepspeed"])
assert not {"torch", "transformers", "deepspeed"} & sys.modules.keys()
*after, environment = state()
assert tuple(after) == before[:-1], after
print(*environment - before[-1])
"""


@pytest.mark.slow
def test_libraries_leave_no_traces_in_a_job_that_does_not_import_them() -> None:
    """But variables of the environment, which each job gets from whoever called it."""
    done = subprocess.run([sys.executable, "-c", TRACES], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.splitlines()[-1].split()) <= {
        "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_NVML_BASED_CUDA_CHECK",
    }  # fmt: skip


LOADED = """\
import sys
from mnpo.warm import server

server._load(["torch", "transformers", "deepspeed"])
import torch, transformers
from transformers import conversion_mapping
assert conversion_mapping._checkpoint_conversion_mapping_cache
assert "deepspeed" not in sys.modules
print("loaded")
import deepspeed
print(deepspeed.DeepSpeedEngine.__name__, deepspeed.comm is sys.modules["deepspeed.comm"])
"""


@pytest.mark.slow
def test_what_a_training_imports_to_save_is_loaded_and_aside() -> None:
    """DeepSpeed says what it finds when it is loaded, and no more when it is taken off the shelf."""
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["loaded", "DeepSpeedEngine True"]


@pytest.mark.slow
def test_a_training_is_the_same_bit_for_bit(chain: dict[str, Path], tmp_path: Path, planned: Any) -> None:
    plan: Plan = planned(training={"epochs": 1, "batch_size": 4})
    files = [f"--start={chain['policy']}", f"--pairs={chain['pairs']}", f"--logps={chain['logps']}", "--output=policy"]
    command = ["train", "--settings", plan.settings("train", policy="inpo.1"), *files]
    kept = []
    with Warm(filled(tmp_path), "pandas", "torch", "transformers", "deepspeed") as warm:
        assert threads(warm.server) == {"python"}
        for sockets in ("", str(warm.sockets)):
            started = time.monotonic()
            warm.done(*command, MNPO_WARM_SOCKETS=sockets)
            took = time.monotonic() - started
            content = {file.name: file.read_bytes() for file in (tmp_path / "policy").iterdir()}
            facts = json.loads(content.pop("manifest.json"))
            assert facts["seconds"] <= took
            kept.append((content, {key: value for key, value in facts.items() if key not in TIMES}))
    assert kept[0] == kept[1] and "transformers" in kept[0][1]["versions"]
