"""What survives a kill, what does not, and that nothing half-written is taken up."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput, DiskFull, Interrupted
from mnpo.storage.artifacts import Spent, digest, manifest
from mnpo.storage.resume import SIGNALS, Session, begun, resumable

STAGE = "pair"  # a stage whose source digest is quick to take


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.txt"


@contextmanager
def session_of(output: Path, setting: int = 0, inputs: tuple[Path, ...] = ()) -> Iterator[Session]:
    """A session on `output`, which says how it was made."""
    with resumable(output, STAGE, {"setting": setting}, inputs) as (made, session):
        yield session
        made.path.write_text("made")


def stop(session: Session, number: int = signal.SIGTERM) -> None:
    signal.raise_signal(number)
    session.safe_point("that much")


def wrote(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "state").write_text(text) and None


def kept(output: Path) -> set[str]:
    """What there is to take up, beside the record."""
    work = output.with_name(f".work-{output.name}")
    return {p.name for p in work.iterdir()} - {"work.json"} if work.is_dir() else set()


def leave_checkpoint(output: Path, step: int = 3, text: str = "state", setting: int = 0) -> Path:
    """A session that stops after a checkpoint; returns the checkpoint."""
    with pytest.raises(Interrupted), session_of(output, setting) as session:
        session.keep(step, wrote(text))
        stop(session)
    return output.with_name(f".work-{output.name}") / f"checkpoint-{step}"


# -------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_the_next_safe_point_and_says_how_to_go_on(output: Path, number: int) -> None:
    before = [signal.getsignal(n) for n in SIGNALS]
    reached = []
    with pytest.raises(Interrupted) as caught, session_of(output) as session:
        session.safe_point("nothing")
        signal.raise_signal(number)
        reached.append("after the signal")
        session.keep(7, wrote("seven"))
        session.safe_point("step 7 of 9")
        reached.append("after the safe point")
    assert reached == ["after the signal"]
    name = signal.Signals(number).name
    assert str(caught.value).startswith(f"{output}: stopped by {name} after step 7 of 9; to be continued: ")
    assert caught.value.exit_code == 5
    assert [signal.getsignal(n) for n in SIGNALS] == before
    assert [p.name for p in output.parent.iterdir()] == [".work-out.txt"] and kept(output) == {"checkpoint-7"}


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(output: Path) -> None:
    with pytest.raises(KeyboardInterrupt), session_of(output) as session:
        session.keep(1, wrote("one"))
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
        assert session.asked == "SIGINT"
        signal.raise_signal(signal.SIGINT)
    assert kept(output) == {"checkpoint-1"}


def test_a_signal_after_the_last_safe_point_lets_the_output_be_made(output: Path) -> None:
    with session_of(output):
        signal.raise_signal(signal.SIGTERM)
    assert output.read_text() == "made"


def test_outside_the_main_thread_there_are_sessions_without_signals(output: Path) -> None:
    def make() -> None:
        with session_of(output) as session:
            session.keep(1, wrote("one"))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert output.read_text() == "made"


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_the_next_session_takes_up_the_last_checkpoint_and_success_removes_it(output: Path) -> None:
    with pytest.raises(Interrupted), session_of(output) as session:
        assert session.latest() is None
        for step in (1, 2, 10):
            session.keep(step, wrote(f"state {step}"))
            assert kept(output) == {f"checkpoint-{step}"}
        stop(session)
    with session_of(output) as session:
        checkpoint = session.latest()
        assert checkpoint and (checkpoint / "state").read_text() == "state 10"
    assert {p.name for p in output.parent.iterdir()} == {"out.txt", "out.txt.manifest.json"}


def test_manifests_say_how_often_work_was_resumed_and_add_up_the_seconds(output: Path) -> None:
    for _ in range(3):
        with pytest.raises(Interrupted), session_of(output) as session:
            session.latest()
            session.keep(1, wrote("one"))
            record = output.parent / ".work-out.txt" / "work.json"
            more = Spent(session.earlier.seconds + 1000, session.earlier.loading + 10)
            record.write_text(json.dumps(json.loads(record.read_text()) | more.facts))
            stop(session)
    with session_of(output) as session:
        session.latest()
    facts = manifest(output)
    assert facts["resumed"] == 3  # the second, third and fourth session
    assert 3000 <= facts["seconds"] < 3100
    assert facts["loading_seconds"] == 30


def test_an_output_made_in_one_session_says_nothing_of_resuming(output: Path) -> None:
    with session_of(output) as session:
        session.latest()
        session.keep(1, wrote("one"))
    assert "resumed" not in manifest(output)


def test_what_other_settings_inputs_or_code_left_is_removed_and_said(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken_up(**changes: Any) -> bool:
        leave_checkpoint(output)
        with session_of(output, **changes) as session:
            found = session.latest() is not None
        output.unlink()
        return found

    source = tmp_path / "input"
    source.write_text("1")
    assert taken_up()
    assert "removed" not in capsys.readouterr().err
    assert not taken_up(setting=1)
    assert "work-out.txt: work on other inputs or settings, by other code, on more or fewer ranks, or damaged" in (
        capsys.readouterr().err
    )
    assert not taken_up(inputs=(source,))
    with pytest.raises(Interrupted), session_of(output, inputs=(source,)) as session:
        session.keep(1, wrote("one"))
        stop(session)
    source.write_text("2")
    with session_of(output, inputs=(source,)) as session:
        assert session.latest() is None
    leave_checkpoint(output)
    monkeypatch.setattr("mnpo.storage.code_digests.digest", lambda stage: "another version")
    with session_of(output) as session:
        assert session.latest() is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: (c / "state").write_text("sta"), "state changed since it was written"),
        (lambda c: (c / "state").write_text("stbte"), "state changed since it was written"),
        (lambda c: (c / "state").unlink(), "state changed since it was written"),
        (lambda c: (c / "index.json").unlink(), "its index.json is missing or unreadable"),
        (lambda c: (c / "index.json").write_text('{"files": {"sta'), "its index.json is missing or unreadable"),
    ],
    ids=["truncated", "changed", "missing", "no index", "half an index"],
)
def test_a_damaged_checkpoint_is_reported_and_never_taken_up(
    output: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], said: str
) -> None:
    checkpoint = leave_checkpoint(output)
    damage(checkpoint)
    with session_of(output) as session:
        assert session.latest() is None and kept(output) == set()
    assert f"{checkpoint}: {said}; " in capsys.readouterr().err
    assert "resumed" not in manifest(output)


def test_the_checkpoint_before_a_damaged_one_is_taken_up_where_it_is_still_there(output: Path) -> None:
    import shutil

    earlier = shutil.copytree(leave_checkpoint(output, 9, "nine"), output.parent / "aside")
    later = leave_checkpoint(output, 10, "ten")
    shutil.copytree(earlier, later.with_name("checkpoint-9"))  # a kill between writing 10 and removing 9
    (later / "state").write_text("te")
    with session_of(output) as session:
        checkpoint = session.latest()
        assert checkpoint and (checkpoint / "state").read_text() == "nine"


def test_a_damaged_record_is_like_other_work(output: Path) -> None:
    leave_checkpoint(output)
    (output.parent / ".work-out.txt" / "work.json").write_text('{"key": "')
    with session_of(output) as session:
        assert session.latest() is None


def test_a_session_that_leaves_nothing_to_take_up_leaves_nothing(output: Path) -> None:
    with pytest.raises(ZeroDivisionError), session_of(output) as session:
        session.latest()
        session.journal("parts")
        _ = 1 / 0
    assert not list(output.parent.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from mnpo.storage.resume import resumable

with resumable(Path(sys.argv[1]), "pair", {"setting": 0}, ()) as (made, session):
    session.keep(1, lambda d: (d / "state").write_text("one"))
    def half(directory):
        (directory / "state").write_text("tw")
        os.kill(os.getpid(), signal.SIGKILL)
    session.keep(2, half)
"""


