"""Snapshots that appear whole and verified, whatever happens on the way; counted in bytes that a real server sent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.sources import Dataset, Model
from mnpo.errors import BadInput, DiskFull
from mnpo.stages import download as stage
from mnpo.stages.download import download
from mnpo.storage import hub, servers
from mnpo.storage.artifacts import digest
from tests.helpers.loopback_hub import Fault, LoopbackHub

TOKEN = "hf_distinctive0SECRET0token"  # noqa: S105
MB = 1_000_000
WEIGHTS = random.Random(0).randbytes(3 * MB)
FILES = {"config.json": b'{"a": 1}', "data/empty": b"", "m.safetensors": WEIGHTS}
MODEL = Model(hub="o/m")


@pytest.fixture
def server(server: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> LoopbackHub:
    """With one model, and no waiting between tries."""
    monkeypatch.setattr(stage, "WAITS", (0.0, 0.0, 0.0))
    server.add("models/o/m", FILES, large=["m.safetensors"])
    return server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / "o--m" / "main"


def contents(directory: Path) -> dict[str, bytes]:
    files = [p for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json"]
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def alone(target: Path) -> bool:
    """Whether nothing is left beside a snapshot."""
    return [p.name for p in target.parent.iterdir()] == [target.name]


def locked(model: Model = MODEL) -> hub.Locked:
    return servers.resolve("models", model)


# ---------------------------------------------------------------------------------------------------------- all is well


def test_a_locked_model(
    server: LoopbackHub, target: Path, manifest_of: Callable[[Path], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    lock = locked()
    server.log.clear()
    download(MODEL, "models", lock, target)
    assert contents(target) == FILES
    assert alone(target)
    manifest = manifest_of(target)
    assert manifest["settings"] == {"kind": "models", "repository": "o/m", "revision": "main", "files": None}
    assert (manifest["commit"], manifest["locked"]) == (server.repositories["models/o/m"].branches["main"], True)
    assert (manifest["files"], manifest["bytes"]) == (3, 3 * MB + 8)
    assert manifest["digest"] == digest(target)
    assert not [s for s in server.log if s.path.startswith("/api/")]  # the lock says it all
    assert server.sent() == 3 * MB + 8
    assert "3 of 3 files, 3 MB to fetch" in capsys.readouterr().err


def test_without_a_lock_the_commit_is_found_out_and_written_down(
    server: LoopbackHub, target: Path, manifest_of: Callable[[Path], dict[str, Any]]
) -> None:
    download(Model(hub="o/m", files=["*.json"]), "models", None, target)
    assert contents(target) == {"config.json": FILES["config.json"]}
    manifest = manifest_of(target)
    assert (manifest["commit"], manifest["locked"]) == (server.repositories["models/o/m"].branches["main"], False)


def test_a_pinned_commit_is_what_is_fetched(server: LoopbackHub, target: Path) -> None:
    lock = locked()
    server.add("models/o/m", {"config.json": b"newer"})
    download(MODEL, "models", lock, target)
    assert contents(target) == FILES


def test_a_data_set_of_the_hub_and_one_of_github(
    server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = {TOKEN}
    server.add("datasets/o/d", {"data/test 1.jsonl": b"rows"})
    server.add("github/o/code", {"data/q#1.jsonl": b"questions", "src/x.py": b""})
    for kind, source in (("datasets", Dataset(hub="o/d")), ("github", Dataset(github="o/code", files=["data/*"]))):
        download(source, kind, servers.resolve(kind, source), tmp_path / kind)  # type: ignore[arg-type]
    assert contents(tmp_path / "datasets") == {"data/test 1.jsonl": b"rows"}
    assert contents(tmp_path / "github") == {"data/q#1.jsonl": b"questions"}
    assert {s.token for s in server.log if "github" in s.path} == {None}


def test_the_stage_reads_the_lock(server: LoopbackHub, target: Path, tmp_path: Path) -> None:
    source = Dataset(hub="o/d", files=["a"])
    commit = server.add("datasets/o/d", {"a": b"old", "b": b"old"})
    lock = hub.Lock().with_entry("datasets", source, servers.resolve("datasets", source))
    hub.write_lock(lock, tmp_path / "lock.yaml")
    server.add("datasets/o/d", {"a": b"new"})
    given = stage.Settings.model_validate({"kind": "datasets", "source": {"hub": "o/d", "files": ["a"]}})
    stage.run(given, target, tmp_path / "lock.yaml")
    assert contents(target) == {"a": b"old"}
    assert json.loads((target / "manifest.json").read_text())["commit"] == commit
    stage.run(given, target, tmp_path / "none.yaml")
    assert contents(target) == {"a": b"new"}


def test_progress_counts_what_is_to_be_fetched(
    server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("models/o/m", {**FILES, **{f"small/{i}": b"%d" % i for i in range(100)}})
    download(MODEL, "models", locked(), target)
    assert len(capsys.readouterr().err.splitlines()) == 2  # what there is to do, and that it is done
    monkeypatch.setattr("mnpo.progress.SECONDS_BETWEEN_LINES", 0.0)
    (target / "m.safetensors").unlink()
    download(MODEL, "models", locked(), target)
    said = capsys.readouterr().err.splitlines()
    assert "1 of 103 files, 3 MB to fetch, 198 bytes are here" in said[0]
    done = [line.split(": ")[1].split(",")[0] for line in said[1:-1]]
    assert set(done) == {"1/3 MB", "2/3 MB"}


def test_large_files_come_from_elsewhere_without_the_token(
    server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = {TOKEN}
    server.repositories["models/o/m"].gate = "files"
    download(MODEL, "models", locked(), target)
    elsewhere = [s for s in server.log if s.path.startswith("/" + hashlib.sha256(WEIGHTS).hexdigest())]
    assert [(s.token, s.sent) for s in elsewhere] == [(None, 3 * MB)]
    assert {s.token for s in server.log if s not in elsewhere} == {TOKEN}


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", ["models", "github"])
def test_a_broken_connection_is_taken_up_where_it_broke(
    server: LoopbackHub, tmp_path: Path, kind: Any, how: Any
) -> None:
    server.add("github/o/m", FILES)
    source = Dataset(github="o/m") if kind == "github" else MODEL
    server.fail("m.safetensors", Fault(how, after=2 * MB), *[Fault(how, after=MB // 10)] * 4)  # more than WAITS
    download(source, kind, servers.resolve(kind, source), tmp_path / "m")
    assert contents(tmp_path / "m") == FILES
    parts = [s for s in server.files("m.safetensors") if s.sent]
    starts = [2_000_000, 2_100_000, 2_200_000, 2_300_000, 2_400_000]
    assert [s.range for s in parts] == [None, *(f"bytes={start}-" for start in starts)]
    assert server.sent("m.safetensors") == 3 * MB


def test_a_server_that_does_no_parts_starts_again(server: LoopbackHub, target: Path) -> None:
    server.fail("m.safetensors", Fault("close", after=2 * MB), Fault("no-ranges"))
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES
    assert server.sent("m.safetensors") == 5 * MB


def test_passing_refusals_are_waited_out(server: LoopbackHub, target: Path) -> None:
    server.fail("m.safetensors", Fault("status", 429), Fault("status", 503))
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES


@pytest.mark.parametrize("fault", [Fault("corrupt"), Fault("short", after=MB)])
def test_a_wrong_file_is_fetched_once_more(server: LoopbackHub, target: Path, fault: Fault) -> None:
    server.fail("m.safetensors", fault)
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES


def test_a_file_that_stays_wrong_is_named_with_what_was_expected(server: LoopbackHub, target: Path) -> None:
    lock = locked()
    server.fail("m.safetensors", Fault("corrupt"), Fault("corrupt"))
    right = hashlib.sha256(WEIGHTS).hexdigest()
    wrong = hashlib.sha256(bytes([WEIGHTS[0] ^ 1]) + WEIGHTS[1:]).hexdigest()
    with pytest.raises(BadInput) as error:
        download(MODEL, "models", lock, target)
    message = str(error.value)
    assert message.startswith(f"models/o/m@{lock.commit[:12]}: m.safetensors: expected 3000000 bytes, sha256 {right}, ")
    assert f"got 3000000 bytes, sha256 {wrong}, twice" in message
    assert not target.exists()
    server.log.clear()
    download(MODEL, "models", lock, target)  # the others need not come again, and the wrong one must
    assert contents(target) == FILES
    assert server.sent() == server.sent("m.safetensors") == 3 * MB


def test_a_small_file_is_held_against_its_git_hash(server: LoopbackHub, target: Path) -> None:
    server.fail("config.json", Fault("corrupt"), Fault("short", after=3))
    with pytest.raises(BadInput, match="config.json: expected 8 bytes, blob [0-9a-f]{40}, got 3 bytes, blob"):
        download(MODEL, "models", locked(), target)


def test_a_connection_that_breaks_and_breaks_is_given_up_and_what_came_stays(server: LoopbackHub, target: Path) -> None:
    server.fail("m.safetensors", Fault("close", after=2 * MB), *[Fault("close")] * 4)
    with pytest.raises(BadInput, match=r"o/m: no answer from 127.0.0.1:\d+ \(RemoteProtocolError\).* set mirror:"):
        download(MODEL, "models", locked(), target)
    assert not target.exists()
    server.log.clear()
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES
    assert alone(target)
    assert server.sent() == MB


def test_a_full_disk_is_found_before_anything_is_fetched(
    server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = locked()
    huge = lock.model_copy(update={"files": {"m": hub.LockedFile(size=10**18, blob="a" * 40)}})
    server.log.clear()
    with pytest.raises(DiskFull) as error:
        download(MODEL, "models", huge, target)
    assert f"models/o/m@{lock.commit[:12]} needs 1000000000.0 GB more, and " in str(error.value)
    assert "make room, or set cache: to a directory on another disk" in str(error.value)
    assert server.log == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_on_the_way_is_one_message(server: LoopbackHub, target: Path) -> None:
    work = target.with_name(f".work-{target.name}")
    work.mkdir(parents=True)
    (work / "m.safetensors").symlink_to("/dev/full")
    with pytest.raises((DiskFull, BadInput)) as error:
        download(MODEL, "models", locked(), target)
    assert "disk" in str(error.value) or "space" in str(error.value)


# -------------------------------------------------------------------------------------------------- going on, and again


def test_what_is_right_is_kept_when_the_lock_changes(server: LoopbackHub, target: Path) -> None:
    download(MODEL, "models", locked(), target)
    changed = {**FILES, "config.json": b'{"a": 2}', "new/file": b"new"}
    del changed["data/empty"]
    server.add("models/o/m", changed)
    server.log.clear()
    download(MODEL, "models", locked(), target)
    assert contents(target) == changed
    assert not (target / "data").exists()
    assert server.sent() == len(b'{"a": 2}') + len(b"new")


def test_what_an_older_commit_left_unfinished_is_used_or_removed(server: LoopbackHub, target: Path) -> None:
    server.add("models/o/m", {**FILES, "data/empty": b"old"})
    server.fail("m.safetensors", Fault("close", after=2 * MB), *[Fault("close")] * 4)
    with pytest.raises(BadInput):
        download(MODEL, "models", locked(), target)
    server.add("models/o/m", {"data": b"now a file", "m.safetensors": WEIGHTS})
    server.log.clear()
    download(MODEL, "models", locked(), target)
    assert contents(target) == {"data": b"now a file", "m.safetensors": WEIGHTS}
    assert server.sent("m.safetensors") == MB


def test_a_file_system_without_hard_links(server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    download(MODEL, "models", locked(), target)
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES
    assert alone(target)


def test_a_damaged_snapshot_is_mended_without_touching_the_rest(server: LoopbackHub, target: Path) -> None:
    download(MODEL, "models", locked(), target)
    (target / "m.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    server.log.clear()
    download(MODEL, "models", locked(), target)
    assert contents(target) == FILES
    assert server.sent() == server.sent("m.safetensors") == 3 * MB


CHILD = """
import sys
import traceback
from pathlib import Path
from mnpo.storage import hub
from mnpo.config.sources import Model
from mnpo.stages.download import download
model = Model(hub="o/m", gated=True)
try:
    download(model, "models", hub.read_lock(Path(sys.argv[1])).entry("models", model), Path(sys.argv[2]))
