"""The commands of the stages: each is what its stage's source says, and help costs no heavy import."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from mnpo.cli import app, commands, stages
from mnpo.errors import BadInput
from mnpo.planning.registry import stage_of

ROOT = Path(__file__).parents[1]
COMMANDS: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DERIVED = [name for name, stage in stages.STAGES.items() if stage.derived]
BY_HAND = {"game": "game", "pin": "pin", "study": "study"}  # stage -> the command in mnpo/cli/commands.py
ENVIRONMENTS = stages.ENVIRONMENTS | commands.ENVIRONMENTS


def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> stages.Stage:
    """The stage that a file with this text is."""
    file = tmp_path / "new.py"
    file.write_text(text)
    monkeypatch.setitem(stages.FILES, "new", file)
    return stages.Stage.read("new")


# ---------------------------------------------------------------------------------------------------------- every stage


def test_every_file_of_the_stages_has_a_command() -> None:
    files = {file.stem for file in (ROOT / "mnpo" / "stages").glob("*.py")} - {"__init__"}
    assert len(DERIVED) > 20 and files == set(DERIVED) | set(BY_HAND)
    assert files <= set(COMMANDS)


@pytest.mark.parametrize("name", DERIVED)
def test_the_options_of_a_command_are_the_parameters_of_its_run(name: str) -> None:
    """By name, type and default, as the imported module has them."""
    module = import_module(f"mnpo.stages.{name}")
    hints = get_type_hints(module.run)
    expected = {}
    for parameter in inspect.signature(module.run).parameters.values():
        kind = {Sequence[Path]: list[Path], Mapping[str, Path]: list[str]}.get(
            hints[parameter.name], hints[parameter.name]
        )
        expected[parameter.name] = (str if parameter.name == "settings" else kind, parameter.default)
    options = {option.name: (get_args(option.annotation)[0], option.default) for option in stages.STAGES[name].options}
    assert options == expected
    shown = {parameter.name: parameter for parameter in COMMANDS[name].params}
    assert list(shown) == list(expected)
    for parameter, (kind, default) in expected.items():
        is_argument = kind is str and parameter != "settings"
        assert shown[parameter].opts == [parameter if is_argument else f"--{parameter}"]
        assert shown[parameter].required == (default is inspect.Parameter.empty)
        assert shown[parameter].multiple == (kind in (list[Path], list[str]))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_every_option_has_a_help_text(name: str) -> None:
    command = COMMANDS[name]
    first = command.help.splitlines()[0]
    assert first[0].isupper() and first.endswith(".") and len(first) < 120
    shown = [parameter for parameter in command.params if not parameter.hidden]
    assert [parameter.name for parameter in shown if not (parameter.help or "").strip()] == []


def test_every_commands_environment_is_one_of_envs() -> None:
    assert set(ENVIRONMENTS) <= set(COMMANDS)
    assert {e for e in ENVIRONMENTS.values() if e} == {file.stem for file in (ROOT / "envs").glob("*.yaml")}


def rules() -> Iterator[tuple[str, str]]:
    """The command that each rule of the workflow calls, and the rule's text."""
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.M)[1:]:
            if command := re.search(r"-m mnpo --log \{log:q\} (\S+)", rule):
                yield command[1].replace("{params.command:q}", rule.partition(":")[0]), rule


def test_a_rules_stage_is_the_command_that_it_calls() -> None:
    """So is the stage of a rule that is made of another (`use rule A as B`)."""
    called = {rule.partition(":")[0]: command for command, rule in rules()}
    assert {rule: stage_of(rule) for rule in called} == called
    text = "".join(file.read_text() for file in (ROOT / "workflow" / "rules").glob("*.smk"))
    made = dict(re.findall(r"^use rule (\w+) as (\w+) with:", text, re.M))
    assert {of: stage_of(rule) for of, rule in made.items()} == {of: of for of in made}
    assert made == {"train": "train_passing", "score": "score_asking", "miniature": "miniature_model"}


def test_the_options_that_a_rule_gives_are_its_commands() -> None:
    """All that are required among them."""
    called = dict(rules())
    assert len(called) > 20
    for command, rule in called.items():
        given = set(re.findall(r"--([a-z-]+)(?=[ =])", rule)) - {"log"}
        options = {p.name: p.required for p in COMMANDS[command].params if p.opts[0].startswith("--")}
        assert {name for name, required in options.items() if required} <= given <= set(options), command


def test_a_command_runs_in_the_environment_of_its_rule() -> None:
    """`make envs` and `snakemake --sdm conda` choose alike."""
    said = {}
    for command, rule in rules():
        environment = re.search(r'conda:\n\s+"../../envs/(\w+)\.yaml"', rule)
        if environment and ENVIRONMENTS.get(command):
            said[command] = environment[1]
    assert len(said) > 15
    assert said == {command: ENVIRONMENTS[command] for command in said}


