"""A model's chat template: conversations as it writes them out, and what it puts around an answer (docs/templates.md).

What a policy is sampled from, scored and trained on is the template's own rendering. Nothing is assumed of its form:
how a prompt is opened for an answer, and what ends one, is found by rendering answers that are known.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from mnpo.config.text import Reading
from mnpo.errors import BadInput
from mnpo.models import thinking
from mnpo.progress import say

Turns = Sequence[Mapping[str, str]]
"""Of a conversation: role (system, user or assistant) and content."""

TODAY = "2024-07-26"
"""For templates that print a date: what Llama 3.1's own prints where there is no clock."""
ANSWERS = ("q4Kz", "7vXj")
"""Two answers that differ in their first and last character, so that what stands around them shows."""
INERT = ("\ufdd0", "\ufdd1")
"""Stand around control tokens that were typed: characters that Unicode keeps for use within a program."""


class Opening(NamedTuple):
    """How a conversation is written out up to where the model speaks."""

    text: str
    """What the model reads."""
    whole: str
    """The same where an answer follows. It differs for templates that leave something out once there is one."""
    lead: str
    """What the template puts between that and a plain answer: a space, an empty thinking block."""
    trail: str
    """What it puts behind an answer."""


class Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        reading: what is said about it.

    `counts` holds how many conversations got something that the template does not do by itself.
    """

    def __init__(self, tokenizer: Any, reading: Reading) -> None:
        self.tokenizer, self.reading = tokenizer, reading
        self.counts: Counter[str] = Counter()

    def prepared(self, turns: Turns) -> list[dict[str, str]]:
        """`turns` as the template takes them: with the system's turn that is asked for, and in the first user's turn
        where the template has none of the system's. Counted."""
        found = [dict(turn) for turn in turns]
        if self.reading.system is not None and found[0]["role"] != "system":
            found = [{"role": "system", "content": self.reading.system}, *found]
        if found[0]["role"] == "system" and len(found) > 1 and not self._takes_system:
            if not self.counts["systems_in_the_users_turn"]:
                say(f"{self.where}: the chat template has no system's turn; its words open the first user's turn")
            self.counts["systems_in_the_users_turn"] += 1
            content = f"{found[0]['content']}\n\n{found[1]['content']}"
            found = [{"role": found[1]["role"], "content": content}, *found[2:]]
        if any(self._control_tokens.search(turn["content"]) for turn in found):
            self.counts["prompts_with_control_tokens"] += 1
        return found

    def render(self, turns: Turns, asking: bool = False, going_on: bool = False) -> str:
        """The text of `turns`. Typed control tokens are marked.

        Args:
            asking: with the beginning of an answer.
            going_on: the last turn, an answer, is not at its end.

        Raises:
            BadInput: the template does not render them.
        """
        marked = [{**turn, "content": self.mark(turn["content"])} for turn in turns]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                marked,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=asking,
                continue_final_message=going_on,
                **(self.reading.template_options or {}),
            )
        except Exception as error:  # whatever a template's code runs into
            spoken = ", ".join(turn["role"] for turn in turns)
            raise BadInput(
                f"{self.where}: the chat template does not render turns of {spoken} "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
                "give what it needs in text.template_options, or another template in text.template"
            ) from error
        return rendered

    def opening(self, turns: Turns) -> Opening:
        """How `turns`, prepared, are written out up to where the model speaks.

        As a rule that is the rendering for an answer, and the one with an answer begins with it. Else the latter
        decides: what two different answers have in common in front of them.
        """
        asked, answered = self.render(turns, asking=True), self._answered(turns, ANSWERS[0])
        before, found, trail = answered.rpartition(ANSWERS[0])
        if not found:
            raise BadInput(
                f"{self.where}: the chat template does not render an assistant's turn; give another in text.template"
            )
        if answered.startswith(asked):
            return Opening(asked, asked, before.removeprefix(asked), trail)
        if asked.startswith(before):  # it opens more than a finished answer has, such as a thinking block
            return Opening(before, before, "", trail)
        return self._realigned(turns, asked, before, trail)

    def _realigned(self, turns: Turns, asked: str, before: str, trail: str) -> Opening:
        """For templates that write the prompt otherwise once it is answered, as some do with the system's turn.

        What stands in front of the user's last words is taken as it is asked, what stands behind them as it is
        answered.
        """
        probe = [*turns[:-1], {**turns[-1], "content": ANSWERS[1]}]
        _, _, close_asked = self.render(probe, asking=True).rpartition(ANSWERS[1])
        _, _, close = self._answered(probe, ANSWERS[0]).rpartition(ANSWERS[0])[0].rpartition(ANSWERS[1])
        if not (asked.endswith(close_asked) and before.endswith(close)):
            return Opening(before, before, "", trail)
        if close.startswith(close_asked):
            lead = close.removeprefix(close_asked)
            return Opening(asked, before.removesuffix(lead), lead, trail)
        return Opening(asked.removesuffix(close_asked) + close, before, "", trail)

    def answer(self, turns: Turns, opening: Opening, response: str) -> str:
        """What follows `opening` where the answer to `turns` is `response`, without what stands behind it.

        Counted are responses that the template changes, as by stripping them, and those that it would not write whole
        behind this opening: thinking that it leaves out of what was answered, or behind an empty block, or thinking
        that has no end. These follow as they are, which is how they were sampled.
        """
        whole, marked = self._answered(turns, response), self.mark(response)
        if self._control_tokens.search(response):
            self.counts["responses_with_control_tokens"] += 1
        opens = any(response.lstrip().startswith(first) for first in opening.lead.split()[:1])  # as the template would
        if whole.startswith(opening.whole) and whole.endswith(opening.trail):
            found = whole[len(opening.whole) : len(whole) - len(opening.trail)]
            if not (opens and found == opening.lead + marked):
                if found.endswith(marked):
                    return found
                if _squeezed(opening.whole + found).endswith(_squeezed(marked)):  # its `<think>` may be the prompt's
                    self.counts["responses_changed_by_template"] += 1
                    return found
        self.counts["responses_left_as_they_are"] += 1
        return marked if opens else opening.lead + marked

    def _answered(self, turns: Turns, response: str) -> str:
        return self.render([*turns, {"role": "assistant", "content": response}])

    # --------------------------------------------------------------------------------------------------- control tokens

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts that become control tokens, the longest first."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted({*added, *self.tokenizer.all_special_tokens}, key=lambda token: (-len(token), token))

    @cached_property
    def specials(self) -> re.Pattern[str]:
        """Finds them."""
        return re.compile("|".join(map(re.escape, self.special_tokens)) or "(?!)")

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        """What is marked in a content: those, and the marks themselves."""
        # what models write themselves are tokens in every content
        typed = [token for token in (*self.special_tokens, *INERT) if token not in thinking.TAGS]
        return re.compile("|".join(map(re.escape, typed)))

    def mark(self, content: str) -> str:
        """`content` with marks around the control tokens that were typed in it, which stay text."""
        if self.reading.control_tokens == "tokens":
            return content
        return self._control_tokens.sub(lambda found: f"{INERT[0]}{found[0]}{INERT[1]}", content)

    def pieces(self, rendered: str) -> Iterator[tuple[str, bool]]:
        """The pieces of a rendered text, and whether each was marked."""
        if INERT[0] not in rendered or self.reading.control_tokens == "tokens":
            yield rendered, False
            return
        for i, piece in enumerate(self._marks.split(rendered)):
            if piece:
                yield piece, i % 2 == 1

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile(f"{INERT[0]}({self._control_tokens.pattern}){INERT[1]}")

    # ---------------------------------------------------------------------------------------------------- what it needs

    @property
    def where(self) -> str:
        """The directory that it came from, for messages."""
        return str(self.tokenizer.name_or_path) or "the tokenizer"

    @cached_property
    def _source(self) -> str:
        """The template, with a clock that stands still where it asks for the time."""
        source: str = self.tokenizer.get_chat_template()
        return _clock(self.reading.date or TODAY) + source if "strftime_now" in source else source

    @cached_property
    def _takes_system(self) -> bool:
        """Whether the template has the system's turn."""
        user = {"role": "user", "content": ANSWERS[1]}
        try:
            return ANSWERS[0] in self.render([{"role": "system", "content": ANSWERS[0]}, user], asking=True)
        except BadInput:
            self.render([user], asking=True)  # or it renders nothing at all
            return False


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _clock(date: str) -> str:
    """A macro in the place of the function `strftime_now` that templates are given."""
    day = datetime.date.fromisoformat(date)
    codes = [f"%{code}" for code in "dbBYymaAje"] + ["%-d"]
    known = {code: day.strftime(code.replace("%e", "%d")) for code in codes} | {"%-d": str(day.day)}
    replaced = "".join(f"|replace({code!r}, {value!r})" for code, value in known.items())
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro +%}"


def end_of_text(tokenizer: Any) -> list[int]:
    """The tokens that end what a model writes, by its generation_config.json and its tokenizer, the latter's first."""
    file = os.path.join(str(tokenizer.name_or_path), "generation_config.json")
    named: Any = None
    if os.path.isfile(file):
        with open(file, encoding="utf-8") as opened:
            named = json.load(opened).get("eos_token_id")
    ids = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return list(dict.fromkeys(int(i) for i in ids if i is not None))