except hub.BadInput as error:
    traceback.print_exception(error)
    sys.exit(error.exit_code)
"""


def child(server: LoopbackHub, lock: Path, target: Path, **environment: str) -> subprocess.Popen[str]:
    """A download in a process of its own, with everything that it prints."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "MNPO_"))}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(lock), str(target)],
        env={**kept, **server.environment(), "HF_HOME": str(target.parent / "home"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_from_the_last_byte(server: LoopbackHub, target: Path, tmp_path: Path) -> None:
    big = random.Random(1).randbytes(24 * MB)
    files = {"a.safetensors": WEIGHTS, "b.safetensors": big, "config.json": b"{}"}
    server.add("models/o/m", files, large=[])
    server.repositories["models/o/m"].large = frozenset({"a.safetensors", "b.safetensors"})
    hub.write_lock(hub.Lock().with_entry("models", MODEL, locked()), tmp_path / "lock.yaml")
    server.log.clear()
    server.rate = 16 * MB
    first = child(server, tmp_path / "lock.yaml", target)
    partial = target.with_name(f".work-{target.name}") / "b.safetensors"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 8 * MB):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    here = partial.stat().st_size
    assert 8 * MB < here < 24 * MB
    assert not target.exists()

    server.rate = None
    server.log.clear()  # when the server has noticed
    second = child(server, tmp_path / "lock.yaml", target)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 0, said
    assert contents(target) == files
    assert alone(target) or sorted(p.name for p in target.parent.iterdir()) == ["home", target.name]
    assert server.sent("a.safetensors") == 0
    assert server.sent("b.safetensors") == 24 * MB - here
    assert [s.range for s in server.files("b.safetensors") if s.sent] == [f"bytes={here}-"]


# ---------------------------------------------------------------------------------------------------------- the secret


@pytest.mark.parametrize(
    ("case", "code"),
    [("good", 0), ("unknown", 3), ("stranger", 3), ("gone", 3), ("wrong-hash", 3), ("debug", 0)],
)
def test_no_token_in_anything_written_or_printed(
    server: LoopbackHub, target: Path, tmp_path: Path, case: str, code: int
) -> None:
    server.tokens, server.strangers = {TOKEN}, {f"{TOKEN}-stranger"}
    hub.write_lock(hub.Lock().with_entry("models", MODEL, locked()), tmp_path / "lock.yaml")
    server.repositories["models/o/m"].gate = "files"
    value = f"{TOKEN}-{case}" if case in ("unknown", "stranger") else TOKEN
    if case == "gone":
        server.repositories.clear()
    if case == "wrong-hash":
        server.fail("m.safetensors", Fault("corrupt"), Fault("corrupt"))
    debug = {"HF_DEBUG": "1"} if case == "debug" else {}
    process = child(server, tmp_path / "lock.yaml", target, HF_TOKEN=value, **debug)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert {s.token for s in server.log if s.token} == {value}
    expected = {
        "good": "download: ",
        "unknown": "the hub does not accept the token in use",
        "stranger": "o/m: not open to the token in use; accept its licence at https://huggingface.co/o/m",
        "gone": "o/m: no such repository, or the token in use may not see it",
        "wrong-hash": "m.safetensors: expected 3000000 bytes",
        "debug": "download: ",
    }
    assert expected[case] in said
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert TOKEN not in said
    assert [p for p in written if TOKEN.encode() in p.read_bytes() or TOKEN in p.name] == []


def test_no_token_when_nobody_answers(
    server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = {TOKEN}
    lock = locked()
    server.close()
    with pytest.raises(BadInput, match="o/m: no answer from 127.0.0.1") as error:
        download(MODEL, "models", lock, target)
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + "".join(capfd.readouterr())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_no_token_in_exceptions(
    server: LoopbackHub, target: Path, monkeypatch: pytest.MonkeyPatch, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = {TOKEN}
    lock = locked()
    server.fail("config.json", Fault("status", status))  # the server repeats the token in its answer
    with pytest.raises(BadInput) as error:
        download(MODEL, "models", lock, target)
    assert TOKEN not in "".join(traceback.format_exception(error.value)) + "".join(capfd.readouterr())
    assert "config.json" in {s.path.rpartition("/")[2] for s in server.log if s.status == status}
