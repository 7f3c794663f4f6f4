"""Sequence classifiers as oracles: tiny ones of random weights, loaded from disk as any reward model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mnpo.checkpoints import load_tokenizer
from mnpo.config import Model, Oracle
from mnpo.errors import BadInput
from mnpo.oracles import Question, load, reward_models
from mnpo.oracles.reward_models import RewardModel

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
QUESTIONS = [
    Question("Say cat 3 times", "", ["cat cat cat", "cat", ""]),
    Question("List 3 animals", "", ["Sure: cat, dog, and a very long list of other animals such as cows and pigs."]),
    Question("Opposite of hot?", "", ["cold", "Happy to help: cold."]),
]


def save(directory: Path, tokenizer_from: Path, architecture: str, labels: int = 1) -> Path:
    config = getattr(transformers, f"{architecture}Config")(vocab_size=340, num_labels=labels, **TINY)
    torch.manual_seed(0)
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(directory)
    load_tokenizer(tokenizer_from).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module", params=["Llama", "Gemma2"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, random_policy: Path) -> Path:
    return save(tmp_path_factory.mktemp(request.param), random_policy, request.param)


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> RewardModel:
    return RewardModel(str(checkpoint))


def rewards(judged: list[list[float]]) -> list[float]:
    return [r for question in judged for r in question]


def test_a_reward_is_the_classifiers_output_on_the_rendered_conversation(judge: RewardModel, checkpoint: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    model.config.pad_token_id = 0
    expected = []
    for question in QUESTIONS:
        for response in question.responses:
            turns = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": response}]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            assert text.startswith("<bos><start_of_turn>user\n") and text.count("<bos>") == 1
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                expected.append(float(model(input_ids=ids).logits[0, 0]))
    assert rewards(judge.score(QUESTIONS)) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_a_batch_gives_each_response_what_it_gets_alone(judge: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = rewards(judge.score(QUESTIONS))
    monkeypatch.setattr(reward_models, "SCORING_TOKENS", 1)
    alone = rewards(judge.score(QUESTIONS))
    assert together == pytest.approx(alone, abs=1e-5)


def test_rewards_keep_the_order_of_questions_and_responses(judge: RewardModel) -> None:
    backwards = [Question(q.prompt, q.truth, q.responses[::-1]) for q in QUESTIONS[::-1]]
    assert rewards(judge.score(backwards))[::-1] == pytest.approx(rewards(judge.score(QUESTIONS)), abs=1e-5)


def test_an_oracle_of_this_kind_is_loaded_from_its_models_path(checkpoint: Path) -> None:
    settings = {"rm": Oracle(kind="reward-model", model="m"), "sum": Oracle(kind="weighted", weights={"rm": 2.0})}
    models = {"m": Model(path=str(checkpoint))}
    one, twice = (load(name, settings, models).judge(QUESTIONS) for name in ("rm", "sum"))
    assert [2 * s for j in one for s in j.scores] == pytest.approx([s for j in twice for s in j.scores], abs=1e-5)
    with pytest.raises(BadInput, match=r"models\.m: a reward model must be on this machine"):
        load("rm", settings, {"m": Model(hub="someone/something")})


def test_a_causal_model_is_refused_for_its_missing_head(random_policy: Path) -> None:
    with pytest.raises(BadInput, match=r"1 weights are missing .* score\.weight"):
        RewardModel(str(random_policy))


def test_a_classifier_of_several_outputs_is_refused(tmp_path: Path, random_policy: Path) -> None:
    path = save(tmp_path, random_policy, "Llama", labels=2)
    with pytest.raises(BadInput, match="a classifier of 2 outputs is no reward model; expected 1"):
        RewardModel(str(path))


def test_a_directory_without_weights_or_tokenizer_is_refused(tmp_path: Path, random_policy: Path) -> None:
    path = save(tmp_path, random_policy, "Llama")
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer_config\.json"):
        RewardModel(str(path))
    (path / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="a checkpoint without weights"):
        RewardModel(str(path))
