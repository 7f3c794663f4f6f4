"""Opponents chosen by the game between them, beside fixed weights: `make nash` runs it and writes docs/nash.md.

In the demo's world (configs/nash.yaml) and with a real model (configs/smollm2-nash.yaml), three seeds each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

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
    for method, policies in results.methods.items():
        games = [(p, results.root / f"games/{run}.{t}.json") for p in policies for run, _, n in [p.rpartition(".")]
                 for t in range(1, int(n or 0) + 1)]  # fmt: skip
        played: dict[int, list[dict[str, object]]] = {}
        for _, file in games:
            if file.is_file():
                game = json.loads(file.read_text())
                played.setdefault(int(game["policy"].rpartition(".")[2]), []).append(game)
        for t, some in sorted(played.items()):
            wins = np.array([game["wins"] for game in some], dtype=float)
            weights = [", ".join(f"{w:.2f}" for w in game["weights"].values()) for game in some]  # type: ignore[attr-defined]
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
