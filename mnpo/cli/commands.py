"""The commands that no stage's `run` makes (mnpo/cli/stages.py): about configurations and runs, and exact games."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mnpo.cli.stages import STAGES
from mnpo.errors import BadInput

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

app = typer.Typer()
ENVIRONMENTS = {
    "costs": "eval",
    "theory": "eval",
    "study": "eval",
    "judge-evalscope": "evalscope",
    "harness-vllm": "infer",
}
"""Command -> which environment of envs/ it runs in, where it has one of its own."""

Config = Annotated[Path, typer.Option(help="A configuration file.")]
Lock = Annotated[Path, typer.Option(help="What `mnpo pin` wrote.")]
Seed = Annotated[int, typer.Option(help="Of random games.")]


def _plan(config: Path, lock: Path | None = None) -> Plan:
    from mnpo.config.reading import load
    from mnpo.planning.plan import Plan
    from mnpo.storage.hub import read_lock

    return Plan(load(config), read_lock(lock) if lock else None)


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="What the configuration and its results are called.")],
    model: Annotated[str, typer.Option(help="The model to begin with: a directory, or owner/name of the hub.")],
    prompts: Annotated[str, typer.Option(help="A JSONL or Parquet file, or a data set owner/name of the hub.")],
    oracle: Annotated[
        list[str] | None,
        typer.Option(help="function:FILE:NAME, reward-model:ID-or-DIR, judge:MODEL or constraints; the first decides."),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Train parts, and iterations.")] = 2,
    parameters: Annotated[float | None, typer.Option(help="Billions, of a hub's model whose name has none.")] = None,
    expected: Annotated[int | None, typer.Option(min=1, help="About how many prompts a hub's data set has.")] = None,
    column: Annotated[str, typer.Option(help="The prompts' column.")] = "prompt",
) -> None:
    """Write a first configuration for a model, prompts and an oracle, with sizes that suit them."""
    from mnpo.planning.starting import begin

    file = begin(name, model, prompts, oracle or [], iterations, parameters, expected, column)
    typer.echo(f"{file} is written. Next: mnpo plan --config {file}")


@app.command("plan")
def print_plan(
    config: Config = Path("config.yaml"),
    target: Annotated[list[str] | None, typer.Option(help="Only these targets: table2, heldout, ...")] = None,
    lock: Lock = Path("config.lock.yaml"),
    json_: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a configuration will run, what is shared, and what it costs in GPU-hours, time, disk and judge calls."""
    from mnpo.planning import outline
    from mnpo.planning.estimate import forecast

    plan = _plan(config, lock)
    plan.oracles.require_constraints_of_rows()
    result = forecast(plan, target)
    typer.echo(outline.dump(result) if json_ else outline.describe(result))


@app.command()
def status(
    config: Config = Path("config.yaml"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line a stage, and what runs.")] = False,
) -> None:
    """Say how far a run is: jobs done, running, waiting, failed, GPU-hours used, expected end."""
    from mnpo.planning import status as state
    from mnpo.storage.hub import LOCK

    found = state.look(_plan(config, LOCK))
    typer.echo(state.line(found))
    if verbose:
        typer.echo(state.table(found))


@app.command()
def why(
    file: Annotated[Path, typer.Argument(help="What a run makes: a file, or a policy's directory.")],
    config: Config = Path("config.yaml"),
) -> None:
    """Say which setting, input or code made a file out of date, or that it is up to date."""
    from mnpo.planning import explain as reasons

    typer.echo(reasons.words(reasons.ask(file, config)))


@app.command()
def show(config: Config = Path("config.yaml")) -> None:
    """Print a finished run's main table, and where everything is."""
    plan = _plan(config)
    main_table = Path(plan.files.table("main") + ".md")
    if not main_table.is_file():
        raise BadInput(f"{main_table}: not made yet; run snakemake first")
    typer.echo(main_table.read_text(encoding="utf-8"))
    typer.echo(f"tables   {plan.files.root}/tables/   (CSV and Markdown)")
    typer.echo(f"figures  {plan.files.root}/figures/  (SVG and PNG)")
    report = Path(plan.files.report)
    make = f"`snakemake --configfile {shlex.quote(str(config))} --cores 1 -- report` makes it"
    typer.echo(f"report   {report if report.is_file() else make}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evaluate(
    context: typer.Context,
    policy: Annotated[Path, typer.Option(help="A policy's directory.")],
    config: Annotated[
        Path | None, typer.Option(help="A configuration file; config.yaml, unless --data says all.")
    ] = None,
    benchmarks: Annotated[str, typer.Option(help="Only these: ifeval,mt-bench,...")] = "",
    data: Annotated[list[str] | None, typer.Option(help="Where a benchmark's data are: gsm8k=DIRECTORY.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each benchmark, at most.")] = None,
    name: Annotated[str | None, typer.Option(help="Results go to results/NAME; by default the directory's.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of Snakemake: slurm, profiles/demo, ...")] = None,
) -> None:
    """Measure any policy on all public benchmarks, by the workflow; what follows `--` goes to Snakemake."""
    from mnpo.planning import evaluate

    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    chosen, places = [b for b in benchmarks.split(",") if b], dict(_place(given) for given in data or [])
    said = bool(chosen) and set(chosen) <= places.keys()
    base = config or (None if said else Path("config.yaml"))
    file = evaluate.configure(policy, base, name, chosen, places, limit)
    if code := evaluate.run(file, profile, context.args):
        raise typer.Exit(code)
    table = Path(_plan(file).files.table("benchmarks") + ".md")
    if table.is_file():
        typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"results  {file.parent}/  (again, or with other options: snakemake --configfile {file})")


