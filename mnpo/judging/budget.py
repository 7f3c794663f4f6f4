"""What a job's calls have cost, and whether the judge's budget permits another."""

from __future__ import annotations

from collections.abc import Collection

from mnpo.config.oracles import Judge
from mnpo.errors import BadInput
from mnpo.judging.requests import Answer

TALLY = (
    "calls",
    "stored",
    "retried",
    "lost",
    "refused",
    "reasked",
    "unparsable",
    "input_tokens",
    "output_tokens",
    "cost",
)


class BudgetSpent(BadInput):
    """The next call could exceed max_calls or max_cost. All answers that were under way are stored."""


class Budget:
    """One job's: it counts the answers that the job uses, also those that an earlier process of it paid for.

    Attributes:
        tally: what Client says of it.
        job_calls: of all answers that this job uses, paid for now or earlier.
        job_cost: the same, US$.
        answered: the keys of those answers.
        refused: the keys of the questions that the endpoint refuses; they cost nothing.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self.tally: dict[str, float] = dict.fromkeys(TALLY, 0)
        self.job_calls, self.job_cost = 0, 0.0
        self.answered: set[str] = set()
        self.refused: set[str] = set()

    def count_found(self, key: str, answer: Answer) -> None:
        """Count an answer that was in the store."""
        self.tally["stored"] += 1
        if answer.refused:
            self.refused.add(key)
        else:
            self._count(key, self.price(answer.input_tokens, answer.output_tokens))

    def count_paid(self, key: str, answer: Answer) -> None:
        """Count an answer that has just arrived."""
        cost = self.price(answer.input_tokens, answer.output_tokens)
        self.tally["calls"] += 1
        self.tally["input_tokens"] += answer.input_tokens
        self.tally["output_tokens"] += answer.output_tokens
        self.tally["cost"] += cost
        self._count(key, cost)

    def count_lost(self, at_most: float) -> None:
        """Count a call whose answer never arrived, against the budget with all that it may have cost."""
        self.tally["calls"] += 1
        self.tally["lost"] += 1
        self.job_calls += 1
        self.job_cost += at_most

    def _count(self, key: str, cost: float) -> None:
        if key not in self.answered:
            self.answered.add(key)
            self.job_calls += 1
            self.job_cost += cost

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """US$."""
        return (input_tokens * self.judge.price_input + output_tokens * self.judge.price_output) / 1e6

    def limit(self, cost: float, reserved: Collection[float]) -> str | None:
        """The setting that forbids a further call of `cost` now, beside those under way that may cost `reserved`."""
        most_calls, most_cost = self.judge.max_calls, self.judge.max_cost
        if most_calls is not None and self.job_calls + len(reserved) >= most_calls:
            return "max_calls"
        if most_cost is not None and self.job_cost + sum(reserved) + cost > most_cost + 1e-9:
            return "max_cost"
        return None
