"""Rendering, BOS, end of turn and truncation: exact token ids of the demo's template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnpo.config.text import Text, TextForm
from mnpo.errors import BadInput
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer

PAD, EOS, BOS, UNK, START, END = range(6)  # the order of mnpo/demo/model.py's SPECIAL_TOKENS
ROOM = Text(max_length=80, max_prompt_length=48)


@pytest.fixture(scope="module")
def tokenizer(random_policy: Path) -> Any:
    return load_tokenizer(random_policy)


@pytest.fixture(scope="module")
def plain(tokenizer: Any) -> Callable[[str], list[int]]:
    """Ids of a text without special tokens, by the tokenizers library alone."""
    return lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def template(plain: Callable[[str], list[int]]) -> tuple[list[int], list[int]]:
    """What stands before and after a prompt."""
    return [BOS, START, *plain("user\n")], [END, *plain("\n"), START, *plain("model\n")]


def test_a_prompt_is_rendered_to_the_exact_tokens_of_its_template(
    tokenizer: Any, plain: Callable[[str], list[int]]
) -> None:
    ids = Chat(tokenizer, ROOM).prompt("Say cat 3 times")
    assert ids == [BOS, START, *plain("user\nSay cat 3 times"), END, *plain("\n"), START, *plain("model\n")]
    assert tokenizer.decode(ids) == "<bos><start_of_turn>user\nSay cat 3 times<end_of_turn>\n<start_of_turn>model\n"
    assert ids.count(BOS) == 1


def test_a_response_follows_the_prompt_and_ends_its_turn(tokenizer: Any, plain: Callable[[str], list[int]]) -> None:
    chat = Chat(tokenizer, ROOM)
    text = chat.encode("Say cat", "cat cat")
    assert text.prompt == chat.prompt("Say cat")
    assert text.response == [*plain("cat cat"), END]
    assert len(text) == len(text.prompt) + len(text.response)
    turns = [{"role": "user", "content": "Say cat"}, {"role": "assistant", "content": "cat cat"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode([*text.prompt, *text.response]) + "\n" == rendered  # as the template itself would have it


def test_the_end_of_turn_is_found_in_the_template_with_and_without_bos(tokenizer: Any) -> None:
    for bos in (True, False):
        chat = Chat(tokenizer, ROOM, TextForm(bos=bos))
        assert chat.end_of_turn == END
        assert chat.stop_ids == [EOS, END]


def test_a_template_that_forgets_bos_gets_one_and_its_end_of_turn_is_found(random_policy: Path) -> None:
    tokenizer = load_tokenizer(random_policy)
    usual = Chat(tokenizer, ROOM).encode("Say cat", "cat")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{- bos_token -}}", "")
    chat = Chat(tokenizer, ROOM)
    assert chat.end_of_turn == END
    assert chat.encode("Say cat", "cat") == usual


def test_where_the_template_does_not_end_turns_eos_does_or_what_is_said(
    random_policy: Path, plain: Callable[[str], list[int]]
) -> None:
    tokenizer = load_tokenizer(random_policy)
    tokenizer.chat_template = "{%- for m in messages -%}{{ m['role'] + ': ' + m['content'] + '\\n' }}{%- endfor -%}"
    chat = Chat(tokenizer, ROOM)
    assert chat.end_of_turn == EOS and chat.stop_ids == [EOS, END]  # generation_config.json names both
    assert chat.encode("Say cat", "cat").response == [
        *plain("assistant: cat"),
        EOS,
    ]  # what no template asks for, it says
    said = Chat(tokenizer, ROOM.model_copy(update={"end_of_turn": "<end_of_turn>"}))
    assert said.encode("Say cat", "cat").response[-1] == said.end_of_turn == END
    assert Chat(tokenizer, ROOM.model_copy(update={"end_of_turn": EOS})).end_of_turn == EOS


@pytest.mark.parametrize("named", ["no such token", 100_000, -1])
def test_an_end_of_turn_that_is_not_one_token_is_refused(named: str | int, tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=f"text.end_of_turn: {named!r} is no token of .*random .*; name one of its"):
        _ = Chat(tokenizer, ROOM.model_copy(update={"end_of_turn": named})).end_of_turn


def test_a_model_without_any_end_is_refused(random_policy: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(random_policy)
    tokenizer.chat_template = "{%- for m in messages -%}{{ m['role'] + ': ' + m['content'] + '\\n' }}{%- endfor -%}"
    tokenizer.eos_token, tokenizer.name_or_path = None, str(tmp_path / "x")
    with pytest.raises(BadInput, match="x: the chat template does not end an assistant's turn.*text.end_of_turn"):
        _ = Chat(tokenizer, ROOM).end_of_turn


def test_the_raw_form_is_the_texts_themselves(tokenizer: Any, plain: Callable[[str], list[int]]) -> None:
    with_bos = Chat(tokenizer, ROOM, TextForm(render="raw", bos=True)).encode("Say cat", " cat")
    without = Chat(tokenizer, ROOM, TextForm(render="raw", bos=False)).encode("Say cat", " cat")
    assert with_bos.prompt == [BOS, *plain("Say cat")]
    assert without.prompt == plain("Say cat")
    assert with_bos.response == without.response == [*plain(" cat"), EOS]


def test_the_chat_form_without_bos_is_the_same_less_bos(tokenizer: Any) -> None:
    form = TextForm(render="chat", bos=False)
    assert Chat(tokenizer, ROOM, form).prompt("Say cat") == Chat(tokenizer, ROOM).prompt("Say cat")[1:]


# ----------------------------------------------------------------------------------------------------------- truncation


def test_a_prompt_over_the_limit_keeps_its_end_and_the_whole_template_and_is_counted(
    tokenizer: Any, plain: Callable[[str], list[int]], template: tuple[list[int], list[int]]
) -> None:
    before, after = template
    words = " ".join(f"{n} cat" for n in range(40))
    chat = Chat(tokenizer, Text(max_length=60, max_prompt_length=30))
    ids = chat.prompt(words)
    assert ids[: len(before)] == before and ids[-len(after) :] == after
    assert 25 < len(ids) <= 30
    kept = tokenizer.decode(ids[len(before) : -len(after)])
    assert words.endswith(kept) and kept.endswith("39 cat")
    assert chat.counts == {"prompts_cut": 1, "responses_cut": 0}
    chat.prompt("short")
    assert chat.counts["prompts_cut"] == 1


def test_a_prompt_at_the_limit_is_left_whole(tokenizer: Any) -> None:
    length = len(Chat(tokenizer, ROOM).prompt("Say cat 3 times"))
    chat = Chat(tokenizer, Text(max_length=60, max_prompt_length=length, overflow="error"))
    assert len(chat.prompt("Say cat 3 times")) == length
    with pytest.raises(BadInput, match=f"row 7: a prompt of {length + 1} tokens, the limit is {length}"):
        chat.prompt("Say cat 3 times!", "row 7")
    assert chat.counts["prompts_cut"] == 0


def test_a_limit_below_the_templates_own_length_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="max_prompt_length = 5 is shorter than the chat template itself"):
        Chat(tokenizer, Text(max_length=60, max_prompt_length=5)).prompt("Say cat 3 times")


@settings(max_examples=150, deadline=None)
@given(content=st.text(st.characters(exclude_categories=["Cs"]), max_size=80), limit=st.integers(16, 47))
def test_any_prompt_fits_its_limit_with_the_template_whole(
    tokenizer: Any, template: tuple[list[int], list[int]], content: str, limit: int
) -> None:
    before, after = template
    ids = Chat(tokenizer, Text(max_length=80, max_prompt_length=limit)).prompt(f"{content} now?")
    assert len(ids) <= limit
    assert ids[: len(before)] == before and ids[-len(after) :] == after
    assert tokenizer.decode(ids[len(before) : -len(after)]).endswith("now?")


def test_a_response_that_does_not_fit_is_cut_at_the_end_and_counted(
    tokenizer: Any, plain: Callable[[str], list[int]]
) -> None:
    response = "cat dog" + " cat dog" * 29
    for spare in (0, 1):  # exactly full with the end of turn, then one too long
        chat = Chat(tokenizer, ROOM)
        prompt = chat.prompt("Say cat")
        chat.text = Text(max_length=len(prompt) + len(plain(response)) + 1 - spare, max_prompt_length=48)
        text = chat.encode("Say cat", response)
        assert text.response == [*plain(response), END][: len(plain(response)) + 1 - spare]
        assert chat.counts["responses_cut"] == spare


# -------------------------------------------------------------------------------------------------------- conversations


def conversation(*contents: str) -> list[dict[str, str]]:
    """Turns of these contents, the user's first."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def test_a_conversation_is_rendered_to_the_exact_tokens_of_its_template(
    tokenizer: Any, plain: Callable[[str], list[int]]
) -> None:
    ids = Chat(tokenizer, ROOM).prompt(conversation("Say cat", "cat", "Again"))
    user, model, between = [START, *plain("user\n")], [START, *plain("model\n")], [END, *plain("\n")]
    first = [BOS, *user, *plain("Say cat"), *between, *model, *plain("cat"), *between]
    assert ids == [*first, *user, *plain("Again"), *between, *model]
    assert Chat(tokenizer, ROOM).prompt(conversation("Say cat")) == Chat(tokenizer, ROOM).prompt("Say cat")


