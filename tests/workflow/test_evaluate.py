"""`mnpo evaluate`: a policy that nobody tuned for gets its numbers by one command, and nothing else is made for it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mnpo.benchmarks.cards import CARDS
from mnpo.config.blocks import ConfigError
from mnpo.config.reading import load
from mnpo.demo import benchmarks
from mnpo.errors import BadInput
from mnpo.models.checkpoints import save_copy
from mnpo.planning import job_graph
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.estimate import forecast
from mnpo.planning.evaluate import configure
from mnpo.planning.plan import Plan
from mnpo.storage.artifacts import digest
from mnpo.storage.records import ITEMS, read
from tests.helpers import warm
from tests.helpers.checkouts import ODD
from tests.helpers.without_locks import without_locks

JUDGED = ("alpaca-eval", "arena-hard", "mt-bench")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def test_only_what_the_policys_numbers_rest_on_is_made(here: Path, sft_policy: Path, demo: Path) -> None:
    file = configure(sft_policy, demo, "mine")
    plan = Plan(load(file))
    jobs = {piece.name for piece in job_graph.needed(plan, plan.targets.of("benchmarks"))}
    assert jobs == {
        "harness mine",
        "benchmarks benchmarks",
        *(f"miniature {benchmark}" for benchmark in CARDS),
        *(f"answer mine {benchmark}" for benchmark in JUDGED),
        *(f"judge mine {benchmark}.demo" for benchmark in JUDGED),
    }
    assert plan.files.policy("mine") == str(sft_policy) and list(here.rglob("*.*")) == [
        here / "results/mine/config.yaml"
    ]


def test_the_papers_configuration_measures_any_policy_too(here: Path, sft_policy: Path, root: Path) -> None:
    plan = Plan(load(configure(sft_policy, root / "config.yaml", "mine", ["gsm8k", "mt-bench"])))
    stages = [piece.stage for piece in job_graph.needed(plan, plan.targets.of("benchmarks"))]
    assert sorted(stages) == ["answer", "benchmarks", "download", "download", "harness", "judge"]


def test_a_policy_with_a_copy_in_bfloat16_is_one_policy(
    here: Path, tmp_path: Path, sft_policy: Path, demo: Path
) -> None:
    copied = shutil.copytree(sft_policy, tmp_path / "copied")
    save_copy(copied)
    plans = [Plan(load(configure(p, demo, n))) for p, n in ((copied, "copied"), (sft_policy, "mine"))]
    assert plans[0].files.policy("copied") == str(copied)
    assert Quantities(plans[0]).size("copied") == Quantities(plans[1]).size("mine") > 0


def test_data_and_benchmarks_are_enough(here: Path, tmp_path: Path, sft_policy: Path) -> None:
    """No prompts, no reference, no oracles, no runs: a configuration of the policy, its data and the table."""
    benchmarks.make(tmp_path / "gsm8k", "gsm8k", 0)
    file = configure(sft_policy, None, "mine", ["gsm8k"], {"gsm8k": str(tmp_path / "gsm8k")}, limit=3)
    assert set(yaml.safe_load(file.read_text())) == {"name", "models", "datasets", "runs", "evaluation", "tables"}
    plan = Plan(load(file))
    assert plan.config.evaluation.of("gsm8k").limit == 3 and plan.config.prompts.source == "none"
    jobs = {piece.name for piece in job_graph.needed(plan, plan.targets.of("benchmarks"))}
    assert jobs == {"harness mine", "benchmarks benchmarks"}
    assert plan.measurements.sources(["gsm8k"]) == [str(tmp_path / "gsm8k")]
    assert "harness mine" in {e.work.name for e in forecast(plan).estimates}  # its size by its files


def test_data_and_a_limit_go_in_the_place_of_a_configurations(
    here: Path, tmp_path: Path, sft_policy: Path, demo: Path
) -> None:
    benchmarks.make(tmp_path / "gsm8k", "gsm8k", 0)
    config = load(configure(sft_policy, demo, "mine", [], {"gsm8k": str(tmp_path / "gsm8k")}, limit=3))
    assert config.datasets["gsm8k"].path == str(tmp_path / "gsm8k") and config.datasets["gsm8k"].demo is None
    assert config.datasets["arc"].demo and {config.evaluation.of(b).limit for b in config.evaluation.benchmarks} == {3}


@pytest.mark.parametrize(
    ("chosen", "data", "message"),
    [
        ([], {}, r"--benchmarks: which\? Without --config nothing else says it"),
        (["gsm8k"], {}, r"--data gsm8k=DIRECTORY: where are its data\?"),
        (["gsm8k"], {"gsm8k": "nowhere"}, r"--data gsm8k: .*nowhere is no directory"),
        (["gsm8k"], {"gsm8": "."}, r"--data gsm8: no such benchmark; did you mean 'gsm8k'\?"),
        (
            ["gsm8k"],
            {"gsm8k": "."},
            r"(?s)gsm8k: no test data in .*gsm8k: no train data in .*train\.jsonl",
        ),
        (["mt-bench"], {"mt-bench": "."}, r"evaluation\.judges: mt-bench need a judge, and none is named"),
    ],
)
def test_what_is_not_enough_is_refused(
    here: Path, sft_policy: Path, chosen: list[str], data: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        configure(sft_policy, None, "mine", chosen, data)
    assert not list(here.rglob("config.yaml"))


@pytest.mark.slow
def test_one_benchmark_of_ones_own_files_by_one_command(
    here: Path, tmp_path: Path, random_policy: Path, root: Path
) -> None:
    benchmarks.make(tmp_path / "gsm8k", "gsm8k", 0)
    given = ["--benchmarks", "gsm8k", "--data", f"gsm8k={tmp_path / 'gsm8k'}", "--limit", "2", "--name", "mine"]
    command = ["mnpo", "evaluate", "--policy", str(random_policy), *given]
    result = warm.run(*command, cwd=here, environment=os.environ | {"PYTHONPATH": str(root)})
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    table = pd.read_csv(here / "results/mine/tables/benchmarks.csv")
    assert set(table["benchmark"]) == {"GSM8K"} and "mine" in table and "GSM8K" in result.stdout
    assert len(read(ITEMS, here / "results/mine/evals/mine/gsm8k.parquet")) == 2
    assert re.search(r"^- .*first 2|limit", (here / "results/mine/tables/benchmarks.md").read_text(), re.M)


def test_the_name_is_the_directorys_and_is_taken_once(here: Path, sft_policy: Path, demo: Path) -> None:
    copy = shutil.copytree(sft_policy, here / "My Policy.3")
    assert configure(copy, demo) == configure(copy, demo) == Path("results/my-policy-3/config.yaml")
    (here / "results/other").mkdir()
    with pytest.raises(BadInput, match=r"results/other: has results of something else; give .* another --name"):
        configure(copy, demo, "other")


@pytest.mark.parametrize("based", [True, False])
def test_another_checkpoint_of_the_same_name_replaces_nothing(
    here: Path, sft_policy: Path, demo: Path, based: bool
) -> None:
    first, second = (shutil.copytree(sft_policy, here / run / "final") for run in ("a", "b"))
    benchmarks.make(here / "gsm8k", "gsm8k", 0)
    how = (demo, None, ["gsm8k"]) if based else (None, None, ["gsm8k"], {"gsm8k": "gsm8k"})
    before = configure(first, *how).read_text()
    with pytest.raises(BadInput, match=rf"results/final/config.yaml: measures another .*{first}; give .* --name"):
        configure(second, *how)
    assert Path("results/final/config.yaml").read_text() == before == configure(first, *how).read_text()
    assert configure(second, how[0], "other", *how[2:]) == Path("results/other/config.yaml")


@pytest.mark.parametrize("taken", ["sft", "dataset"])
def test_a_reserved_name_asks_for_another(here: Path, sft_policy: Path, demo: Path, taken: str) -> None:
    copy = shutil.copytree(sft_policy, here / taken)
    with pytest.raises(BadInput, match=rf"^{copy}: nothing here can be called {taken}, .* give .* another --name"):
        configure(copy, demo)
    assert not (here / "results").exists()
    assert configure(copy, demo, "mine") == Path("results/mine/config.yaml")


def test_what_is_no_policy_or_no_benchmark_is_refused_and_leaves_nothing(
    here: Path, sft_policy: Path, demo: Path
) -> None:
    with pytest.raises(BadInput, match=r"nowhere: no model here"):
        configure(Path("nowhere"), demo)
    with pytest.raises(ConfigError, match=r"evaluation\.benchmarks"):
        configure(sft_policy, demo, "mine", ["gsm9k"])
    with pytest.raises(ConfigError, match="does-not-exist.yaml: cannot be read"):
        configure(sft_policy, Path("does-not-exist.yaml"), "mine")
    assert not list(here.rglob("config.yaml")) and not (here / "results/mine").exists()


def evaluate(
    root: Path, policy: Path, *options: str, environment: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """`mnpo evaluate` by few.yaml."""
    command = ["mnpo", "evaluate", "--policy", str(policy), "--config", "few.yaml", *options, "--", "--quiet"]
    own = {**environment, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    if environment is not os.environ:  # which libraries that are loaded already do not see
        return subprocess.run([sys.executable, "-m", *command], env=own, capture_output=True, text=True, check=False)
    return warm.run(*command, environment=own)


@pytest.mark.slow
def test_all_fourteen_numbers_of_a_policy_from_elsewhere(
    here: Path, tmp_path: Path, random_policy: Path, root: Path
) -> None:
    """A policy of random weights, copied out of reach of the project; the first items of each benchmark."""
    copy = shutil.copytree(random_policy, tmp_path / ODD / "elsewhere")
    for name in CARDS:
        benchmarks.make(tmp_path / ODD / "data" / name, name, seed=0)
    changes = {
        "extends": str(root / "configs/demo.yaml"),
        "datasets": {name: {"demo": None, "path": str(tmp_path / ODD / "data" / name)} for name in CARDS},
        "evaluation": {"settings": {name: {"limit": 2, "max_new_tokens": 4} for name in CARDS}},
    }
    (here / "few.yaml").write_text(yaml.safe_dump(changes))
    result = evaluate(root, copy)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    results = here / "results/elsewhere"
    table = pd.read_csv(results / "tables/benchmarks.csv").set_index(["benchmark", "metric"])
    assert len(table) == 15 and {title for title, _ in table.index} == {card.title for card in CARDS.values()}
    for name, card in CARDS.items():
        file = results / f"evals/elsewhere/{name}{'.demo' if name in JUDGED else ''}.json"
        summary = json.loads(file.read_text())
        rows = read(ITEMS, file.with_suffix(".parquet"))
        shown = table.loc[(card.title, summary["metric"].removesuffix(",none")), "elsewhere"]
        assert shown == f"{summary['value']:.2f} ± {summary['stderr']:.2f}"
        assert 0 < len(rows) <= 4 and 0 <= summary["value"] <= 100
        assert card.title in result.stdout and re.search(r"results  results/elsewhere/", result.stdout)
        if name == "alpaca-eval":
            rate, error = (summary["metrics"][f"length_controlled_{what}"] for what in ("winrate", "standard_error"))
            shown = table.loc[(card.title, "length-controlled win_rate"), "elsewhere"]
            assert shown == f"{rate:.2f} ± {error:.2f}"
    assert not (results / "policies").exists() and not (results / "prompts").exists()


@pytest.mark.slow
def test_a_policy_that_changed_under_its_name_is_measured_again(
    here: Path, tmp_path: Path, random_policy: Path, sft_policy: Path, root: Path
) -> None:
    """Other weights of the same size and an earlier time copied over: nothing is newer than the figure."""
    changes = {"extends": str(root / "configs/demo.yaml"), "evaluation": {"settings": {"arc": {"limit": 2}}}}
    (here / "few.yaml").write_text(yaml.safe_dump(changes))
    policy = shutil.copytree(random_policy, tmp_path / "elsewhere")

    def measured() -> str:
        facts = json.loads((here / "results/elsewhere/evals/elsewhere/arc.json.manifest.json").read_text())
        return str(facts["inputs"][str(policy)])

    def replace(source: Path) -> None:
        own = policy.stat()
        shutil.copyfile(source, policy / "model.safetensors")
        os.utime(policy / "model.safetensors", ns=(10**18, 10**18))
        os.utime(policy, ns=(own.st_atime_ns, own.st_mtime_ns))

    assert (result := evaluate(root, policy, "--benchmarks", "arc")).returncode == 0, (
        result.stdout[-3000:] + result.stderr[-3000:]
    )
    before = measured()
    replace(sft_policy / "model.safetensors")
    assert (result := evaluate(root, policy, "--benchmarks", "arc")).returncode == 0, (
        result.stdout[-3000:] + result.stderr[-3000:]
    )
    assert measured() == digest(policy) != before

    # A manifest that was copied along says what the weights were, and is not believed.
    shutil.copy(sft_policy / "manifest.json", policy)
    replace(random_policy / "model.safetensors")
    result = evaluate(root, policy, "--benchmarks", "arc")
    assert result.returncode != 0
    assert "elsewhere: damaged or edited after it was made" in result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_where_no_file_can_be_locked_the_judge_has_its_store_elsewhere(
    here: Path, tmp_path: Path, random_policy: Path, root: Path
) -> None:
    """Said before anything runs; with `stores`, everything runs. Moving the stores makes nothing run again."""
    few = {"mt-bench": {"limit": 2, "max_new_tokens": 4}}
    changes = {"extends": str(root / "configs/demo.yaml"), "evaluation": {"settings": few}}
    (here / "few.yaml").write_text(yaml.safe_dump(changes))
    policy = shutil.copytree(random_policy, tmp_path / "elsewhere")
    environment = without_locks(here / "results", tmp_path)
    asked = ("--benchmarks", "mt-bench")
    result = evaluate(root, policy, *asked, environment=environment)
    assert result.returncode != 0 and not (here / "results/elsewhere/answers").exists()
    assert "does not lock files (No locks available)" in result.stdout + result.stderr

    shutil.rmtree(here / "results")
    (here / "few.yaml").write_text(yaml.safe_dump(changes | {"stores": str(tmp_path / "stores")}))
    result = evaluate(root, policy, *asked, environment=environment)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    below = "results/elsewhere/judgements/demo/elsewhere.mt-bench.sqlite"
    assert (tmp_path / "stores" / below).is_file() and not (here / below).exists()

    figure = here / "results/elsewhere/evals/elsewhere/mt-bench.demo.json"
    before = figure.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "stores")
    (here / "few.yaml").write_text(yaml.safe_dump(changes))
    assert evaluate(root, policy, *asked).returncode == 0
    assert figure.stat().st_mtime_ns == before and not (here / below).exists()
