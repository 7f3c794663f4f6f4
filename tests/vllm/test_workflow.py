"""The workflow with `sampler: vllm`: its rules run in the environments of their families (`make test-vllm`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkouts import ROOT, Checkout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment; `make test-vllm` has one"
    ),
]

CONFIG = """\
extends: configs/demo.yaml
name: small
prompts: { demonstrations: 140, parts: 1, part_size: 14, heldout: 7 }
models:
  tiny: # heads of a size that vLLM's attention for CPUs has
    vocab_size: 340
    architecture: { hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, head_dim: 32,
      intermediate_size: 48, query_pre_attn_scalar: 32, initializer_range: 0.04, max_position_embeddings: 128,
      sliding_window: 128 }
reference: { sft: { steps: 40, batch_size: 16, learning_rate: 1.0e-2 } }
sampling: { sampler: vllm, responses: 3, max_new_tokens: 12, logprobs: true, mismatch_warning: 1.0e-12 }
runs:
  mine: { objective: { name: inpo, eta: 0.2 }, oracle: overall, iterations: [{ parts: [1] }] }
tables: { win_against: [sft] }
"""


def test_snakemake_samples_with_vllm_in_an_environment_of_its_own(tmp_path: Path) -> None:
    """SFT in one environment, sampling, scoring and pairing in another; the mismatch is in the manifest, with a warning
    above the threshold that the configuration states, which here is nothing."""
    import pandas as pd

    demo = ROOT / ".venv"
    (tmp_path / "environments").mkdir()
    for family, environment in {"train": demo, "infer": Path(sys.prefix), "eval": demo}.items():
        (tmp_path / "environments" / family).symlink_to(environment)
    checkout = Checkout.of_project(tmp_path / "checkout", "small.yaml")
    (checkout.path / "small.yaml").write_text(CONFIG)
    pairs = "results/small/pairs/sft/part1/overall.parquet"
    done = subprocess.run(
        [demo / "bin/python", "-m", "snakemake", "--configfile", "small.yaml", "--cores", "2", pairs],
        cwd=checkout.path,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ
        | {"MNPO_ENVIRONMENTS": str(tmp_path / "environments"), "PYTHONPATH": "", "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

    results = checkout.path / "results/small"
    sampled = json.loads((results / "samples/sft/part1/0.parquet.manifest.json").read_text())
    trained = json.loads((results / "policies/sft/manifest.json").read_text())
    assert "vllm" in sampled["versions"] and "vllm" not in trained["versions"]
    samples = pd.read_parquet(results / "samples/sft/part1/0.parquet")
    assert len(samples) == 14 * 3 and samples["seed"].nunique() == 42 and samples["tokens"].between(1, 12).all()
    assert 0 < len(pd.read_parquet(checkout.path / pairs)) <= 14
    mismatch = sampled["mismatch"]
    assert mismatch["responses"] == 42 and mismatch["tokens"] == samples["tokens"].sum()
    assert 1e-12 < mismatch["mean"] <= mismatch["max"] < 1e-3
    assert "above 1e-12 (sampling.mismatch_warning)" in mismatch["warning"]
    assert mismatch["warning"] in (checkout.path / "logs/small/sample/sft.part1.0.log").read_text()
