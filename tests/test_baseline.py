"""What is faster is the same: the plain pipeline's outputs (benchmarks/baseline) are ours, stage by stage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import baseline
from mnpo.config.sampling import Sampling
from mnpo.config.text import Text
from mnpo.learning.batches import shuffled
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.stages import logps, sample, score, train
from mnpo.storage.records import LOGPS, PAIRS, SAMPLES, SCORES, read
from tests.helpers.tiny import first_iteration

STEPS = 6


def test_log_probabilities(tmp_path: Path, chain: dict[str, Path], text: Text) -> None:
    """Within 1e-4 nats of sums of up to twenty tokens, in float32."""
    baseline.logps(logps.Settings(form={}, text=text), chain["policy"], chain["pairs"], tmp_path / "logps")
    plain, ours = read(LOGPS, tmp_path / "logps"), read(LOGPS, chain["logps"])
    for side in ("chosen", "rejected"):
        assert plain[side].tolist() == pytest.approx(ours[side].tolist(), abs=1e-4)
        assert plain[f"{side}_tokens"].tolist() == ours[f"{side}_tokens"].tolist()
    assert plain["pair_id"].tolist() == ours["pair_id"].tolist()


@pytest.fixture
def reward_model(tmp_path: Path, random_policy: Path, architecture: dict[str, Any]) -> Path:
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    torch.manual_seed(0)
    config = Gemma2Config(**architecture, vocab_size=340, num_labels=1)
    Gemma2ForSequenceClassification(config).save_pretrained(tmp_path / "rm")
    load_tokenizer(random_policy).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_scores(
    tmp_path: Path, chain: dict[str, Path], reward_model: Path, manifest_of: Callable[[Path], dict[str, Any]]
) -> None:
    """Within 1e-5 of the largest score; and a prompt is read once for its four responses."""
    oracles, models = {"rm": {"kind": "reward-model", "model": "rm"}}, {"rm": {"path": str(reward_model)}}
    settings = score.Settings(oracle="rm", oracles=oracles, models=models)
    for run, name in ((baseline.score, "plain"), (score.run, "ours")):
        run(settings, chain["samples"], tmp_path / name)
    plain, ours = (read(SCORES, tmp_path / name) for name in ("plain", "ours"))
    assert plain["score"].tolist() == pytest.approx(ours["score"].tolist(), abs=1e-5 * ours["score"].abs().max())
    assert plain["win"].tolist() == ours["win"].tolist()
    tokens = {name: manifest_of(tmp_path / name)["tokens"] for name in ("plain", "ours")}
    assert tokens["ours"] < 0.6 * tokens["plain"]


def test_greedy_responses(tmp_path: Path, chain: dict[str, Path], text: Text, sampling: Sampling) -> None:
    greedy = sampling.model_copy(update={"temperature": 0})
    settings = sample.Settings(sampling=greedy, text=text, shard=0, seed=5)
    baseline.sample(settings, chain["policy"], chain["prompts"], tmp_path / "plain")
    sample.run(settings, chain["policy"], chain["prompts"], tmp_path / "ours")
    plain, ours = read(SAMPLES, tmp_path / "plain"), read(SAMPLES, tmp_path / "ours")
    columns = ["prompt_id", "response", "tokens", "finish"]
    assert plain[columns].values.tolist() == ours[ours["k"] == 0][columns].values.tolist()


def test_training(tmp_path: Path, chain: dict[str, Path], text: Text) -> None:
    """The same batches give the same losses (1e-4 of them) and weights (1e-4), which move by far more."""
    training = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3, "micro_batch_tokens": 100}
    settings = train.Settings.model_validate(first_iteration(text, training, seed=0))
    pairs, logps = [chain["pairs"]], [chain["logps"]]
    train.run(settings, chain["policy"], pairs, tmp_path / "ours", logps)
    history = [json.loads(line) for line in (tmp_path / "ours" / "metrics.jsonl").read_text().splitlines()]
    rows = read(PAIRS, chain["pairs"])
    model: Any = load_model(chain["policy"])
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scored = train._log_probabilities(settings, rows, pairs, logps)
    data = train._pairs(
        settings, settings.opponents, rows, scored, Chat(load_tokenizer(chain["policy"]), text), model.device
    )
    order = islice(shuffled(data.lengths, 4, settings.seed), len(history))
    losses = baseline.fit(model, settings.training, data, order, len(history))
    assert len(losses) > STEPS and losses == pytest.approx([step["loss"] for step in history], rel=1e-4)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    moved = max(float((weight - before[name]).abs().max()) for name, weight in ours.items())
    apart = max(float((weight - model.state_dict()[name]).abs().max()) for name, weight in ours.items())
    assert apart < 1e-4 and moved > 50 * apart


def test_the_plain_stages_have_our_command_line(tmp_path: Path, chain: dict[str, Path], root: Path) -> None:
    settings = {"form": {}, "text": {"max_length": 80, "max_prompt_length": 48}}
    command = ["logps", "--settings", json.dumps(settings), f"--policy={chain['policy']}"]
    command += [f"--pairs={chain['pairs']}", f"--output={tmp_path / 'logps'}"]
    done = subprocess.run([sys.executable, "-m", "benchmarks.baseline", *command], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(read(LOGPS, tmp_path / "logps")) == len(read(LOGPS, chain["logps"]))
