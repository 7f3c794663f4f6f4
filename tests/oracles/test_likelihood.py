"""The likelihood oracle against transformers' own logits, one text at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from mnpo.config.oracles import Oracle
from mnpo.config.sources import Model
from mnpo.config.text import Text
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer
from mnpo.oracles import Question, load
from mnpo.oracles.likelihood import Likelihood


def mean_logprob(path: Path, prompt: list[int], response: list[int]) -> float:
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].double()
    chances = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(chances[range(len(response)), response].mean())


def test_a_score_is_the_mean_over_the_response_and_its_end(random_policy: Path, questions: list[Question]) -> None:
    """The prompt does not count; an empty response is its end of turn alone."""
    chat = Chat(load_tokenizer(random_policy), Text())
    scores = Likelihood(str(random_policy)).score(questions)
    for question, row in zip(questions, scores, strict=True):
        prompt = chat.prompt(question.prompt)
        for response, score in zip(question.responses, row, strict=True):
            tokens = [*load_tokenizer(random_policy)(response, add_special_tokens=False)["input_ids"], chat.end_of_turn]
            assert score == pytest.approx(mean_logprob(random_policy, prompt, tokens), abs=1e-5)


def test_no_text_is_read_twice_and_what_was_read_is_told(random_policy: Path, questions: list[Question]) -> None:
    oracle = Likelihood(str(random_policy))
    first = oracle.score(questions)
    told = oracle.facts()
    assert told["tokens"] > 0 and told["parameters"] > 0
    assert oracle.score([*questions, questions[0]]) == [*first, first[0]]
    assert oracle.facts() == told


def test_the_likelier_response_is_preferred(random_policy: Path, questions: list[Question]) -> None:
    settings = {"fluency": Oracle(kind="likelihood", model="m")}
    judgement = load("fluency", settings, {"m": Model(path=str(random_policy))}).judge(questions)[2]
    best = max(range(3), key=lambda k: judgement.scores[k])
    assert judgement.preferences[best] == [0.5 if k == best else 1.0 for k in range(3)]


def test_it_reads_a_model_and_nothing_of_a_judge() -> None:
    with pytest.raises(ValueError, match="kind likelihood needs model"):
        Oracle(kind="likelihood")
    with pytest.raises(ValueError, match="kind likelihood does not read comparisons"):
        Oracle(kind="likelihood", model="m", comparisons=2)
