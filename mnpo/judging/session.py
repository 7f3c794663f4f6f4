"""The concurrent calls that get one batch of answers: tries, waits between them, the budget, and when all stops."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

from mnpo.errors import BadInput
from mnpo.judging.budget import Budget, BudgetSpent
from mnpo.judging.endpoints import read_key, scrubbed
from mnpo.judging.replies import QUESTION, SETTINGS_REFUSED, Trouble, read_answer, refusal
from mnpo.judging.requests import REFUSED, Answer, Request, wire_body
from mnpo.judging.store import Store
from mnpo.progress import counter, say

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds between tries, before jitter; doubled from try to try
ANSWER_TOKENS = 4096  # what an answer without max_tokens is expected to cost at most, until a longer one is seen
CLAIM_SLACK = 30.0  # seconds beyond the time-out of a call, after which its claim is void
CLAIM_POLL = 0.2  # seconds between looks at a question that another process asks
GIVE_UP = 3  # requests in a row that get no answer after all tries: then it is the endpoint
MOST = 12  # refused questions that are most of those asked: then it is the settings


class Session:
    """The missing answers of one `ask`: workers share a queue, a budget and the reason to stop, if there is one."""

    def __init__(
        self, budget: Budget, store: Store, missing: Mapping[str, Request], attempt: int, progress_name: str
    ) -> None:
        self.budget, self.judge = budget, budget.judge
        self.store, self.missing, self.attempt, self.progress_name = store, missing, attempt, progress_name
        self.key = read_key(self.judge)
        self.where = f"{self.judge.endpoint}, model {self.judge.model}"
        self.queue = iter(missing.items())
        self.answers: dict[str, Answer] = {}
        self.refused: dict[str, Answer] = {}
        self.first_refused = ""
        self.unanswered: list[str] = []
        self.unanswered_in_a_row = 0
        self.stopped: BadInput | None = None
        self.reserved: dict[str, float] = {}  # key -> US$ that its call under way may cost
        self.longest = ANSWER_TOKENS
        self.not_before = 0.0  # nobody asks before this moment of the loop's clock
        self.troubles: set[str] = set()
        self.changed = asyncio.Condition()
        self.show = counter(progress_name, "answers")

    async def run(self) -> dict[str, Answer]:
        """The answers by key. Raises BadInput when some are missing; those that arrived are stored."""
        import openai

        from mnpo.judging.network import connect

        async with openai.AsyncOpenAI(
            api_key=self.key,
            base_url=self.judge.endpoint,
            timeout=self.judge.timeout,
            max_retries=0,  # one policy for retries: this module's
            http_client=connect(self.judge),
        ) as connected:
            self.create = connected.chat.completions.with_raw_response.create
            workers = min(self.judge.concurrency, len(self.missing))
            await asyncio.gather(*(self._work() for _ in range(workers)))
        if self.refused and self._surplus_of_refusals() > 0:
            self.stopped = self.stopped or self._most_refused()
        else:
            for key, answer in self.refused.items():
                self.store.add(key, self.missing[key], self.judge, answer)
        if self.stopped is not None:
            raise self.stopped
        if self.unanswered:
            raise self._no_answers()
        return self.answers

    async def _work(self) -> None:
        for key, request in self.queue:
            answer = self.store.find(key)  # another process may have asked meanwhile
            if answer is not None:
                self.budget.count_found(key, answer)
            else:
                answer = await self._pursue(key, request)
            if answer is not None:
                self.answers[key] = answer
                self.show(len(self.answers), len(self.missing))
            if self.stopped:
                return

    async def _pursue(self, key: str, request: Request) -> Answer | None:
        """Ask until there is an answer, and store it; None when there is none, or when all stops."""
        trouble = None
        for failures in range(self.judge.retries + 1):
            await self._its_turn()
            if not await self._reserve(key, request):
                return None
            if (found := await self._claim(key)) is not None or self.stopped is not None:
                await self._settle(key)
                return found
            self.budget.tally["retried"] += 1 if failures else 0
            try:
                answer = await self._call(request)
            except Trouble as error:
                trouble = error
                self.store.release(key)
            else:
                stored = self.store.add(key, request, self.judge, answer)
                self.budget.count_paid(key, answer)
                self.longest = max(self.longest, answer.output_tokens)
                self.unanswered_in_a_row = 0
                await self._settle(key)
                return stored
            if trouble.billed:
                self.budget.count_lost(self.reserved[key])
            await self._settle(key)
            if trouble.status in QUESTION:
                return await self._refuse(key, request, trouble)
            if trouble.remedy:
                await self._stop(BadInput(f"{self.where}: {request.name}: {trouble.reason}; {trouble.remedy}"))
                return None
            if failures < self.judge.retries:
                await self._back_off(failures, trouble)
        assert trouble is not None
        self.unanswered.append(f"{request.name} ({trouble.reason})")
        self.unanswered_in_a_row += 1
        if self.unanswered_in_a_row == GIVE_UP:
            await self._stop(self._no_answers())
        return None

    async def _refuse(self, key: str, request: Request, trouble: Trouble) -> Answer:
        """An answer in the place of the one that the endpoint refuses; all stops when it refuses most.

        It is stored when the session ends: where most are refused, it is the settings, and to be asked again.
        """
        self.first_refused = self.first_refused or f"{request.name}: {trouble.reason}"
        self.refused[key] = Answer("", REFUSED, None, 0, 0, trouble.reason)
        self.budget.refused.add(key)
        if len(self.refused) >= MOST and self._surplus_of_refusals() > len(self.reserved):
            await self._stop(self._most_refused())
        return self.refused[key]

    def _surplus_of_refusals(self) -> int:
        """How many more of the job's questions are refused than answered."""
        return len(self.budget.refused) - len(self.budget.answered)

    def _most_refused(self) -> BadInput:
        refused = len(self.budget.refused)
        return BadInput(
            f"{self.where}: {self.first_refused}; {refused} of {refused + len(self.budget.answered)} questions are "
            f"refused, so it is not the question: {SETTINGS_REFUSED}"
        )

    def _no_answers(self) -> BadInput:
        return BadInput(
            f"{self.where}: {len(self.unanswered)} requests got no answer in {self.judge.retries + 1} tries, the first "
            f"{self.unanswered[0]}; {self.store.count()} answers are in {self.store.path} and stay there: run it again "
            f"when the endpoint is well, or raise the judge's retries (now {self.judge.retries}) or timeout (now "
            f"{self.judge.timeout:g} s)"
        )

    async def _back_off(self, failures: int, trouble: Trouble) -> None:
        """Wait, longer from failure to failure; when the endpoint says how long, everyone waits at least so long."""
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2**failures) * random.uniform(0.5, 1.0)  # no result depends on it
        if trouble.wait is not None:
            self.not_before = max(self.not_before, asyncio.get_running_loop().time() + trouble.wait)
        kind = trouble.reason.partition(":")[0]
        if kind not in self.troubles:
            self.troubles.add(kind)
            say(f"{self.progress_name}: {trouble.reason}; trying again in {max(wait, trouble.wait or 0):.1f} s")
        await self._until(lambda: False, wait)

    async def _claim(self, key: str) -> Answer | None:
        """Have a question to oneself; or wait for the process that has it, and return the answer that it got."""
        while self.stopped is None and not self.store.claim(key, self.judge.timeout + CLAIM_SLACK):
            if (answer := self.store.find(key)) is not None:
                self.budget.count_found(key, answer)
                return answer
            await self._until(lambda: False, CLAIM_POLL)
        return None

    async def _its_turn(self) -> None:
        while (wait := self.not_before - asyncio.get_running_loop().time()) > 0 and self.stopped is None:
            await self._until(lambda: False, wait)

    # Budget and stopping

    async def _until(self, ready: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for `ready` (looked at when a call has ended), for the stop of everything, or for so many seconds."""
        if seconds is not None and seconds <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self.changed:
                await self.changed.wait_for(lambda: self.stopped is not None or ready())

    async def _reserve(self, key: str, request: Request) -> bool:
        """Keep a call's money aside once there is enough; False when all stops, be it for that reason."""
        cost = self._at_most(request)
        await self._until(lambda: self.budget.limit(cost, self.reserved.values()) is None or not self.reserved)
        if self.stopped is None and (limit := self.budget.limit(cost, self.reserved.values())) is not None:
            await self._stop(BudgetSpent(self._spent(limit, cost)))
        if self.stopped is not None:
            return False
        self.reserved[key] = cost
        return True

    async def _settle(self, key: str) -> None:
        """Put back what was kept aside: the call has been paid, refused or lost."""
        del self.reserved[key]
        await self._notify()

    async def _stop(self, reason: BadInput) -> None:
        self.stopped = self.stopped or reason
        await self._notify()

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    def _at_most(self, request: Request) -> float:
        """US$ that one call costs at most: a token is at least a byte, and a message's frame a few tokens."""
        inputs = request.size + 16 * len(request.messages)
        limit = request.max_tokens or self.judge.max_tokens
        return self.budget.price(inputs, limit or self.longest)

    def _spent(self, limit: str, cost: float) -> str:
        next_call = f", and the next call may cost ${cost:.4f}" if limit == "max_cost" else ""
        left = len(self.missing) - len(self.answers)
        return (
            f"{self.where}: the judge's {limit} ({getattr(self.judge, limit):g}) is spent: {self.budget.job_calls} "
            f"calls and ${self.budget.job_cost:.4f} in this job{next_call}; {self.store.count()} answers are in "
            f"{self.store.path} and are not paid for again, {left} of {len(self.missing)} remain to be asked: "
            f"raise {limit}"
        )

    # One call

    async def _call(self, request: Request) -> Answer:
        """One HTTP request. Raises Trouble."""
        import openai

        body = wire_body(self.judge, request, self.attempt)
        try:
            async with asyncio.timeout(self.judge.timeout):
                raw = await self.create(**body)
                text = scrubbed(raw.http_response.text, self.key)
        except openai.APIStatusError as error:
            response = error.response
            raise refusal(self.judge, self.key, error.status_code, response.headers, response.text) from None
        except (TimeoutError, openai.APITimeoutError):
            raise Trouble(f"no answer within {self.judge.timeout:g} s", billed=True) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, Trouble):
                raise error.__cause__ from None
            cause = type(error.__cause__).__name__
            raise Trouble(f"the connection failed ({cause})", billed=cause != "ConnectError") from None
        return read_answer(text, request)
