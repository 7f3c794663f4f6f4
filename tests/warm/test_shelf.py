"""Modules that are loaded and not imported: who imports one has it, and all that an import would have brought."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from mnpo.warm.shelf import Shelf

HEAVY, USER = "mnpo_test_heavy", "mnpo_test_user"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Two packages on the shelf, the second of which imports the first. Each says how often it is loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    for package, inside in ((HEAVY, ""), (USER, f"import {HEAVY}.part\n")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"{inside}loaded = []\n")
        (tmp_path / package / "part.py").write_text("import sys\nsys.counted.append(__name__)\n")
        (tmp_path / package / "later.py").write_text("")
    monkeypatch.setattr(sys, "counted", [], raising=False)
    import_module(f"{USER}.part")
    yield tmp_path
    sys.meta_path[:] = before
    for name in [name for name in sys.modules if name.startswith("mnpo_test_")]:
        del sys.modules[name]


def imported() -> set[str]:
    return {name for name in sys.modules if name.startswith("mnpo_test_")}


@pytest.mark.parametrize(
    ("asked", "found"),
    [(HEAVY, {HEAVY}), (f"{HEAVY}.part", {HEAVY}), (USER, {HEAVY, USER}), (f"{USER}.part", {HEAVY, USER})],
)
def test_an_import_brings_the_package_and_what_that_imports_unloaded_again(
    packages: Path, asked: str, found: set[str]
) -> None:
    modules = {name: sys.modules[name] for name in imported()}
    specs = {name: module.__spec__ for name, module in modules.items()}
    Shelf({HEAVY: (), USER: (HEAVY,)})
    assert imported() == set()
    spec = find_spec(HEAVY)
    assert spec is not None and spec.origin == str(packages / HEAVY / "__init__.py") and imported() == set()
    assert import_module(asked) is modules[asked]
    assert imported() == {name for name in modules if name.partition(".")[0] in found}
    assert all(sys.modules[name] is modules[name] and modules[name].__spec__ == specs[name] for name in imported())
    assert sorted(sys.counted) == [f"{HEAVY}.part", f"{USER}.part"]  # type: ignore[attr-defined]
    assert import_module(f"{asked.partition('.')[0]}.later").__file__ is not None
