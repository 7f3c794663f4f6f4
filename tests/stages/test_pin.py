"""What a connected machine writes into the lock, and what it keeps when something fails."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest

from mnpo.config.sources import Dataset, Model
from mnpo.errors import BadInput
from mnpo.stages.pin import pin
from mnpo.storage import hub
from tests.helpers.loopback_hub import Fault, LoopbackHub

TOKEN = "hf_distinctive0SECRET0token"  # noqa: S105


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.lock.yaml"


def test_every_kind_of_source(server: LoopbackHub, path: Path) -> None:
    model = server.add("models/o/m", {"config.json": b"{}", "m.safetensors": b"weights"}, large=["m.safetensors"])
    server.add("datasets/o/d", {"d.parquet": b"1"})
    server.add("github/o/code", {"q.jsonl": b"1"})
    sources = {
        "models.m": Model(hub="o/m", revision=model),
        "datasets.d": Dataset(hub="o/d"),
        "datasets.code": Dataset(github="o/code"),
        "models.local": Model(path="/here"),
        "models.mirrored": Model(hub="o/none", mirror="/here"),
        "models.random": Model(architecture={}),
        "models.api": Model(api="gpt"),
    }
    lock = pin(sources, path)
    assert lock == hub.read_lock(path)
    assert {k: list(v) for k, v in lock} == {"models": ["o/m"], "datasets": ["o/d"], "github": ["o/code"]}
    assert lock.models["o/m"][model].commit == model
    hub.require_pinned(sources, lock)


def test_pinning_an_unchanged_hub_again_changes_no_byte(server: LoopbackHub, path: Path) -> None:
    server.add("models/o/m", dict.fromkeys("cab", b"1"))
    sources = {"models.m": Model(hub="o/m"), "models.again": Model(hub="o/m", revision="main", files=["a", "b"])}
    pin(sources, path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    pin(dict(reversed(sources.items())), path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_a_branch_that_moved_is_locked_anew(
    server: LoopbackHub, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = server.add("models/o/m", {"a": b"1"})
    pin({"models.m": Model(hub="o/m")}, path)
    new = server.add("models/o/m", {"a": b"2", "b": b"3"})
    lock = pin({"models.m": Model(hub="o/m")}, path)
    assert lock.models["o/m"]["main"].commit == new
    assert set(lock.models["o/m"]["main"].files) == {"a", "b"}
    assert f"models/o/m, revision main: {old[:12]} -> {new[:12]}" in capsys.readouterr().err


def test_entries_share_a_repository_and_other_configurations_keep_theirs(
    server: LoopbackHub, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("datasets/o/d", {"a": b"1", "b": b"2", "c": b"3", "d": b"4"})
    server.add("models/o/m", {"x": b"1"})
    pin({"datasets.one": Dataset(hub="o/d", files=["a"]), "datasets.two": Dataset(hub="o/d", files=["b"])}, path)
    assert set(hub.read_lock(path).datasets["o/d"]["main"].files) == {"a", "b"}
    capsys.readouterr()
    lock = pin({"datasets.three": Dataset(hub="o/d", files=["c"]), "models.m": Model(hub="o/m")}, path)
    assert set(lock.datasets["o/d"]["main"].files) == {"a", "b", "c"}
    assert lock.entry("datasets", Dataset(hub="o/d", files=["a"])) is not None
    assert "keeps the files ['a', 'b', 'c'] that were asked for before" in capsys.readouterr().err


def test_one_failure_loses_no_other_and_each_is_named(
    server: LoopbackHub, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.tokens = {TOKEN}
    server.add("models/o/first", {"a": b"1"})
    server.add("models/o/last", {"a": b"1"})
    server.add("github/o/code", {"a": b"1"})
    server.fail("/code/commits/main", Fault("status", 403))
    sources = {
        "models.first": Model(hub="o/first"),
        "models.gone": Model(hub="o/gone"),
        "datasets.code": Dataset(github="o/code"),
        "models.branch": Model(hub="o/last", revision="dev"),
        "models.last": Model(hub="o/last"),
    }
    with pytest.raises(BadInput) as error:
        pin(sources, path)
    gone, code, branch, summary = str(error.value).splitlines()
    assert gone.startswith("models.gone: o/gone: no such repository, or the token in use may not see it; check")
    assert code.startswith("datasets.code: o/code: too many requests (GitHub")
    assert branch.startswith("models.branch: o/last: no revision dev")
    assert summary == f"2 of 5 pinned in {path}"
    assert set(hub.read_lock(path).models) == {"o/first", "o/last"}
    written = path.read_text() + "".join(capfd.readouterr()) + "".join(traceback.format_exception(error.value))
    assert TOKEN not in written
    assert {request.token for request in server.log if "/api/models" in request.path} == {TOKEN}


def test_an_entry_that_cannot_be_resolved_any_more_stays(server: LoopbackHub, path: Path) -> None:
    server.add("models/o/m", {"a": b"1"})
    pin({"models.m": Model(hub="o/m")}, path)
    before = path.read_bytes()
    server.repositories.clear()
    with pytest.raises(BadInput, match="models.m: o/m: no such repository"):
        pin({"models.m": Model(hub="o/m")}, path)
    assert path.read_bytes() == before
