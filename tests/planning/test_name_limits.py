"""Names are bounded by the names of files made of them: no job dies at a file that cannot be called so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnpo.config.blocks import ConfigError
from mnpo.planning.name_limits import LIMIT
from mnpo.planning.plan import Plan
from tests.helpers.checkouts import Checkout

TOLD = re.compile(r"(\w+): the name \S+ has (\d+) characters, .* more than the 255 .*; give it at most (\d+)$", re.M)


def named(length: int) -> str:
    """A name without a period: Snakemake takes one that repeats itself for a mistake."""
    return ("n" + "".join(map(str, range(length))))[:length]


def run(oracle: str = "overall", **objective: Any) -> dict[str, Any]:
    objective = objective or {"name": "td-mnpo", "eta": 0.2, "ratio": 1 / 3, "history": 2}
    return {"objective": objective, "oracle": oracle, "iterations": [{"parts": [1]}, {"parts": [2]}]}


def of_run(name: str) -> dict[str, Any]:
    return {"runs": {name: run()}, "tables": {"win_against": ["sft"]}}


def of_exploiter(name: str) -> dict[str, Any]:
    """Three names in one: {policy}.exploiter.1 on part2 by overall@{policy} under {policy}.exploiter.1."""
    return of_run(name) | {"exploitability": {"oracle": "overall", "parts": [[1], [2]]}, "seeds": 2}


def of_oracle(name: str) -> dict[str, Any]:
    oracles = {
        "correctness": {"kind": "rule", "rule": "correctness"},
        "overall": {"kind": "weighted", "weights": {"correctness": 1}},
        name: {"kind": "rule", "rule": "brevity"},
        "majority": {"kind": "majority", "of": ["correctness", name]},
    }
    evaluation = {"oracle": "overall", "scores": ["overall"]}
    return {"oracles": oracles, "runs": {"a": run(name)}, "tables": {"win_against": ["sft"]}, "evaluation": evaluation}


def of_judge(name: str) -> dict[str, Any]:
    return {"judges": {name: {"model": "m", "endpoint": "demo"}}, "evaluation": {"judges": [name], "repeats": 12}}


def of_model(name: str) -> dict[str, Any]:
    tiny = {"path": "here"}
    return {"models": {"tiny": tiny, name: tiny}, "evaluation": {"models": [name]}}


def of_dataset(name: str) -> dict[str, Any]:
    return {"datasets": {"gsm8k": {"demo": True}, name: {"path": "here"}}, "evaluation": {"benchmarks": ["gsm8k"]}}


def of_all(name: str) -> dict[str, Any]:
    return {"name": name}


KINDS: dict[str, tuple[Callable[[str], dict[str, Any]], str]] = {
    "run": (of_run, "runs"),
    "exploiter": (of_exploiter, "runs"),
    "oracle": (of_oracle, "oracles"),
    "judge": (of_judge, "judges"),
    "model": (of_model, "models"),
    "dataset": (of_dataset, "datasets"),
    "configuration": (of_all, "name"),
}


def bound(planned: Callable[..., Plan], kind: str) -> int:
    """How long the message says that a name may be, of one of 300 characters."""
    changes, key = KINDS[kind]
    with pytest.raises(ConfigError) as error:
        planned(**changes(named(300)))
    (told,) = TOLD.findall(str(error.value))
    assert told[:2] == (key, "300") and named(50) not in str(error.value)
    return int(told[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_that_is_told_is_the_bound(planned: Callable[..., Plan], kind: str) -> None:
    changes, _ = KINDS[kind]
    most = bound(planned, kind)
    planned(**changes(named(most)))
    with pytest.raises(ConfigError, match=f"has {most + 1} characters.* give it at most {most}$"):
        planned(**changes(named(most + 1)))


def test_a_run_of_118_characters_is_refused_where_its_files_would_be_too_long(planned: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match=r"runs: the name n012\S+ has 118 characters"):
        planned(**of_run(named(118)))
    assert planned(**of_run(named(100)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["run", "exploiter", "oracle", "judge"])
def test_every_file_of_the_longest_names_can_be_written(
    planned: Callable[..., Plan], tmp_path: Path, kind: str
) -> None:
    """Logs and results as the rules call them, and what making them adds: `.partial-`, `.manifest.json`."""
    checkout = Checkout.of_project(tmp_path, "longest.yaml")
    changes = KINDS[kind][0](named(bound(planned, kind)))
    (tmp_path / "longest.yaml").write_text(yaml.safe_dump({"extends": "configs/demo.yaml"} | changes))
    target = ["exploitability"] if kind == "exploiter" else []
    said = checkout.made("--dry-run", "--", "all", *target)
    logs = re.findall(r"^    log: (\S+)", said, re.M)
    outputs = [
        file
        for files in re.findall(r"^    output: (.*)$", said, re.M)
        for file in re.findall(r"[^\s,]+/[^\s,]+", files)
    ]
    longest = max(len(part) for file in logs for part in Path(file).parts)
    assert LIMIT - 25 < longest <= LIMIT
    assert (
        max(len(f".partial-{Path(file).name.removesuffix('.manifest.json')}.manifest.json") for file in outputs)
        <= LIMIT
    )
    assert max(len(part) for file in outputs for part in Path(file).parts) <= LIMIT
