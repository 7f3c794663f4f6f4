"""The client: the only way to a judge, or to a policy behind an API. An answer is stored before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.budget import Budget
from mnpo.judging.endpoints import require_key
from mnpo.judging.requests import REFUSED, Answer, Request, answer_key, endings
from mnpo.judging.session import Session
from mnpo.judging.store import Store

T = TypeVar("T")
DOZEN = 12  # replies that tell whether a judge can be read at all


class Client:
    """Asks a judge; whoever it asked before, also in a process that was killed, is not asked again.

    A job is one Client. Its budget counts the answers that it uses, also those that an earlier process of the job paid
    for: a job that is restarted, by hand or by a scheduler, does not get its budget anew.

    `tally`: calls (sent, and not refused by an error status), stored (answers found in the store), retried, lost (calls
    whose answer never arrived whole: they may have been billed), refused (questions that the endpoint refuses: they are
    left out), reasked (questions asked again for an unparsable verdict or an empty answer), unparsable (verdicts that
    stayed so), input_tokens, output_tokens, cost (US$). What was found in the store adds nothing to calls, tokens and
    cost.

    A policy behind an API is asked in the same way: see Model.as_judge.
    """

    def __init__(self, judge: Judge, store: Path, *, progress_name: str = "judge") -> None:
        """Open or make the store (SQLite). Raises BadInput: no key, or a store that is none or damaged."""
        require_key(judge)
        self.budget = Budget(judge)
        self.tally = self.budget.tally
        self.judge = judge
        self.store = store
        self.progress_name = progress_name
        with Store(store) as opened:
            opened.check()

    def ask(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to each request, in their order; equal requests are asked once.

        A question that the endpoint refuses (HTTP 400, 413, 422) has an empty answer, whose `refused` is true. It is
        stored like any other, and not asked again.

        Raises:
            BudgetSpent: the next call could exceed the budget.
            BadInput: the endpoint refuses most questions, or refuses the key or the model, or gives no answer to some
                request after all tries.
        """
        return self._ask(requests, 0)

    def replies(self, requests: Sequence[Request], read: Callable[[Answer], str], *, asker: str) -> list[Answer]:
        """As `ask`; an answer of which `read` leaves nothing is asked for again, judge.reasks times at most.

        Not one that was cut at its length or refused, as it would be again.

        Raises:
            BadInput: `asker`'s first dozen answers are all empty: nothing is asked again, and nothing else asked. Or as
                `ask` does.
        """

        def refusal(answers: list[Answer]) -> str:
            return (
                f"{asker}: the first dozen answers of {self.judge.model} are all empty "
                f"({endings(answer.finish for answer in answers)}); none is asked for again, and none of the other "
                f"{len(requests) - DOZEN}"
            )

        def final(answer: Answer) -> bool:
            return answer.finish in (REFUSED, "length")

        return self._told(requests, lambda answer: read(answer) or None, final, refusal)[0]

    def verdicts(
        self, requests: Sequence[Request], parse: Callable[[Answer], T | None], *, asker: str = "judge"
    ) -> list[T | None]:
        """What `parse` reads in the answers; None after judge.reasks further answers in which it read nothing.

        Raises:
            BadInput: `asker`'s first dozen replies are all unreadable: nothing is asked again, and nothing else asked.
                Or as `ask` does.
        """

        def read(answer: Answer) -> T | None:
            return None if answer.refused else parse(answer)

        def refusal(answers: list[Answer]) -> str:
            return (
                f"{asker}: none of {DOZEN} replies of the judge {self.judge.model} holds a verdict, the first dozen, "
                f"such as {answers[0].text[:80]!r} (finish {answers[0].finish}); no question is asked again, and none "
                f"of the other {len(requests) - DOZEN}"
            )

        answers, found = self._told(requests, read, lambda answer: answer.refused, refusal)
        unread = [verdict is None and not answer.refused for answer, verdict in zip(answers, found, strict=True)]
        self.tally["unparsable"] += sum(unread)
        return found

    def _told(
        self,
        requests: Sequence[Request],
        read: Callable[[Answer], T | None],
        final: Callable[[Answer], bool],
        refusal: Callable[[list[Answer]], str],
    ) -> tuple[list[Answer], list[T | None]]:
        """An answer to each request, and what `read` finds in it; one in which it finds nothing is asked for again,
        unless it is `final`. Raises BadInput, `refusal`, where the first dozen have nothing."""
        answers = self._ask(requests[:DOZEN], 0)
        found = [read(answer) for answer in answers]
        if len(found) == DOZEN and found.count(None) == DOZEN:
            raise BadInput(f"{refusal(answers)}. {self.mend}")
        answers += self._ask(requests[DOZEN:], 0)
        found += [read(answer) for answer in answers[DOZEN:]]
        for attempt in range(1, self.judge.reasks + 1):
            left = [i for i, told in enumerate(found) if told is None and not final(answers[i])]
            self.tally["reasked"] += len(left)
            for i, answer in zip(left, self._ask([requests[i] for i in left], attempt), strict=True):
                answers[i], found[i] = answer, read(answer)
        return answers, found

    @property
    def mend(self) -> str:
        """What a person does about replies that cannot be read."""
        return (
            f"Look at some in {self.store}, and mend the endpoint, max_tokens or reasoning_effort; to ask the same "
            "questions with the same settings again, move that file away"
        )

    def _ask(self, requests: Sequence[Request], attempt: int) -> list[Answer]:
        keys = [answer_key(self.judge, request, attempt) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        with Store(self.store) as store:
            answers = {key: answer for key in wanted if (answer := store.find(key)) is not None}
            for key, answer in answers.items():
                self.budget.count_found(key, answer)
            missing = {key: request for key, request in wanted.items() if key not in answers}
            if missing:
                answers |= asyncio.run(Session(self.budget, store, missing, attempt, self.progress_name).run())
        found = [answers[key] for key in keys]
        self.tally["refused"] += sum(answer.refused for answer in found)
        return found
