"""Past policies where preferences run in circles.

`make regime` tries it in the demo (configs/regime.yaml) and writes the tables of docs/regime-demo.md; `make
smollm2-regime` (`--real`) tries it with a real model (configs/smollm2-regime.yaml, docs/regime-smollm2.md).
`--predict` makes nothing but the reference, and prints what the exact game predicts. `--tune` says how far one update
of the real model goes (configs/smollm2-regime-tuning.yaml).

The demo's jobs are the workflow's own, one after another in this process, which imports once. What is made already is
not made again: delete results/regime to start anew. The real model's are the workflow's.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student

from benchmarks.chain import due, in_process
from benchmarks.measuring import ROOT, markdown, put_between
from benchmarks.smollm2 import snakemake
from examples.circles import CIRCLE, LADDER, LENGTHS, STYLES, length, preferences, style
from mnpo.config.blocks import REFERENCE
from mnpo.config.reading import load
from mnpo.config.runs import Run
from mnpo.method.games import Array
from mnpo.planning.files import HELDOUT
from mnpo.planning.fits import AGAINST, replica
from mnpo.planning.plan import Plan
from mnpo.seeds import derive
from mnpo.storage.records import JUDGED, PAIRS, SAMPLED, SAMPLES, SCORES, read


@dataclass(frozen=True)
class World:
    """Where the game is tried: its configuration, its page, and what a response's style is."""

    config: Path
    page: Path
    styles: tuple[str, ...]
    seen: Callable[[str], str]


DEMO = World(ROOT / "configs/regime.yaml", ROOT / "docs/regime-demo.md", STYLES, style)
REAL = World(ROOT / "configs/smollm2-regime.yaml", ROOT / "docs/regime-smollm2.md", LENGTHS, length)
TUNING = ROOT / "configs/smollm2-regime-tuning.yaml"
GAMES = {"circle": np.array(preferences(CIRCLE)), "ladder": np.array(preferences(LADDER))}
LATER = "later half"
LEAST = 1e-3  # share of a style that was not seen
SIMULATED, RESAMPLES = 200, 500
TABLE, NOTES = "## The table\n", "\n## What it shows"


def commands(plan: Plan) -> Iterator[list[str]]:
    """Of all jobs whose output is not there yet, in an order in which they can be done."""
    made = [(output, command) for _, output, command in due(plan, "ours")]
    made += [_sampled(plan, policies[-1]) for policies in plan.policies.replicas.values()]
    for policy, exploiters in plan.policies.exploiters.items():
        for exploiter in exploiters:
            made += [_sampled(plan, exploiter), _against(plan, exploiter, policy)]
    for output, command in made:
        if not Path(output).exists() or output.endswith("/prompts"):
            yield command


def _sampled(plan: Plan, policy: str) -> tuple[str, list[str]]:
    """What a policy's held-out samples are called, and the command that makes them."""
    output = plan.files.samples(policy, HELDOUT, "0")
    settings = plan.settings("sample", policy=policy, part=HELDOUT, shard="0")
    files = ["--policy", plan.files.policy(policy), "--prompts", plan.files.prompts(HELDOUT), "--output", output]
    return output, ["sample", "--settings", settings, *files]


def _against(plan: Plan, exploiter: str, policy: str) -> tuple[str, list[str]]:
    """Their scores against a fixed policy's."""
    oracle = f"{plan.policies.exploited[policy]}{AGAINST}{policy}"
    output = plan.files.scores(exploiter, HELDOUT, oracle, "0")
    files = ["--samples", plan.files.samples(exploiter, HELDOUT, "0"), "--output", output]
    against = [f"--against={file}" for file in plan.files.against(HELDOUT, oracle, "0")]
    return output, ["score", "--settings", plan.settings("score", oracle=oracle), *against, *files]


# ----------------------------------------------------------------------------------------------------- what is measured


def exploitability(preference: Array, shares: Array) -> Array:
    """Eq. 23 of policies [..., styles], exactly: what the best style wins over one half. Nothing else counts."""
    gap: Array = (shares @ preference.T).max(-1) - 0.5
    return gap


def measures(preference: Array, shares: Array) -> dict[str, float]:
    """Of the policies after 1, 2, ... updates, [updates, styles]."""
    half = len(shares) // 2
    gaps = exploitability(preference, shares)
    return {
        "after 3": float(gaps[2]),
        LATER: float(gaps[half:].mean()),
        "last": float(gaps[-1]),
        "last against its worst ancestor": float((shares[-1] @ preference @ shares[:-1].T).min()),
    }


def of_policy(plan: Plan, world: World, policy: str, part: int | str) -> Array:
    """[prompts, styles]: shares of the styles among a policy's sampled responses to each prompt of a part."""
    rows = read(SAMPLES, *(Path(file) for file in plan.files.sample_shards(policy, part)))
    counts = pd.crosstab(rows["prompt_id"], rows["response"].map(world.seen), normalize="index")
    shares: Array = counts.reindex(columns=world.styles, fill_value=0.0).to_numpy()
    return shares


