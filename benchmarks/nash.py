"""Opponents chosen by the game between them, beside fixed weights: `make nash` runs it and writes docs/nash.md.

In the demo's world (configs/nash.yaml) and with a real model (configs/smollm2-nash.yaml), three seeds each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, markdown, put_between
from benchmarks.smollm2 import Results, compared, difference, majority_wins, results_of, snakemake, spread

PAGE = ROOT / "docs/nash.md"
DEMO, REAL = "configs/nash.yaml", "configs/smollm2-nash.yaml"
PLAYERS = "HT"


def last(results: Results, base: str) -> Iterator[dict[str, str]]:
    """The last policies of each run with one oracle, means over seeds, beside those of `base`."""
    for method, policies in results.methods.items():
        if method != "SFT" and not method.startswith(PLAYERS):
            rates = [results.wins(policy, "sft").mean() for policy in policies]
            divergence = [results.summaries[policy]["kl_to_reference"] for policy in policies]
            yield {
                "method": method,
                "seeds": str(len(policies)),
                "win over SFT": spread(results.mean_wins(method, "SFT")),
                "seed by seed": ", ".join(f"{rate:.3f}" for rate in rates),
                f"win over {base}": "" if method == base else spread(results.mean_wins(method, base)),
                f"win over SFT, minus {base}'s": "" if method == base else _minus(results, method, base),
                "KL to SFT": ", ".join(f"{nats:.2f}" for nats in divergence),
            }


def players(results: Results) -> Iterator[dict[str, str]]:
    """Players whose opponents are weighed by the game beside those whose opponents count the same, by their own
    oracle."""
    for place, oracle in enumerate(results.voters):
        equal, weighed = (results.methods[f"{kind} {oracle}"] for kind in (PLAYERS, f"{PLAYERS} Nash"))
        yield {
            "player": oracle,
            "counting the same, over SFT": spread(_wins(results, place, equal, ["sft"])),
            "by the game, over SFT": spread(_wins(results, place, weighed, ["sft"])),
            "by the game, over counting the same": spread(_wins(results, place, weighed, equal)),
            "the same, seed by seed": ", ".join(
                f"{_wins(results, place, [a], [b]).mean():.3f}" for a, b in zip(weighed, equal, strict=True)
            ),
            "KL to SFT, the same / by the game": " / ".join(f"{_divergence(results, p):.2f}" for p in (equal, weighed)),
        }


def _divergence(results: Results, policies: Sequence[str]) -> float:
    """Nats a response, mean over seeds."""
    return float(np.mean([results.summaries[policy]["kl_to_reference"] for policy in policies]))


def _wins(results: Results, place: int, mine: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """By one of the voters, over all seeds of the one against all of the other, ``[prompts]``."""
    one = [place]
    pairs = product(mine, theirs)
    return np.mean([majority_wins(results.scores[a][one], results.scores[b][one]) for a, b in pairs], axis=0)


def _minus(results: Results, method: str, base: str) -> str:
    return difference(compared(results.mean_wins(method, "SFT"), results.mean_wins(base, "SFT")))


def found(results: Results) -> Iterator[dict[str, str]]:
    """The games that were played: win rates of the newest over the others, and the weights of all."""
    games = [json.loads(file.read_text()) for file in sorted((results.root / "games").glob("*[0-9].json"))]
    for method, policies in results.methods.items():
        runs = [policy.rpartition(".")[0] for policy in policies]
        played: dict[int, list[dict[str, Any]]] = {}
        for game in games:
            run, _, t = game["policy"].rpartition(".")
            if run in runs:
                played.setdefault(int(t), []).append(game)
        for t, some in sorted(played.items()):
            wins = np.array([game["wins"] for game in some], dtype=float)
            weights = [", ".join(f"{w:.2f}" for w in game["weights"].values()) for game in some]
            yield {
                "method": method,
                "iteration": str(t),
                "the first opponent wins over the others": ", ".join(f"{x:.3f}" for x in wins[:, 0, 1:].mean(0)),
                "weights, seed by seed": "; ".join(weights),
            }


def main() -> None:
    """Run what is not there yet, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    cores = parser.parse_args().cores
    for config, title, base in ((DEMO, "The demo", "INPO"), (REAL, "The real model", "TD-MNPO")):
        snakemake(config, cores)
        results = results_of(config)
        made = [last(results, base), *([players(results)] if config == DEMO else []), found(results)]
        tables = "\n\n".join(markdown(list(rows)) for rows in made)
        put_between(PAGE, f"## {title}: the tables\n", "\n## ", tables)


if __name__ == "__main__":
    main()
