"""Source digests: an edit changes the digests of the stages that can reach it, and of no other."""

from __future__ import annotations

import ast
import atexit
import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import mnpo

STAGES = ("prompts", "sft", "sample", "score", "pair", "logps", "train", "assess", "tabulate", "plot", "game")
Digests = Callable[[], dict[str, str]]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    source = Path(mnpo.__file__).parent
    return shutil.copytree(source, tmp_path / "mnpo", ignore=shutil.ignore_patterns("__pycache__"))


def sources_of(package: Path) -> ModuleType:
    """The copy's own mnpo.storage.code_digests, with empty caches."""
    spec = importlib.util.spec_from_file_location("copied_sources", package / "storage" / "code_digests.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digests_of(package: Path) -> dict[str, str]:
    sources = sources_of(package)
    return {stage: sources.digest(f"mnpo.stages.{stage}") for stage in STAGES}


@pytest.fixture
def digests(package: Path) -> Digests:
    return lambda: digests_of(package)


@pytest.fixture(scope="module")
def unedited() -> dict[str, str]:
    return digests_of(Path(mnpo.__file__).parent)


def reruns(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("edited", "stages"),
    [
        ("stages/plot.py", {"plot"}),
        ("stages/pair.py", {"pair"}),
        ("stages/train.py", {"train"}),
        ("method/objectives.py", {"train"}),  # imported inside a function
        ("learning/training.py", {"sft", "train"}),
        ("models/logprobs.py", {"sft", "sample", "logps", "train", "assess"}),  # sample: for its mismatch report
        ("samplers/transformers.py", {"sample", "assess"}),
        ("benchmarks/heldout.py", {"assess"}),
        ("demo/world.py", set()),  # named by the plan, where the configuration is the demo's
        ("demo/model.py", set()),
        ("method/games.py", {"game"}),
        ("oracles/rules.py", set()),  # named by the plan, with the configuration's oracles
        ("cli/stages.py", set()),
        ("planning/plan.py", set()),
    ],
)
def test_an_edit_reruns_the_stages_that_reach_it(
    package: Path, digests: Digests, unedited: dict[str, str], edited: str, stages: set[str]
) -> None:
    with (package / edited).open("a") as stream:
        stream.write("\n\nADDED = 1\n")
    assert reruns(unedited, digests()) == stages


def test_an_oracles_module_counts_when_it_is_named(package: Path) -> None:
    names = ("mnpo.stages.score", "mnpo.oracles.rules")
    before = sources_of(package).digest(*names)
    assert before != sources_of(package).digest(names[0])
    assert before == sources_of(package).digest(*reversed(names))
    with (package / "demo" / "world.py").open("a") as stream:
        stream.write("\n\nADDED = 1\n")
    assert before != sources_of(package).digest(*names)


def test_comments_docstrings_and_formatting_rerun_nothing(package: Path, digests: Digests) -> None:
    path = package / "stages" / "pair.py"
    path.write_text(
        '"""Old."""\n\nclass A:\n    """Old."""\n\n    x = 1\n    """Old, of x."""\n\n'
        '    def f(self, y):\n        """Old."""\n        return (y, 1)\n\n    def g(self):\n        """Old."""\n'
    )
    before = digests()
    path.write_text(
        '"""New."""\n# A comment.\nclass A:\n    x = 1  # another\n    """New, of x."""\n'
        "    def f(self, y):\n        return (\n            y,\n            1,\n        )\n"
        "    def g(self):\n        '''New.'''\n"
    )
    assert reruns(before, digests()) == set()


@pytest.mark.parametrize(
    "body",
    [
        "return (y, 2)",
        "return (y, 1.0)",
        "return (y, True)",
        "return [y, 1]",
        "return (y, '1')",
        "return",
        "return (x, 1)",
        "pass",
    ],
)
def test_a_change_of_meaning_changes_the_digest(package: Path, body: str) -> None:
    path = package / "stages" / "pair.py"
    path.write_text("def f(y):\n    return (y, 1)\n")
    before = sources_of(package).digest("mnpo.stages.pair")
    path.write_text(f"def f(y):\n    {body}\n")
    assert sources_of(package).digest("mnpo.stages.pair") != before


def test_a_text_that_is_used_is_not_a_docstring(package: Path, digests: Digests) -> None:
    path = package / "stages" / "pair.py"
    path.write_text('def f():\n    """Doc."""\n    return "a"\n')
    before = digests()
    path.write_text('def f():\n    """Doc."""\n    return "b"\n')
    assert reruns(before, digests()) == {"pair"}


# -------------------------------------------------------------------------------------------- what was read before


def read_again(package: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], int]:
    """The stages' digests by a process that keeps what it reads, and how many files it read."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    sources, parsed = sources_of(package), 0

    def parse(content: bytes) -> ast.Module:
        nonlocal parsed
        parsed += 1
        return ast.parse(content)

    sources.ast = SimpleNamespace(**vars(ast) | {"parse": parse})
    found = {stage: sources.digest(f"mnpo.stages.{stage}") for stage in STAGES}
    sources._keep()
    atexit.unregister(sources._keep)
    return found, parsed


def test_a_file_is_read_once_for_each_content(
    package: Path, unedited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (package / "__pycache__").mkdir()
    first, parsed = read_again(package, monkeypatch)
    assert first == unedited and parsed > 50
    assert read_again(package, monkeypatch) == (unedited, 0)
    pair = package / "stages" / "pair.py"
    before = pair.read_text()
    pair.write_text(f"{before}\n\nADDED = 1\n")
    changed, parsed = read_again(package, monkeypatch)
    assert reruns(unedited, changed) == {"pair"} and parsed == 1
    pair.write_text(before)
    assert read_again(package, monkeypatch) == (unedited, 0)


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"a": 1}', '{"a": [1, 2, 3]}', '{"a": null}'])
def test_what_was_kept_and_is_damaged_is_read_anew(
    package: Path, unedited: dict[str, str], monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    (package / "__pycache__").mkdir()
    sources_of(package).KEPT.write_text(damage)
    assert read_again(package, monkeypatch)[0] == unedited
    assert read_again(package, monkeypatch) == (unedited, 0)


def test_another_way_to_read_files_does_not_take_what_was_kept(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "__pycache__").mkdir()
    read_again(package, monkeypatch)
    with (package / "storage" / "code_digests.py").open("a") as stream:
        stream.write("\n\nADDED = 1\n")
    assert read_again(package, monkeypatch)[1] > 50


def test_a_package_that_may_not_be_written_keeps_nothing(
    package: Path, unedited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_again(package, monkeypatch) == read_again(package, monkeypatch)  # no __pycache__
    assert read_again(package, monkeypatch)[0] == unedited and not (package / "__pycache__").exists()