# ------------------------------------------------------------------------------------------------------- the prediction


def drawn_pairs(preference: Array, policy: Array, prompts: int, responses: int, random: np.random.Generator) -> Array:
    """[styles, styles]: how often the row's is chosen over the column's, best against worst of a prompt's responses."""
    styles = random.choice(len(policy), p=policy, size=(prompts, responses))
    scores = (preference[styles[:, :, None], styles[:, None, :]].sum(2) - 0.5) / (responses - 1)
    rows, best, worst = np.arange(prompts), scores.argmax(1), scores.argmin(1)
    apart = scores[rows, best] > scores[rows, worst] + 1e-9
    counts = np.zeros(preference.shape)
    np.add.at(counts, (styles[rows, best][apart], styles[rows, worst][apart]), 1.0)
    return counts


def minimiser(counts: Array, anchor: Array, eta: float) -> Array:
    """Log-policy with the least squared loss (eq. 5, 6) on pairs of styles: `h` is its log-ratio to `anchor`."""
    both = counts + counts.T
    normal = np.diag(both.sum(1)) - both
    steps = np.linalg.lstsq(normal, (counts - counts.T).sum(1) / (2 * eta), rcond=None)[0]
    logits: Array = anchor + steps
    return logits - np.logaddexp.reduce(logits)


def anchor(run: Run, past: Sequence[Array], reference: Array) -> Array:
    """Log-policy that the loss measures from (eq. 15): opponents by their weights, newest first, and the reference."""
    used = np.array((run.objective.weights or [1.0])[: len(past)])
    opponents = (used / used.sum()) @ np.stack(past[: len(used)])
    ratio = run.objective.ratio or 0.0
    log: Array = ratio * reference + (1 - ratio) * opponents
    return log


def simulated(plan: Plan, run: str, start: Array, random: np.random.Generator, share: float = 1) -> Array:
    """[updates, styles]: a run of the plan on the game of styles, with as many prompts.

    Every update goes `share` of the way to the least loss, ONPO's all of it.
    """
    of = plan.config.runs[run]
    eta = of.objective.eta or math.nan
    preference, reference = GAMES[of.oracle or ""], np.log(start)
    past = bases = [reference]
    for _ in of.iterations:
        pairs = drawn_pairs(
            preference, np.exp(past[0]), plan.config.prompts.part_size or 0, plan.config.sampling.responses, random
        )
        if of.objective.name == "onpo":
            bases = [minimiser(pairs, bases[0], eta)]
            past = [minimiser(pairs, bases[0], eta), *past]
        else:
            aim = minimiser(pairs, anchor(of, past, reference), eta)
            log = past[0] + share * (aim - past[0])
            past = [log - np.logaddexp.reduce(log), *past]
    return np.exp(np.stack(past[-2::-1]))


def prediction(plan: Plan, start: Array, share: float = 1) -> pd.DataFrame:
    """Means over simulations, and between which values 95% of means over as many seeds as the plan has fall."""
    rows = []
    for run, of in plan.config.runs.items():
        random = np.random.default_rng(derive(0, "regime", run))
        found = pd.DataFrame(
            [measures(GAMES[of.oracle or ""], simulated(plan, run, start, random, share)) for _ in range(SIMULATED)]
        )
        few = [found.iloc[random.choice(len(found), plan.config.seeds)].mean() for _ in range(RESAMPLES)]
        low, high = np.quantile(np.stack(few), [0.025, 0.975], axis=0)
        cells = zip(found, found.mean(), low, high, strict=True)
        rows.append({"run": of.label} | {name: f"{mean:.3f} [{a:.3f}, {b:.3f}]" for name, mean, a, b in cells})
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------------------------------------------- the result


Played = Sequence[Sequence[Array]]
"""Of a run, seed by seed and update by update: [prompts, styles]."""