def _place(given: str) -> tuple[str, str]:
    name, equals, directory = given.partition("=")
    if not equals or not directory:
        raise BadInput(f"--data {given}: expected a benchmark and a directory, such as gsm8k=data/gsm8k")
    return name, directory


@app.command()
def pin(config: Config = Path("config.yaml"), lock: Lock = Path("config.lock.yaml")) -> None:
    """Resolve the revisions of a configuration's models and data sets to commits (needs the internet)."""
    from mnpo.config.reading import load

    content = load(config)
    sources = {
        f"{kind}.{name}": entry for kind in ("models", "datasets") for name, entry in getattr(content, kind).items()
    }
    STAGES["pin"].module().pin(sources, lock)


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of a configuration (configs/schema.json)."""
    from mnpo.config.reading import schema

    typer.echo(schema(), nl=False)


@app.command()
def game(
    preset: Annotated[str, typer.Option(help="rps, random, bradley-terry or condorcet.")] = "rps",
    algorithm: Annotated[
        str, typer.Option(help="td-mnpo, inpo, onpo, egpo, ...; a wrong name lists them.")
    ] = "td-mnpo",
    weights: Annotated[
        list[float] | None,
        typer.Option(help="Of past policies, newest first, or of the other players: --weights 0.667 0.333."),
    ] = None,
    more_weights: Annotated[list[float] | None, typer.Argument(hidden=True)] = None,
    learning_rate: Annotated[float, typer.Option(help="The update is exp(learning rate * P).")] = 1.0,
    tau: Annotated[float, typer.Option(help="Weight of KL(policy || reference); 0: no reference.")] = 0.0,
    comparisons: Annotated[
        str, typer.Option(help="policy: pairs from pi_t; opponents: averaged over the opponents.")
    ] = "policy",
    steps: Annotated[int, typer.Option(help="Updates.")] = 2000,
    actions: Annotated[int | None, typer.Option(help="Actions, for presets that can have any number.")] = None,
    players: Annotated[int | None, typer.Option(help="Oracles, for ht-mnpo.")] = None,
    seed: Seed = 0,
    matrix: Annotated[
        list[Path] | None, typer.Option(help="A CSV preference matrix instead of a preset; one a player.")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="Write the gaps here, as CSV.")] = None,
    figure: Annotated[list[Path] | None, typer.Option(help="Write the figure of gaps here (.svg, .png, .pdf).")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print everything measured as JSON.")] = False,
) -> None:
    """Play an exact tabular game and measure its gaps, last and average iterate."""
    if more_weights and not weights:
        raise typer.BadParameter(f"unexpected {' '.join(map(str, more_weights))}; weights follow --weights")
    stage = STAGES["game"].module()
    result = stage.run(
        preset=preset,
        algorithm=algorithm,
        weights=[*weights, *(more_weights or [])] if weights else None,
        learning_rate=learning_rate,
        tau=tau,
        comparisons=comparisons,
        steps=steps,
        actions=actions,
        players=players,
        seed=seed,
        matrices=matrix or [],
        table=table,
        figures=figure or [],
    )
    typer.echo(stage.dump(result) if json_ else stage.describe(result))


@app.command()
def theory(
    table: Annotated[Path, typer.Option(help="The table, as CSV.")],
    figure: Annotated[list[Path], typer.Option(help="The figure (.svg, .png, .pdf).")],
    steps: Annotated[int, typer.Option(help="Updates of each game.")] = 2000,
    seed: Seed = 0,
) -> None:
    """Measure which algorithms converge in which iterate, with the reference and without."""
    STAGES["game"].module().theory(table=table, figures=figure, steps=steps, seed=seed)


@app.command()
def study(
    table: Annotated[Path, typer.Option(help="The table, as CSV.")],
    figure: Annotated[list[Path] | None, typer.Option(help="The map (.svg, .png, .pdf).")] = None,
    games: Annotated[int, typer.Option(help="Random games of a mean.")] = 200,
    seed: Seed = 0,
) -> None:
    """Measure where past policies, optimism or neither help most, on a grid of random exact games."""
    STAGES["study"].module().run(table=table, figures=figure or [], games=games, seed=seed)


@app.command(rich_help_panel="Stages")
def costs(
    artifacts: Annotated[list[Path], typer.Argument(help="What was made, each with its manifest.")],
    output: Annotated[Path, typer.Option(help="The table without its ending.")],
) -> None:
    """Add up what artifacts cost, stage by stage, from their manifests."""
    STAGES["tabulate"].module().costs(artifacts, output)


judge = STAGES["judge"]
app.command(
    "judge-evalscope",
    help=f"{judge.help.rstrip('.')} by the paper's harness, in its environment.",
    rich_help_panel="Stages",
)(judge.command())

harness = STAGES["harness"]
app.command(
    "harness-vllm",
    help=f"{harness.help} In the environment that has vLLM.",
    rich_help_panel="Stages",
)(harness.command())
