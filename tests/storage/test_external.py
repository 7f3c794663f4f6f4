"""What decides a rerun of files that no rule made: their names, sizes and times, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.errors import BadInput
from mnpo.storage import external
from mnpo.storage.artifacts import artifact, digest
from mnpo.storage.external import LISTED, differences, state

NOON = 1_700_000_000_123_456_789


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    directory = tmp_path / "policy"
    write(directory / "config.json", "{}")
    write(directory / "weights/model.safetensors", "weights")
    return directory


def write(file: Path, content: str, time: int = NOON) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    os.utime(file, ns=(time, time))


def test_files_are_listed_by_size_and_time(policy: Path) -> None:
    assert state(policy) == {"config.json": f"2 {NOON}", "weights/model.safetensors": f"7 {NOON}"}
    assert state(policy / "config.json") == {"": f"2 {NOON}"}
    assert state(policy / "nothing") == {"": external.UNREADABLE}


CHANGES: dict[str, Callable[[Path], object]] = {
    "another size": lambda p: write(p / "config.json", "{ }"),
    "the same size, later": lambda p: write(p / "config.json", "[]", NOON + 1),
    "the same size, earlier": lambda p: write(p / "config.json", "[]", NOON - 1),
    "a further file": lambda p: write(p / "further", ""),
    "another name": lambda p: (p / "config.json").rename(p / "config.txt"),
    "a file gone": lambda p: (p / "config.json").unlink(),
    "a file below a link": lambda p: write(p.parent / "elsewhere/data/file", "changed"),
    "the directory gone": lambda p: p.rename(p.parent / "gone"),
}
REMAINS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda p: None,
    "read": lambda p: os.utime(p / "config.json", ns=(NOON + 10**12, NOON)),
    "git looked": lambda p: write(p / ".git/index", "new"),
    "a hidden file": lambda p: write(p / "weights/.lock", ""),
    "the directory's own time": lambda p: os.utime(p),
    "copied, times kept": lambda p: (p.rename(p.parent / "old"), shutil.copytree(p.parent / "old", p, symlinks=True)),
    "behind a link": lambda p: (p.rename(p.parent / "old"), p.symlink_to(p.parent / "old")),
}


@pytest.mark.parametrize("change", [*CHANGES, *REMAINS])
def test_what_is_a_change(policy: Path, change: str) -> None:
    write(policy.parent / "elsewhere/data/file", "x")
    (policy / "linked").symlink_to(policy.parent / "elsewhere")
    (policy / "linked/loop").symlink_to(policy)
    before = state(policy)
    assert list(before) == ["config.json", "linked/data/file", "weights/model.safetensors"]
    (CHANGES | REMAINS)[change](policy)
    assert (state(policy) != before) == (change in CHANGES)


def test_an_older_directory_behind_the_same_link_is_a_change(policy: Path) -> None:
    older = policy.parent / "older"
    shutil.copytree(policy, older)
    write(older / "weights/model.safetensors", "WEIGHTS", NOON - 10**12)
    link = policy.parent / "link"
    link.symlink_to(policy)
    before = state(link)
    link.unlink()
    link.symlink_to(older)
    assert state(link) != before and set(state(link)) == set(before)


def test_thousands_of_files_are_one_line_that_notices_each(tmp_path: Path) -> None:
    for number in range(LISTED + 1):
        write(tmp_path / f"{number}.txt", "text")
    (name,) = before = state(tmp_path)
    assert name == f"{LISTED + 1} files" and before[name].startswith(f"{4 * (LISTED + 1)} {NOON} ")
    write(tmp_path / "7.txt", "TEXT", NOON - 1)
    assert state(tmp_path) != before and list(state(tmp_path)) == [name]


def test_differences_in_words(policy: Path) -> None:
    before = state(policy)
    write(policy / "config.json", "{ }", NOON + 1)
    write(policy / "new", "1")
    (policy / "weights/model.safetensors").unlink()
    said = dict(differences(before, state(policy)))
    assert list(said) == ["config.json", "new", "weights/model.safetensors"]
    assert (
        said["config.json"].startswith("was 2 bytes of 2023-11-1") and "and is 3 bytes of 2023" in said["config.json"]
    )
    assert said["new"].endswith("was not there") and said["weights/model.safetensors"].endswith("is no longer there")


def test_a_manifest_that_was_copied_along_is_not_believed(tmp_path: Path) -> None:
    """A policy copied out of other results, and other weights of the same size and time copied over."""
    with artifact(tmp_path / "made", "train", {}, directory=True) as made:
        write(made.path / "model.safetensors", "weights")
    copy = shutil.copytree(tmp_path / "made", tmp_path / "copy")
    assert digest(copy) == digest(tmp_path / "made")
    write(copy / "model.safetensors", "WEIGHTS")
    with pytest.raises(BadInput, match=r"copy: damaged or edited .* delete .*copy/manifest.json alone"):
        digest(copy)
    (copy / "manifest.json").unlink()
    assert digest(copy) != digest(tmp_path / "made")


def test_a_digest_covers_what_lies_behind_links(policy: Path) -> None:
    write(policy.parent / "elsewhere/data", "x")
    (policy / "linked").symlink_to(policy.parent / "elsewhere")
    before = digest(policy)
    write(policy.parent / "elsewhere/data", "y")
    assert digest(policy) != before
