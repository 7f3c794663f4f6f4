"""Work that survives a kill: checkpoints and finished parts, kept beside an output until it is made.

Snakemake deletes declared outputs before a rerun and after a failure, so what is to survive lies in `.work-NAME` beside
them. It holds for one key, the digest of all that the output follows from, and is removed with the output's success.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from mnpo.errors import BadInput, Interrupted
from mnpo.progress import complain, say
from mnpo.ranks import barrier, highest, rank, ranks
from mnpo.storage import code_digests
from mnpo.storage.artifacts import Artifact, Spent, artifact, beside, in_threads, remove
from mnpo.storage.journal import JOURNAL, Journal, replace

MINUTES = "MNPO_CHECKPOINT_MINUTES"  # in the environment and not in the settings, for it changes no result
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
LEAST_PAUSE = 10  # between two checkpoints, as a multiple of what writing one takes


@contextmanager
def resumable(
    output: Path,
    stage: str,
    settings: Mapping[str, Any],
    inputs: Sequence[Path],
    *,
    directory: bool = False,
    modules: Sequence[str] = (),
) -> Iterator[tuple[Artifact, Session]]:
    """Make `output` as `artifacts.artifact` does, with work that the next session takes up if this one stops.

    Work holds for the code of the stage, all that it imports, and `modules`, which it imports by name.

    SIGTERM, SIGUSR1 and SIGINT stop the body at its next `Session.safe_point`; a second SIGINT stops it at once.
    The manifest says how often work was `resumed`, by how many `ranks` if by several; its seconds are of all sessions.

    On several ranks, rank 0 makes the output; the others hold the same session, enter the body after it, and wait until
    the output is whole, whatever signal comes: a launcher ends all ranks some time after the first has left.
    """
    if rank():
        barrier()
        follower = Session(output)
        with _signals(follower):
            yield Artifact(beside(output, "partial"), {}), follower
            barrier()
        return
    with artifact(output, stage, settings, inputs, directory=directory) as made:
        code = code_digests.digest(f"mnpo.stages.{stage}", *modules)
        follows_from = [stage, settings, list(made.inputs.values()), code, ranks()]
        session = Session(output, hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest())
        barrier()
        made.earlier = session.earlier
        try:
            with _signals(session):
                yield made, session
        except BaseException:
            session.leave()
            raise
        if session.stop_seconds:
            made.facts = {**made.facts, "stop_seconds": round(session.stop_seconds, 3)}
        if session.resumed:
            made.facts = {**made.facts, "resumed": session.resumed}
        if ranks() > 1:
            made.facts = {**made.facts, "ranks": ranks()}
    barrier()


class Session:
    """One process at work on an output, with what earlier ones kept and what it keeps for the next.

    Of several ranks each has a session; they stop and keep their work at the same step, each its own files of a
    checkpoint, and all the rest is rank 0's. `due`, `keep` and `latest` are for all ranks to call together.

    Attributes:
        directory: where it is kept.
        earlier: what earlier sessions spent.
        asked: the name of the signal that asked this session to stop.
        at_once: whether a signal need not wait for a safe point.
        left: about how many seconds of work there are still to do, where somebody says so.
    """

    def __init__(self, output: Path, key: str | None = None) -> None:
        self.directory = beside(output, "work")
        self.asked: str | None = None
        self.at_once = False
        self._output, self._key = output, key
        self._minutes = _minutes()
        self._started, self._kept = Spent.now(), time.monotonic()
        self.left = math.inf
        self._writing = self._longest = 0.0
        self._safe: float | None = None
        self._taken_up = False
        record = self._open() if rank() == 0 else {}
        self.earlier = Spent.of(record)
        self._resumed: int = record.get("resumed", 0)
        self.record()

    @property
    def resumed(self) -> int:
        """How many sessions took up what an earlier one left."""
        return self._resumed + self._taken_up

    @property
    def spent(self) -> Spent:
        """By all sessions, up to now."""
        return self.earlier + (Spent.now() - self._started)

    @property
    def stop_seconds(self) -> float:
        """The most that it took from one safe point to the next, and to write a checkpoint there."""
        return self._longest + self._writing

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint: some minutes have passed, or a signal asks to stop, on any rank.

        However long writing takes, it is a tenth of the time at most. One that would be followed by less work than came
        before it is not worth it: the output is there sooner than the next would be.
        """
        self._reached()
        pause = max(60 * self._minutes, LEAST_PAUSE * self._writing) if self._minutes else 0
        time_has_come = time.monotonic() - self._kept >= pause and self.left >= pause
        agreed = highest(2 if self.asked is not None else int(time_has_come))
        if agreed == 2 and self.asked is None:
            self.asked = "a signal to another rank"
        return agreed > 0

    def keep(self, step: int, write: Callable[[Path], Any]) -> None:
        """Replace the checkpoint by one at `step`, which `write` puts into the directory that it is given.

        Of several ranks each writes its own files, and `write` returns a list of them. Their rank alone makes sure that
        they are on the disk, and reads them again for their hashes, all ranks at the same time.
        """
        started = time.monotonic()
        new, whole = self.directory / "new", self.directory / f"checkpoint-{step}"
        if rank() == 0:
            remove(new)
            new.mkdir()
        barrier()
        try:
            written = write(new)
            own = written if isinstance(written, list) else [p for p in new.rglob("*") if p.is_file()]
            _save(new / _index(), {"files": _hashes(new, [str(path.relative_to(new)) for path in own])})
            barrier()
        except BaseException:
            remove(new)
            raise
        if rank() == 0:
            remove(whole)
            os.replace(new, whole)
            for old in self._checkpoints():
                if old != whole:
                    remove(old)
        barrier()
        self._kept = self._safe = time.monotonic()
        self._writing = self._kept - started
        self.record()

    @property
    def begins(self) -> bool:
        """Whether there is nothing to go on from."""
        return not self._checkpoints()

    def latest(self) -> Path | None:
        """The newest whole checkpoint; one that was damaged is reported and removed. Each rank checks its own files."""
        while True:
            barrier()
            checkpoint = next(iter(self._checkpoints()), None)
            damage = _damage(checkpoint) if checkpoint is not None else None
            if damage:
                complain(f"{checkpoint}: {damage}; a checkpoint is taken up whole or not at all, so it is removed")
            if not highest(int(damage is not None)):
                break
            if rank() == 0 and checkpoint is not None:
                remove(checkpoint)
        if checkpoint is not None and rank() == 0:
            self._take_up()
        return checkpoint

    def journal(self, unit: str) -> Journal:
        """The finished parts of the output, each a `unit`."""
        journal = Journal(self, unit)
        if len(journal):
            self._take_up()
        return journal

    def safe_point(self, so_far: str) -> None:
        """Nothing that is done would be lost by stopping here. Raises Interrupted when a signal has asked for it."""
        self._reached()
        if self.asked is not None:
            raise Interrupted(
                f"{self._output}: stopped by {self.asked} after {so_far}; to be continued: "
                f"the same command goes on from {self.directory}"
            )

    def _reached(self) -> None:
        """Where a stop would lose nothing, or little: how long was it to here?"""
        now = time.monotonic()
        if self._safe is not None:
            self._longest = max(self._longest, now - self._safe)
        self._safe = now

    def leave(self) -> None:
        """The session ends without the output: what there is to take up stays."""
        if not self._checkpoints() and not (self.directory / JOURNAL).exists():
            remove(self.directory)

    def _open(self) -> dict[str, Any]:
        """Take the directory over: what was kept for another key, or half written, goes."""
        record = begun(self._output)
        if record.get("key") != self._key:
            if self.directory.exists():
                say(
                    f"{self.directory}: work on other inputs or settings, by other code, on more or fewer ranks, "
                    "or damaged; it is removed"
                )
            remove(self.directory)
            record = {}
        self.directory.mkdir(exist_ok=True)
        remove(self.directory / "new")
        return record

    def record(self) -> None:
        """A sign of life: what was spent so far."""
        if rank():
            return
        content = {"key": self._key, **self.spent.facts, "resumed": self.resumed, "stop_seconds": self.stop_seconds}
        _save(self.directory / "work.json", content)

    def _take_up(self) -> None:
        self._taken_up = True
        self.record()

    def _checkpoints(self) -> list[Path]:
        """Newest first: there are two only where a kill came between writing one and removing the other."""
        return sorted(self.directory.glob("checkpoint-*"), key=lambda p: -int(p.name.removeprefix("checkpoint-")))


