"""The environments of the stage families: one set of pins in pyproject.toml, the locks and the conda files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FAMILIES = ("train", "infer", "eval")
LOCKS = (*FAMILIES, "evalscope", "demo", "dev")
RANGES = {"numpy>=2.3", "transformers>=5.19"}  # of the package itself: vLLM needs other pins of these than the rest
EXACT = re.compile(r"[a-z0-9.-]+==[a-z0-9.!-]+")


def extra(name: str) -> set[str]:
    """What an extra asks for, with the extras that it includes."""
    asked: set[str] = set()
    for requirement in PROJECT["optional-dependencies"][name]:
        if included := re.fullmatch(r"mnpo\[(.+)\]", requirement):
            asked |= set().union(*(extra(other) for other in included[1].split(",")))
        else:
            asked.add(requirement)
    return asked


def lock(name: str) -> list[str]:
    return (ROOT / f"envs/{name}.txt").read_text().split()


def test_only_what_the_families_pin_themselves_is_a_range() -> None:
    everything = set(PROJECT["dependencies"]).union(*map(extra, PROJECT["optional-dependencies"]))
    assert {r for r in everything if not EXACT.fullmatch(r)} == RANGES
    for family in FAMILIES:
        assert {re.split("[=>]", r)[0] for r in RANGES} <= {r.split("==")[0] for r in extra(family)}


@pytest.mark.parametrize("name", [*FAMILIES, "demo", "dev"])
def test_a_lock_has_every_pin_of_its_extra(name: str) -> None:
    asked = (set(PROJECT["dependencies"]) - RANGES) | extra(name)
    assert len(asked) > 15
    assert asked <= set(lock(name))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_has_one_exact_pin_for_each_package(name: str) -> None:
    pins = lock(name)
    assert [pin for pin in pins if not EXACT.fullmatch(pin)] == []
    assert len({pin.split("==")[0] for pin in pins}) == len(pins) > 50


@pytest.mark.parametrize("name", [*FAMILIES, "evalscope"])
def test_the_conda_file_has_the_pins_of_the_lock(name: str) -> None:
    environment = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
    python, _, from_pip = environment["dependencies"]
    assert python == "python=3.11"
    assert from_pip == {"pip": lock(name)}


@pytest.mark.parametrize("name", ["demo", "train", "eval"])
def test_what_runs_together_agrees(name: str) -> None:
    assert set(lock(name)) <= set(lock("dev"))


def test_the_paper_s_harness_is_the_version_that_it_names() -> None:
    assert (ROOT / "envs/evalscope.in").read_text().split() == ["evalscope==1.0.2", "typer"]  # and our command line
    assert "evalscope==1.0.2" in lock("evalscope")


def test_the_page_on_environments_names_the_pins_that_are() -> None:
    page = (ROOT / "docs/environments.md").read_text()
    named = set(re.findall(r"\b([a-z][a-z0-9-]+==[a-z0-9.]+)", page))
    assert len(named) > 5
    assert named <= set().union(*map(lock, LOCKS))
