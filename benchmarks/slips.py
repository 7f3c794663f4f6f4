"""What each slip of the paper's public code costs, one at a time: `make slips` runs configs/slips.yaml, and writes
docs/slips.md.

The jobs are the workflow's own, one after another in this process, which imports once. What is made already is not made
again: delete results/slips to start anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from benchmarks.chain import due, in_process
from benchmarks.measuring import ROOT, markdown, put_between
from mnpo.config.blocks import REFERENCE
from mnpo.config.reading import load
from mnpo.planning.files import HELDOUT
from mnpo.planning.plan import Plan
from mnpo.storage.records import SAMPLED
from mnpo.tables import heldout

CONFIG, PAGE = ROOT / "configs/slips.yaml", ROOT / "docs/slips.md"
BASE = "paper"
TABLE, NOTES = "## The table\n", "\n## What it shows"


def commands(plan: Plan) -> Iterator[list[str]]:
    """Of all jobs whose output is not there yet, in an order in which they can be done."""
    for _, output, command in due(plan, "ours"):
        if not Path(output).exists() or output.endswith("/prompts"):
            yield command
    for policy in plan.policies.evaluated:
        output = plan.files.evaluation(policy, HELDOUT)
        files = ["--policy", plan.files.policy(policy), "--reference", plan.files.policy(REFERENCE)]
        settings = ["--settings", plan.settings("assess", policy=policy), "--prompts", plan.files.prompts(HELDOUT)]
        if not Path(output).exists():
            yield ["assess", *settings, *files, "--output", output]


def table(plan: Plan) -> pd.DataFrame:
    """A row a run: means over its seeds, and the difference to the base with its interval."""
    evaluations = [Path(plan.files.evaluation(p, HELDOUT)) for p in plan.policies.evaluated]
    summaries, items = heldout.evaluated(plan.policies.evaluated, evaluations)
    grids = heldout.score_grids(items, plan.config.evaluation.oracle)
    seeds = {  # run -> [seeds, prompts]
        run: np.stack([heldout.wins(grids, p, REFERENCE) for p in policies])
        for run, policies in _policies(plan).items()
    }
    apart = np.stack([wins.mean(1) for wins in seeds.values()])  # [runs, seeds]
    freedom = apart.shape[0] * (apart.shape[1] - 1)
    between = (apart.var(1, ddof=1).mean() * 2 / apart.shape[1]) if freedom else math.nan
    rows = []
    for run, wins in seeds.items():
        each = wins.mean(0) - seeds[BASE].mean(0)  # of every prompt
        width = student.ppf(0.975, freedom) * math.sqrt(between + each.var(ddof=1) / len(each))
        of = [summaries[p] for p in _policies(plan)[run]]
        rows.append(
            {
                "run": plan.config.runs[run].label,
                "win rate against SFT": f"{wins.mean():.3f} ± {wins.mean(1).std(ddof=1):.3f}",
                "difference, 95% interval": "" if run == BASE else f"{each.mean():+.3f} ± {width:.3f}",
                "apart": "" if run == BASE else "**yes**" if abs(each.mean()) > width else "no",
                "correctness": f"{np.mean([s['scores']['correctness'][SAMPLED] for s in of]):.3f}",
                "KL to SFT": f"{np.mean([s['kl_to_reference'] for s in of]):.2f}",
                "tokens": f"{np.mean([s['tokens'][SAMPLED] for s in of]):.2f}",
            }
        )
    return pd.DataFrame(rows)


def _policies(plan: Plan) -> Mapping[str, list[str]]:
    """Run -> the last policy of each of its seeds."""
    lasts = {run: policies[-1] for run, policies in plan.policies.replicas.items()}
    return {run: [last for name, last in lasts.items() if name.partition(".")[0] == run] for run in plan.config.runs}


def main() -> None:
    """Run what is missing, and write the table into the page."""
    os.chdir(ROOT)
    plan = Plan(load(CONFIG))
    in_process(commands(plan), "ours")
    put_between(PAGE, TABLE, NOTES, markdown(table(plan)))


if __name__ == "__main__":
    main()