@contextmanager
def _signals(session: Session) -> Iterator[None]:
    """Signals ask the session to stop. Only the main thread hears them."""

    def ask(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if session.asked == name == "SIGINT":
            raise KeyboardInterrupt
        session.asked = name
        with suppress(OSError):  # not `say`: it may be what the signal came into
            os.write(2, f"{name}: stops as soon as nothing is lost by it\n".encode())
        if session.at_once:
            session.safe_point("what is kept elsewhere")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begun(output: Path) -> dict[str, Any]:
    """What is recorded of the sessions on an output that is not made yet; empty where there were none."""
    return _load(beside(output, "work") / "work.json")


def _minutes() -> float:
    given = os.environ.get(MINUTES, "10")
    try:
        minutes = float(given)
    except ValueError:
        minutes = math.nan
    if not minutes >= 0:
        raise BadInput(f"{MINUTES}={given!r} in the environment: minutes between two checkpoints, 0 for every step")
    return minutes


def _index() -> str:
    """The file with the hashes of this rank's files of a checkpoint."""
    return f"index-{rank()}.json" if rank() else "index.json"


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with this rank's files."""
    expected = _load(checkpoint / _index()).get("files")
    if expected is None:
        return f"its {_index()} is missing or unreadable"
    found = _hashes(checkpoint, expected)
    changed = sorted(name for name in expected if found[name] != expected[name])
    return f"{', '.join(changed)} changed since it was written" if changed else None


def _hashes(directory: Path, names: Iterable[str]) -> dict[str, str | None]:
    """SHA-256 of each file, which is on the disk then; None of one that is not there."""

    def hashed(name: str) -> str | None:
        try:
            with open(directory / name, "rb") as stream:
                os.fsync(stream.fileno())
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return None

    names = sorted(names)
    return dict(zip(names, in_threads(hashed, names), strict=True))


def _load(path: Path) -> dict[str, Any]:
    """A JSON object, empty when the file has none to offer."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _save(path: Path, content: Mapping[str, Any]) -> None:
    replace(path, json.dumps(content, indent=1).encode())
