"""`mnpo STAGE ...`: every stage by hand. A stage gets paths and settings; it knows nothing of Snakemake.

Exit codes: 0 done, 2 wrong usage, 3 a bad input, setting or file (one message says which), 4 training diverged,
1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mnpo.config import ConfigError, load, read_yaml, schema, validated
from mnpo.errors import BadInput, Diverged
from mnpo.progress import say

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Settings = Annotated[str, typer.Option(help="The stage's settings: JSON, or a JSON or YAML file. See docs/configuration.md.")]
Output = Annotated[Path, typer.Option(help="What to make.")]
Policy = Annotated[Path, typer.Option(help="A policy's directory.")]
Config = Annotated[Path, typer.Option(help="A configuration file.")]
Files = Annotated[list[Path], typer.Option()]


def _stage(name: str) -> Any:
    """The module of a stage. Heavy libraries are imported there, not here."""
    if threads := os.environ.get("OMP_NUM_THREADS"):  # torch reads it only when it is imported, numpy never rereads it
        os.environ.setdefault("MKL_NUM_THREADS", threads)
    return import_module(f"mnpo.stages.{name}")


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
def prompts(settings: Settings, output: Output) -> None:
    """Cut prompts into train parts and held-out ones (the demo: make them)."""
    stage = _stage("prompts")
    stage.run(_settings(stage, settings), output)


@app.command()
def sft(settings: Settings, demonstrations: Path, output: Output) -> None:
    """Prepare the reference policy, fine-tuned on the demonstrations when the settings say so."""
    stage = _stage("sft")
    stage.run(_settings(stage, settings), demonstrations, output)


@app.command()
def sample(settings: Settings, policy: Policy, prompts: Annotated[Path, typer.Option()], output: Output) -> None:
    """Draw K responses of a policy to each prompt."""
    stage = _stage("sample")
    stage.run(_settings(stage, settings), policy, prompts, output)


@app.command()
def score(settings: Settings, samples: Annotated[Path, typer.Option()], output: Output) -> None:
    """Ask an oracle what it thinks of sampled responses."""
    stage = _stage("score")
    stage.run(_settings(stage, settings), samples, output)


@app.command()
def pair(settings: Settings, samples: Files, scores: Files, output: Output) -> None:
    """Pair the best with the worst response of each prompt."""
    stage = _stage("pair")
    stage.run(_settings(stage, settings), samples, scores, output)


@app.command()
def logps(settings: Settings, policy: Policy, pairs: Annotated[Path, typer.Option()], output: Output) -> None:
    """Log-probabilities of pairs under a policy."""
    stage = _stage("logps")
    stage.run(_settings(stage, settings), policy, pairs, output)


@app.command()
def train(
    settings: Settings,
    start: Annotated[Path, typer.Option(help="The policy to start from.")],
    pairs: Files,
    output: Output,
    logps: Annotated[list[Path] | None, typer.Option(help="For each scorer in the settings, one file for each of --pairs.")] = None,
) -> None:
    """Optimise a policy on pairs, against the policies whose log-probabilities are given."""
    stage = _stage("train")
    stage.run(_settings(stage, settings), start, pairs, logps or [], output)


@app.command()
def evaluate(
    settings: Settings,
    policy: Policy,
    reference: Annotated[Path, typer.Option(help="The policy that the KL divergence is taken to.")],
    prompts: Annotated[Path, typer.Option(help="Held-out prompts.")],
    output: Output,
) -> None:
    """Measure a policy on held-out prompts."""
    _stage("evaluate").run(_content(settings), policy, reference, prompts, output)


@app.command()
def tabulate(settings: Settings, evaluations: Files, output: Output) -> None:
    """Make tables of evaluations."""
    stage = _stage("tabulate")
    stage.run(_settings(stage, settings), evaluations, output)


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
    policies: Annotated[list[Path] | None, typer.Option(help="Policies whose training curves are shown.")] = None,
) -> None:
    """Draw a figure of tables and training metrics."""
    stage = _stage("plot")
    stage.run(_settings(stage, settings), figure, tables, policies or [], output)


@app.command()
def check(config: Config = Path("config.yaml")) -> None:
    """Read a configuration and say what it amounts to, or what is wrong with it."""
    from mnpo.plan import Plan

    plan = Plan(load(config))
    for fit in plan.fits.values():
        opponents = ", ".join(f"{name} {weight:.3g}" for name, weight in fit.opponents) or "nobody"
        typer.echo(f"{fit.policy}: from {fit.start}, pairs of {fit.sampler} on part {list(fit.parts)}, against {opponents}")


@app.command("schema")
def print_schema() -> None:
    """Print the JSON schema of a configuration (configs/schema.json)."""
    typer.echo(schema(), nl=False)


def main() -> None:
    """Run the command line; a mistake that a person can mend is one message and an exit code, not a traceback."""
    try:
        app()
    except (BadInput, Diverged) as error:
        say(f"mnpo: {error}")
        sys.exit(error.exit_code)
    except FileNotFoundError as error:
        say(f"mnpo: {error}")
        sys.exit(BadInput.exit_code)
