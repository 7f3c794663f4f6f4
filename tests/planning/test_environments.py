"""A job whose environment lacks what the configuration asks for is refused before anything runs: real environments."""

from __future__ import annotations

import os
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mnpo.cli import FAMILIES
from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import environments
from mnpo.planning.plan import Plan
from tests.helpers.checkouts import Checkout

ROOT = Path(__file__).parents[2]
Jobs = list[tuple[str, dict[str, str]]]
SAMPLE: Jobs = [("sample", {"policy": "sft", "part": "part1", "shard": "0"})]


def environment(directory: Path, *packages: str, ours: bool = True) -> Path:
    """A virtual environment with `packages`, which are empty, and with all that these tests' own has."""
    venv.create(directory, with_pip=False)
    site = directory / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    if ours:
        (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in packages:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('looked for, not imported')")
    return directory / "bin" / "python"


def plan(**changes: Any) -> Plan:
    return Plan(load(ROOT / "tests/workflow/small.yaml", changes))


def refused(plan: Plan, jobs: Jobs, families: Mapping[str, str | None] = FAMILIES) -> list[str]:
    with pytest.raises(BadInput) as refusal:
        environments.require_packages(plan, jobs, families)
    return str(refusal.value).splitlines()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a test's environments are."""
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    return tmp_path


def test_a_job_is_asked_for_by_the_python_of_its_own_environment(directory: Path) -> None:
    """Not by the one that runs Snakemake: vLLM is only in `infer`, or only in another."""
    by_vllm = plan(sampling={"sampler": "vllm"})
    environment(directory / "infer", "vllm")
    environments.require_packages(by_vllm, SAMPLE, FAMILIES)
    environment(directory / "eval", "vllm")
    (directory / "infer").rename(directory / "other")
    python = environment(directory / "infer")
    assert refused(by_vllm, SAMPLE) == [
        f"sample: sampling.sampler: vllm needs vllm, not installed for {python}; `make envs` installs it from "
        "envs/infer.txt (remove a broken environment first)"
    ]
    environments.require_packages(plan(), SAMPLE, FAMILIES)  # by transformers


def test_without_environments_it_is_the_python_that_runs_snakemake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environments.VARIABLE, raising=False)
    environments.require_packages(plan(), SAMPLE, FAMILIES)
    (said,) = refused(plan(sampling={"sampler": "vllm"}), SAMPLE)
    assert said.startswith(f"sample: sampling.sampler: vllm needs vllm, not installed for {sys.executable}; `make env")
    assert "export MNPO_ENVIRONMENTS=$PWD/.venvs" in said


def test_all_that_is_missing_is_one_message_with_a_line_for_each_stage(directory: Path) -> None:
    asked = plan(
        sampling={"sampler": "vllm"},
        training={"parallel": "zero3", "lora": {"rank": 2, "alpha": 4}},
        resources={"stages": {"train": {"gpus": 2}}},
        evaluation={"benchmarks": ["ifeval", "minerva", "alpaca-eval"], "protocol": {"minerva": "evalscope"}},
        datasets={"ifeval": {"demo": True}, "alpaca-eval": {"demo": True}, "minerva": {"demo": True}},
    )
    train = environment(directory / "train", ours=False)
    environment(directory / "infer")
    judged = {"policy": "inpo.2", "benchmark": "alpaca-eval", "judge": "demo", "repeat": ""}
    jobs = [
        *SAMPLE,
        ("train", {"policy": "inpo.2"}),
        ("harness", {"policy": "inpo.2"}),
        ("judge", judged),
        ("judge", {**judged, "benchmark": "minerva"}),
        ("download", {}),
    ]
    lines = refused(asked, jobs)
    assert [line.partition(":")[0] for line in lines[:2]] == ["sample", "train"]
    assert f"training.parallel: zero3 needs deepspeed, not installed for {train}" in lines[1]
    assert "training.lora needs peft" in lines[1] and "a model needs torch, transformers" in lines[1]
    assert lines[2].startswith(f"{directory}/eval/bin/python: no such interpreter") and "`make envs`" in lines[2]
    assert lines[3].startswith(f"{directory}/evalscope/bin/python: no such interpreter")
    assert "make .venvs/evalscope/.done" in lines[3] and len(lines) == 4

    environment(directory / "eval", ours=False)
    (said,) = refused(asked, [("harness", {"policy": "inpo.2"})])
    assert "evaluation.benchmarks needs lm_eval" in said
    assert "the benchmark ifeval needs langdetect, nltk, immutabledict" in said and "math_verify" not in said


