"""Where a reply's thinking ends, whatever the template; tokens are bytes here, so they are counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mnpo.config.text import Text
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer
from mnpo.models.thinking import Reader, answer, answers, characters, characters_shown, decode
from tests.helpers.templated import QWEN, TEMPLATES, THINKING, policy_with, thinking_policy

TEXT = Text(max_length=400, max_prompt_length=200)


@pytest.mark.parametrize(
    ("reply", "opened", "shown"),
    [
        ("<think>So 6.</think>7", False, "7"),
        (" \n<think>\nSo 6.\n</think>\n\n 7\n", False, "7\n"),
        ("So 6.\n</think>\n\n7", True, "7"),
        ("So 6.</think>7", False, "7"),  # opened where nobody told us
        ("<think></think>7", False, "7"),
        ("<think>a</think>\n<think>b</think>7", False, "7"),
        ("<think>So 6.", False, ""),  # cut, or it never stopped
        ("So 6.", True, ""),
        ("<think>a</think><think>b", False, ""),
        ("<think>a</think>", False, ""),
        ("7", False, "7"),
        (" 7 ", False, " 7 "),
        ("", False, ""),
        ("", True, ""),
        ("Say <think> and </think>.", False, "Say <think> and </think>."),  # of tags, not in them
        ("<think>a</think>Write </think> or <think>.", False, "Write </think> or <think>."),
    ],
)
def test_an_answer_is_what_follows_the_thinking(reply: str, opened: bool, shown: str) -> None:
    assert answer(reply, characters(reply, opened)) == shown


def test_without_a_template_a_reply_says_itself_that_it_thinks() -> None:
    """Behind an endpoint, or in a data set; a setting says otherwise."""
    own, stray = "<think>a</think>b", "a</think>b"
    assert [characters_shown(own, strip) for strip in (None, "think", "none")] == [16, 16, 0]  # type: ignore[arg-type]
    assert [characters_shown(stray, strip) for strip in (None, "think", "none")] == [0, 9, 0]  # type: ignore[arg-type]


def test_a_setting_says_what_of_samples_an_oracle_is_shown() -> None:
    """8 characters of the first are thinking by its template; of the second, no template says anything."""
    replies, thinking = ["</think>7", "<think>a</think>b"], [8, 0]
    assert answers(replies, thinking, None) == ["7", "<think>a</think>b"]
    assert answers(replies, thinking, "think") == ["7", "b"]
    assert answers(replies, thinking, "none") == replies


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", THINKING)
def test_a_template_that_knows_of_thinking_is_found(name: str, special: bool, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(thinking_policy(tmp_path, THINKING[name], special))
    thought = ("" if name == "opened" else "<think>") + "So 6.</think>"
    ids = tokenizer(f"{thought}\n\n7", add_special_tokens=False)["input_ids"]
    reply = Chat(tokenizer, TEXT).decode([*ids, tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert reply == f"{thought}\n\n7" == decode(tokenizer, ids)
    for strip, taken in ((None, len(thought)), ("think", len(thought)), ("none", 0)):
        reader = Reader(Chat(tokenizer, TEXT), strip)  # type: ignore[arg-type]
        assert reader.characters(reply) == taken
        tags = 7 * (name != "opened") + 8  # bytes
        expected = len(thought) - tags + (2 - (name == "opened") if special else tags)
        assert reader.tokens(reply, len(ids) + 1) == (expected if taken else 0)
    unclosed = reply.partition("</think>")[0]
    assert (
        Reader(Chat(tokenizer, TEXT)).characters(unclosed) == len(unclosed)
        and Reader(Chat(tokenizer, TEXT)).tokens(unclosed, 33) == 33
    )


def test_a_template_that_knows_nothing_of_it_leaves_replies_alone(tmp_path: Path) -> None:
    for name, of in TEMPLATES.items():
        reader = Reader(Chat(load_tokenizer(policy_with(tmp_path / name, *of)), TEXT))
        assert reader.characters("<think>a</think>b") == reader.tokens("<think>a</think>b", 17) == 0
    tokenizer = load_tokenizer(policy_with(tmp_path / "think", QWEN, *TEMPLATES["qwen"][1:]))
    assert Reader(Chat(tokenizer, TEXT), "think").characters("<think>a</think>b") == 16


@pytest.mark.parametrize("name", THINKING)
def test_the_end_of_turn_is_found_in_templates_that_add_or_drop_thinking(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(thinking_policy(tmp_path, THINKING[name]))
    chat = Chat(tokenizer, TEXT)
    assert chat.end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = chat.encode("x", "<think>a</think>b")
    assert tokenizer.decode(text.response) == f"{'' if name == 'opened' else '<think>'}a</think>b<|im_end|>"