def table(names: Mapping[str, str], game: str, played: Mapping[str, Played]) -> pd.DataFrame:
    """A row a run, means over seeds with their standard deviation, and the difference of the later half to INPO's.

    The difference's interval is a 95% t-interval; its variance is the seeds' (one for all runs of the game) and that of
    the prompts, by the bootstrap.

    Args:
        names: run -> its label, the base first.
        played: by run.
    """
    preference = GAMES[game]
    found = {run: pd.DataFrame([measures(preference, s) for s in _means(of)]) for run, of in played.items()}
    base = next(iter(names))
    seeds = len(found[base])
    freedom = len(found) * (seeds - 1)
    between = np.mean([f[LATER].var(ddof=1) for f in found.values()]) * 2 / seeds
    again = {run: _resampled(preference, of, game) for run, of in played.items()}
    rows = []
    for run, label in names.items():
        less = found[run][LATER].mean() - found[base][LATER].mean()
        width = student.ppf(0.975, freedom) * math.sqrt(between + (again[run] - again[base]).var(ddof=1))
        rows.append(
            {"run": label}
            | {name: _spread(values.to_numpy()) for name, values in found[run].items()}
            | {"last against INPO's last": "" if run == base else f"{_won(preference, played[run], played[base]):.3f}"}
            | {f"{LATER}: difference to INPO, 95% interval": "" if run == base else f"{less:+.3f} ± {width:.3f}"}
            | {"apart": "" if run == base else "**yes**" if abs(less) > width else "no"}
        )
    return pd.DataFrame(rows)


def _won(preference: Array, mine: Played, theirs: Played) -> float:
    """Win rate of the last policies over the others', mean over all pairs of seeds."""
    return float(_means(mine)[:, -1].mean(0) @ preference @ _means(theirs)[:, -1].mean(0))


def _means(played: Played) -> Array:
    """[seeds, updates, styles]: over prompts."""
    return np.array([[shares.mean(0) for shares in updates] for updates in played])


def _resampled(preference: Array, played: Played, game: str) -> Array:
    """[RESAMPLES]: the later half's mean exploitability, on prompts drawn anew, the same for all runs and seeds."""
    random, found = np.random.default_rng(derive(0, "regime", game)), []
    for _ in range(RESAMPLES):
        chosen = [random.integers(len(shares), size=len(shares)) for shares in played[0]]
        drawn = [[shares[some] for shares, some in zip(updates, chosen, strict=True)] for updates in played]
        found.append(np.mean([measures(preference, s)[LATER] for s in _means(drawn)]))
    return np.array(found)


def tables(plan: Plan, world: World) -> Iterator[pd.DataFrame]:
    """A table a game."""
    for game in GAMES:
        names = {run: of.label or run for run, of in plan.config.runs.items() if of.oracle == game}
        yield table(names, game, {run: list(_played(plan, world, run)) for run in names})


def exploited(plan: Plan) -> pd.DataFrame:
    """A row a run: the gaps that trained best responses to its last policies found, means over seeds."""
    found: dict[str, list[Array]] = {}
    for policy, exploiters in plan.policies.exploiters.items():
        oracle = f"{plan.policies.exploited[policy]}{AGAINST}{policy}"
        files = [Path(plan.files.scores(exploiter, HELDOUT, oracle, "0")) for exploiter in exploiters]
        gaps = np.array([read(SCORES, file)["score"].mean() - 0.5 for file in files])
        found.setdefault(policy.partition(".")[0], []).append(gaps)
    return pd.DataFrame(
        [
            {"run": plan.config.runs[run].label, "seeds": len(gaps)}
            | {f"after {t}": _spread(values) for t, values in enumerate(np.array(gaps).T)}
            for run, gaps in found.items()
        ]
    )


def _spread(values: Array) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def _played(plan: Plan, world: World, run: str) -> Iterator[list[Array]]:
    """For each seed, a run's policies after 1, 2, ... updates: on the prompts that the next update samples, which are
    new to them; the last on the held-out ones."""
    iterations = plan.config.runs[run].iterations
    parts = [*(i.parts[0] for i in iterations[1:]), HELDOUT]
    for seed in range(1, plan.config.seeds + 1):
        name = replica(run, seed)
        yield [of_policy(plan, world, f"{name}.{t}", part) for t, part in enumerate(parts, 1)]


def followed(plan: Plan, world: World) -> pd.DataFrame:
    """A row a run: its updates beside those of the exact minimiser on the same pairs, from the same policies.

    Both are changes of log-odds. Their lengths' ratio and the cosine between them, over all updates; means over seeds.
    Policies are known from samples, whose noise makes lengths larger and cosines smaller.
    """
    rows = []
    for run, of in plan.config.runs.items():
        if of.objective.name == "onpo":
            continue
        lengths, cosines = [], []
        for seed, updates in enumerate(_played(plan, world, run), 1):
            moved, exact = _updates(plan, world, replica(run, seed), of, updates)
            size, exact_size = np.linalg.norm(moved), np.linalg.norm(exact)
            lengths.append(size / exact_size)
            cosines.append((moved * exact).sum() / (size * exact_size))
        told = {
            "length over the exact's": _spread(np.array(lengths)),
            "cosine to the exact": _spread(np.array(cosines)),
        }
        rows.append({"run": of.label} | told)
    return pd.DataFrame(rows)


