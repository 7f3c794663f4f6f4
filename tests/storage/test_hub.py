"""The lock, the places in the cache, and what is refused beforehand."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnpo.config.blocks import ConfigError
from mnpo.config.sources import Dataset, Model
from mnpo.errors import BadInput
from mnpo.storage import hub
from tests.helpers.loopback_hub import LoopbackHub

A, B = "a" * 40, "b" * 40
TOKEN = "hf_distinctive0SECRET0token"  # noqa: S105


def locked(**changes: Any) -> hub.Locked:
    return hub.Locked(**{"commit": A, "files": {"x.json": {"size": 3, "blob": B}}, **changes})


# ------------------------------------------------------------------------------------------------------------ the lock


def test_lock_reads_like_a_list(tmp_path: Path) -> None:
    lock = hub.Lock()
    sha = hashlib.sha256(b"weights").hexdigest()
    files = {"model.safetensors": {"size": 7, "sha256": sha}, "config.json": {"size": 2, "blob": B}}
    lock = lock.with_entry("models", Model(hub="z/last"), locked(files=files, patterns=["*.json", "*.safetensors"]))
    lock = lock.with_entry("models", Model(hub="a/first", revision="v1"), locked())
    lock = lock.with_entry("github", Dataset(github="o/n"), locked(files={"data/q.jsonl": {"size": 0, "blob": B}}))
    hub.write_lock(lock, tmp_path / "lock.yaml")
    body = f"""\
github:
  o/n:
    main:
      commit: {A}
      files:
        data/q.jsonl: {{blob: {B}, size: 0}}
models:
  a/first:
    v1:
      commit: {A}
      files:
        x.json: {{blob: {B}, size: 3}}
  z/last:
    main:
      commit: {A}
      files:
        config.json: {{blob: {B}, size: 2}}
        model.safetensors: {{sha256: {sha}, size: 7}}
      patterns: ['*.json', '*.safetensors']