def test_a_conversation_over_the_limit_loses_its_oldest_text_and_keeps_its_last_question(tokenizer: Any) -> None:
    turns = conversation("0 cat 1 cat 2 cat", "dog " * 30, "Which was it?")
    rendered = {}
    for limit in (60, 45):
        chat = Chat(tokenizer, Text(max_length=80, max_prompt_length=limit))
        ids = chat.prompt(turns)
        assert len(ids) <= limit and ids.count(BOS) == 1 and chat.counts["prompts_cut"] == 1
        rendered[limit] = tokenizer.decode(ids)
        assert rendered[limit].count("<start_of_turn>") == 4
        assert rendered[limit].endswith("<start_of_turn>user\nWhich was it?<end_of_turn>\n<start_of_turn>model\n")
        assert rendered[limit].startswith("<bos><start_of_turn>user\n<end_of_turn>\n<start_of_turn>model\n")
    assert 0 < rendered[45].count("dog") < rendered[60].count("dog") < 30
    with pytest.raises(BadInput, match="text.max_prompt_length = 16 is shorter than the chat template itself"):
        Chat(tokenizer, Text(max_length=80, max_prompt_length=16)).prompt(turns)


def test_a_limit_that_leaves_nothing_of_the_question_is_refused(
    tokenizer: Any, template: tuple[list[int], list[int]]
) -> None:
    before, after = template
    exact = Text(max_length=60, max_prompt_length=len(before) + len(after))
    with pytest.raises(BadInput, match="is shorter than the chat template itself"):
        Chat(tokenizer, exact).prompt("Say cat 3 times")


def test_a_conversation_that_ends_in_nothing_is_refused(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="row 3: empty prompt"):
        Chat(tokenizer, ROOM).prompt(conversation("Say cat", "cat", " "), "row 3")


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("prompt", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused_with_its_row(tokenizer: Any, prompt: str) -> None:
    with pytest.raises(BadInput, match="row 3: empty prompt"):
        Chat(tokenizer, ROOM).prompt(prompt, "row 3")


def test_a_response_without_tokens_is_refused_with_its_row(tokenizer: Any) -> None:
    with pytest.raises(BadInput, match="pair 9, rejected: the response '' has no tokens"):
        Chat(tokenizer, ROOM).encode("Say cat", "", "pair 9, rejected")


def test_decoding_drops_special_tokens_and_restores_the_text(tokenizer: Any, plain: Callable[[str], list[int]]) -> None:
    text = "Sure: cat, dog — 3 × 🙂."
    assert Chat(tokenizer, ROOM).decode([*plain(text), END]) == text
    assert Chat(tokenizer, ROOM).decode([END]) == ""