def test_several_processes_need_deepspeed_and_one_does_not(directory: Path) -> None:
    environment(directory / "train", *environments.MODELS, *environments.STAGES, ours=False)
    job: Jobs = [("train", {"policy": "inpo.1"})]
    training = {"parallel": "zero3"}
    environments.require_packages(plan(training=training), job, FAMILIES)
    two = plan(training=training, resources={"stages": {"train": {"gpus": 2}}})
    assert "training.parallel: zero3 needs deepspeed" in refused(two, job)[0]
    reference: Jobs = [("sft", {"policy": "sft"})]  # which several processes fine-tune, too
    several = plan(reference={"sft": {"parallel": "zero3"}}, resources={"stages": {"sft": {"gpus": 2}}})
    assert "reference.sft.parallel: zero3 needs deepspeed" in refused(several, reference)[0]


def test_the_harness_on_vllm_runs_where_vllm_is(directory: Path) -> None:
    by_vllm = plan(evaluation={"backend": "vllm"})
    harness: Jobs = [("harness", {"policy": "inpo.2"})]
    assert environments.command(by_vllm, *harness[0]) == "harness-vllm"
    environment(directory / "infer")
    assert "harness-vllm: evaluation.backend: vllm needs vllm" in refused(by_vllm, harness)[0]
    environment(directory / "eval")
    environments.require_packages(plan(), harness, FAMILIES)
    answers: Jobs = [("answer", {"policy": "inpo.2", "benchmark": "mt-bench"})]
    assert "answer: evaluation.backend: vllm needs vllm" in refused(by_vllm, answers)[0]


def test_a_python_that_does_not_run_is_said(directory: Path) -> None:
    python = directory / "infer/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    assert f"sample: {python} cannot be asked for its packages" in refused(plan(), SAMPLE)[0]


@pytest.mark.slow
def test_snakemake_refuses_before_any_job(tmp_path: Path) -> None:
    checkout = Checkout.of_project(tmp_path / "checkout", "mine.yaml")
    small = (ROOT / "tests/workflow/small.yaml").read_text().replace("../../configs", "configs")
    (checkout.path / "mine.yaml").write_text(small.replace("sampling: {", "sampling: { sampler: vllm,"))
    said = checkout.snakemake()
    assert said.returncode != 0
    assert "sample: sampling.sampler: vllm needs vllm, not installed for" in said.stdout + said.stderr
    assert not (checkout.path / "results/small").exists()
    assert os.environ.get(environments.VARIABLE) is None


def test_constraints_need_ifevals_checkers(directory: Path) -> None:
    own = plan().config.model_dump(exclude_none=True)["oracles"]
    checks = {"kind": "constraints", "constraints": [{"id": "punctuation:no_comma"}]}
    asked = plan(
        oracles={**own, "checks": checks, "both": {"kind": "weighted", "weights": {"checks": 1, "overall": 1}}}
    )
    python = environment(directory / "infer", "torch", "transformers", "tokenizers", "safetensors", ours=False)
    for package in ("typer", "pydantic", "yaml", "pandas", "pyarrow"):
        (python.parents[1] / "lib").glob("python*/site-packages").__next__().joinpath(package).mkdir()
    environments.require_packages(asked, [("score", {"oracle": "overall"})], FAMILIES)
    (said,) = refused(asked, [("score", {"oracle": "both@sft"})])
    assert said.startswith("score: oracles.checks needs lm_eval, langdetect, nltk, immutabledict, not installed for")
