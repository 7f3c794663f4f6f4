"""Under a path with a space, a quote, an ampersand and an umlaut every command gets the same words as elsewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.helpers import warm
from tests.helpers.checkouts import ODD, ROOT, Checkout

CLUSTER = {
    "cpu": {"partition": "cpu", "max_minutes": 60},
    "gpu": {"partition": "gpu", "max_minutes": 60, "per_node": 4},
}


def test_every_value_in_every_rules_command_is_quoted() -> None:
    files = [ROOT / "Snakefile", *sorted(ROOT.glob("workflow/rules/*.smk"))]
    commands = [c for file in files for c in re.findall(r"^    shell:\n((?:        .*\n)+)", file.read_text(), re.M)]
    assert len(commands) > 20
    values = [value for command in commands for value in re.findall(r"\{.*?\}", command)]
    assert [value for value in values if not value.endswith(":q}")] == []


def commands(checkout: Path, config: str, *targets: str) -> list[list[str]]:
    """The words of every command that a configuration would run in a checkout, on a cluster, from a cache beside it."""
    (checkout / "cluster.yaml").write_text(yaml.safe_dump(CLUSTER))
    places = {
        name: str(checkout / place) for name, place in (("MNPO_CLUSTER", "cluster.yaml"), ("MNPO_CACHE", "cache"))
    }
    options = ["-n", "-p", "--forceall", "--configfile", config, "--", *targets]
    environment = os.environ | {"PYTHONPATH": str(checkout), **places}
    done = warm.run("snakemake", *options, cwd=checkout, environment=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = re.findall(r"^(?:Shell command: *)?((?:exec|snakemake) .*)$", done.stdout, re.M)
    # JSON writes an umlaut in ASCII, and a checkout's path is what the two differ in.
    at = str(checkout)
    words = [[word.replace("\\u00e4", "ä").replace(at, "CHECKOUT") for word in shlex.split(line)] for line in found]
    return sorted(words)


@pytest.mark.slow
def test_the_papers_commands_are_the_same_words_wherever_the_checkout_is(tmp_path: Path) -> None:
    plain, odd = ([], [])
    for place, name in ((plain, "plain"), (odd, ODD)):
        checkout = Checkout.of_project(tmp_path / name, "config.yaml")
        place += commands(checkout.path, "config.yaml", "all", "report")
    assert len(plain) > 400  # 427 jobs, and the report
    assert odd == plain
    launchers = {tuple(words[1 : words.index("python")]) for words in odd if "train" in words}
    assert {words[-1] for words in launchers} == {"CHECKOUT/workflow/rank.sh"}
    assert any("CHECKOUT/cache/models" in word for words in odd for word in words)


@pytest.mark.slow
def test_a_policy_under_such_a_path_is_measured_by_the_same_words(tmp_path: Path, random_policy: Path) -> None:
    plain, odd = ([], [])
    for place, name in ((plain, "plain"), (odd, ODD)):
        checkout = Checkout.of_project(tmp_path / name, "configs/demo.yaml")
        shutil.copytree(random_policy, checkout.path / "my policy")
        evaluate = ["mnpo", "evaluate", "--policy", "my policy", "--config", "configs/demo.yaml", "--", "-n", "--quiet"]
        done = checkout.python(*evaluate)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        place += commands(checkout.path, "results/my-policy/config.yaml", "benchmarks")
    assert len(plain) > 3
    assert odd == plain
    policies = {words[words.index("--policy") + 1] for words in odd if "--policy" in words}
    assert policies == {"CHECKOUT/my policy"}


def test_the_profile_is_linked_wherever_checkout_and_home_are(tmp_path: Path) -> None:
    checkout, home = tmp_path / ODD / "checkout", tmp_path / ODD / "home"
    (checkout / "profiles").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", checkout)
    ignored = shutil.ignore_patterns("cluster.yaml")
    shutil.copytree(ROOT / "profiles/slurm", checkout / "profiles/slurm", ignore=ignored)
    (checkout / "my cluster.yaml").write_text("account: mine\n")
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"}
    for options, link in (({"HOME": str(home)}, home / ".config"), ({"XDG_CONFIG_HOME": f"{home}/x y"}, home / "x y")):
        subprocess.run(
            ["make", "slurm-profile", "CLUSTER=my cluster.yaml"], cwd=checkout, env=environment | options, check=True
        )
        assert (link / "snakemake/slurm").resolve() == checkout / "profiles/slurm"
    assert (checkout / "profiles/slurm/cluster.yaml").read_text() == "account: mine\n"
