"""A policy that is saved in bfloat16 too: what stages read of it, and that they make of it what they made without."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mnpo.config.sampling import Sampling
from mnpo.config.text import Text
from mnpo.demo import benchmarks
from mnpo.errors import BadInput
from mnpo.stages import answer, assess, evalscope, harness, logps, sample, sft, train
from mnpo.storage.artifacts import digest
from tests.helpers.tiny import first_iteration

HALF = "bfloat16"
Manifest = Callable[[Path], dict[str, Any]]
TRAINING = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "warmup": 0.0}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, chain: dict[str, Path], text: Text) -> Path:
    """What training makes without a copy."""
    return trained(chain, text, tmp_path_factory.mktemp("policies") / "plain")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, chain: dict[str, Path], text: Text) -> Path:
    """The same training, with one."""
    return trained(chain, text, tmp_path_factory.mktemp("policies") / "copied", bfloat16_copy=True)


def trained(chain: dict[str, Path], text: Text, output: Path, **how: Any) -> Path:
    asked = train.Settings.model_validate(first_iteration(text, TRAINING | how))
    train.run(asked, chain["policy"], [chain["pairs"]], output, [chain["logps"]])
    return output


def cast(policy: Path) -> bool:
    """Whether the copy's weights are the policy's, rounded."""
    whole, half = (load_file(directory / "model.safetensors") for directory in (policy, policy / HALF))
    return whole.keys() == half.keys() and all(torch.equal(half[n], w.bfloat16()) for n, w in whole.items())


def test_training_leaves_a_copy_within_the_policy(policy: Path, plain: Path, manifest_of: Manifest) -> None:
    for name in ("model.safetensors", "metrics.jsonl", "tokenizer.json"):
        assert (policy / name).read_bytes() == (plain / name).read_bytes()
    assert cast(policy) and not (plain / HALF).exists()
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (policy, policy / HALF)]
    assert sizes[1] == pytest.approx(sizes[0] / 2, abs=8000)  # headers are as long
    modes = {stat.S_IMODE(file.stat().st_mode) for file in policy.rglob("*") if file.is_file()}
    assert modes == {stat.S_IMODE((policy / "manifest.json").stat().st_mode)}
    assert manifest_of(policy)["digest"] == digest(policy) != digest(plain)
    assert manifest_of(policy / HALF) == {"digest": digest(policy / HALF)}


def test_fine_tuning_leaves_one_too(sft_settings: dict[str, Any], prompts_directory: Path, tmp_path: Path) -> None:
    asked = sft_settings | {"sft": sft_settings["sft"] | {"steps": 2, "bfloat16_copy": True}}
    output = tmp_path / "sft"
    sft.run(sft.Settings.model_validate(asked), prompts_directory / "demonstrations.parquet", output)
    assert cast(output)


def test_who_reads_the_copy_checks_the_copy_and_who_reads_the_policy_both(policy: Path, tmp_path: Path) -> None:
    for damaged in ("", HALF):
        changed = shutil.copytree(policy, tmp_path / f"of-{damaged or 'all'}")
        with open(changed / damaged / "model.safetensors", "r+b") as stream:
            stream.seek(-1, 2)
            stream.write(b"\x7f")
        with pytest.raises(BadInput, match=f"{changed}: damaged"):
            digest(changed)
        if damaged:
            with pytest.raises(BadInput, match=f"{changed / HALF}: damaged"):
                digest(changed / HALF)
        else:
            assert digest(changed / HALF) == digest(policy / HALF)


def inputs(output: Path, manifest_of: Manifest) -> list[str]:
    return list(manifest_of(output)["inputs"])


def test_log_probabilities_are_those_of_the_policy_itself(
    policy: Path, plain: Path, chain: dict[str, Path], text: Text, tmp_path: Path, manifest_of: Manifest
) -> None:
    for dtype, read in ((HALF, policy / HALF), ("float32", policy)):
        files = [tmp_path / f"{p.name}-{dtype}.parquet" for p in (policy, plain)]
        for of, output in zip((policy, plain), files, strict=True):
            logps.run(logps.Settings(form={}, text=text, dtype=dtype), of, chain["pairs"], output)
        assert files[0].read_bytes() == files[1].read_bytes()
        assert inputs(files[0], manifest_of)[0] == str(read) and inputs(files[1], manifest_of)[0] == str(plain)


@pytest.mark.parametrize("logprobs", [True, False])
def test_samples_are_those_of_the_policy_itself(
    policy: Path,
    plain: Path,
    chain: dict[str, Path],
    sampling: Sampling,
    text: Text,
    logprobs: bool,
    tmp_path: Path,
    manifest_of: Manifest,
) -> None:
    """What they are compared with is computed in float32: that reads the policy too."""
    asked = sampling.model_copy(update={"dtype": HALF, "logprobs": logprobs})
    files = [tmp_path / f"{p.name}.parquet" for p in (policy, plain)]
    for of, output in zip((policy, plain), files, strict=True):
        sample.run(sample.Settings(sampling=asked, text=text, shard=0, seed=5), of, chain["prompts"], output)
    assert files[0].read_bytes() == files[1].read_bytes()
    facts = [manifest_of(file) for file in files]
    assert facts[0].get("mismatch") == facts[1].get("mismatch") and ("mismatch" in facts[0]) == logprobs
    expected = [policy / HALF, *([policy] if logprobs else []), chain["prompts"]]
    assert inputs(files[0], manifest_of) == list(map(str, expected))
    assert facts[0]["parameters"] == facts[1]["parameters"]


def test_benchmarks_and_held_out_prompts_are_answered_as_by_the_policy_itself(
    policy: Path, plain: Path, prompts_directory: Path, oracle_settings: Any, text: Text, tmp_path: Path,
    manifest_of: Manifest,
) -> None:  # fmt: skip
    for name in ("mt-bench", "arc"):
        benchmarks.make(tmp_path / name, name, 0)
    questions = {"policy": "p", "benchmark": "mt-bench", "limit": 2, "max_new_tokens": 8, "seed": 1, "dtype": HALF}
    held_out = {
        "policy": "p",
        "oracle": "overall",
        "oracles": oracle_settings,
        "models": {},
        "scores": [],
        "batch_size": 16,
        "responses": 2,
        "decoding": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 12},
        "text": text.model_dump(),
        "seed": 9,
        "dtype": HALF,
    }
    chosen = {"policy": "p", "max_length": 80, "dtype": HALF, "benchmarks": {"arc": {"limit": 4}}}
    made: dict[str, list[Any]] = {}
    for of in (policy, plain):
        out = tmp_path / of.name
        answer.run(answer.Settings(asked=questions), tmp_path / "mt-bench", out / "answers.parquet", of)
        assess.run(held_out, of, of, prompts_directory / "heldout.parquet", out / "heldout.json")
        harness.run(harness.Settings(harness=chosen), of, {"arc": tmp_path / "arc"}, out)
        made[of.name] = [
            (out / "answers.parquet").read_bytes(),
            json.loads((out / "heldout.json").read_text()),
            json.loads((out / "arc.json").read_text()),
        ]
        for output in ("answers.parquet", "heldout.json", "arc.json"):
            read = of / HALF if of == policy else of
            assert inputs(out / output, manifest_of)[0] == str(read)
    assert made["copied"] == made["plain"]


@pytest.mark.parametrize("dtype", [HALF, "float32"])
def test_what_runs_in_other_environments_is_handed_the_copy(
    policy: Path, plain: Path, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    class Measuring(evalscope.Measuring):
        def run(self, results: Any) -> None:
            measured.append(self.policy)

    monkeypatch.setattr(evalscope, "Measuring", Measuring)
    asked = {"evalscope": {"policy": "p", "benchmarks": {"arc": {}}}, "answer": {"policy": "p", "dtype": dtype}}
    for of in (policy, plain):
        evalscope.run(evalscope.Settings.model_validate(asked), of, {}, tmp_path)
    assert measured == [policy / HALF if dtype == HALF else policy, plain]
