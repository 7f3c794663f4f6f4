"""Does a population of opponents help a real model? `make smollm2-experiment` runs it and writes docs/smollm2.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import smollm2_public as public
from benchmarks.measuring import markdown
from examples.ifbench import NEW_TOKENS
from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.planning.fits import replica
from mnpo.seeds import derive
from mnpo.statistics import Comparison, cyclic_triples, interval, paired
from mnpo.storage.records import JUDGED, SAMPLED, read

ROOT = Path(__file__).parents[1]
CONFIG, TUNING = "configs/smollm2-experiment.yaml", "configs/smollm2-tuning.yaml"
PAGE, TEMPLATE = ROOT / "docs/smollm2.md", ROOT / "benchmarks/smollm2_page.md"
TRIED = ROOT / "benchmarks/smollm2_tuning.csv"
VOTERS = ("constraints", "brevity", "fluency")
COMPARED = ("INPO", "TD-MNPO 2")  # those with three seeds
IFBENCH = ("SFT", "DPO", "INPO", "ONPO", "TD-MNPO 2")
PUBLIC = ("SFT", "INPO", "TD-MNPO 2")
RESAMPLES, CONFIDENCE = 2000, 0.95
UNWRITTEN = "*To be written by hand after the run, from the tables below.*"

Wins = np.ndarray
"""How often one policy's responses beat another's to each prompt, ``[prompts]``."""


@dataclass(frozen=True)
class Results:
    """What a finished run left: policies by method, a seed each."""

    config: Config
    root: Path
    _cache: dict[tuple[str, str], Wins] = field(default_factory=dict)

    @cached_property
    def methods(self) -> dict[str, list[str]]:
        """Method -> its last policies, a seed each; SFT first."""
        found: dict[str, list[str]] = {"SFT": ["sft"]}
        for seed, (name, run) in product(range(1, self.config.seeds + 1), self.config.runs.items()):
            policy = f"{replica(name, seed)}.{len(run.iterations)}"
            found.setdefault((run.label or name).partition(",")[0], []).append(policy)
        return found

    @cached_property
    def summaries(self) -> dict[str, dict[str, Any]]:
        """Policy -> what `mnpo assess` wrote of it."""
        policies = [policy for seeds in self.methods.values() for policy in seeds]
        return {p: json.loads((self.root / f"evals/{p}/heldout.json").read_text()) for p in policies}

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Policy -> its sampled responses' scores, ``[voters, prompts, responses]``, prompts in the order of ids."""
        return {policy: self._scores(policy) for policy in self.summaries}

    @property
    def voters(self) -> list[str]:
        """The oracles whose majority decides."""
        return list(self.config.oracles[self.config.evaluation.majority or ""].of or [])

    def _scores(self, policy: str) -> np.ndarray:
        rows = read(JUDGED, self.root / f"evals/{policy}/heldout.parquet")
        rows = rows[rows["mode"] == SAMPLED].sort_values(["prompt_id", "k"])
        return np.stack(
            [rows[rows["oracle"] == v]["score"].to_numpy().reshape(-1, self.responses) for v in self.voters]
        )

    @property
    def responses(self) -> int:
        """Sampled for each held-out prompt."""
        return self.config.evaluation.responses

    def wins(self, policy: str, opponent: str) -> Wins:
        """By the majority of the voters, over all pairs of the two policies' responses (docs/method.md, eq. 14)."""
        if (policy, opponent) not in self._cache:
            self._cache[policy, opponent] = majority_wins(self.scores[policy], self.scores[opponent])
        return self._cache[policy, opponent]

    def mean_wins(self, method: str, opponent: str) -> Wins:
        """Over all seeds of the one against all of the other, ``[prompts]``."""
        pairs = product(self.methods[method], self.methods[opponent])
        return np.mean([self.wins(a, b) for a, b in pairs], axis=0)


def majority_wins(mine: np.ndarray, theirs: np.ndarray) -> Wins:
    """Of scores ``[voters, prompts, responses]``: each voter votes on each pair of responses, equal votes are one half.

    Returns:
        Means over the pairs, ``[prompts]``.
    """
    votes = np.sign(mine[:, :, :, None] - theirs[:, :, None, :]).sum(axis=0)
    return (0.5 + 0.5 * np.sign(votes)).mean(axis=(1, 2))


def spread(values: np.ndarray) -> str:
    """A mean with its bootstrap interval over prompts."""
    low, high = interval(values, RESAMPLES, CONFIDENCE, derive(0, "smollm2"))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def compared(mine: np.ndarray, theirs: np.ndarray) -> Comparison:
    """Two methods on the same items, with a bootstrap interval over these."""
    return paired(mine, theirs, RESAMPLES, CONFIDENCE, derive(0, "smollm2"))


def difference(c: Comparison) -> str:
    """It with its interval."""
    return f"{c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]"


