"""`mnpo STAGE ...`: every stage by hand. A stage gets paths and settings; it knows nothing of Snakemake.

Exit codes: 0 done, 2 wrong usage, 3 a bad input, setting or file (one message says which), 4 training diverged,
5 stopped by a signal and to be continued by the same command, 6 the disk is full, 1 anything else.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mnpo.config.blocks import ConfigError, validated
from mnpo.config.reading import load, read_yaml, schema
from mnpo.errors import EXPECTED, BadInput, Interrupted
from mnpo.planning import cluster
from mnpo.progress import complain
from mnpo.ranks import rank

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Settings = Annotated[
    str, typer.Option(help="The stage's settings: JSON, or a JSON or YAML file. See docs/configuration.md.")
]
Output = Annotated[Path, typer.Option(help="What to make.")]
Policy = Annotated[Path, typer.Option(help="A policy's directory.")]
Config = Annotated[Path, typer.Option(help="A configuration file.")]
Files = Annotated[list[Path], typer.Option()]
Lock = Annotated[Path, typer.Option(help="What `mnpo pin` wrote.")]


FAMILIES = {
    **dict.fromkeys(("sft", "train"), "train"),
    **dict.fromkeys(("prompts", "reuse", "sample", "score", "pair", "logps", "assess", "answer"), "infer"),
    **dict.fromkeys(("evalscope", "judge-evalscope"), "evalscope"),
    **dict.fromkeys(("harness", "judge", "compare", "benchmarks", "tabulate"), "eval"),
    **dict.fromkeys(("players", "exploitability", "preferences", "costs", "plot", "theory"), "eval"),
}
"""Which environment of envs/ a command runs in, where each has one of its own."""


def _stage(name: str) -> Any:
    """The module of a stage. Heavy libraries are imported there, not here."""
    if name not in ("download", "pin"):
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return import_module(f"mnpo.stages.{name}")


@app.callback()
def _options(
    context: typer.Context,
    log: Annotated[Path | None, typer.Option(help="Write everything that is printed here too.")] = None,
) -> None:
    if environments := os.environ.get("MNPO_ENVIRONMENTS"):
        _enter(Path(environments), FAMILIES.get(context.invoked_subcommand or ""))
    if log is not None and rank() == 0:
        _copy_to(log)


def _enter(environments: Path, family: str | None) -> None:
    """Go on in the virtual environment of a family of stages, in the directory that `make envs` made."""
    if family is None or Path(sys.prefix).resolve() == (environments / family).resolve():
        return
    python = environments / family / "bin" / "python"
    if not python.exists():
        raise BadInput(f"{python}: no such interpreter; MNPO_ENVIRONMENTS is {environments}, and `make envs` makes it")
    os.execv(python, [str(python), "-m", "mnpo", *sys.argv[1:]])


def _copy_to(log: Path) -> None:
    """Copy output and errors to `log`, by a process in a session of its own: signals to the stage do not end it, and it
    ends when the stage does, with every line written."""
    log.parent.mkdir(parents=True, exist_ok=True)
    tee = subprocess.Popen(["tee", str(log)], stdin=subprocess.PIPE, start_new_session=True)
    assert tee.stdin is not None
    terminal = os.dup(1), os.dup(2)
    for stream in (1, 2):
        os.dup2(tee.stdin.fileno(), stream)
    tee.stdin.close()

    def finish() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, original in zip((1, 2), terminal, strict=True):
            os.dup2(original, stream)
        tee.wait()

    atexit.register(finish)


def _settings(stage: Any, text: str) -> Any:
    content = _content(text)
    return validated(stage.Settings, content, "--settings")


def _content(text: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        return read_yaml(Path(text))
    try:
        return json.loads(text)  # type: ignore[no-any-return]
    except json.JSONDecodeError as error:
        raise ConfigError(f"--settings: not JSON ({error.msg} at character {error.pos})") from None


@app.command()
def download(settings: Settings, output: Output, lock: Lock = Path("config.lock.yaml")) -> None:
    """Fetch a pinned model or data set, and verify every file of it."""
    stage = _stage("download")
    stage.run(_settings(stage, settings), lock, output)


def _directories(pairs: list[str]) -> dict[str, Path]:
    """`NAME=DIRECTORY` each, as a mapping."""
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise BadInput(f"--data: {wrong!r}, expected BENCHMARK=DIRECTORY")
    return {name: Path(directory) for name, _, directory in (pair.partition("=") for pair in pairs)}


@app.command()
def prompts(
    settings: Settings,
    output: Output,
    data: Annotated[Path | None, typer.Option(help="The directory of the data set, for source `dataset`.")] = None,
) -> None:
    """Cut prompts into train parts and held-out ones (the demo: make them)."""
    stage = _stage("prompts")
    stage.run(_settings(stage, settings), output, data)


@app.command()
def miniature(settings: Settings, output: Output) -> None:
    """Make the demo's small version of a benchmark's data."""
    stage = _stage("miniature")
    stage.run(_settings(stage, settings), output)


@app.command()
def sft(
    settings: Settings,
    demonstrations: Annotated[Path, typer.Option()],
    output: Output,
    events: Annotated[Path | None, typer.Option(help="The directory of what TensorBoard shows of it.")] = None,
) -> None:
    """Prepare the reference policy, fine-tuned on the demonstrations when the settings say so."""
    stage = _stage("sft")
    stage.run(_settings(stage, settings), demonstrations, output, events)


@app.command()
def sample(
    settings: Settings,
    policy: Policy,
    prompts: Annotated[Path, typer.Option()],
    output: Output,
    logps: Annotated[Path | None, typer.Option(help="Where the sampler's own log-probabilities go.")] = None,
) -> None:
    """Draw K responses of a policy to each prompt."""
    stage = _stage("sample")
    stage.run(_settings(stage, settings), policy, prompts, output, logps)


@app.command()
def reuse(
    settings: Settings,
    responses: Annotated[Path, typer.Option(help="The responses that came with the prompts.")],
    prompts: Annotated[Path, typer.Option()],
    output: Output,
) -> None:
    """Take the responses that came with the prompts instead of sampling."""
    stage = _stage("reuse")
    stage.run(_settings(stage, settings), responses, prompts, output)


@app.command()
def score(
    settings: Settings,
    samples: Annotated[Path, typer.Option()],
    output: Output,
    against: Annotated[Path | None, typer.Option(help="Samples of another policy: score how often they win.")] = None,
) -> None:
    """Ask an oracle what it thinks of sampled responses."""
    stage = _stage("score")
    stage.run(_settings(stage, settings), samples, output, against)


@app.command()
def pair(settings: Settings, samples: Files, scores: Files, output: Output) -> None:
    """Pair each prompt's responses: which are chosen over which."""
    stage = _stage("pair")
    stage.run(_settings(stage, settings), samples, scores, output)


