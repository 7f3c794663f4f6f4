"""What a person types, and what Snakemake would make a traceback of: one message that names the remedy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.helpers import warm

ROOT = Path(__file__).parents[2]
DEMO = "configs/demo.yaml"

pytestmark = pytest.mark.slow


def snakemake(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ("--dry-run", "--quiet", "all", "--nolock", *options)
    return warm.run("snakemake", *options, cwd=ROOT, environment=os.environ | environment)


@pytest.mark.parametrize("profile", [[], ["--profile", "profiles/demo"]], ids=["alone", "with a profile"])
@pytest.mark.parametrize(
    ("typed", "message"),
    {
        ("--configfile", DEMO, "theory"): (
            f"theory: read as a second configuration file, as is all that follows --configfile; "
            f"put two dashes before targets: --configfile {DEMO} -- theory"
        ),
        ("--cores", "1", "--configfile", DEMO, "table5", "table7", "--keep-going"): (
            f"put two dashes before targets: --configfile {DEMO} -- table5 table7"
        ),
        ("--configfile", "nowhere.yaml", "--", "theory"): "nowhere.yaml: no such configuration file",
        ("--configfile", DEMO, "config.yaml"): "one --configfile at a time",
    }.items(),
)
def test_a_target_that_is_swallowed_as_a_configuration(
    profile: list[str], typed: tuple[str, ...], message: str
) -> None:
    result = snakemake(*profile, *typed)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr and "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    "typed",
    [
        ("--configfile", DEMO, "--", "theory"),
        ("theory", "--configfile", DEMO),
        ("study", "--configfile", DEMO),
        (f"--configfile={DEMO}", "theory"),
        ("--profile", "profiles/demo", "theory"),
    ],
)
def test_the_forms_that_work(typed: tuple[str, ...]) -> None:
    result = snakemake(*typed)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the directory would be: tests may run as root, whom no permission stops."""
    (tmp_path / "home").write_text("")
    environment = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": ""}
    result = snakemake("--configfile", DEMO, "--", "theory", **environment)
    assert result.returncode != 0 and "Traceback" not in result.stdout + result.stderr
    assert f"{tmp_path}/home/.cache/snakemake: Snakemake keeps sources there" in result.stderr
    assert "export XDG_CACHE_HOME with a directory that can" in result.stderr

    result = snakemake(
        "--configfile", DEMO, "--", "theory", **environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    )
    assert result.returncode == 0, result.stdout + result.stderr