# ---------------------------------------------------------------------------------------------------------- the tables
def main_table(results: Results) -> Iterator[dict[str, str]]:
    """Each method, the mean of its seeds."""
    for method, policies in results.methods.items():
        scores = np.mean([results.scores[p] for p in policies], axis=0)
        told = [results.summaries[p] for p in policies]
        yield {
            "method": method,
            "seeds": str(len(policies)),
            "win over SFT, majority": "" if method == "SFT" else spread(results.mean_wins(method, "SFT")),
            **{voter: spread(scores[i].mean(axis=1)) for i, voter in enumerate(VOTERS)},
            "tokens": f"{np.mean([s['tokens']['sampled'] for s in told]):.1f}",
            "KL to SFT": ", ".join(f"{s['kl_to_reference']:.2f}" for s in told),
        }


def claim_table(results: Results) -> Iterator[dict[str, str]]:
    """Each method beside INPO: directly, and by the win rates over SFT, with each seed's own difference."""
    for method in COMPARED[1:]:
        mine, inpo = results.mean_wins(method, "SFT"), results.mean_wins("INPO", "SFT")
        c = compared(mine, inpo)
        seeds = zip(results.methods[method], results.methods["INPO"], strict=True)
        each = [results.wins(a, "sft").mean() - results.wins(b, "sft").mean() for a, b in seeds]
        yield {
            "method": method,
            "wins over INPO": spread(results.mean_wins(method, "INPO")),
            "win over SFT, minus INPO's": difference(c),
            "verdict": c.verdict,
            "the same, seed by seed": ", ".join(f"{d:+.3f}" for d in each),
        }


def seed_table(results: Results) -> Iterator[dict[str, str]]:
    """How far apart the seeds of one method are."""
    for method in COMPARED:
        rates = [results.wins(p, "sft").mean() for p in results.methods[method]]
        yield {"method": method, **{f"seed {i}": f"{rate:.3f}" for i, rate in enumerate(rates, 1)}}


def win_matrix(results: Results) -> pd.DataFrame:
    """The row's rate of wins over the column, by the majority; means over seeds."""
    methods = list(results.methods)
    rates = [[results.mean_wins(a, b).mean() if a != b else 0.5 for b in methods] for a in methods]
    return pd.DataFrame(rates, index=methods, columns=methods)


def circles(results: Results) -> float:
    """Of three sampled responses to one held-out prompt, by whatever policies, how often the majority has a circle."""
    pooled = np.concatenate([results.scores[p] for seeds in results.methods.values() for p in seeds], axis=2)
    votes = np.sign(pooled[:, :, :, None] - pooled[:, :, None, :]).sum(axis=0)
    found = [cyclic_triples(0.5 + 0.5 * np.sign(prompt)) for prompt in votes]
    return float(np.mean(found) / comb(pooled.shape[2], 3))


def ifbench_table(results: Results) -> Iterator[dict[str, str]]:
    """Prompts whose constraints are all satisfied, and the share of constraints; differences to SFT over prompts."""
    tables = {m: pd.read_csv(ifbench_file(results, results.methods[m][0])) for m in IFBENCH}
    sft = tables["SFT"]["all"].to_numpy(dtype=float)
    for method, table in tables.items():
        kept = table["all"].to_numpy(dtype=float)
        yield {
            "policy": method,
            "prompts, strict": spread(kept),
            "constraints, strict": f"{table['met'].sum() / table['of'].sum():.3f}",
            "prompts, minus SFT's": "" if method == "SFT" else difference(compared(kept, sft)),
            "items": str(len(table)),
        }


def public_table(results: Results) -> Iterator[dict[str, str]]:
    """Benchmarks whose data are on no package index; a row where nobody gave them."""
    policies = {method: results.methods[method][0] for method in PUBLIC}
    if all((public.directory(results, p) / f"{public.ANSWERED[-1]}.parquet").exists() for p in policies.values()):
        yield from public.table(results, policies, spread)
    else:
        yield {"policy": "not measured: `python -m benchmarks.smollm2 --public DIR`"}


def exploitability_table(results: Results) -> Iterator[dict[str, str]]:
    """What a best response, trained for a stated budget, wins beyond one half."""
    table = pd.read_csv(results.root / "tables/exploitability.csv")
    for _, row in table[table["iterations"] > 0].iterrows():
        gap = f"{row['gap']:.3f} [{row['gap_low']:.3f}, {row['gap_high']:.3f}]"
        yield {"policy": row["policy"], "iterations": str(row["iterations"]), "gap": gap}


def tuning_table(results: Results) -> Iterator[dict[str, str]]:
    """Each setting that was tried, by its first iteration on validation prompts."""
    for method, (policy,) in results.methods.items():
        if method != "SFT":
            run = results.config.runs[policy.rpartition(".")[0]]
            strength = run.objective.beta or run.objective.eta
            yield {
                "objective": run.objective.name,
                "beta or eta": f"{strength:g}",
                "learning rate": f"{run.training.get('learning_rate', results.config.training.learning_rate):g}",
                "win over SFT, majority": spread(results.wins(policy, "sft")),
                "KL to SFT": f"{results.summaries[policy]['kl_to_reference']:.2f}",
            }


