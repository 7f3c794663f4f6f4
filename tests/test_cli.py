"""The command line: exit codes that mean something, and one line instead of a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo import cli
from mnpo.config.reading import load
from mnpo.config.text import Text
from mnpo.planning import environments
from mnpo.planning.plan import Plan
from mnpo.storage.records import PAIRS, PROMPTS, read

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mnpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """`mnpo` with these arguments, in this process: exit code, output, errors."""

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # which the command line sets: back to what it was
        monkeypatch.setenv(name, "0")

    def _mnpo(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mnpo", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as exit_:
            code = exit_.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return _mnpo


def test_a_command_enters_another_python_only_when_it_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A system's /bin/python3 is in no environment: its prefix is /usr, and it must not begin anew without end."""
    entered: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda python, arguments: entered.append([str(python), *arguments[1:]]))
    monkeypatch.setattr(sys, "argv", ["mnpo", "train", "--seed", "1"])
    monkeypatch.delenv(environments.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/python3")
    monkeypatch.setattr(sys, "prefix", "/usr")
    cli._enter("train")
    cli._enter(None)
    assert not entered

    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    python = tmp_path / "train/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    cli._enter(None)
    assert not entered
    cli._enter("train")
    assert entered == [[str(python), "-m", "mnpo", "train", "--seed", "1"]]
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "train"))  # it has begun there
    cli._enter("train")
    assert len(entered) == 1


# ---------------------------------------------------------------------------------------------------------- exit code 0


def test_help_names_every_stage(mnpo: Call) -> None:
    code, out, _ = mnpo("--help")
    assert code == 0
    stages = ["prompts", "sft", "sample", "score", "pair", "logps", "train", "assess", "evaluate", "tabulate", "plot"]
    stages += ["game", "theory", "study", "costs", "plan", "show", "schema"]
    assert all(f" {stage} " in out for stage in stages)
    assert "Exit codes" in out


def test_schema_prints_the_committed_schema(mnpo: Call, root: Path) -> None:
    assert mnpo("schema") == (0, (root / "configs" / "schema.json").read_text(), "")


def test_stages_run_with_the_plans_settings_as_json_or_from_a_file(mnpo: Call, tmp_path: Path, demo: Path) -> None:
    """prompts to pairs, with the settings that the workflow would pass."""
    small = {"prompts": {"demonstrations": 14, "part_size": 7, "heldout": 7, "parts": 3}}
    settings = Plan(load(demo, small)).settings("prompts")
    (tmp_path / "settings.json").write_text(settings)
    assert mnpo("prompts", "--settings", settings, "--output", tmp_path / "a")[0] == 0
    assert mnpo("prompts", "--settings", tmp_path / "settings.json", "--output", tmp_path / "b")[0] == 0
    assert (tmp_path / "a" / "part3.parquet").read_bytes() == (tmp_path / "b" / "part3.parquet").read_bytes()
    assert len(read(PROMPTS, tmp_path / "a" / "part3.parquet")) == 7


def test_show_says_how_the_report_of_this_configuration_is_made(
    mnpo: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo: Path
) -> None:
    """Plain `snakemake report` would plan config.yaml, the paper."""
    monkeypatch.chdir(tmp_path)
    Path("results/demo/tables").mkdir(parents=True)
    Path("results/demo/tables/main.md").write_text("the table")
    code, out, _ = mnpo("show", "--config", demo)
    assert code == 0 and out.startswith("the table")
    assert f"report   `snakemake --configfile {demo} --cores 1 -- report` makes it" in out


def test_options_that_repeat_are_lists_of_files(mnpo: Call, tmp_path: Path, chain: dict[str, Path]) -> None:
    output = tmp_path / "pairs.parquet"
    arguments = [f"--samples={chain['samples']}", f"--scores={chain['scores']}", f"--output={output}"]
    assert mnpo("pair", "--settings", '{"pairing": {}}', *arguments)[0] == 0
    assert read(PAIRS, output).equals(read(PAIRS, chain["pairs"]))


# ------------------------------------------------------------------------------------------------------ exit codes 2, 3


@pytest.mark.parametrize("arguments", [["smaple"], ["sample"], ["sample", "--policyy", "x"], ["plot"]])
def test_wrong_usage_is_2(mnpo: Call, arguments: list[str]) -> None:
    code, _, err = mnpo(*arguments)
    assert code == 2
    assert "Traceback" not in err and "Usage" in err


def refused(result: tuple[int, str, str], *expected: str) -> None:
    code, out, err = result
    assert code == 3
    assert out == ""
    assert err.startswith("mnpo: ") and err.count("\n") == 1
    assert all(text in err for text in expected), err


