"""Conversations as fine-tuning reads them: token ids, and which of them are learnt.

Each turn of the assistant's is encoded as it is when the policy is asked for it, behind all that was said before. Where
these ids begin with those of the turn before, as they do in templates that write a turn once and for all, both are
learnt from one text, which is read once: a turn's log-probabilities do not depend on what follows. Where they do not
(thinking that later turns leave out, a prompt that was cut), a turn is a text of its own. Either way what is learnt is
the same. One text of n turns that are alike saves n - 1 of every n + 1 tokens (docs/data.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mnpo.models.chat import Chat, Encoded
from mnpo.storage.conversations import Turn


@dataclass(frozen=True)
class Lesson:
    """A text of which some tokens are learnt: `response` is all that follows the first prompt."""

    prompt: list[int]
    response: list[int]
    learnt: list[int]
    """Places in `response`."""

    @classmethod
    def of(cls, turn: Encoded) -> Lesson:
        """One turn of the assistant's."""
        return cls(turn.prompt, turn.response, list(range(len(turn.response))))

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    def continued(self, turn: Encoded) -> Lesson | None:
        """With a later turn; None where its prompt is another text's."""
        read = [*self.prompt, *self.response]
        if turn.prompt[: len(read)] != read:
            return None
        between = turn.prompt[len(read) :]
        start = len(self.response) + len(between)
        learnt = [*self.learnt, *range(start, start + len(turn.response))]
        return Lesson(self.prompt, [*self.response, *between, *turn.response], learnt)


def lessons(chat: Chat, conversation: Sequence[Turn], which: Literal["all", "last"], where: str) -> list[Lesson]:
    """What is learnt of a conversation that ends with the assistant: all of its turns, or the last.

    Raises:
        BadInput: as `Chat.encode` does; `where` names the row.
    """
    places = [i for i, turn in enumerate(conversation) if turn["role"] == "assistant"]
    found: list[Lesson] = []
    for i in places if which == "all" else places[-1:]:
        turn = chat.encode(conversation[:i], conversation[i]["content"], where)
        longer = found[-1].continued(turn) if found else None
        found[-1:] = [longer] if longer else [*found[-1:], Lesson.of(turn)]
    return found