# ------------------------------------------------------------------------------------------------------------ the page
def page(results: Results, tuning: Sequence[Mapping[str, str]], answer: str, minutes: float) -> str:
    """docs/smollm2.md: benchmarks/smollm2_page.md, filled in."""
    config, matrix = results.config, win_matrix(results)
    bench = list(ifbench_table(results))
    return TEMPLATE.read_text(encoding="utf-8").format(
        answer=answer,
        main=markdown(list(main_table(results))),
        claim=markdown(list(claim_table(results))),
        seeds=markdown(list(seed_table(results))),
        matrix=markdown(matrix.map(lambda rate: f"{rate:.2f}").reset_index(names="").to_dict("records")),
        triples=cyclic_triples(matrix.to_numpy()),
        circles=f"{circles(results):.1%}",
        exploitability=markdown(list(exploitability_table(results))),
        ifbench=markdown(bench),
        public=markdown(list(public_table(results))),
        public_tokens=public.NEW_TOKENS,
        items=bench[0]["items"],
        new_tokens=NEW_TOKENS,
        tuning=markdown([dict(row) for row in tuning]),
        validation=load(ROOT / TUNING).prompts.heldout,
        heldout=config.prompts.heldout,
        responses=config.evaluation.responses,
        parts=config.prompts.parts,
        part_size=config.prompts.part_size,
        steps=steps(config),
        k=config.sampling.responses,
        max_new_tokens=config.sampling.max_new_tokens,
        minutes=f"{minutes:.0f}",
    )


def steps(config: Config) -> int:
    """Of an iteration, when every prompt makes a pair."""
    training = config.training
    return -(-(config.prompts.part_size or 0) * training.epochs // training.batch_size)


def written(text: str) -> str:
    """The section that was written by hand."""
    return text.partition("## The answer\n")[2].partition("\n## ")[0].strip() or UNWRITTEN


# ------------------------------------------------------------------------------------------------------------- the run
def results_of(config: str) -> Results:
    """Of a configuration that has run."""
    found = load(ROOT / config)
    return Results(found, ROOT / "results" / found.name)


def ifbench_file(results: Results, policy: str) -> Path:
    """A policy's answers to IFBench and what they satisfy."""
    return results.root / f"ifbench/{policy}.csv"


def snakemake(config: str, cores: int, *targets: str) -> None:
    """Make targets of a configuration; what is made already is not made again."""
    command = [sys.executable, "-m", "snakemake", "--configfile", config, "--cores", str(cores)]
    quiet = ["--rerun-incomplete", "--quiet", "host", "reason", "rules"]
    subprocess.run([*command, *quiet, "--", *targets], cwd=ROOT, check=True)


def ifbench(results: Results, cores: int, options: Sequence[str]) -> None:
    """Let the policies of seed 1 answer IFBench, so many at once as there are cores."""

    def one(policy: str) -> None:
        output = ifbench_file(results, policy)
        if not output.exists():
            where = str(results.root / f"policies/{policy}")
            subprocess.run(
                [sys.executable, "-m", "examples.ifbench", where, str(output), *options], cwd=ROOT, check=True
            )

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(one, [results.methods[method][0] for method in IFBENCH]))


def run(results: Results, config: str, cores: int, options: Sequence[str]) -> float:
    """Run all that is not there yet. Returns the minutes, those of earlier calls included."""
    clock, began = results.root / "minutes.json", time.monotonic()
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    snakemake(config, cores, "all", "exploitability")
    ifbench(results, cores, options)
    minutes = float(before + (time.monotonic() - began) / 60)
    clock.write_text(json.dumps(minutes))
    return minutes


def tune(config: str, cores: int) -> None:
    """Try the settings, and keep what came of it: the experiment itself does not try them again."""
    snakemake(config, cores, "heldout")
    pd.DataFrame(tuning_table(results_of(config))).to_csv(TRIED, index=False)


def main() -> None:
    """Run what is not there yet, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true", help="try the settings instead")
    parser.add_argument("--config", help="another configuration, such as a smaller one")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--ifbench-limit", help="the first so many prompts only")
    parser.add_argument("--public", type=Path, help="data of public benchmarks (benchmarks/smollm2_public.py)")
    given = parser.parse_args()
    if given.tune:
        tune(given.config or TUNING, given.cores)
        return
    config = given.config or CONFIG
    results = results_of(config)
    minutes = run(results, config, given.cores, ["--limit", given.ifbench_limit] if given.ifbench_limit else [])
    if given.public:
        public.measure(results, [results.methods[method][0] for method in PUBLIC], given.public, given.cores)
    answer = written(given.page.read_text(encoding="utf-8")) if given.page.is_file() else UNWRITTEN
    tried = pd.read_csv(TRIED, dtype=str).to_dict("records")
    given.page.write_text(page(results, tried, answer, minutes), encoding="utf-8")


if __name__ == "__main__":
    main()
