"""A language model behind an endpoint as an oracle: it reads two responses and names the better one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mnpo.config.oracles import Judge
from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.labels import labels
from mnpo.judging.prompts import chat, filled
from mnpo.judging.requests import Answer, Request
from mnpo.judging.verdicts import judge_decoding, read_verdicts
from mnpo.oracles import Kept, Oracle
from mnpo.oracles.pairs import Game, Pairwise
from mnpo.storage.conversations import Turn
from mnpo.storage.journal import Journal

SYSTEM = (
    "Two assistants have answered the same user. Decide which answer serves the user better: is it right, does it do "
    "what was asked, is it clear and no longer than it has to be? The order in which the answers stand means nothing. "
    "Give your reasons in a few sentences. Then end with one of these on a line of its own: [[A>B]] if assistant A's "
    "answer is better, [[B>A]] if assistant B's is, [[A=B]] if neither is."
)
ANSWERS = (
    "<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\n\n"
    "<|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
)
SHOWN = "<|User Prompt|>\n{prompt}\n\n" + ANSWERS
SHOWN_WHOLE = (
    "Both assistants have answered the last turn of this conversation, and know all of it.\n\n"
    "<|The Start of the Conversation|>\n{conversation}\n<|The End of the Conversation|>\n\n" + ANSWERS
)
"""Of a conversation of more than one turn."""
LABEL = r"(A>{1,2}B|B>{1,2}A|A=B|B=A)"
MOST_TOKENS = 1024  # of a verdict and its reasons


class LanguageJudge(Pairwise):
    """An LLM judge; every answer is in `store` the moment it arrives, and is never paid for twice.

    Raises:
        BadInput: no key for the endpoint, no prices for a budget, a damaged store.
    """

    def __init__(
        self, judge: Judge, store: Path, comparisons: int | None = None, journal: Journal | None = None
    ) -> None:
        super().__init__(comparisons)
        self.journal = journal
        self.client = Client(judge, store)

    def prefer(self, games: Sequence[Game]) -> list[float | None]:
        """1, 1/2 or 0 by the verdict; None where none could be read after the judge's reasks.

        Raises:
            BadInput: too few verdicts (judge.max_missing), a spent budget, an endpoint that fails.
            Interrupted: a signal asked the journal's session to stop.
        """
        with nullcontext() if self.journal is None else self.journal.elsewhere():
            requests = [self._request(game) for game in games]
            return read_verdicts(self.client, f"oracle {self.client.judge.model}", requests, verdict)

    def facts(self) -> dict[str, Any]:
        """Calls, tokens and cost, and how the games went."""
        return {"tally": dict(self.client.tally), **super().facts()}

    def _request(self, game: Game) -> Request:
        a, b = game.shown
        name = f"{game.question.name}, {game.first} against {game.second}"
        if game.question.context:
            shown = filled(SHOWN_WHOLE, name, {"conversation": _conversation(game.question.turns), "a": a, "b": b})
        else:
            shown = filled(SHOWN, name, {"prompt": game.question.prompt, "a": a, "b": b})
        return Request(name, chat(SYSTEM, shown), **judge_decoding(self.client.judge, 0.0, MOST_TOKENS))


def _conversation(turns: Sequence[Turn]) -> str:
    return "\n\n".join(f"<|{turn['role'].title()}|>\n{turn['content']}" for turn in turns)


def verdict(answer: Answer) -> float | None:
    """P(A is better) of a judge's last verdict; None where there is none, or a reply that was cut states none."""
    found = labels(answer, LABEL, "verdict")
    if not found:
        return None
    return 0.5 if "=" in found[-1] else float(found[-1].startswith("A"))


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    assert settings.judge is not None
    if kept.answers is None:
        raise BadInput(
            f"the oracle behind {settings.judge.model} is a judge, and nothing says where its answers are kept"
        )
    return LanguageJudge(settings.judge, kept.answers, settings.comparisons, kept.journal)
