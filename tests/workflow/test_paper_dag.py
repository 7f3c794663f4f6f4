"""The paper's configuration as Snakemake sees it: planned without network, torch or any model, and refused in time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import job_graph, preflight
from mnpo.planning.plan import Plan

ROOT = Path(__file__).parents[2]
TOKEN = "hf_distinctive0secret0token0000000000"


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """An environment in which torch and its like cannot be imported, nobody answers, and no token is known."""
    for heavy in ("torch", "transformers", "vllm", "lm_eval", "alpaca_eval", "datasets"):
        (tmp_path / "missing").mkdir(exist_ok=True)
        (tmp_path / "missing" / f"{heavy}.py").write_text("raise ImportError('not needed to plan')\n")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_TOKEN", "OPENAI_API_KEY", "MNPO_CLUSTER")}
    return (
        kept
        | proxies
        | {
            "PYTHONPATH": str(tmp_path / "missing"),
            "HOME": str(tmp_path / "home"),
            "HF_HOME": str(tmp_path / "home/hf"),
            "MNPO_CACHE": str(tmp_path / "cache"),
        }
    )


def snakemake(environment: dict[str, str], directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), *options]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory to run in: what a run reads besides the Snakefile."""
    directory = tmp_path / "run"
    shutil.copytree(
        ROOT / "results/paper",
        directory / "results/paper",
        ignore=lambda d, names: [n for n in names if not n.endswith(".csv")],
    )
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "target"),
    [
        ("config.yaml", "all"),
        ("configs/ablations.yaml", "all"),
        ("configs/llama-3-8b.yaml", "all"),
        ("configs/zephyr-sft.yaml", "all"),
        ("configs/demo.yaml", "all"),
        ("configs/exploitability.yaml", "exploitability"),
    ],
)
def test_the_dry_run_has_the_jobs_of_the_plan(nothing: dict[str, str], checkout: Path, file: str, target: str) -> None:
    result = snakemake(nothing, checkout, "--configfile", str(ROOT / file), "--dry-run", target)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    stats = re.search(r"^job +count\n-[- ]+\n((?:\w+ +\d+\n)+)", result.stdout + result.stderr, re.M)
    assert stats, result.stdout[:3000]
    jobs = Counter({name: int(count) for name, count in (line.split() for line in stats[1].splitlines())})
    jobs["train"] += jobs.pop("train_passing", 0)
    del jobs["total"]
    jobs.pop("all", None)
    plan = Plan(load(ROOT / file))
    planned: Counter[str] = Counter()
    targets = plan.config.tables.targets if target == "all" else [target]
    for piece in job_graph.needed(plan, job_graph.files(plan, targets)):
        planned[piece.stage] += piece.jobs
    assert +jobs == planned


