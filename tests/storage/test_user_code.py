"""A user's file: what of it decides a result, and which mistakes are seen without running it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.errors import BadInput
from mnpo.storage import user_code

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str, name: str = "rewards.py") -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return _write


def test_the_digest_is_of_the_code_and_of_what_it_imports_from_beside_it(write: Write, tmp_path: Path) -> None:
    file = write("import json\n\ndef f(responses):\n    from helpers import g\n    return g(responses)\n")
    write("from words.few import FEW\n\ndef g(texts):\n    return [len(t) in FEW for t in texts]\n", "helpers.py")
    write("", "words/__init__.py")
    write("FEW = {1}\n", "words/few.py")
    write("not imported, and not Python", "other.py")
    before = user_code.digests(file)
    assert [Path(name).name for name in before] == ["helpers.py", "rewards.py", "__init__.py", "few.py"]
    assert user_code.local_modules(file) == ["helpers", "rewards", "words"]

    write('"""New."""\nimport json  # new\n\ndef f(responses):\n    from helpers import g\n    return g(responses)')
    assert user_code.digests(file) == before
    user_code.require_unchanged(before)
    changed = write("FEW = {2}\n", "words/few.py")
    assert {name for name, digest in user_code.digests(file).items() if digest != before[name]} == {changed}
    with pytest.raises(BadInput, match=r"words/few\.py: its code changed after this job was planned; start .* again"):
        user_code.require_unchanged(before)


def test_the_signature_is_read_and_not_run(write: Write) -> None:
    file = write("x = 1 / 0\ndef f(responses, *, columns: undefined, k=print('no')) -> undefined:\n    pass\n")
    found = user_code.signature(file, "f")
    assert found is not None and list(found.parameters) == ["responses", "columns", "k"]
    assert [p.default is inspect.Parameter.empty for p in found.parameters.values()] == [True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "from functools import partial\nf = partial(max, 1)\n",
        "from elsewhere import f\n",
        "from elsewhere import *\n",
        "@cached\ndef f(whatever): ...\n",
        "try:\n    from fast import f\nexcept ImportError:\n    f = None\n",
        "if True:\n    class f: ...\n",
    ],
)
def test_what_only_running_tells_is_left_to_running(write: Write, text: str) -> None:
    assert user_code.signature(write(text), "f") is None


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "def brevity(responses): ...\n": r"rewards\.py has no function 'brevty'; did you mean 'brevity'\?",
        "x = 1\n": r"rewards\.py has no function 'brevty'; known: none",
        "def f():\n    def brevty(): ...\n": r"rewards\.py has no function 'brevty'",
        "async def brevty(responses): ...\n": r"rewards\.py: brevty is an async function; make it a plain one",
        "def brevty(:\n": r"rewards\.py, line 1: not Python \(.*\); mend the file",
        "a = '\0'": r"rewards\.py.*: not Python",
    }.items(),
)
def test_a_function_that_cannot_be_asked_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        user_code.signature(write(text), "brevty")


def test_a_file_that_is_not_there_or_is_called_as_pythons_own_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.py: cannot be read \(No such file or directory\); paths start at /"):
        user_code.digests(tmp_path / "none.py")
    file = write("import statistics\ndef f(responses): ...\n")
    user_code.digests(file)
    write("", "statistics.py")
    with pytest.raises(BadInput, match=r"statistics\.py: Python has a module 'statistics' of its own.*; rename it"):
        user_code.digests(file)


GIVEN = ("prompts", "responses", "columns")


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "def f(responses): ...": ["responses"],
        "def f(columns, prompts): ...": ["prompts", "columns"],
        "def f(responses, weight=2): ...": ["responses"],
        "def f(**anything): ...": list(GIVEN),
        "def f(*, responses): ...": ["responses"],
    }.items(),
)
def test_a_function_is_given_what_its_parameters_name(write: Write, text: str, expected: list[str]) -> None:
    wanted = user_code.signature(write(text), "f")
    assert wanted is not None and user_code.arguments("rewards.py: f", wanted, GIVEN) == expected


@pytest.mark.parametrize("text", ["def f(response): ...", "def f(response, /): ...", "def f(*, response): ..."])
def test_a_function_that_wants_something_else_is_told_what_there_is(write: Write, text: str) -> None:
    wanted = user_code.signature(write(text), "f")
    assert wanted is not None
    message = r"rewards\.py: f has a parameter 'response'; .* by name, and those .* are: prompts, responses, columns"
    with pytest.raises(BadInput, match=message):
        user_code.arguments("rewards.py: f", wanted, GIVEN)