def test_a_bad_input_is_3_and_one_line(
    mnpo: Call, tmp_path: Path, chain: dict[str, Path], demo: Path, text: Text
) -> None:
    out = f"--output={tmp_path / 'out'}"
    files = [f"--samples={chain['samples']}", f"--scores={chain['scores']}"]
    pair = '{"pairing": {}}'
    refused(mnpo("pair", "--settings", '{"pairing": {"min_gapp": 1}}', *files, out), "pairing.min_gapp", "'min_gap'")
    refused(mnpo("pair", "--settings", '{"pairing": ', *files, out), "--settings: not JSON")
    refused(mnpo("pair", "--settings", tmp_path / "none.json", *files, out), "none.json: cannot be read")
    refused(mnpo("pair", "--settings", pair, "--samples=none.parquet", files[1], out), "none.parquet")
    refused(mnpo("pair", "--settings", pair, f"--samples={chain['scores']}", files[1], out), "need the columns")
    (tmp_path / "cut.parquet").write_bytes(chain["samples"].read_bytes()[:-20])
    refused(mnpo("pair", "--settings", pair, f"--samples={tmp_path / 'cut.parquet'}", files[1], out), "cut.parquet")
    refused(mnpo("plan", "--config", tmp_path / "none.yaml"), "none.yaml: cannot be read")
    (tmp_path / "broken.yaml").write_text("extends: " + str(demo) + "\nsampling: {temprature: 1}\n")
    refused(mnpo("plan", "--config", tmp_path / "broken.yaml"), "sampling.temprature", "'temperature'")
    sampling = json.dumps({"sampling": {}, "text": text.model_dump(), "shard": 0, "seed": 0})
    (tmp_path / "empty").mkdir()
    arguments = [
        "sample",
        "--settings",
        sampling,
        f"--policy={tmp_path / 'empty'}",
        f"--prompts={chain['prompts']}",
        out,
    ]
    refused(mnpo(*arguments), "empty", "tokenizer_config.json")
    refused(
        mnpo(
            "plot",
            "win_rat",
            "--settings",
            '{"labels":{},"runs":{},"trainings":{},"run_labels":{},"oracle":"o","scores":[]}',
            "--tables=.",
            out,
        ),
        "win_rate",
    )
    assert not (tmp_path / "out").exists()


def test_a_malformed_row_of_a_users_file_is_3_and_named(mnpo: Call, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"\n')
    prompts = {"source": "file", "path": str(tmp_path / "p.jsonl"), "heldout": 1, "parts": 1}
    settings = json.dumps({"prompts": prompts, "seed": 0})
    refused(mnpo("prompts", "--settings", settings, "--output", tmp_path / "out"), "p.jsonl: line 2 is not JSON")


def test_a_missing_evaluation_is_3(mnpo: Call, tmp_path: Path, demo: Path) -> None:
    settings = Plan(load(demo)).settings("tabulate")
    refused(mnpo("tabulate", "--settings", settings, "--evaluations=none.json", f"--output={tmp_path}"), "none.json")


# ---------------------------------------------------------------------------------------------------------- exit code 4


def test_a_training_that_diverges_is_4_and_leaves_nothing(
    mnpo: Call, tmp_path: Path, chain: dict[str, Path], text: Text
) -> None:
    settings = {
        "policy": "inpo.1",
        "start": "sft",
        "objective": {"name": "inpo", "eta": 0.2, "ratio": 0.5},
        "opponents": [["sft", 1.0]],
        "scorers": ["sft"],
        "training": {"epochs": 3, "batch_size": 4, "learning_rate": 1e30, "warmup": 0},
        "form": {},
        "text": text.model_dump(),
        "seed": 0,
    }
    arguments = [f"--start={chain['policy']}", f"--pairs={chain['pairs']}", f"--logps={chain['logps']}"]
    code, _, err = mnpo("train", "--settings", json.dumps(settings), *arguments, f"--output={tmp_path / 'out'}")
    assert code == 4
    assert err.startswith("mnpo: train inpo.1: step ") and "Traceback" not in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_process_of_its_own_ends_with_the_same_code_and_line(root: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mnpo", "plan", "--config", "none.yaml"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 3
    assert (
        result.stderr
        == "mnpo: none.yaml: cannot be read (No such file or directory); name a configuration that exists\n"
    )


# ------------------------------------------------------------------------------------------------------------- the log


@pytest.mark.parametrize(
    "leak",
    [
        "os.dup(2)",  # as DeepSpeed does in every training by ZeRO
        "subprocess.Popen(['sleep', '60'], start_new_session=True)",
    ],
    ids=["by this process", "by a helper that lives on"],
)
def test_a_stage_ends_though_something_keeps_its_error_stream_open(tmp_path: Path, leak: str) -> None:
    log = tmp_path / "log"
    program = f"""\
import os, subprocess, sys
from pathlib import Path
from mnpo.cli import _copy_to
_copy_to(Path({str(log)!r}))
kept = {leak}
print("the last line", file=sys.stderr)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=True)
    assert log.read_text() == done.stdout == "the last line\n"
