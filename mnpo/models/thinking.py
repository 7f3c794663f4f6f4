"""Thinking: what a reply says in `<think>...</think>` before its answer. Who judges a reply is shown the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mnpo.config.sources import Strip

if TYPE_CHECKING:
    from mnpo.models.chat import Chat

OPEN, CLOSE = TAGS = "<think>", "</think>"


def characters(reply: str, opened: bool = False) -> int:
    """How many characters at a reply's start are thinking, tags included; all of them where it never ends.

    It begins with `<think>`, or did in the prompt (`opened`; a `</think>` without any `<think>` says so, too).
    """
    before, closed, _ = reply.partition(CLOSE)
    thinks = opened or reply.lstrip().startswith(OPEN) or bool(closed and OPEN not in before)
    end = 0
    while thinks:
        close = reply.find(CLOSE, end)
        if close < 0:
            return len(reply)
        end = close + len(CLOSE)
        thinks = reply[end:].lstrip().startswith(OPEN)
    return end


def characters_shown(reply: str, strip: Strip | None) -> int:
    """The same, where there is no template to ask: with None, of what begins with `<think>`."""
    thinks = strip == "think" or (strip is None and reply.lstrip().startswith(OPEN))
    return characters(reply) if thinks else 0


def answer(reply: str, thinking: int) -> str:
    """A reply without its thinking, which is so many characters of it; empty where thinking never ends."""
    return reply[thinking:].lstrip() if thinking else reply


def answers(replies: Iterable[str], thinking: Iterable[int], strip: Strip | None) -> list[str]:
    """Sampled replies as an oracle is shown them. `thinking`: so many characters of each, as their policy's template
    says (Reader, with None); a `strip` that says otherwise is followed."""
    found = zip(replies, thinking, strict=True)
    if strip == "none":
        return [reply for reply, _ in found]
    return [answer(reply, int(known) or (characters(reply) if strip == "think" else 0)) for reply, known in found]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """A generated text without special tokens, but with the tags of thinking, which some tokenizers hold for such."""
    special = {tokenizer.convert_tokens_to_ids(tag): tag for tag in TAGS if tag in tokenizer.all_special_tokens}
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text, start = "", 0
    for place, id in enumerate(ids):
        if id in special:
            text += tokenizer.decode(ids[start:place], **how) + special[id]
            start = place + 1
    return text + str(tokenizer.decode(ids[start:], **how))


class Reader:
    """How the replies of one policy are read.

    Args:
        chat: how the policy reads prompts.
        strip: what is taken off; None: thinking, where the template mentions its tags.
    """

    def __init__(self, chat: Chat, strip: Strip | None = None) -> None:
        template = str(chat.tokenizer.chat_template)
        self.tokenizer = chat.tokenizer
        self.strips = strip == "think" or (strip is None and any(tag in template for tag in TAGS))
        prompt = chat.rendered([{"role": "user", "content": "x"}]) if self.strips else ""
        self.opened = prompt.rstrip().endswith(OPEN)

    def split(self, reply: str, of: int) -> tuple[str, int]:
        """A reply of `of` tokens without its thinking, and how many of them are thinking."""
        return answer(reply, self.characters(reply)), self.tokens(reply, of)

    def characters(self, reply: str) -> int:
        """How many characters at the reply's start are thinking."""
        return characters(reply, self.opened) if self.strips else 0

    def tokens(self, reply: str, of: int) -> int:
        """How many of a reply's `of` tokens are thinking: its text encoded anew, or all where it never ends."""
        thinking = self.characters(reply)
        if thinking == len(reply):
            return of if thinking else 0
        encoded = self.tokenizer(reply[:thinking], add_special_tokens=False)["input_ids"] if thinking else ()
        return min(of, len(encoded))