def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before(output: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(output)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert kept(output) == {"checkpoint-1", "new"}
    with session_of(output) as session:
        checkpoint = session.latest()
        assert checkpoint and (checkpoint / "state").read_text() == "one" and kept(output) == {"checkpoint-1"}
    assert {p.name for p in output.parent.iterdir()} == {"out.txt", "out.txt.manifest.json"}


# ----------------------------------------------------------------------------------------------------------- how often


def test_checkpoints_are_due_after_some_minutes_or_when_asked_to_stop(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("mnpo.storage.resume.time.monotonic", lambda: clock[0])
    monkeypatch.setenv("MNPO_CHECKPOINT_MINUTES", "2.5")

    def slow(directory: Path) -> None:
        clock[0] += 40

    with session_of(output) as session:
        for clock[0], due in ((149, False), (150, True)):
            assert session.due is due
        session.keep(1, slow)  # from second 150 to 190: the next pause is ten times as long as that
        for clock[0], due in ((190 + 399, False), (190 + 400, True)):
            assert session.due is due
        session.keep(2, wrote("quick"))
        assert not session.due
        signal.raise_signal(signal.SIGUSR1)
        assert session.due


def test_the_usual_pause_is_ten_minutes(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("mnpo.storage.resume.time.monotonic", lambda: clock[0])
    monkeypatch.delenv("MNPO_CHECKPOINT_MINUTES", raising=False)
    with session_of(output) as session:
        for clock[0], due in ((599, False), (600, True)):
            assert session.due is due


def test_a_checkpoint_is_worth_it_only_if_as_much_work_follows(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes into a training of fifteen it is not; a signal asks for one all the same."""
    clock = [0.0]
    monkeypatch.setattr("mnpo.storage.resume.time.monotonic", lambda: clock[0])
    monkeypatch.delenv("MNPO_CHECKPOINT_MINUTES", raising=False)
    with session_of(output) as session:
        clock[0], session.left = 600, 599
        assert not session.due
        session.left = 600
        assert session.due
        session.left = 1
        signal.raise_signal(signal.SIGTERM)
        assert session.due


def test_what_a_stop_takes_is_measured_and_recorded(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest step, 30 s, and writing a checkpoint, 40 s: the next session's are its own."""
    clock = [0.0]
    monkeypatch.setattr("mnpo.storage.resume.time.monotonic", lambda: clock[0])

    def slow(directory: Path) -> None:
        clock[0] += 40

    def steps(session: Session, *seconds: float) -> None:
        for taken in seconds:
            clock[0] += taken
            assert not session.due

    with pytest.raises(Interrupted), session_of(output) as session:
        clock[0] += 500  # loading a model: nothing is lost yet
        steps(session, 10, 30, 5)
        session.keep(3, slow)
        assert session.stop_seconds == 30 + 40
        stop(session)
    assert begun(output)["stop_seconds"] == 70
    with session_of(output) as session:
        journal = session.journal("parts")
        steps(session, 1)
        clock[0] += 20
        journal.add("a", 1)
    assert manifest(output)["stop_seconds"] == 20 and begun(output) == {}


def test_files_are_hashed_side_by_side(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two waits for the other: one after the other, they would wait for ever."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    both, hashed = threading.Barrier(2, timeout=20), hashlib.file_digest

    def meet(stream: Any, algorithm: str) -> Any:
        both.wait()
        return hashed(stream, algorithm)

    def write(directory: Path) -> None:
        (directory / "one").write_text("one")
        (directory / "two").write_text("two")

    inputs = output.parent / "policy"
    inputs.mkdir()
    write(inputs)
    monkeypatch.setattr(hashlib, "file_digest", meet)
    assert digest(inputs)
    with pytest.raises(Interrupted), session_of(output) as session:
        session.keep(1, write)
        stop(session)
    with pytest.raises(Interrupted), session_of(output) as session:
        assert session.latest()
        stop(session)


@pytest.mark.parametrize("given", ["often", "-1", "nan", ""])
def test_a_pause_that_is_no_number_is_refused(output: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MNPO_CHECKPOINT_MINUTES", given)
    with pytest.raises(BadInput, match=f"MNPO_CHECKPOINT_MINUTES='{given}' in the environment"), session_of(output):
        pass
    assert not list(output.parent.iterdir())


# ------------------------------------------------------------------------------------------------------------- journals


def write_journal(output: Path, *parts: str) -> Path:
    """A session that finishes `parts` and fails; returns the journal."""
    with pytest.raises(ZeroDivisionError), session_of(output) as session:
        journal = session.journal("parts")
        for part in parts:
            journal.add(part, {"value of": part, "ü": [1, 2.5, None]})
        _ = 1 / 0
    return output.parent / ".work-out.txt" / "journal.jsonl"


def test_finished_parts_are_there_in_the_next_session(output: Path) -> None:
    write_journal(output, "a", "b")
    with session_of(output) as session:
        journal = session.journal("parts")
        assert len(journal) == 2
        assert journal.get("b") == {"value of": "b", "ü": [1, 2.5, None]} and journal.get("c") is None
        journal.add("c", 3)
        assert journal.get("c") == 3
    assert manifest(output)["resumed"] == 1
    assert {p.name for p in output.parent.iterdir()} == {"out.txt", "out.txt.manifest.json"}


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda lines: lines[0] + lines[1] + lines[2][:-20], {"a", "b"}),
        (lambda lines: lines[0] + lines[1] + lines[2][:-1], {"a", "b"}),  # a whole line but for its end
        (lambda lines: lines[0] + lines[1].replace(b"2.5", b"2.6") + lines[2], {"a", "c"}),
        (lambda lines: lines[0] + lines[1][:30] + b"\n" + lines[2], {"a", "c"}),
        (lambda lines: b"\0" * 64, set()),
        (lambda lines: b"", set()),
    ],
    ids=["truncated", "no newline", "changed", "cut inside", "zeros", "emptied"],
)
def test_lines_that_do_not_hold_are_done_again(
    output: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[list[bytes]], bytes], left: set[str]
) -> None:
    path = write_journal(output, "a", "b", "c")
    path.write_bytes(damage(path.read_bytes().splitlines(keepends=True)))
    damaged = path.stat().st_size > 0
    with pytest.raises(Interrupted), session_of(output) as session:
        journal = session.journal("parts")
        assert {p for p in "abc" if journal.get(p) is not None} == left
        signal.raise_signal(signal.SIGTERM)
        journal.add("d", "new")
    assert ("damaged or half written" in capsys.readouterr().err) == damaged
    with session_of(output) as session:  # what was added after the repair holds
        journal = session.journal("parts")
        assert {p for p in "abcd" if journal.get(p) is not None} == left | {"d"}


def test_a_part_is_kept_before_a_signal_stops_the_session(output: Path) -> None:
    with (
        pytest.raises(Interrupted, match=r"stopped by SIGTERM after 1 parts; to be continued"),
        session_of(output) as s,
    ):
        journal = s.journal("parts")
        signal.raise_signal(signal.SIGTERM)
        journal.add("a", 1)
    with session_of(output) as session:
        assert session.journal("parts").get("a") == 1


# ------------------------------------------------------------------------------------------------------------- the disk


def fill(path: Path) -> None:
    """What the kernel answers on a full disk."""
    path.write_text("half")
    with open("/dev/full", "w") as full:
        full.write("x")


def test_a_full_disk_is_one_message_and_what_was_finished_stays(output: Path) -> None:
    with pytest.raises(DiskFull) as caught, session_of(output) as session:
        session.keep(1, wrote("one"))
        session.keep(2, lambda directory: fill(directory / "state"))
    work = output.parent / ".work-out.txt"
    assert str(caught.value) == (
        f"{output}: no space left to write it ([Errno 28] No space left on device); free some space there, or give "
        f"`results` a larger place, and run it again; what was finished before is kept in {work}"
    )
    assert caught.value.exit_code == 6
    assert kept(output) == {"checkpoint-1"} and [p.name for p in output.parent.iterdir()] == [work.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_fills_up_for_real_and_is_enlarged(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system does not mount a tmpfs, even for root")
    try:
        with pytest.raises(DiskFull, match="no space left to write it"), session_of(disk / "out") as session:
            journal = session.journal("parts")
            for part in range(100):
                journal.add(str(part), "x" * 10_000)
        assert [p.name for p in disk.iterdir()] == [".work-out"]
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        with session_of(disk / "out") as session:
            journal = session.journal("parts")
            done = len(journal)
            assert 10 < done < 26  # of 10 kB in 256 kB
            for part in range(done, 100):
                journal.add(str(part), "x" * 10_000)
        assert manifest(disk / "out")["resumed"] == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
