"""The commands of the stages, derived from mnpo/stages/: a new file there is a new command, and nothing is added here.

A stage is a file whose function `run` takes `settings` and paths. The parameters of `run` are the command's options, by
their names; the first paragraph of its docstring is the command's help, the entries of its `Args:` are the options'.
Two constants may stand beside it: `ENVIRONMENT`, which of envs/ the command runs in, and `OFFLINE = False`, where it
talks to the Hugging Face hub.

The files are read, not imported: they import torch and pandas, and help does not wait for those.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import mnpo.stages
from mnpo.errors import BadInput

SETTINGS = "The stage's settings: JSON, or a JSON or YAML file. See docs/configuration.md."
FILES = {file.stem: file for file in sorted(Path(mnpo.stages.__path__[0]).glob("[!_]*.py"))}
"""Stage -> its source."""


@dataclass(frozen=True)
class Stage:
    """What the source of a stage says of its command."""

    name: str
    run: Callable[..., None]
    """Its function's parameters and docstring, without what it does."""
    environment: str | None
    offline: bool

    @classmethod
    def read(cls, name: str) -> Stage:
        """The stage in `mnpo/stages/{name}.py`."""
        constants: dict[str, Any] = {}
        run: Callable[..., None] = _nothing
        for node in ast.parse(FILES[name].read_bytes()).body:
            match node:
                case ast.Assign([ast.Name(constant)], ast.Constant(value)):
                    constants[constant] = value
                case ast.FunctionDef(name="run"):
                    run = _head(node, FILES[name])
        return cls(name, run, constants.get("ENVIRONMENT"), constants.get("OFFLINE", True))

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What `run` takes."""
        return inspect.signature(self.run).parameters

    @property
    def derived(self) -> bool:
        """Whether `run` has the form that makes a command; those of other stages are in mnpo/cli/commands.py."""
        return "settings" in self.parameters

    @property
    def help(self) -> str:
        """The first paragraph of the docstring."""
        return _line((inspect.getdoc(self.run) or "").partition("\n\n")[0])

    @property
    def options(self) -> list[inspect.Parameter]:
        """`run`'s parameters as those of the command."""
        texts = {"settings": SETTINGS} | _arguments(inspect.getdoc(self.run) or "")
        return [_option(parameter, texts.get(name, "")) for name, parameter in self.parameters.items()]

    def module(self) -> Any:
        """The stage, imported: this is where heavy libraries come in."""
        before_libraries(self.offline)
        return import_module(f"mnpo.stages.{self.name}")

    def command(self) -> Callable[..., None]:
        """A function for Typer that runs the stage."""
        mappings = [name for name, parameter in self.parameters.items() if parameter.annotation == Mapping[str, Path]]

        def command(settings: str, **given: Any) -> None:
            module = self.module()
            given |= {name: _directories(f"--{name}", given[name]) for name in mappings}
            module.run(settings=_settings(module, settings), **given)

        command.__signature__ = inspect.Signature(self.options)  # type: ignore[attr-defined]
        command.__annotations__ = {option.name: option.annotation for option in self.options}
        return command


def before_libraries(offline: bool = True) -> None:
    """Set what Hugging Face's libraries read of the environment when they are imported."""
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _nothing() -> None:
    """Stands for the `run` of a file that has none."""


def _head(run: ast.FunctionDef, file: Path) -> Callable[..., None]:
    """A function with the parameters and the docstring of `run`, made of its source, which names nothing but these."""
    run.decorator_list, run.body = [], run.body[:1]
    names: dict[str, Any] = {"Any": Any, "Mapping": Mapping, "Path": Path, "Sequence": Sequence, "Settings": Any}
    exec(compile(ast.Module([run], []), file, "exec", dont_inherit=True), names)
    return names["run"]  # type: ignore[no-any-return]


def _arguments(docstring: str) -> dict[str, str]:
    """Parameter -> its entry under `Args:`, as a sentence."""
    section = docstring.partition("\nArgs:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", section, re.M)
    return {name: _line(text[0].upper() + text[1:]) for name, text in entries}


def _line(text: str) -> str:
    return " ".join(text.split())


def _option(parameter: inspect.Parameter, text: str) -> inspect.Parameter:
    """A parameter of `run` as one of the command line; a required text is an argument, all else is an option."""
    kind = parameter.annotation
    annotation: Any
    if parameter.name == "settings":
        annotation = Annotated[str, typer.Option(help=text)]
    elif kind is str and parameter.default is parameter.empty:
        annotation = Annotated[str, typer.Argument(help=text)]
    elif kind == Mapping[str, Path]:
        once = f"{text} Once for each NAME."
        annotation = Annotated[list[str], typer.Option(help=once, metavar="NAME=DIRECTORY")]
    else:
        annotation = Annotated[list[Path] if kind == Sequence[Path] else kind, typer.Option(help=text)]
    return parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY)


def _settings(module: Any, text: str) -> Any:
    """What --settings says, as the stage's `Settings`; as it is where the stage has none."""
    from mnpo.config.blocks import validated

    content = _content(text)
    return validated(module.Settings, content, "--settings") if hasattr(module, "Settings") else content


def _content(text: str) -> dict[str, Any]:
    from mnpo.config.blocks import ConfigError
    from mnpo.config.reading import read_yaml

    if not text.lstrip().startswith("{"):
        return read_yaml(Path(text))
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except json.JSONDecodeError as error:
        raise ConfigError(f"--settings: not JSON ({error.msg} at character {error.pos})") from None


def _directories(option: str, pairs: Sequence[str]) -> dict[str, Path]:
    """`NAME=DIRECTORY` each, as a mapping."""
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise BadInput(f"{option}: {wrong!r}, expected NAME=DIRECTORY")
    return {name: Path(directory) for name, _, directory in (pair.partition("=") for pair in pairs)}


STAGES = {name: Stage.read(name) for name in FILES}
ENVIRONMENTS = {name: stage.environment for name, stage in STAGES.items() if stage.derived}
"""Command -> which environment of envs/ it runs in; None: any."""

app = typer.Typer()
for stage in STAGES.values():
    if stage.derived:
        app.command(stage.name, help=stage.help, rich_help_panel="Stages")(stage.command())
