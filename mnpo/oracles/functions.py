"""A user's own Python function as an oracle: numbers for responses, or preferences between two.

It is the user's code, and runs in the process of the stage that asks it, in its environment, with all of its rights.
What a model writes reaches it as text only.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

from mnpo.config.oracles import COMPARED, SCORED
from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.oracles import Kept, Oracle, Question, Scorer
from mnpo.oracles.pairs import Game, Pairwise
from mnpo.progress import track
from mnpo.storage import user_code
from mnpo.storage.journal import Journal

BATCH = 256
"""Rows that a function is given at a time."""


class Row(NamedTuple):
    """What a function is asked about: the arguments by name, one of each a row, and what messages call it."""

    arguments: Mapping[str, Any]
    name: str


class Asked:
    """A function of a user's file, asked batch by batch.

    Args:
        file: the Python file.
        function: its name there.
        given: the names of the arguments that there are; the function is given those that its parameters name.
        journal: keeps every batch that is finished, and has those of an earlier session.

    Raises:
        BadInput: a file that cannot be imported, a function that is not there, or one that wants other arguments.
    """

    def __init__(self, file: str, function: str, given: Sequence[str], journal: Journal | None = None) -> None:
        self.file, self.function, self.journal = file, function, journal
        self.where = f"{file}: {function}"
        self.modules = user_code.local_modules(file)
        self.call = imported(file, function)
        try:
            wanted = inspect.signature(self.call)
        except (TypeError, ValueError):  # a class or a builtin that does not tell
            raise BadInput(f"{self.where} does not tell its parameters; wrap it in a function that does") from None
        self.names = user_code.arguments(self.where, wanted, given)

    def ask(self, rows: Sequence[Row], highest: float = math.inf) -> list[float]:
        """The function's number for each row.

        Raises:
            BadInput: an exception in the function, another count of numbers than of rows, or a value that is no number,
                not finite, or (for preferences, `highest` 1) not from 0 to `highest`.
        """
        batches = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        found: list[float] = []
        for batch in track(batches, len(batches), self.where, "batches"):

            def do(batch: Sequence[Row] = batch) -> list[float]:
                return self._numbers(batch, highest)

            key = [self.where, [dict(row.arguments) for row in batch]]
            found += do() if self.journal is None else self.journal.once(key, do)
        return found

    def _numbers(self, batch: Sequence[Row], highest: float) -> list[float]:
        try:
            returned = self._returned(batch)
        except Exception as error:
            raise BadInput(self._raised(batch, error)) from None
        try:
            values = list(returned)
        except TypeError:
            raise BadInput(
                f"{self.where} returned {_shown(returned)} for {len(batch)} responses, the first to {batch[0].name}; "
                "return a list with a number for each"
            ) from None
        if len(values) != len(batch):
            raise BadInput(
                f"{self.where} returned {len(values)} numbers for {len(batch)} responses, the first to "
                f"{batch[0].name}; return one for each"
            )
        return [self._number(value, row, highest) for value, row in zip(values, batch, strict=True)]

    def _returned(self, batch: Sequence[Row]) -> Any:
        arguments = {name: [row.arguments[name] for row in batch] for name in self.names}
        with _importing(self.file, self.modules):
            return self.call(**arguments)

    def _number(self, value: Any, row: Row, highest: float) -> float:
        try:
            number = None if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None:
            raise BadInput(f"{self.where} returned {_shown(value)} for {row.name}; return a number")
        lowest = -math.inf if highest == math.inf else 0.0
        if not math.isfinite(number) or not lowest <= number <= highest:
            wanted = "a finite number" if highest == math.inf else "P(first is better), from 0 to 1"
            raise BadInput(f"{self.where} returned {number} for {row.name}; return {wanted}")
        return number

    def _raised(self, batch: Sequence[Row], error: Exception) -> str:
        """Of an exception: what it is, where in the user's file, and for which row, found by asking row by row."""
        row = f"{len(batch)} responses together, the first to {batch[0].name}"
        for one in batch:
            try:
                self._returned([one])
            except Exception as alone:
                row, error = one.name, alone
                break
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == _absolute(self.file)
        ]
        line = f" in line {lines[-1]}" if lines else ""
        columns = batch[0].arguments["columns"]
        further = f" (columns: {', '.join(columns) or 'none'}; prompts.further names them)"
        hint = further if isinstance(error, KeyError) else ""
        return f"{self.where} raised {type(error).__name__}{line}: {error}{hint}, for {row}; mend the function"


class Function(Scorer):
    """A function that gives each response a number, higher is better."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The function's numbers. Raises BadInput (see Asked.ask)."""
        rows = [
            Row({**_shared(question), "responses": response}, _name(question, f"response {k}", response))
            for question in questions
            for k, response in enumerate(question.responses)
        ]
        numbers = iter(self.asked.ask(rows))
        return [[next(numbers) for _ in question.responses] for question in questions]


class PairFunction(Pairwise):
    """A function that says of two responses how likely the first is the better one; asked in both orders."""

    def __init__(self, asked: Asked, comparisons: int | None = None) -> None:
        super().__init__(comparisons)
        self.asked = asked

    def prefer(self, games: Sequence[Game]) -> list[float | None]:
        """P(the first shown is better). Raises BadInput (see Asked.ask)."""
        rows = []
        for game in games:
            first, second = game.shown
            name = _name(game.question, f"response {game.first} against {game.second}", first)
            rows.append(Row({**_shared(game.question), "first": first, "second": second}, name))
        return list(self.asked.ask(rows, highest=1.0))


def imported(file: str, function: str) -> Callable[..., Any]:
    """A function of a user's file. Raises BadInput: the file cannot be imported, or does not have it."""
    user_code.signature(file, function)
    spec = spec_from_file_location(f"mnpo_user_{Path(file).stem}", _absolute(file))
    if spec is None or spec.loader is None:
        raise BadInput(f"{file}: not a Python file; its name has to end with .py")
    module = module_from_spec(spec)
    try:
        with _importing(file, user_code.local_modules(file)):
            sys.modules[module.__name__] = module  # where dataclasses and pickle look
            spec.loader.exec_module(module)
    except Exception as error:
        remedy = "install it in the environment of the stage" if isinstance(error, ImportError) else "mend the file"
        raise BadInput(f"{file}: cannot be imported ({type(error).__name__}: {error}); {remedy}") from None
    found = getattr(module, function, None)
    if not callable(found):
        raise BadInput(f"{file}: {function} is {_shown(found)}, not a function")
    return found  # type: ignore[no-any-return]


@contextmanager
def _importing(file: str, modules: Sequence[str]) -> Iterator[None]:
    """While a user's code runs it can import modules of its own directory, and gets no others of the same names."""
    directory = _absolute(file).parent
    sys.path.insert(0, str(directory))
    for name in modules:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and not Path(origin).is_relative_to(directory):
            del sys.modules[name]
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def _shared(question: Question) -> dict[str, Any]:
    """The arguments that all responses to a prompt have in common."""
    columns = json.loads(question.truth) if question.truth else {}
    return {"prompts": question.prompt, "columns": columns, "turns": question.turns}


def _name(question: Question, which: str, response: str) -> str:
    return f"prompt {question.name[:80]}, {which} ({_shown(response)})"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _absolute(file: str) -> Path:
    return Path(file).absolute()


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    assert settings.file is not None and settings.function is not None
    if settings.compare:
        asked = Asked(settings.file, settings.function, COMPARED, kept.journal)
        return PairFunction(asked, settings.comparisons)
    return Function(Asked(settings.file, settings.function, SCORED, kept.journal))
