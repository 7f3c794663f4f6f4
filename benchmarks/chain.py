"""The whole chain at the demo's scale, plain against ours; and what more of it costs, measured against the plan.

    python -m benchmarks.chain             # reference, samples, scores, pairs, log-probabilities, training: both ways
    python -m benchmarks.chain --in-process  # the same, each side in one process that imports once
    python -m benchmarks.chain --slopes    # one more player, one more run, twice the prompts, twice the responses
    python -m benchmarks.chain --toy       # with either: does it run?

The plain chain (benchmarks/baseline) computes every opponent's and the reference's log-probabilities for each training;
ours makes what is not there yet, as the workflow does. Every job is a process, one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import ROOT, Cost, run, spread, told
from mnpo.config.blocks import REFERENCE
from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.planning import job_graph
from mnpo.planning.costs.calibration import measured
from mnpo.planning.estimate import Slope, slopes
from mnpo.planning.plan import Plan

SLOPED = ("sample", "score", "logps", "train")
SIDES = {"plain": "benchmarks.baseline", "ours": "mnpo"}
RUN = "td-mnpo"


def configured(directory: Path, prompts: int, history: int = 2, runs: int = 1, responses: int = 5) -> Config:
    """The demo, scaled down to `prompts` a part and two iterations, and scored by a reward model of random weights."""
    objective = {"name": RUN, "eta": 0.2, "ratio": 0, "history": history}
    iterations = [{"parts": [1]}, {"parts": [2]}]
    names = [RUN, *(f"{RUN}-again" for _ in range(runs - 1))]
    content = {
        "extends": str(ROOT / "configs/demo.yaml"),
        "name": "chain",
        "prompts": {"demonstrations": 2000, "parts": 2, "part_size": prompts, "heldout": 14},
        "reference": {"sft": {"steps": 100}},
        "sampling": {"responses": responses},
        "training": {"epochs": 1},
        "add": {
            "models": {"rm": {"path": str(directory / "rm"), "parameters": 0.0005}},
            "oracles": {"rm": {"kind": "reward-model", "model": "rm"}},
        },
        "runs": {n: {"label": n, "objective": objective, "oracle": "rm", "iterations": iterations} for n in names},
        "evaluation": {"benchmarks": [], "judges": []},
        "tables": {"targets": ["heldout"], "win_against": ["sft"]},
    }
    file = directory / "chain.yaml"
    file.write_text(json.dumps(content))
    return load(file)


def reward_model(directory: Path) -> None:
    """A Llama of random weights in the reward models' format, with the world's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from mnpo.demo.model import build
    from mnpo.models.checkpoints import load_tokenizer

    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "head_dim": 8, "intermediate_size": 16}
    build(directory / "rm", ["Say cat 3 times", "List 3 animals"] * 20, vocab_size=300, architecture=tiny, seed=0)
    tokenizer = load_tokenizer(directory / "rm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(directory / "rm")


Job = tuple[str, str, list[str]]
"""The stage, what it makes, and the command."""


def jobs(plan: Plan, side: str) -> Iterator[Job]:
    """Every job of the chain, in an order in which it can be done."""

    def job(stage: str, output: str, *files: str, **of: str) -> Job:
        return stage, output, [stage, "--settings", plan.settings(stage, **of), *files, "--output", output]

    yield job("prompts", str(Path(plan.files.prompts(1)).parent))
    yield job("sft", plan.files.policy(REFERENCE), "--demonstrations", plan.files.demonstrations, policy=REFERENCE)
    for fit in plan.policies.fits.values():
        for part, pairs in zip(fit.parts, plan.files.fit_pairs(fit), strict=True):
            (samples,), (scores,) = (
                plan.files.sample_shards(fit.sampler, part),
                plan.files.score_shards(fit.sampler, part, fit.oracle),
            )
            drawn = {"policy": fit.sampler, "part": f"part{part}", "shard": "0"}
            policy = plan.files.policy(fit.sampler)
            yield job("sample", samples, "--policy", policy, "--prompts", plan.files.prompts(part), **drawn)
            against = plan.files.against(part, fit.oracle, 0)
            if fit.exploits is not None:
                fixed = {"policy": fit.exploits, "part": f"part{part}", "shard": "0"}
                sampler = plan.files.policy(fit.exploits)
                yield job("sample", *against, "--policy", sampler, "--prompts", plan.files.prompts(part), **fixed)
            beside = [f"--against={file}" for file in against]
            yield job("score", scores, "--samples", samples, *beside, oracle=fit.oracle)
            yield job("pair", pairs, "--samples", samples, "--scores", scores, oracle=fit.oracle)
            text = fit.protocol.reading()
            again = [name for name, _ in fit.opponents] + [REFERENCE]
            for scorer in again if side == "plain" else fit.scorers:
                logps = plan.files.logps(fit.sampler, part, fit.oracle, text, scorer)
                yield job("logps", logps, "--policy", plan.files.policy(scorer), "--pairs", pairs, text=text)
        files = [f"--pairs={f}" for f in plan.files.fit_pairs(fit)] + [
            f"--logps={f}" for f in plan.files.fit_logps(fit)
        ]
        further = ["--training", plan.files.training(fit.policy)] if side == "ours" else []
        start = ["--start", plan.files.policy(fit.start), *files, *further]
        yield job("train", plan.files.policy(fit.policy), *start, policy=fit.policy)


def due(plan: Plan, side: str) -> Iterator[Job]:
    """The plain pipeline runs every job; ours what nobody has made."""
    done: set[str] = set()
    for stage, output, command in jobs(plan, side):
        if side == "plain" or output not in done:
            yield stage, output, command
        done.add(output)


# ----------------------------------------------------------------------------------------------------------- the chain


def chain_in_process(prompts: int, repeats: int, threads: int) -> None:
    """Each side's jobs in one process, which imports once."""
    print("| side | jobs | seconds | CPU s | peak MiB |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        plan = Plan(configured(Path(top), prompts))
        costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
        for repeat in range(repeats):
            for side in SIDES:
                directory = Path(top, f"{side}-{repeat}")
                directory.mkdir()
                (directory / "jobs.json").write_text(json.dumps([command for _, _, command in due(plan, side)]))
                costs[side].append(
                    run(["-m", "benchmarks.chain", "--jobs", "jobs.json", "--side", side], threads, directory)[0]
                )
    for side, taken in costs.items():
        columns = [str(len(list(due(plan, side)))), *(spread([getattr(c, of) for c in taken]) for of in Cost._fields)]
        print(f"| {side} | " + " | ".join(columns) + " |", flush=True)


def chain(prompts: int, repeats: int, threads: int) -> None:
    costs: dict[str, list[dict[str, list[Cost]]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        for repeat in range(repeats):
            for side, module in SIDES.items():
                directory = Path(top, f"{side}-{repeat}")
                directory.mkdir()
                taken: dict[str, list[Cost]] = defaultdict(list)
                for stage, _, command in due(Plan(configured(Path(top), prompts)), side):
                    taken[stage].append(run(["-m", module, *command], threads, directory)[0])
                costs[side].append(taken)
    print(
        "| stage | jobs plain | ours | plain s | ours s | ratio | plain CPU s | ours | ratio | plain peak MiB | ours |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for stages in [*([s] for s in costs["plain"][0]), list(costs["plain"][0])]:
        print(_row(stages[0] if len(stages) == 1 else "**all**", stages, costs), flush=True)


def _row(name: str, stages: list[str], costs: dict[str, list[dict[str, list[Cost]]]]) -> str:
    of = {side: [[c for stage in stages for c in taken[stage]] for taken in runs] for side, runs in costs.items()}
    columns = [str(len(of[side][0])) for side in SIDES]
    for field in ("seconds", "cpu"):
        sums = {side: [sum(getattr(c, field) for c in some) for some in runs] for side, runs in of.items()}
        columns += [spread(sums[side]) for side in SIDES]
        columns.append(f"{median(sums['ours']) / median(sums['plain']):.2f}")
    columns += [f"{max(c.peak for some in of[side] for c in some):,.0f}" for side in SIDES]
    return f"| {name} | " + " | ".join(columns) + " |"


# ---------------------------------------------------------------------------------------------------------- the slopes


def measure_slopes(prompts: int, repeats: int, threads: int) -> None:
    changes: dict[str, dict[str, Any]] = {
        "as it is": {"history": 1},
        "one more player": {"history": 2},
        "one more run": {"history": 1, "runs": 2},
        "twice the prompts": {"history": 1, "prompts": 2 * prompts},
        "twice the responses": {"history": 1, "responses": 10},
    }
    took: dict[str, list[dict[str, float]]] = {name: [] for name in changes}
    with tempfile.TemporaryDirectory() as top:
        run(["-m", "benchmarks.chain", "--reward-model", top])
        configs = {name: configured(Path(top), **{"prompts": prompts} | change) for name, change in changes.items()}
        for repeat in range(repeats):
            for number, (name, config) in enumerate(configs.items()):
                directory = Path(top, f"{number}-{repeat}")
                directory.mkdir()
                commands = [command for _, _, command in due(Plan(config), "ours")]
                (directory / "jobs.json").write_text(json.dumps(commands))
                run(["-m", "benchmarks.chain", "--jobs", "jobs.json"], threads, directory)
                took[name].append(_seconds(directory))
        predicted = []  # by what each repetition of the configuration as it is took
        plan = Plan(configs["as it is"])
        pieces = job_graph.needed(plan, [plan.files.training(p) for p in plan.policies.fits])
        for repeat in range(repeats):
            os.chdir(Path(top, f"0-{repeat}"))
            predicted.append(slopes(configs["as it is"], RUN, measured(plan, pieces)))
    print("| what | stage | jobs | tokens by the plan | measured | ratio | seconds by the plan | measured | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    base = took.pop("as it is")
    for name, runs in took.items():
        for stage in (*SLOPED, "all"):
            print(_slope(name, stage, [p[name] for p in predicted], runs, base), flush=True)


def _seconds(directory: Path) -> dict[str, float]:
    """Seconds and tokens of each stage, all manifests together."""
    sums: dict[str, float] = defaultdict(float)
    for file in directory.rglob("*manifest.json"):
        facts = json.loads(file.read_text())
        if "/training/" not in str(file):  # the policy's own says the same
            sums[facts["stage"]] += facts["seconds"]
            read = facts.get("prompt_tokens", 0)  # which samples are written to
            sums[f"{facts['stage']} tokens"] += facts.get("tokens", 0) + read
    for kind in ("", " tokens"):
        sums[f"all{kind}"] = sum(sums[f"{stage}{kind}"] for stage in SLOPED)
    return sums


def _slope(
    name: str, stage: str, predicted: list[Slope], runs: list[dict[str, float]], base: list[dict[str, float]]
) -> str:
    stages = SLOPED if stage == "all" else [stage]
    columns = [str(sum(predicted[0].jobs.get(s, 0) for s in stages))]
    for key, plans in ((f"{stage} tokens", [p.tokens for p in predicted]), (stage, [p.seconds for p in predicted])):
        more = median(r[key] - b[key] for r, b in zip(runs, base, strict=True))
        said = median(sum(plan.get(s, 0.0) for s in stages) for plan in plans)
        digits = 0 if key.endswith("tokens") else 1
        columns += [f"{said:,.{digits}f}", f"{more:,.{digits}f}", f"{said / more:.2f}" if said and more > 0 else ""]
    return f"| {name} | {stage} | " + " | ".join(columns) + " |"


def in_process(commands: Iterable[list[str]], side: str) -> None:
    """Run commands one after another in this process: what they write says how long each took."""
    from mnpo import cli

    if side == "plain":
        from benchmarks import baseline

        baseline.install()
    for command in commands:
        sys.argv = ["mnpo", *command]
        try:
            cli.main()
        except SystemExit as end:
            if end.code:
                raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slopes", action="store_true")
    parser.add_argument("--prompts", type=int, default=None, help="a part")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--toy", action="store_true", help="10 prompts a part, one repetition")
    parser.add_argument("--reward-model", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", action="store_true", help="the chain's jobs of a side in one process")
    parser.add_argument("--jobs", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=list(SIDES), default="ours", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.reward_model:
        reward_model(Path(o.reward_model))
    elif o.jobs:
        in_process(json.loads(Path(o.jobs).read_text()), o.side)
    else:
        repeats = 1 if o.toy else o.repeats
        prompts = 10 if o.toy else o.prompts or (200 if o.slopes else 60)
        what = "Slopes" if o.slopes else "The chain"
        with told(what, f"{prompts} prompts a part, two parts, {repeats} repetition(s), {o.threads} thread(s)."):
            (measure_slopes if o.slopes else chain_in_process if o.in_process else chain)(prompts, repeats, o.threads)


if __name__ == "__main__":
    main()
