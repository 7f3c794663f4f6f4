"""GPU-hours of the paper's plan, plain and ours, by the cost model (docs/costs.md); nothing was measured on a GPU.

    python -m benchmarks.paper

The plain pipeline is priced by the same rates for the tokens that it computes: this counts work, no efficiency:
padded batches of K responses (scores) or of a pair (log-probabilities, training), each with its own copy of the prompt;
the reference's log-probabilities beside every opponent's; and, in the last column, every run by itself.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.measuring import ROOT
from mnpo.config.blocks import REFERENCE
from mnpo.config.reading import load
from mnpo.planning import job_graph
from mnpo.planning.costs.pieces import Estimate
from mnpo.planning.costs.quantities import Quantities
from mnpo.planning.estimate import forecast
from mnpo.planning.plan import Plan

SIGMA = 0.6  # of the log-normal lengths of responses: an assumption


def longest(count: int) -> float:
    """Mean length of the longest of `count` responses, in mean lengths."""
    rng = random.Random(0)
    return fmean(max(rng.lognormvariate(-(SIGMA**2) / 2, SIGMA) for _ in range(count)) for _ in range(20_000))


def ratios(q: Quantities) -> dict[str, float]:
    """Tokens that the plain pipeline computes for one of ours, by stage."""
    pair = 2 * (q.prompt + longest(2) * q.response) / q.pair
    score = q.k * (q.prompt + longest(q.k) * q.response) / (q.prompt + q.k * q.response)
    return {"score": score, "logps": pair, "train": pair}


def again(plan: Plan) -> float:
    """How often the plain way computes the reference's log-probabilities of pairs: as an opponent's, and as its own."""
    fits = [fit for fit in plan.policies.fits.values() if REFERENCE in fit.scorers]
    return fmean((REFERENCE in dict(fit.opponents)) + bool(fit.objective.ratio) for fit in fits)


def experiments(plan: Plan, estimates: Sequence[Estimate]) -> list[set[str]]:
    """The names of the work that each run needs; of runs that are each other's opponents, together."""
    needs = job_graph.by_run(plan, [e.work for e in estimates])
    own = {run: {f"train {policy}" for policy in policies} for run, policies in plan.policies.replicas.items()}
    groups = {frozenset(other for other in needs if needs[run] & own[other]) for run in needs}
    return [set().union(*(needs[run] for run in group)) for group in groups]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "config.yaml")
    plan = Plan(load(parser.parse_args().config))
    f, factors, repeated = forecast(plan), ratios(Quantities(plan)), again(plan)
    needed = experiments(plan, f.estimates)
    users = {e.work.name: max(1, sum(e.work.name in names for names in needed)) for e in f.estimates}

    def plain(e: Estimate) -> float:
        times = repeated if e.work.stage == "logps" and e.work.policy == REFERENCE else 1.0
        seconds = e.start + e.fixed + e.computing * factors.get(e.work.stage, 1.0)
        return times * e.work.jobs * e.gpus * seconds / 3600

    table: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for e in f.estimates:
        for name in (e.work.stage, "**all**"):
            for column, hours in enumerate((e.gpu_hours, plain(e), users[e.work.name] * plain(e))):
                table[name][column] += hours
    table["**all**"] = table.pop("**all**")
    said = ", ".join(f"{stage} {factor:.2f}" for stage, factor in factors.items())
    print(f"### The paper's plan\n\nGPU-hours on {plan.config.resources.gpu} by the default rates of docs/costs.md,")
    print(f"not measured. Tokens of the plain pipeline for one of ours: {said} (log-normal lengths,")
    print(f"sigma {SIGMA}: assumed); the reference's log-probabilities {repeated:.2f} times.\n")
    print("| stage | ours | plain, runs sharing as ours do | plain, each run by itself | ours / plain |")
    print("|---|---|---|---|---|")
    for stage, (ours, shared, alone) in table.items():
        if not math.isclose(ours, 0):
            print(f"| {stage} | {ours:.1f} | {shared:.1f} | {alone:.1f} | {ours / alone:.2f} |")


if __name__ == "__main__":
    main()
