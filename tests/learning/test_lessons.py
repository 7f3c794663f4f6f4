"""Conversations as they are learnt from: the assistant's tokens alone, each as the policy is asked for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mnpo.config.text import Text
from mnpo.learning.lessons import Lesson, lessons
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.models.logprobs import ResponseLogprobs, response_logprobs

TEXT = Text(max_length=128, max_prompt_length=100)
THREE = [
    {"role": "user", "content": "Say cat 2 times."},
    {"role": "assistant", "content": "cat cat"},
    {"role": "user", "content": "And dog."},
    {"role": "assistant", "content": "dog"},
    {"role": "user", "content": "Now say cow 3 times."},
    {"role": "assistant", "content": "cow cow cow"},
]
FORGETFUL = (  # earlier answers lose their last word once there is a later turn, as thinking is left out
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<start_of_turn>user\n{{ m['content'] }}"
    "<end_of_turn>\n{% else %}<start_of_turn>model\n{{ m['content'] if loop.last else m['content'].split(' ')[0] }}"
    "<end_of_turn>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


@pytest.fixture
def chat(random_policy: Path) -> Chat:
    return Chat(load_tokenizer(random_policy), TEXT)


def by_transformers(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Of each token of a response, from full logits of this text alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return logits[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])[:, 0]


def test_a_conversation_is_one_text_of_which_every_answer_is_learnt(chat: Chat) -> None:
    (lesson,) = lessons(chat, THREE, "all", "row 1")
    alone = [chat.encode(THREE[:i], THREE[i]["content"]) for i in (1, 3, 5)]
    assert lesson.prompt == alone[0].prompt
    assert [*lesson.prompt, *lesson.response] == [*alone[2].prompt, *alone[2].response]
    assert [lesson.response[place] for place in lesson.learnt] == [id for turn in alone for id in turn.response]
    learnt = chat.tokenizer.decode([lesson.response[place] for place in lesson.learnt])
    assert learnt.replace(" ", "") == "catcat<end_of_turn>dog<end_of_turn>cowcowcow<end_of_turn>"
    (last,) = lessons(chat, THREE, "last", "row 1")
    assert last == Lesson.of(alone[2])


def test_what_is_learnt_is_what_each_turn_alone_would_teach(chat: Chat, random_policy: Path) -> None:
    """Log-probabilities of every learnt token, against plain transformers on each turn's own text: no answer sees what
    follows it, nor another conversation in its batch."""
    model = load_model(random_policy)
    conversations = [THREE, THREE[2:], THREE[:2], [*THREE[4:], *THREE[:4]]]
    texts = [lesson for c in conversations for lesson in lessons(chat, c, "all", "row 1")]
    assert len(texts) == 4
    found = response_logprobs(model, texts, reduction="none")
    for conversation, ours in zip(conversations, found, strict=True):
        places = [i for i, turn in enumerate(conversation) if turn["role"] == "assistant"]
        turns = [chat.encode(conversation[:i], conversation[i]["content"]) for i in places]
        theirs = torch.cat([by_transformers(model, turn.prompt, turn.response) for turn in turns])
        assert ours.tolist() == pytest.approx(theirs.tolist(), abs=1e-4)
    assert max(float(t.detach().abs().max()) for t in found) > 1  # of random weights: far from zero, far apart


def test_gradients_of_a_batch_are_those_of_its_conversations_alone(chat: Chat, random_policy: Path) -> None:
    """No cross-talk: three of unlike lengths together, and one after the other."""
    texts = [lesson for c in (THREE, THREE[:2], THREE[2:]) for lesson in lessons(chat, c, "all", "row 1")]

    def gradient(batches: list[list[Lesson]]) -> torch.Tensor:
        model = load_model(random_policy)
        for batch in batches:
            losses = ResponseLogprobs(model)(batch, reduction="sum")
            losses.sum().backward()  # type: ignore[union-attr]
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together, alone = gradient([texts]), gradient([[text] for text in texts])
    assert float(alone.norm()) > 1
    assert float((together - alone).norm() / alone.norm()) < 1e-5


def test_where_a_template_changes_what_was_said_each_turn_is_its_own_text(random_policy: Path) -> None:
    tokenizer = load_tokenizer(random_policy)
    tokenizer.chat_template = FORGETFUL
    chat = Chat(tokenizer, TEXT)
    found = lessons(chat, THREE, "all", "row 1")
    alone = [chat.encode(THREE[:i], THREE[i]["content"]) for i in (1, 3, 5)]
    assert [chat.tokenizer.decode(a.response).replace(" ", "") for a in alone][0] == "catcat<end_of_turn>"
    first, second = found  # "dog" loses nothing, so the third goes on from the second
    assert first == Lesson.of(alone[0])
    assert [second.response[place] for place in second.learnt] == [*alone[1].response, *alone[2].response]
    assert second.prompt == alone[1].prompt != [*alone[0].prompt, *alone[0].response][: len(alone[1].prompt)]


def test_turns_behind_a_prompt_that_was_cut_are_texts_of_their_own(random_policy: Path) -> None:
    longest = len(Chat(load_tokenizer(random_policy), TEXT).prompt(THREE[:5]))
    chat = Chat(load_tokenizer(random_policy), Text(max_length=128, max_prompt_length=longest - 2))
    found = lessons(chat, THREE, "all", "row 1")
    assert chat.counts["prompts_cut"] == 1
    assert [len(lesson.learnt) for lesson in found] == [
        sum(len(chat.encode(THREE[:i], THREE[i]["content"]).response) for i in places) for places in ((1, 3), (5,))
    ]
