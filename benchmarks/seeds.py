"""The demo with three seeds: `make seeds` runs them and writes docs/seeds.md."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd

from benchmarks.measuring import ROOT, markdown

SEEDS = (0, 1, 2)
CONFIG = "configs/demo.yaml"
OFFLINE, ITERATIVE = "DPO", ("INPO 3", "TD-MNPO 3")

HEADER = """\
# The demo with three seeds

This page shows whether the demo's results hold for other seeds.

- `make seeds` runs the demo with seeds 0, 1 and 2, and writes the first two tables.
- World, SFT, sampling, training and evaluation all change with the seed.
- Nothing was tuned between the seeds. How the settings were chosen is said below.
- Win rates are under the default oracle on 600 held-out prompts. Intervals are 95% bootstrap intervals over prompts.

## Iterative runs against offline DPO

A run is above and apart from DPO if the lower end of its interval is above the upper end of DPO's. Intervals are those
of the win rate against SFT. The last column is the difference of the two runs' win rates.

"""


def run(seed: int) -> pd.DataFrame:
    """The main table of one seed; what is made already is not made again."""
    name = f"demo-seed-{seed}" if seed else "demo"  # seed 0 is the demo itself
    table = f"results/{name}/tables/main.csv"
    command = ["snakemake", "--profile", "profiles/demo", "--config", f"name={name}", f"seed={seed}", "--", table]
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    return pd.read_csv(ROOT / table).set_index("policy")


def spread(row: pd.Series, opponent: str) -> str:
    """A win rate with its interval."""
    value, low, high = (row[f"win_vs_{opponent}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Run all seeds and write the page."""
    tables = {seed: run(seed) for seed in SEEDS}
    rows = [
        {
            "seed": seed,
            "policy": policy,
            "win vs SFT": "" if policy == "SFT" else spread(row, "sft"),
            "win vs DPO": "" if policy == OFFLINE else spread(row, "dpo.1"),
            "accuracy, sampled": f"{row['accuracy_sampled']:.3f}",
            "accuracy, greedy": f"{row['accuracy_greedy']:.3f}",
            "tokens": f"{row['tokens']:.2f}",
            "KL to SFT": f"{row['kl_to_reference']:.2f}",
        }
        for seed, table in tables.items()
        for policy, row in table.iterrows()
    ]
    verdicts = []
    for seed, table in tables.items():
        top = table.loc[OFFLINE, "win_vs_sft_high"]
        lows = {policy: table.loc[policy, "win_vs_sft_low"] for policy in ITERATIVE}
        apart = [policy for policy, low in lows.items() if low > top]
        inpo, td = (table.loc[p, "win_vs_sft"] for p in ITERATIVE)
        verdicts.append(
            {
                "seed": seed,
                **{f"{policy}, lower end": f"{low:.3f}" for policy, low in lows.items()},
                f"{OFFLINE}, upper end": f"{top:.3f}",
                f"above and apart from {OFFLINE}": " and ".join(apart) or "neither",
                "TD-MNPO 3 minus INPO 3": f"{td - inpo:+.3f}",
            }
        )
    page = ROOT / "docs/seeds.md"
    notes = page.read_text().partition("\n## How")[2] if page.is_file() else ""
    text = HEADER + markdown(verdicts) + "\n\n## All policies\n\n" + markdown(rows) + "\n"
    page.write_text(text + (f"\n## How{notes}" if notes else ""))


if __name__ == "__main__":
    main()