"""
    assert (tmp_path / "lock.yaml").read_text() == hub.PREAMBLE + body
    assert hub.read_lock(tmp_path / "lock.yaml") == lock


def test_an_unchanged_lock_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "lock.yaml"
    lock = hub.Lock().with_entry("models", Model(hub="a/b"), locked())
    hub.write_lock(lock, path)
    before = path.stat()
    hub.write_lock(lock, path)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [p.name for p in tmp_path.iterdir()] == ["lock.yaml"]


def test_no_lock_is_an_empty_lock(tmp_path: Path) -> None:
    assert hub.read_lock(tmp_path / "none.yaml") == hub.Lock()


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"commit": "main", "files": {}}, r"models.a/b.main.commit: .*pattern.* \(got \"main\"\)"),
        ({"commit": A}, "models.a/b.main.files: required, and missing"),
        ({"commit": A, "files": {}, "comit": A}, "models.a/b.main.comit: unknown key; did you mean 'commit'"),
        ({"commit": A, "files": {"x": {"size": 1}}}, "models.a/b.main.files.x: give exactly one of sha256, blob"),
        ({"commit": A, "files": {"x": {"size": -1, "blob": B}}}, r"files.x.size: .*\(got -1\)"),
        ({"commit": A, "files": {"x": {"size": 1, "blob": "1234"}}}, "files.x.blob: "),
        ({"commit": A, "files": {"../x": {"size": 1, "blob": B}}}, "'../x' is not the name of a file inside"),
        ({"commit": A, "files": {"/etc/x": {"size": 1, "blob": B}}}, "'/etc/x' is not the name of a file inside"),
        ({"commit": A, "files": {"a/./x": {"size": 1, "blob": B}}}, "'a/./x' is not the name of a file inside"),
        ({"commit": A, "files": {"manifest.json": {"size": 1, "blob": B}}}, "manifest.json would be overwritten"),
    ],
)
def test_malformed_lock(tmp_path: Path, entry: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump({"models": {"a/b": {"main": entry}}}))
    with pytest.raises(ConfigError, match=complaint) as error:
        hub.read_lock(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1


def test_lock_that_is_no_mapping_or_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        hub.read_lock(path)
    path.write_text("models: {a: [\n")
    with pytest.raises(ConfigError, match="not YAML"):
        hub.read_lock(path)
    path.write_text("model: {}\n")
    with pytest.raises(ConfigError, match="model: unknown key; did you mean 'models'"):
        hub.read_lock(path)


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 5000])
def test_hashes_are_those_of_git_and_of_coreutils(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    blob = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True).stdout.strip()
    sha256 = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert hub.LockedFile(size=1, blob=A).found(path) == hub.LockedFile(size=len(content), blob=blob)
    assert hub.LockedFile(size=1, sha256="a" * 64).found(path) == hub.LockedFile(size=len(content), sha256=sha256)


# -------------------------------------------------------------------------------------------------- sources and places


def test_places_in_the_cache() -> None:
    model, data, code = Model(hub="o/m", revision="x/y"), Dataset(hub="o/m"), Dataset(github="o/m", revision=A)
    lock = hub.Lock().with_entry("models", model, locked(commit=B))
    assert hub.address("models", model, lock) == ("models", "o--m", B)
    assert hub.address("models", model) == ("models", "o--m", "x--y")
    assert hub.address("datasets", data, lock) == ("datasets", "o--m", "main")
    assert hub.address("datasets", code) == ("github", "o--m", A)


def test_a_lock_without_the_files_that_are_asked_for_does_not_count() -> None:
    lock = hub.Lock().with_entry("models", Model(hub="o/m"), locked(patterns=["*.json", "*.txt"]))
    assert lock.entry("models", Model(hub="o/m", files=["*.txt"])) is not None
    assert lock.entry("models", Model(hub="o/m", files=["*.bin"])) is None
    assert lock.entry("models", Model(hub="o/m")) is None
    assert lock.entry("models", Model(hub="o/m", revision="v2", files=["*.txt"])) is None
    assert lock.entry("datasets", Dataset(hub="o/m", files=["*.txt"])) is None
    everything = hub.Lock().with_entry("models", Model(hub="o/m"), locked())
    assert everything.entry("models", Model(hub="o/m", files=["*.bin"])) is not None


def test_entries_of_one_repository_ask_for_the_files_of_all() -> None:
    one, two = Dataset(hub="o/d", files=["b", "a"]), Dataset(hub="o/d", files=["b", "c"], gated=True)
    both = hub.merged([one, two])
    assert (both.files, both.gated, both.hub) == (["a", "b", "c"], True, "o/d")
    assert hub.merged([one, Dataset(hub="o/d")]).files is None


def test_import_costs_no_http_library() -> None:
    heavy = "huggingface_hub", "httpx2", "httpx", "requests", "torch", "pandas", "filelock"
    code = (
        "import mnpo.storage.hub, mnpo.stages.pin, mnpo.stages.download, sys; "
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -------------------------------------------------------------------------------------------- what is needed beforehand


def test_floating_sources_are_refused_by_name() -> None:
    sources = {
        "models.floats": Model(hub="o/floats"),
        "models.locked": Model(hub="o/locked"),
        "models.commit": Model(hub="o/commit", revision=A),
        "models.mirrored": Model(hub="o/mirrored", mirror="/here"),
        "models.local": Model(path="/here"),
        "models.api": Model(api="gpt"),
        "datasets.code": Dataset(github="o/code", revision="v1"),
        "datasets.other": Dataset(hub="o/other", files=["test.jsonl"]),
    }
    lock = hub.Lock().with_entry("models", sources["models.locked"], locked())
    lock = lock.with_entry("datasets", sources["datasets.other"], locked(patterns=["train.jsonl"]))
    with pytest.raises(BadInput) as error:
        hub.require_pinned(sources, lock)
    first, second, third, remedy = str(error.value).splitlines()
    assert first == "models.floats: o/floats, revision main, is not locked"
    assert second == "datasets.code: o/code, revision v1, is not locked"
    assert third == "datasets.other: o/other, revision main, is locked without files ['test.jsonl']"
    assert "`mnpo pin`" in remedy and "`floating: true`" in remedy
    hub.require_pinned(sources, lock, allow_floating=True)


def test_a_missing_token_is_one_message(server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {
        "models.gemma": Model(hub="google/gemma", gated=True),
        "models.cached": Model(hub="google/cached", gated=True),
        "models.locked": Model(hub="google/locked", gated=True),
        "models.open": Model(hub="o/open"),
        "models.mirrored": Model(hub="o/mirrored", gated=True, mirror="/here"),
        "datasets.gpqa": Dataset(hub="i/gpqa", gated=True),
    }
    (tmp_path / "cache/models/google--cached/main").mkdir(parents=True)
    (tmp_path / f"cache/models/google--locked/{A}").mkdir(parents=True)
    lock = hub.Lock().with_entry("models", sources["models.locked"], locked())
    with pytest.raises(BadInput) as error:
        hub.require_token(sources, tmp_path / "cache", lock)
    first, second, remedy = str(error.value).splitlines()
    assert first == "models.gemma: google/gemma is gated; accept its licence at https://huggingface.co/google/gemma"
    assert second == "datasets.gpqa: i/gpqa is gated; accept its licence at https://huggingface.co/datasets/i/gpqa"
    assert "export HF_TOKEN=..." in remedy

    (tmp_path / "no-token").write_text(TOKEN + "\n")  # where `hf auth login` writes it
    hub.require_token(sources, tmp_path / "cache", lock)
    (tmp_path / "no-token").unlink()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.require_token(sources, tmp_path / "cache", lock)
    assert server.log == []  # nobody was asked
