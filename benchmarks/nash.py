"""Opponents chosen by the game between them, beside fixed weights: `make nash` runs it and writes docs/nash.md.

In the demo's world (configs/nash.yaml) and with a real model (configs/smollm2-nash.yaml), three seeds each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measuring import ROOT, markdown, put_between
from benchmarks.smollm2 import RESAMPLES, Results, results_of, snakemake, spread
from mnpo.seeds import derive
from mnpo.statistics import paired

PAGE = ROOT / "docs/nash.md"
DEMO, REAL = "configs/nash.yaml", "configs/smollm2-nash.yaml"
CONFIDENCE = 0.95


def last(results: Results, base: str) -> Iterator[dict[str, str]]:
    """Each method's last policies, means over seeds, beside those of `base`."""
    for method, policies in results.methods.items():
        told = [results.summaries[policy] for policy in policies]
        row = {"method": method, "seeds": str(len(policies))}
        if method != "SFT":
            rates = [results.wins(policy, "sft").mean() for policy in policies]
            row |= {
                "win over SFT": spread(results.mean_wins(method, "SFT")),
                "seed by seed": ", ".join(f"{rate:.3f}" for rate in rates),
                f"win over {base}": "" if method == base else spread(results.mean_wins(method, base)),
                f"win over SFT, minus {base}'s": "" if method == base else _difference(results, method, base),
            }
        yield row | {"KL to SFT": ", ".join(f"{summary['kl_to_reference']:.2f}" for summary in told)}


def _difference(results: Results, method: str, base: str) -> str:
    mine, theirs = results.mean_wins(method, "SFT"), results.mean_wins(base, "SFT")
    c = paired(mine, theirs, RESAMPLES, CONFIDENCE, derive(0, "nash"))
    return f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"


def found(results: Results) -> Iterator[dict[str, str]]:
    """The games that were played: win rates of the newest over the others, and the weights of all."""
    games = [json.loads(file.read_text()) for file in sorted((results.root / "games").glob("*.json"))]
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
        tables = "\n\n".join(markdown(list(rows)) for rows in (last(results, base), found(results)))
        put_between(PAGE, f"## {title}: the tables\n", "\n## ", tables)


if __name__ == "__main__":
    main()