@app.command()
def logps(
    settings: Settings,
    policy: Policy,
    pairs: Annotated[Path, typer.Option()],
    output: Output,
    sampler: Annotated[
        list[Path] | None, typer.Option(help="What the sampler said of this policy's own responses, shard by shard.")
    ] = None,
) -> None:
    """Log-probabilities of pairs under a policy."""
    stage = _stage("logps")
    stage.run(_settings(stage, settings), policy, pairs, output, sampler or [])


@app.command()
def train(
    settings: Settings,
    start: Annotated[Path, typer.Option(help="The policy to start from.")],
    pairs: Files,
    output: Output,
    logps: Annotated[
        list[Path] | None, typer.Option(help="For each scorer in the settings, one file for each of --pairs.")
    ] = None,
    training: Annotated[Path | None, typer.Option(help="Where the training's metrics and manifest go too.")] = None,
) -> None:
    """Optimise a policy on pairs, against the policies whose log-probabilities are given."""
    stage = _stage("train")
    stage.run(_settings(stage, settings), start, pairs, logps or [], output, training)


@app.command()
def assess(
    settings: Settings,
    policy: Policy,
    reference: Annotated[Path, typer.Option(help="The policy that the KL divergence is taken to.")],
    prompts: Annotated[Path, typer.Option(help="Held-out prompts.")],
    output: Output,
) -> None:
    """Measure a policy on held-out prompts."""
    _stage("assess").run(_content(settings), policy, reference, prompts, output)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def evaluate(
    context: typer.Context,
    policy: Policy,
    config: Config = Path("config.yaml"),
    benchmarks: Annotated[str, typer.Option(help="Only these of the configuration's: ifeval,mt-bench,...")] = "",
    name: Annotated[str | None, typer.Option(help="Results go to results/NAME; by default the directory's.")] = None,
    profile: Annotated[str | None, typer.Option(help="Of Snakemake: slurm, profiles/demo, ...")] = None,
) -> None:
    """Measure any policy on all public benchmarks, by the workflow; what follows `--` goes to Snakemake."""
    from mnpo.planning import evaluate
    from mnpo.planning.plan import Plan

    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    file = evaluate.configure(policy, config, name, [b for b in benchmarks.split(",") if b])
    if code := evaluate.run(file, profile, context.args):
        raise typer.Exit(code)
    table = Path(Plan(load(file)).files.table("benchmarks") + ".md")
    if table.is_file():
        typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"results  {file.parent}/  (again, or with other options: snakemake --configfile {file})")


