"""The workflow itself, on a demo scaled down: what runs, what reruns, and that nothing else does."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mnpo.planning.targets import FIGURES
from tests.helpers.checkouts import ROOT, Checkout, until

CONFIG = "tests/workflow/small.yaml"

pytestmark = pytest.mark.slow


def small(path: Path) -> Checkout:
    checkout = Checkout.of_project(path, CONFIG)
    (path / CONFIG).parent.mkdir(parents=True)
    shutil.copy(ROOT / CONFIG, path / CONFIG)
    return checkout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose run is done."""
    checkout = small(tmp_path_factory.mktemp("finished"))
    checkout.made()
    return checkout


@pytest.fixture
def finished(run: Checkout) -> Path:
    return run.path


@pytest.fixture
def checkout(run: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished checkout, free to be edited."""
    return run.copy(tmp_path / "checkout")


def test_the_chain_makes_every_noun(finished: Path) -> None:
    results = finished / "results/small"
    for policy in ("sft", "inpo.1", "inpo.2", "td-mnpo.1", "td-mnpo.2"):
        assert (results / f"policies/{policy}/model.safetensors").is_file()
        assert (results / f"evals/{policy}/heldout.json").is_file()
    main = pd.read_csv(results / "tables/main.csv")
    assert list(main["policy"]) == ["SFT", "INPO 1", "INPO 2", "TD-MNPO 1", "TD-MNPO 2"]
    assert main["win_vs_sft"].iloc[1:].between(0, 1).all()
    for figure in (*FIGURES, "theory"):
        assert (results / f"figures/{figure}.svg").read_text().lstrip().startswith("<?xml")
        assert (results / f"figures/{figure}.png").read_bytes().startswith(b"\x89PNG")


def test_one_logps_file_for_each_pairs_and_scorer(finished: Path) -> None:
    found = sorted(str(p.relative_to(finished / "results/small/logps")) for p in finished.rglob("logps/**/*.parquet"))
    assert [file for file in found if "/sampler/" not in file] == [
        "inpo.1/part2/overall/chat/inpo.1.parquet",
        "inpo.1/part2/overall/chat/sft.parquet",
        "sft/part1/overall/chat/sft.parquet",  # shared by both runs: opponent and reference of iteration 1
        "td-mnpo.1/part2/overall/chat/sft.parquet",  # opponent pi_1's predecessor and the reference are one file
        "td-mnpo.1/part2/overall/chat/td-mnpo.1.parquet",
    ]


def test_a_policys_log_probabilities_of_its_own_samples_are_those_of_the_sampler(finished: Path) -> None:
    """In every job whose policy drew the responses; an opponent's are computed."""
    said = {}
    for file in finished.rglob("logps/*/*/overall/chat/*.manifest.json"):
        drew = file.parts[-5]
        said[drew, file.name.removesuffix(".parquet.manifest.json")] = json.loads(file.read_text()).get(
            "said_by_the_sampler"
        )
    assert all((count is not None) is (drew == scorer) for (drew, scorer), count in said.items())
    assert len(said) == 5 and any(said.values())


def test_a_shard_is_scored_while_another_is_still_drawn(checkout: Checkout) -> None:
    shards, scores, pairs = (f"results/small/{noun}/td-mnpo.1/part2" for noun in ("samples", "scores", "pairs"))
    first, second = checkout.path / shards / "0.parquet", checkout.path / shards / "1.parquet"
    for noun in (shards, scores, pairs):
        shutil.rmtree(checkout.path / noun)
    begun = time.time()
    with checkout.started(f"{pairs}/overall.parquet") as workflow:
        held = until(lambda: checkout.process(f"{shards}/1.parquet"), "job for the second shard")
        held.suspend()
        until(lambda: written_since(begun, checkout.path / scores / "overall/0.parquet"), "scores of the first shard")
        assert first.exists() and not second.exists()
        held.resume()
        assert workflow.wait(timeout=300) == 0
    assert second.exists() and written_since(begun, checkout.path / pairs / "overall.parquet")


def written_since(begun: float, file: Path) -> bool:
    return file.exists() and file.stat().st_mtime > begun


def test_every_artifact_has_a_manifest_and_none_is_half_written(finished: Path) -> None:
    results = finished / "results/small"
    inside = {".measured", "benchmarks"}  # of directories, which have one manifest
    for file in (f for f in results.rglob("*.parquet") if not inside & set(f.relative_to(results).parts)):
        manifest = json.loads(file.with_name(f"{file.name}.manifest.json").read_text())
        assert {"stage", "settings", "inputs", "digest", "versions", "seconds", "git_commit"} <= set(manifest)
        if manifest["stage"] in ("sample", "logps") and manifest.get("parameters"):  # not where the sampler said it all
            assert 0 < manifest["loading_seconds"] < manifest["seconds"]
    assert not list(results.rglob(".partial*"))


def test_a_second_run_has_nothing_to_do(checkout: Checkout) -> None:
    result = checkout.snakemake()
    assert result.returncode == 0
    assert "Nothing to be done" in result.stdout + result.stderr
    assert checkout.planned() == set()


def test_the_report_is_one_page_with_captions_that_loads_nothing_and_has_a_phones_layout(checkout: Checkout) -> None:
    checkout.made("report")
    page = (checkout.path / "results/small/report.html").read_text()
    for name in (
        "main.html",
        "examples.html",
        "benchmarks.html",
        "preferences.html",
        *(f"{figure}.svg" for figure in FIGURES),
    ):
        assert name in page
    assert "Policy against policy: how often" in page and "Policies on the public benchmarks" in page
    assert not re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?:""", page)
    assert (ROOT / "workflow/report/phone.css").read_text() in page


EXAMPLES = {"examples tables/examples.html"}
HELDOUT = {"tabulate tables/main.html", "players tables/players.html", "costs tables/costs.html"} | EXAMPLES
BENCHMARKS = {"benchmarks tables/benchmarks.html", "costs tables/costs.html"}
TABLES = HELDOUT | BENCHMARKS
PREFERENCES = {"preferences tables/preferences.html"}
PLOTS = {f"plot figures/{f}.svg" for f in FIGURES}


def shards(noun: str, policy: str, part: int) -> set[str]:
    if noun == "sample":
        return {f"sample samples/{policy}/part{part}/{s}.parquet" for s in (0, 1)}
    return {f"score scores/{policy}/part{part}/overall/{s}.parquet" for s in (0, 1)}


def measured(policy: str) -> set[str]:
    """A policy on the public benchmarks."""
    answers = {f"answer answers/{policy}/mt-bench.parquet", f"judge evals/{policy}/mt-bench.demo.json"}
    return {f"harness evals/{policy}/arc.json"} | answers


def following(policy: str) -> set[str]:
    """Evaluation of a run's last policy, and what is printed."""
    return {f"assess evals/{policy}/heldout.json"} | measured(policy) | TABLES | PLOTS


FINAL = ("sft", "inpo.2", "td-mnpo.2")


EDITS: dict[str, tuple[Callable[[Checkout], None], set[str]]] = {
    "a comment in the configuration": (lambda c: c.edit(CONFIG, "# iteration 2", "# two"), set()),
    "iteration 2's eta of one run": (
        lambda c: c.edit(CONFIG, "- parts: [2] # iteration 2", "- {parts: [2], objective: {eta: 0.1}}"),
        {"train policies/td-mnpo.2"} | following("td-mnpo.2"),
    ),
    "the weight of an opponent": (
        lambda c: c.edit(CONFIG, "weights: [2/3, 1/3]", "weights: [0.9, 0.1]"),
        {"train policies/td-mnpo.2"} | following("td-mnpo.2"),
    ),
    "iteration 1's learning rate of one run": (
        lambda c: c.edit(
            CONFIG,
            "      - parts: [1]\n      - parts: [2]\n",
            "      - {parts: [1], training: {learning_rate: 1e-5}}\n      - parts: [2]\n",
        ),
        {
            "train policies/inpo.1",
            "train policies/inpo.2",
            "pair pairs/inpo.1/part2/overall.parquet",
            "logps logps/inpo.1/part2/overall/chat/inpo.1.parquet",
            "logps logps/inpo.1/part2/overall/chat/sft.parquet",
            "assess evals/inpo.1/heldout.json",
        }
        | shards("sample", "inpo.1", 2)
        | shards("score", "inpo.1", 2)
        | following("inpo.2")
        | PREFERENCES,
    ),
    "a plot's code": (lambda c: c.edit("mnpo/stages/plot.py", "capsize=3", "capsize=4"), PLOTS),
    "a comment in a stage's code": (
        lambda c: c.edit("mnpo/stages/train.py", "import annotations\n", "import annotations\n\n# hello\n"),
        set(),
    ),
    "the code of the tables": (
        lambda c: c.edit("mnpo/tables/files.py", "{v:.3f}", "{v:.4f}"),
        (TABLES - EXAMPLES) | PLOTS | PREFERENCES,
    ),
    "how wins are counted": (
        lambda c: c.edit("mnpo/tables/heldout.py", "0.5 * (difference == 0)", "0.25 * (difference == 0)"),
        HELDOUT | PLOTS,
    ),
    "the resamples of the bootstrap": (
        lambda c: c.edit(CONFIG, "bootstrap: 100", "bootstrap: 200"),
        {"tabulate tables/main.html", "players tables/players.html"} | PLOTS,
    ),
    "the judge's model": (
        lambda c: c.edit("configs/demo.yaml", "demo: { model: demo,", "demo: { model: demo-2,"),
        {f"judge evals/{policy}/mt-bench.demo.json" for policy in FINAL} | BENCHMARKS,
    ),
    "one more benchmark": (
        lambda c: c.edit(CONFIG, "[arc, gpqa, mt-bench]", "[arc, gpqa, hellaswag, mt-bench]"),
        {f"harness evals/{policy}/arc.json" for policy in FINAL} | {"miniature benchmarks/hellaswag"} | BENCHMARKS,
    ),
    "how long the judged answers may be": (
        lambda c: c.edit("configs/demo.yaml", "mt-bench: { max_new_tokens: 40 }", "mt-bench: { max_new_tokens: 32 }"),
        {f"answer answers/{policy}/mt-bench.parquet" for policy in FINAL}
        | {f"judge evals/{policy}/mt-bench.demo.json" for policy in FINAL}
        | BENCHMARKS,
    ),
    "sampling's temperature": (
        lambda c: c.edit("configs/demo.yaml", "temperature: 0.8", "temperature: 0.7"),
        {f"train policies/{run}.{t}" for run in ("inpo", "td-mnpo") for t in (1, 2)}
        | {
            f"logps logps/{run}.1/part2/overall/chat/{by}.parquet"
            for run in ("inpo", "td-mnpo")
            for by in (f"{run}.1", "sft")
        }
        | {"logps logps/sft/part1/overall/chat/sft.parquet"}
        | {
            f"pair pairs/{policy}/part{t}/overall.parquet"
            for policy, t in (("sft", 1), ("inpo.1", 2), ("td-mnpo.1", 2))
        }
        | {
            job
            for noun in ("sample", "score")
            for policy, t in (("sft", 1), ("inpo.1", 2), ("td-mnpo.1", 2))
            for job in shards(noun, policy, t)
        }
        | {f"assess evals/{policy}/heldout.json" for policy in ("sft", "inpo.1", "inpo.2", "td-mnpo.1", "td-mnpo.2")}
        | measured("inpo.2")
        | measured("td-mnpo.2")
        | TABLES
        | PREFERENCES
        | PLOTS,
    ),
    "what only the plan reads": (
        lambda c: c.edit("configs/demo.yaml", "prompt_tokens: 24", "prompt_tokens: 25"),
        set(),
    ),
    "one more run that shares the reference and part 1": (
        lambda c: c.edit(
            CONFIG,
            "evaluation:",
            "  dpo: {objective: {name: dpo, beta: 0.1}, oracle: overall, iterations: [{parts: [1]}]}\nevaluation:",
        ),
        {"train policies/dpo.1"} | following("dpo.1"),
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_only_what_changed_reruns(checkout: Checkout, edit: str) -> None:
    change, expected = EDITS[edit]
    change(checkout)
    assert checkout.planned() == expected


def test_a_touched_but_unchanged_input_reruns_nothing(checkout: Checkout) -> None:
    os.utime(checkout.path / "results/small/prompts/heldout.parquet")
    assert checkout.planned() == set()


def test_the_same_seed_gives_the_same_bytes(checkout: Checkout, finished: Path) -> None:
    """Remake iteration 2 of one run from its inputs: weights, evaluation and its table agree to the last byte."""
    trained, measured = "results/small/policies/td-mnpo.2", "results/small/evals/td-mnpo.2/heldout.json"
    result = checkout.snakemake("--forcerun", trained, "--", measured)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for file in (
        "policies/td-mnpo.2/model.safetensors",
        "evals/td-mnpo.2/heldout.json",
        "evals/td-mnpo.2/heldout.parquet",
    ):
        first, second = (tree / "results/small" / file for tree in (finished, checkout.path))
        assert first.stat().st_mtime_ns != second.stat().st_mtime_ns
        assert first.read_bytes() == second.read_bytes()


def test_a_second_checkout_takes_what_the_cache_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("SNAKEMAKE_OUTPUT_CACHE", str(cache))
    policy = "results/small/policies/td-mnpo.1"
    first, second = small(tmp_path / "first"), small(tmp_path / "second")
    shared = ("--cache", "sft", "sample", "score", "logps", "train")  # as docs/cluster.md says
    first.made(*shared, "--", policy)
    second.made(*shared, "--", policy)

    logs = second.path / "logs/small"
    assert {str(log.relative_to(logs)) for log in logs.rglob("*.log") if log.stat().st_size} == {
        "prompts.log",
        "pair/sft.part1.overall.log",
    }
    for file in ("model.safetensors", "manifest.json"):
        assert (first.path / policy / file).read_bytes() == (second.path / policy / file).read_bytes()
    assert second.planned(policy) == set()  # without the cache, too

    kept = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    second.edit("configs/demo.yaml", "learning_rate: 2.0e-4", "learning_rate: 1.0e-4")
    second.made("--", policy)
    assert (first.path / policy / "model.safetensors").read_bytes() != (
        second.path / policy / "model.safetensors"
    ).read_bytes()
    assert {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()} == kept


def test_two_configurations_at_once_are_refused(run: Checkout) -> None:
    result = run.snakemake("--dry-run", "--configfile", run.config, "config.yaml")
    assert result.returncode != 0
    assert "one --configfile at a time" in result.stdout + result.stderr


def test_snakemake_looks_for_jobs_when_one_has_ended_and_not_once_a_second(tmp_path: Path) -> None:
    """By itself it looks again a second after each look: at twelve short jobs, one after another, about 80 times."""
    project = Checkout.of_project(tmp_path / "project", "configs/demo.yaml")
    found = project.snakemake("--cores", "1", "--verbose", "--until", "miniature")
    said = found.stdout + found.stderr
    jobs = said.count("(Rule: miniature)")
    assert found.returncode == 0 and jobs >= 10, said[-2000:]
    assert jobs <= said.count("Resources before job selection") <= 2 * jobs


def test_a_mistake_in_the_configuration_is_one_message(checkout: Checkout) -> None:
    checkout.edit(CONFIG, "history: 2", "histroy: 2")
    result = checkout.snakemake("--dry-run")
    assert result.returncode != 0
    assert "runs.td-mnpo.objective.histroy: unknown key; did you mean 'history'?" in result.stdout + result.stderr