def _updates(plan: Plan, world: World, name: str, of: Run, played: Sequence[Array]) -> tuple[Array, Array]:
    """[updates, styles]: changes of log-odds, the network's and the exact minimiser's, of a run with one seed."""
    parts = [iteration.parts[0] for iteration in of.iterations]
    sampled = [REFERENCE, *(f"{name}.{t}" for t in range(1, len(played)))]
    shares = [of_policy(plan, world, REFERENCE, parts[0]), *played]
    logs = [np.log(np.maximum(share.mean(0), LEAST)) for share in shares]
    aims = [
        minimiser(
            _counts(world, plan.files.pairs(policy, part, of.oracle or "")),
            anchor(of, logs[t::-1], logs[0]),
            of.objective.eta or math.nan,
        )
        for t, (policy, part) in enumerate(zip(sampled, parts, strict=True))
    ]
    moved = np.stack([_odds(after - before) for before, after in pairwise(logs)])
    return moved, np.stack([_odds(aim - before) for before, aim in zip(logs, aims, strict=False)])


def _odds(logs: Array) -> Array:
    """Log-odds against the first style."""
    against: Array = logs - logs[0]
    return against


# --------------------------------------------------------------------------------------------------- the learning rate


def tuning(plan: Plan, world: World) -> pd.DataFrame:
    """One update of each run beside the exact minimiser on the run's own pairs: log-odds of the styles against the
    first, less the reference's, on held-out prompts."""
    before = np.log(_heldout(plan, world, REFERENCE))
    eta = next(iter(plan.config.runs.values())).objective.eta or math.nan
    pairs = _counts(world, *(plan.files.pairs(*of) for of in plan.policies.paired))
    found = {"exact minimiser": minimiser(pairs, before, eta)}
    for run in plan.config.runs:
        found[run] = np.log(_heldout(plan, world, f"{run}.1"))
    moved = {name: _odds(after - before) for name, after in found.items()}
    odds = pd.DataFrame(moved, index=world.styles).T.iloc[:, 1:].map("{:+.2f}".format)
    return odds.rename_axis("run").reset_index()


def _heldout(plan: Plan, world: World, policy: str) -> Array:
    """[styles]: shares among the sampled responses to held-out prompts."""
    rows = read(JUDGED, Path(plan.files.evaluation_items(policy, HELDOUT)))
    rows = rows[(rows["mode"] == SAMPLED) & (rows["oracle"] == rows["oracle"].iloc[0])]
    counts = rows["response"].map(world.seen).value_counts(normalize=True)
    shares: Array = counts.reindex(world.styles, fill_value=0.0).to_numpy()
    return np.maximum(shares, LEAST)


def _counts(world: World, *files: str) -> Array:
    """[styles, styles]: how often the row's is chosen over the column's in files of pairs."""
    rows = read(PAIRS, *map(Path, files))
    counts = pd.crosstab(rows["chosen"].map(world.seen), rows["rejected"].map(world.seen))
    names = list(world.styles)
    table: Array = counts.reindex(index=names, columns=names, fill_value=0).to_numpy(float)
    return table


def predict(plan: Plan, world: World, share: float) -> None:
    """Print the reference's shares, and what they lead to in the exact game."""
    first = (
        str(Path(plan.files.prompts(1)).parent),
        plan.files.policy(REFERENCE),
        *plan.files.sample_shards(REFERENCE, 1),
    )
    in_process((command for command in commands(plan) if command[-1] in first), "ours")
    start = of_policy(plan, world, REFERENCE, 1).mean(0)
    print(", ".join(f"{name} {value:.3f}" for name, value in zip(world.styles, start, strict=True)))
    print(markdown(prediction(plan, start, share)))


def main() -> None:
    """Run what is missing, and write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="with a real model, not in the demo")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument(
        "--share", type=float, default=1, help="of the way to the least loss that a predicted update goes"
    )
    parser.add_argument("--tune", action="store_true", help="with a real model: try learning rates, and print them")
    parser.add_argument("--cores", type=int, default=2, help="for the real model's jobs")
    options = parser.parse_args()
    if options.share != 1 and not options.predict:
        parser.error("--share is of a prediction: give --predict")
    world = REAL if options.real else DEMO
    os.chdir(ROOT)
    if options.tune:
        snakemake(str(TUNING), options.cores)
        print(markdown(tuning(Plan(load(TUNING)), REAL)))
        return
    plan = Plan(load(world.config))
    if options.predict:
        predict(plan, world, options.share)
        return
    if options.real:
        last = (policies[-1] for policies in plan.policies.replicas.values())
        snakemake(str(world.config), options.cores, "all", *(_sampled(plan, policy)[0] for policy in last))
    else:
        in_process(commands(plan), "ours")
    made = [*tables(plan, world), exploited(plan) if plan.policies.exploiters else followed(plan, world)]
    put_between(world.page, TABLE, NOTES, "\n\n".join(map(markdown, made)))


if __name__ == "__main__":
    main()