@app.command()
def harness(
    settings: Settings,
    policy: Policy,
    data: Annotated[list[str], typer.Option(help="BENCHMARK=DIRECTORY of its data, once for each benchmark.")],
    output: Annotated[Path, typer.Option(help="The directory of the policy's results.")],
) -> None:
    """Measure a policy on the benchmarks that need no judge, loading it once."""
    stage = _stage("harness")
    stage.run(_settings(stage, settings), policy, _directories(data), output)


@app.command()
def evalscope(
    settings: Settings,
    policy: Policy,
    data: Annotated[list[str], typer.Option(help="BENCHMARK=DIRECTORY of its data, once for each benchmark.")],
    output: Annotated[Path, typer.Option(help="The directory of the policy's results.")],
) -> None:
    """Measure a policy on benchmarks by the paper's harness."""
    stage = _stage("evalscope")
    stage.run(_settings(stage, settings), policy, _directories(data), output)


@app.command()
def answer(
    settings: Settings,
    data: Annotated[Path, typer.Option(help="The directory of the benchmark's data.")],
    output: Output,
    policy: Annotated[Path | None, typer.Option(help="The policy's directory; none for one behind an API.")] = None,
) -> None:
    """Let a policy answer the questions of a judged benchmark."""
    stage = _stage("answer")
    stage.run(_settings(stage, settings), policy, data, output)


@app.command()
def judge(
    settings: Settings,
    answers: Annotated[Path, typer.Option()],
    data: Annotated[Path, typer.Option(help="The directory of the benchmark's data.")],
    store: Annotated[Path, typer.Option(help="Where every verdict is kept; asked again is only what is not there.")],
    output: Output,
) -> None:
    """Let a judge judge a policy's answers."""
    stage = _stage("judge")
    stage.run(_settings(stage, settings), answers, data, store, output)


app.command("judge-evalscope", help="The same by the paper's harness, in its environment.")(judge)


@app.command()
def compare(
    settings: Settings,
    output: Annotated[Path, typer.Option(help="The directory of the tables.")],
    published: Annotated[Path, typer.Option(help="The directory of the published figures.")] = Path("results/paper"),
    evaluations: Annotated[list[Path] | None, typer.Option()] = None,
) -> None:
    """Make one of the paper's tables, ours beside the published figures."""
    stage = _stage("compare")
    stage.run(_settings(stage, settings), evaluations or [], published, output)


@app.command()
def tabulate(settings: Settings, evaluations: Files, output: Output) -> None:
    """Make tables of evaluations."""
    stage = _stage("tabulate")
    stage.run(_settings(stage, settings), evaluations, output)


@app.command()
def players(
    settings: Settings,
    evaluations: Files,
    output: Annotated[Path, typer.Option(help="The table without its ending.")],
) -> None:
    """Make the table of players: scores under every oracle, win rates against opponents, own gaps."""
    stage = _stage("players")
    stage.run(_settings(stage, settings), evaluations, output)


@app.command()
def exploitability(
    settings: Settings,
    scores: Files,
    output: Annotated[Path, typer.Option(help="The table without its ending.")],
) -> None:
    """Make the table of what best responses win against fixed policies."""
    stage = _stage("exploitability")
    stage.run(_settings(stage, settings), scores, output)


@app.command()
def benchmarks(
    settings: Settings,
    output: Annotated[Path, typer.Option(help="The table without its ending.")],
    evaluations: Annotated[list[Path] | None, typer.Option()] = None,
) -> None:
    """Make the table of policies on public benchmarks."""
    stage = _stage("benchmarks")
    stage.run(_settings(stage, settings), evaluations or [], output)


