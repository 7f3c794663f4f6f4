"""What is asked of judges and of policies behind endpoints: calls, tokens and US dollars."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mnpo.config.blocks import REFERENCE
from mnpo.config.oracles import Judge
from mnpo.planning.costs.assumptions import CONCURRENCY, GAME, JUDGING, Judging
from mnpo.planning.costs.passes import games_a_prompt, games_of, judged
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.registry import Work


@dataclass(frozen=True)
class Calls:
    """What is asked of a judge, or of a policy behind an endpoint."""

    count: int = 0
    input_tokens: float = 0
    output_tokens: float = 0
    price: float = 0
    """US dollars."""

    @staticmethod
    def sum(some: Iterable[Calls]) -> Calls:
        """All together."""
        of = list(some)
        return Calls(
            sum(c.count for c in of),
            sum(c.input_tokens for c in of),
            sum(c.output_tokens for c in of),
            sum(c.price for c in of),
        )


def calls(q: Quantities, work: Work) -> Calls:
    """Of a piece of work. Reasoning tokens and questions asked again are not in it."""
    return Calls.sum(asked for asked, _ in conversations(q, work))


def conversations(q: Quantities, work: Work) -> list[tuple[Calls, int]]:
    """What a piece of work asks of each endpoint, and how many calls are made at once."""
    c, benchmark = q.plan.config, work.benchmark or ""
    if work.stage == "answer" and work.policy in c.models and c.models[work.policy].api is not None:
        asked = q.requests(benchmark)
        return [(Calls(asked, asked * q.asked(benchmark), asked * q.generated(benchmark)), CONCURRENCY)]
    if work.stage == "judge":
        how, judge = JUDGING[benchmark], c.judges[work.judge or ""]
        tokens = q.asked(benchmark) + how.answers * q.generated(benchmark)
        return [(_judging(how, judge, q.items(benchmark) * how.calls, tokens), judge.concurrency)]
    if work.stage == "score" and work.judge:
        tokens = q.prompt + GAME.answers * q.response
        return [
            (_judging(GAME, spec.judge, round(share * q.prompts(work) * games), tokens), spec.judge.concurrency)
            for name, share in judged(c, work.judge).items()
            if (spec := c.oracles[name]).judge is not None
            for games in [games_a_prompt(q, work, spec.comparisons)]
        ]
    if work.stage == "assess":
        samples, tokens = c.evaluation.responses, q.prompt + GAME.answers * q.response
        over_reference = [] if work.policy == REFERENCE else q.plan.oracles.over_reference
        games: list[tuple[str, Callable[[int | None], int]]] = [
            (oracle, lambda _: (1 + samples) * GAME.calls) for oracle in over_reference
        ]
        if c.evaluation.majority:  # ranks a prompt's samples among themselves
            games.append((c.evaluation.majority, lambda comparisons: games_of(samples, comparisons)))
        return [
            (
                _judging(GAME, spec.judge, round(share * q.heldout * of(spec.comparisons)), tokens),
                spec.judge.concurrency,
            )
            for oracle, of in games
            for name, share in judged(c, oracle).items()
            if (spec := c.oracles[name]).judge is not None
        ]
    return []


def _judging(how: Judging, judge: Judge, count: int, tokens: float) -> Calls:
    """`count` calls that show `tokens` each."""
    read = count * (how.frame + tokens)
    written = count * float(min(how.output, judge.max_tokens or how.output))
    return Calls(count, read, written, (read * judge.price_input + written * judge.price_output) / 1e6)
