"""Conversations as data sets spell them: the same turns from every convention, and one clear error for what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo.errors import BadInput
from mnpo.storage.conversations import columns, demonstration_of, preference_of, prompt_of, turns

Row = dict[str, Any]


def said(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    spoken = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [*([] if system is None else [{"role": "system", "content": system}]), *spoken]


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi?"}, said("Hi?")),
        ({"prompt": said("Hi?", "Yes.", "Why?", system="Be kind.")}, said("Hi?", "Yes.", "Why?", system="Be kind.")),
        ({"messages": said("Hi?", "Yes.")}, said("Hi?")),  # what answers the prompt is left off
        ({"messages": said("Hi?", "Yes.", "Why?")}, said("Hi?", "Yes.", "Why?")),
        (
            {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi?"}]},
            said("Hi?", system="S"),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]},
            said("Hi?"),
        ),
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, said("Add.\n\n1 + 1")),
        ({"instruction": "Sing.", "input": "", "output": "La"}, said("Sing.")),
        ({"prompt": "Hi?", "messages": said("Other?", "No.")}, said("Hi?")),
    ],
)
def test_prompts_of_every_convention(row: Row, prompt: list[dict[str, str]]) -> None:
    assert prompt_of(row, "row 1") == prompt


@pytest.mark.parametrize(
    ("row", "whole"),
    [
        ({"prompt": "Hi?", "response": "Yes."}, said("Hi?", "Yes.")),
        ({"prompt": said("Hi?", system="S"), "completion": "Yes."}, said("Hi?", "Yes.", system="S")),
        ({"messages": said("Hi?", "Yes.", "Why?", "So.")}, said("Hi?", "Yes.", "Why?", "So.")),
        ({"instruction": "Add.", "input": "1 + 1", "output": "2"}, said("Add.\n\n1 + 1", "2")),
        ({"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}]}, said("Hi?", "Yes.")),
    ],
)
def test_demonstrations_of_every_convention(row: Row, whole: list[dict[str, str]]) -> None:
    assert demonstration_of(row, "row 1") == whole


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": said("Hi?"), "chosen": said("Hi?", "Yes.")[1:], "rejected": said("Hi?", "No.")[1:]},
        {"prompt": "Hi?", "chosen": said("Hi?", "Yes."), "rejected": said("Hi?", "No.")},
        {"chosen": said("Hi?", "Yes."), "rejected": said("Hi?", "No.")},
        {"instruction": "Hi?", "chosen": "Yes.", "rejected": "No."},
    ],
)
def test_preferences_of_every_convention(row: Row) -> None:
    assert preference_of(row, "row 1") == (said("Hi?"), "Yes.", "No.")


def test_a_preference_between_the_last_turns_of_a_conversation() -> None:
    row = {"prompt": "Why?", "chosen": said("Hi?", "Yes.", "Why?", "So."), "rejected": said("Hi?", "Yes.", "Why?", "?")}
    assert preference_of(row, "row 1") == (said("Hi?", "Yes.", "Why?"), "So.", "?")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": said("Hi?", "Yes.")}, "prompt: the conversation ends with the assistant, expected the user"),
        ({"prompt": said(" ")}, "prompt: message 1, the user's, is empty"),
        ({"prompt": []}, "prompt: a conversation without a turn"),
        ({"messages": []}, "messages: a conversation without a turn"),
        (
            {"prompt": [*said(system="S"), *said("Hi?", system="T")]},
            "prompt: 2 system turns; join them into one",
        ),
        ({"prompt": [*said("Hi?", "Yes."), *said("Why?", system="S")]}, "prompt: the system's turn is message 3"),
        ({"prompt": said("Hi?") * 2}, "prompt: message 2 is the user's, where the assistant's is due"),
        (
            {"prompt": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}]},
            "prompt: message 2 is the assistant's, where the user's is due",
        ),
        ({"prompt": [{"role": "tool", "content": "1"}]}, "prompt, message 1: role 'tool' is none of assistant, gpt"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt, message 1: its content is None, expected a text"),
        ({"prompt": 3}, "prompt is 3, expected a text that is not empty, or a list of messages"),
        ({"question": "Hi?"}, r"has no 'prompt' \(it has question\); set prompts.column"),
        ({"instruction": "Add.", "input": 3}, "input is 3, expected a text"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_row(row: Row, problem: str) -> None:
    with pytest.raises(BadInput, match=f"^f.jsonl, row 7:? ?{problem}"):
        prompt_of(row, "f.jsonl, row 7")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Hi?", "chosen": "Yes."}, "has no 'rejected'"),
        ({"chosen": "Yes.", "rejected": "No."}, "has neither a prompt nor conversations in chosen and rejected"),
        ({"prompt": "Hi?", "chosen": 3, "rejected": "No."}, "chosen is 3, expected a text"),
        (
            {"prompt": "Hi?", "chosen": said("Other?", "Yes."), "rejected": "No."},
            "chosen answers 'Other\\?', not the row's prompt",
        ),
        (
            {"chosen": said("A?", "B.", "C?", "Yes."), "rejected": said("C?", "No.")},
            "chosen and rejected are different conversations before their last turn",
        ),
        ({"prompt": "Hi?", "chosen": said("Hi?"), "rejected": "No."}, "chosen: does not end with the assistant's turn"),
    ],
)
def test_what_is_no_preference_is_refused_with_its_row(row: Row, problem: str) -> None:
    with pytest.raises(BadInput, match=f"^f.jsonl, row 7:? ?{problem}"):
        preference_of(row, "f.jsonl, row 7")


@pytest.mark.parametrize("row", [{"messages": said("Hi?")}, {"prompt": "Hi?"}])
def test_what_shows_no_answer_is_no_demonstration(row: Row) -> None:
    with pytest.raises(BadInput, match="the conversation ends with the user, expected the assistant"):
        demonstration_of(row, "row 1")


texts = st.text(min_size=1)


@given(st.lists(texts, min_size=1, max_size=5).filter(lambda c: len(c) % 2 == 1), st.none() | texts)
def test_a_tables_columns_hold_the_whole_conversation(contents: list[str], system: str | None) -> None:
    conversation = said(*contents, system=system)
    kept = columns(conversation)
    assert turns(**kept) == conversation
    assert (kept["context"] == "") == (len(conversation) == 1)
    assert not kept["context"] or isinstance(json.loads(kept["context"]), list)