@app.command()
def preferences(
    settings: Settings,
    pairs: Annotated[list[Path], typer.Option(help="One for each row of the settings.")],
    scores: Annotated[list[Path], typer.Option(help="All shards of each row, row by row.")],
    samples: Annotated[list[Path], typer.Option(help="As many, that the scores are of.")],
    output: Annotated[Path, typer.Option(help="The table without its ending.")],
) -> None:
    """Make the table of cycles, ties and pairs of every iteration."""
    stage = _stage("preferences")
    stage.run(_settings(stage, settings), pairs, scores, samples, output)


@app.command()
def costs(artifacts: list[Path], output: Annotated[Path, typer.Option(help="The table without its ending.")]) -> None:
    """Add up what artifacts cost, stage by stage, from their manifests."""
    _stage("tabulate").costs(artifacts, output)


@app.command()
def plot(
    figure: str,
    settings: Settings,
    tables: Annotated[Path, typer.Option(help="The directory of the tables.")],
    output: Annotated[Path, typer.Option(help="The figure without its ending.")],
    training: Annotated[list[Path] | None, typer.Option(help="Trainings whose curves are shown.")] = None,
) -> None:
    """Draw a figure of tables and training metrics."""
    stage = _stage("plot")
    stage.run(_settings(stage, settings), figure, tables, training or [], output)


@app.command()
def game(
    preset: Annotated[str, typer.Option(help="rps, random, bradley-terry or condorcet.")] = "rps",
    algorithm: Annotated[
        str, typer.Option(help="td-mnpo, inpo, onpo, egpo, ...; a wrong name lists them.")
    ] = "td-mnpo",
    weights: Annotated[
        list[float] | None, typer.Option(help="History weights, newest first: --weights 0.667 0.333.")
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
    seed: int = 0,
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
    stage = _stage("game")
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
    seed: int = 0,
) -> None:
    """Measure which algorithms converge in which iterate, with the reference and without."""
    _stage("game").theory(table=table, figures=figure, steps=steps, seed=seed)


@app.command()
def pin(config: Config = Path("config.yaml"), lock: Lock = Path("config.lock.yaml")) -> None:
    """Resolve the revisions of a configuration's models and data sets to commits (needs the internet)."""
    content = load(config)
    sources = {
        f"{kind}.{name}": entry for kind in ("models", "datasets") for name, entry in getattr(content, kind).items()
    }
    _stage("pin").pin(sources, lock)


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
    from mnpo.planning.plan import Plan
    from mnpo.storage.hub import read_lock

    result = forecast(Plan(load(config), read_lock(lock)), target)
    typer.echo(outline.dump(result) if json_ else outline.describe(result))


@app.command()
def status(
    config: Config = Path("config.yaml"),
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="A line a stage, and what runs.")] = False,
) -> None:
    """Say how far a run is: jobs done, running, waiting, failed, GPU-hours used, expected end."""
    from mnpo.planning import status as state
    from mnpo.planning.plan import Plan
    from mnpo.storage.hub import read_lock

    found = state.look(Plan(load(config), read_lock()))
    typer.echo(state.line(found))
    if verbose:
        typer.echo(state.table(found))


@app.command()
def why(file: Path, config: Config = Path("config.yaml")) -> None:
    """Say which setting, input or code made a file out of date, or that it is up to date."""
    from mnpo.planning import explain as reasons

    typer.echo(reasons.words(reasons.ask(file, config)))


@app.command()
def show(config: Config = Path("config.yaml")) -> None:
    """Print a finished run's main table, and where everything is."""
    from mnpo.planning.plan import Plan

    plan = Plan(load(config))
    main_table = Path(plan.files.table("main") + ".md")
    if not main_table.is_file():
        raise BadInput(f"{main_table}: not made yet; run snakemake first")
    typer.echo(main_table.read_text(encoding="utf-8"))
    typer.echo(f"tables   {plan.files.root}/tables/   (CSV and Markdown)")
    typer.echo(f"figures  {plan.files.root}/figures/  (SVG and PNG)")
    report = Path(plan.files.report)
    typer.echo(f"report   {report}" if report.is_file() else "report   `snakemake report` makes it")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of a configuration (configs/schema.json)."""
    typer.echo(schema(), nl=False)


def main() -> None:
    """Run the command line; a mistake that a person can mend is one message and an exit code, not a traceback."""
    try:
        app()
    except EXPECTED as error:
        complain(f"mnpo: {error}")
        if isinstance(error, Interrupted):
            cluster.requeue()
        sys.exit(error.exit_code)
    except FileNotFoundError as error:
        complain(f"mnpo: {error}")
        sys.exit(BadInput.exit_code)