# ------------------------------------------------------------------------------------------------------------ a new one


def test_a_new_file_is_a_new_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever it imports, for it is not imported; of its docstring the first paragraph and `Args:`."""
    stage = written(
        monkeypatch,
        tmp_path,
        "import no_such_library\n"
        'ENVIRONMENT = "infer"\n'
        "@no_such_library.decorated\n"
        "def run(settings: Settings, kind: str, data: Mapping[str, Path], output: Path, rows: Sequence[Path] = (),\n"
        '        kept: Path = Path("a/b"), other: Path | None = None, times: int = 2) -> None:\n'
        '    """Do this,\n    and that.\n\n    More.\n\n    Args:\n        data: the data\n            of all.\n'
        '        kept: what\n            is kept.\n\n    Raises:\n        BadInput: never.\n    """\n'
        "    no_such_library.run()\n",
    )
    assert stage.derived and stage.offline and stage.environment == "infer" and stage.help == "Do this, and that."
    options = {o.name: (*get_args(o.annotation)[:1], get_args(o.annotation)[1].help, o.default) for o in stage.options}
    empty = inspect.Parameter.empty
    assert options == {
        "settings": (str, stages.SETTINGS, empty),
        "kind": (str, "", empty),
        "data": (list[str], "The data of all. Once for each NAME.", empty),
        "output": (Path, "", empty),
        "rows": (list[Path], "", ()),
        "kept": (Path, "What is kept.", Path("a/b")),
        "other": (Path | None, "", None),
        "times": (int, "", 2),
    }


def test_what_is_given_arrives_at_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stage = written(
        monkeypatch,
        tmp_path,
        "def run(settings: Settings, kind: str, data: Mapping[str, Path], output: Path, rows: Sequence[Path] = (),\n"
        '        kept: Path = Path("a/b"), other: Path | None = None) -> None:\n    """Do."""\n',
    )
    came: list[dict[str, Any]] = []

    class Module:
        @staticmethod
        def run(**given: Any) -> None:
            came.append(given)

    monkeypatch.setattr(stages.Stage, "module", lambda self: Module)
    alone = typer.Typer()
    alone.command()(stage.command())
    least = ["x", "--settings", '{"a": 1}', "--data", "d=e=f", "--output", "o"]
    every = [*least, "--rows", "2", "--rows", "1", "--kept", "k", "--other", "p", "--data", "g=h"]
    for given in (least, every):
        assert CliRunner().invoke(alone, given).exit_code == 0
    usual = {"settings": {"a": 1}, "kind": "x", "data": {"d": Path("e=f")}, "output": Path("o")}
    assert came[0] == usual | {"rows": [], "kept": Path("a/b"), "other": None}
    data = {"d": Path("e=f"), "g": Path("h")}
    assert came[1] == usual | {"rows": [Path("2"), Path("1")], "kept": Path("k"), "other": Path("p"), "data": data}
    refused = CliRunner().invoke(alone, [*least, "--data", "nothing"])
    assert isinstance(refused.exception, BadInput)
    assert str(refused.exception) == "--data: 'nothing', expected NAME=DIRECTORY"


def test_a_file_whose_run_takes_no_settings_makes_no_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not written(monkeypatch, tmp_path, "def run(*, seed: int = 0) -> None:\n    pass\n").derived
    assert not written(monkeypatch, tmp_path, "OFFLINE = False\n").derived
    assert not stages.Stage.read("new").offline


# ----------------------------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "--help"]])
def test_help_is_fast_and_imports_nothing_heavy(arguments: list[str]) -> None:
    """Under half a second of one core, so also where cores are shared."""
    program = (
        "import sys, time; from mnpo.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(time.process_time(), *sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    seconds, *imported = done.stderr.split()
    assert "Usage" in done.stdout
    assert {"torch", "pandas", "numpy", "transformers", "matplotlib"}.isdisjoint(imported)
    assert not any(name.startswith("mnpo.stages.") for name in imported)
    assert float(seconds) < 0.5


def test_the_offline_variables_are_set_but_for_what_asks_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name, stage in stages.STAGES.items() if not stage.offline] == ["download", "pin"]
    for name, offline in (("pair", "1"), ("pin", "0")):
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
        assert stages.STAGES[name].module().__name__ == f"mnpo.stages.{name}"
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == offline


def test_a_command_goes_on_in_its_own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MNPO_ENVIRONMENTS", str(tmp_path))
    for command, environment in (("sample", "infer"), ("judge-evalscope", "evalscope"), ("costs", "eval")):
        refused = CliRunner().invoke(app, [command])
        assert isinstance(refused.exception, BadInput) and f"{tmp_path}/{environment}/bin/python" in str(
            refused.exception
        )
    assert CliRunner().invoke(app, ["schema"]).exit_code == 0