@pytest.mark.slow
def test_what_needs_the_internet_runs_where_snakemake_does(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads, judgements, and the scores of oracles that ask a judge, be it as one of several."""
    from snakemake import api
    from snakemake.settings import types
    from snakemake.settings.enums import Quietness

    dpo = {"objective": {"name": "dpo", "beta": 0.01}, "iterations": [{"parts": [1], "samples": "dataset"}]}
    asking = {
        "extends": str(ROOT / "config.yaml"),
        "add": {
            "oracles": {
                "llm": {"kind": "judge", "judge": {"model": "gpt-5-mini"}},
                "both": {"kind": "majority", "of": ["llm", "armorm", "skywork"]},
            }
        },
        "runs": {name: {**dpo, "oracle": name} for name in ("armorm", "llm", "both")},
        "tables": {"targets": ["benchmarks"], "rows": {"table2": None, "table3": None, "table4": None}},
    }
    (checkout / "asking.yaml").write_text(json.dumps(asking))
    for name in ("PATH", "PYTHONPATH"):  # which the Snakefile changes
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MNPO_CACHE", str(checkout / "cache"))
    monkeypatch.chdir(checkout)
    with api.SnakemakeApi(types.OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False)) as snakemake:
        workflow = snakemake.workflow(
            resource_settings=types.ResourceSettings(cores=1),
            config_settings=types.ConfigSettings(configfiles=[Path("asking.yaml")]),
            snakefile=ROOT / "Snakefile",
        )
        workflow.dag(types.DAGSettings()).execute_workflow("dryrun")
        inside = workflow._workflow
    jobs = [(job.rule.name, dict(job.wildcards_dict)) for job in inside.dag.jobs]
    local = {name for name, _ in jobs if name in inside._localrules}
    assert local == {"all", "download", "judge", "score_asking", "benchmarks"}  # and tables are not worth a job
    assert {"score", "sft", "reuse", "pair", "logps", "train", "answer", "harness"} <= {
        name for name, _ in jobs
    } - local
    scored = {(name, of["oracle"]) for name, of in jobs if name.startswith("score")}
    assert scored == {("score", "armorm"), ("score_asking", "llm"), ("score_asking", "both")}

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    plan = Plan(load(checkout / "asking.yaml"))
    with pytest.raises(BadInput, match="judge gpt-5-mini: .* OPENAI_API_KEY is not set"):
        preflight.check(plan, [job for job in jobs if job[0] == "score_asking"])
    preflight.check(plan, [job for job in jobs if job[0] == "score"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["table2", "table5", "report"])
def test_targets_have_names(nothing: dict[str, str], checkout: Path, target: str) -> None:
    result = snakemake(nothing, checkout, "--configfile", str(ROOT / "configs/ablations.yaml"), "-n", target)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert f"rule {target}:" in result.stdout + result.stderr


@pytest.mark.slow
def test_what_is_missing_is_said_before_any_job(nothing: dict[str, str], checkout: Path) -> None:
    """Floating revisions, a gated model without a token, a judge without a key: all in one message, nothing run."""
    result = snakemake(nothing, checkout, "--configfile", str(ROOT / "config.yaml"), "--cores", "1")
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert "google/gemma-2-9b-it" in said and "mnpo pin" in said
    assert "HF_TOKEN" in said and "huggingface.co/google/gemma-2-9b-it" in said
    assert "OPENAI_API_KEY" in said
    assert not list(checkout.rglob("*.log")) or not (checkout / "logs").exists()
    assert not (Path(nothing["MNPO_CACHE"])).exists()
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_secret_is_in_nothing_that_a_run_prints_or_writes(nothing: dict[str, str], checkout: Path) -> None:
    secrets = {"HF_TOKEN": TOKEN, "OPENAI_API_KEY": "sk-distinctive-secret"}
    result = snakemake(
        nothing | secrets, checkout, "--configfile", str(ROOT / "config.yaml"), "--cores", "1", "-p", "--config",
        "floating=true",
    )  # fmt: skip
    assert result.returncode != 0  # nobody answers
    written = [p.read_bytes() for p in checkout.rglob("*") if p.is_file()]
    for secret in secrets.values():
        assert secret not in result.stdout + result.stderr
        assert not any(secret.encode() in content for content in written)
    assert len(written) > 7  # logs and Snakemake's records are among them


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("nmae=x", "unknown key"),
        ('tables={"targets": ["tabel2"]}', "tables.targets"),
        (
            'runs={"a": {"objective": {"name": "inpo", "eta": 1}, "oracle": "amorm", "iterations": [{"parts": [1]}]}}',
            "did you mean 'armorm'",
        ),
    ],
)
def test_a_mistake_in_the_configuration_is_one_message(
    nothing: dict[str, str], checkout: Path, change: str, said: str
) -> None:
    result = snakemake(nothing, checkout, "--configfile", str(ROOT / "config.yaml"), "-n", "--config", change)
    assert result.returncode != 0
    assert said in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_a_cluster_file_that_is_missing_or_not_filled_in_says_so(nothing: dict[str, str], checkout: Path) -> None:
    result = snakemake(
        nothing | {"MNPO_CLUSTER": "nowhere.yaml"}, checkout, "-n", "--configfile", str(ROOT / "config.yaml")
    )
    assert "nowhere.yaml is missing: run `make slurm-profile`" in result.stdout + result.stderr
    template = ROOT / "profiles/slurm/clusters/template.yaml"
    result = snakemake(
        nothing | {"MNPO_CLUSTER": str(template)}, checkout, "-n", "--configfile", str(ROOT / "config.yaml")
    )
    assert "CHANGE_ME stands where your account or partition belongs" in result.stdout + result.stderr
