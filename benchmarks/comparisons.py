"""TD-MNPO with pairs from pi_t alone against comparisons with every opponent, on random games (docs/theory.md)."""

from __future__ import annotations

import argparse

import numpy as np

from mnpo.method import games, updates
from mnpo.method.play import play

WEIGHTS = ((0.667, 0.333), (0.25, 0.75))
TAUS = (0.0, 0.01, 0.1)
TINY = 1e-6


def measure(tau: float, weights: tuple[float, float], comparisons: str, seed: int, steps: int) -> float:
    """With a strong reference the steps until the gap stays tiny, else the worst gap of the last half."""
    game = games.preset("random", seed=seed, tau=tau)
    trace = play(game, "td-mnpo", steps, 1.0, weights, comparisons, range(1, steps + 1))
    gap = trace.gap_last[:, 0]
    if tau < 0.1:
        return float(gap[steps // 2 :].max())
    open_steps = np.flatnonzero(gap > TINY)
    return float(open_steps[-1] + 2) if len(open_steps) else 1.0


def main() -> None:
    """Print a Markdown table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--games", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=1000)
    chosen = arguments.parse_args()
    print("| tau | weights | measure | pairs from pi_t better | median, pi_t | median, opponents |")
    print("|---|---|---|---|---|---|")
    for tau in TAUS:
        for weights in WEIGHTS:
            ours, theirs = (
                np.array([measure(tau, weights, kind, seed, chosen.steps) for seed in range(chosen.games)])
                for kind in updates.COMPARISONS
            )
            what = "steps to 1e-6" if tau >= 0.1 else "worst gap, last half"
            better = f"{int((ours < theirs).sum())} of {chosen.games}"
            medians = f"{np.median(ours):.2g} | {np.median(theirs):.2g}"
            print(f"| {tau:g} | {'/'.join(map(str, weights))} | {what} | {better} | {medians} |")


if __name__ == "__main__":
    main()
