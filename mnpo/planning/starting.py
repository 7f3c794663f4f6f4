"""`mnpo init`: a first configuration, with sizes that suit a model and prompts.

The sizes are beginnings, not recommendations: what was measured on a model of 135 million parameters, the paper's for
its 9 billion, and something between for what lies between.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mnpo.config.constraints import ID_COLUMN, KWARGS_COLUMN
from mnpo.errors import BadInput
from mnpo.models.checkpoints import checkpoint, parameters
from mnpo.planning.estimate import forecast
from mnpo.planning.plan import drafted
from mnpo.storage import conversations, user_code
from mnpo.storage.records import read_rows

HUB = re.compile(r"[\w.-]+/[\w.-]+")
SIZE = re.compile(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", re.IGNORECASE)
ORACLES = "function:FILE:NAME, reward-model:ID-or-DIR, judge:MODEL or constraints"
RESPONSES = 4
CHARACTERS = 4.0  # of a token, about


@dataclass(frozen=True)
class Sizes:
    """What a model of some size begins with."""

    eta: float
    learning_rate: str
    batch_size: int
    micro_batch_tokens: int
    max_length: int
    dtype: str


SIZES = {
    0.02e9: Sizes(0.1, "1e-3", 16, 2048, 512, "float32"),
    0.5e9: Sizes(0.05, "2e-5", 32, 1024, 1024, "bfloat16"),
    4e9: Sizes(0.02, "2e-6", 64, 4096, 2048, "bfloat16"),
    math.inf: Sizes(0.0075, "5e-7", 128, 8192, 2048, "bfloat16"),
}
"""Parameters, at most -> sizes."""


@dataclass(frozen=True)
class _Model:
    entry: str
    size: float
    positions: int | None = None


@dataclass(frozen=True)
class _Prompts:
    block: str
    dataset: str
    train: int
    tokens: int


def begin(
    name: str,
    model: str,
    prompts: str,
    oracles: Sequence[str],
    iterations: int = 2,
    billions: float | None = None,
    expected: int | None = None,
    column: str = "prompt",
) -> Path:
    """Write a commented configuration, configs/{name}.yaml or {name}.yaml, that `mnpo plan` takes; say where it is.

    Args:
        model: a checkpoint's directory, or a repository of the hub.
        prompts: a file (JSONL, Parquet), or a data set of the hub.
        oracles: see ORACLES; the first decides pairs and wins, the others are reported.
        iterations: train parts and iterations.
        billions: parameters of a model of the hub whose name does not say them.
        expected: about how many prompts a data set of the hub has.
        column: of the prompts.

    Raises:
        BadInput: a file that is there already, a model, prompts or an oracle that cannot be used.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise BadInput(f"{name!r}: a name has small letters, digits, - and _, and begins with one of the first two")
    file = Path("configs" if Path("configs").is_dir() else ".", f"{name}.yaml")
    if file.exists():
        raise BadInput(f"{file}: is there already, and is not overwritten; give another name")
    if not oracles:
        raise BadInput(f"--oracle: who decides which response is better? Give {ORACLES}{_or_pairs(prompts)}")
    policy = _model(model, billions)
    known = [_oracle(spec) for spec in oracles]
    if Path(prompts).is_file():
        asked = _file(prompts, column, iterations, _further(known))
    else:
        asked = _hub(prompts, column, expected, iterations, _further(known))
    text = _text(name, file, policy, asked, known, iterations)
    with drafted(file, text) as plan:
        plan.oracles.require_constraints_of_rows()
        forecast(plan)
    return file


# ------------------------------------------------------------------------------------------------- what is made of what


def _model(given: str, billions: float | None) -> _Model:
    """An entry of `models`: a directory, whose files tell its size, or a repository, whose name may."""
    if Path(given).is_dir():
        directory = checkpoint(given)
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        positions = config.get("max_position_embeddings") or config.get("n_positions")
        return _Model(f"{{ path: {json.dumps(given)} }}", float(parameters(directory)), positions)
    if not HUB.fullmatch(given):
        raise BadInput(f"{given}: neither a directory nor a repository of the hub (owner/name)")
    found = SIZE.search(given.rpartition("/")[2])
    if billions is None and found is None:
        raise BadInput(f"{given}: its name does not say how large it is; give --parameters, in billions")
    size = billions or float(found[1]) / (1 if found[2].lower() == "b" else 1000)  # type: ignore[index]
    return _Model(f"{{ hub: {given}, parameters: {size:g} }} # billions; `mnpo pin` fixes the revision", size * 1e9)


@dataclass(frozen=True)
class _Oracle:
    name: str
    entry: str
    model: str = ""
    columns: str = ""
    """Which further columns it wants: all, of constraints, or none."""


def _oracle(spec: str) -> _Oracle:
    kind, _, rest = spec.partition(":")
    if kind == "function" and ":" in rest:
        file, _, function = rest.rpartition(":")
        wanted = user_code.signature(file, function)
        wants = wanted is None or "columns" in wanted.parameters
        entry = f"{{ kind: function, file: {json.dumps(file)}, function: {function} }}"
        return _Oracle(_slug(function), entry, columns="all" if wants else "")
    if kind == "reward-model" and rest:
        entry = "{ kind: reward-model, model: reward, dtype: bfloat16 }"
        return _Oracle("reward", entry, model=f"reward: {_model(rest, None).entry}")
    if kind == "judge" and rest:
        judge = f"{{ model: {json.dumps(rest)}, max_cost: 5, price_input: 1, price_output: 4 }}"
        pairs = "comparisons: 4 } # of a prompt's 6 pairs; prices and max_cost (a job's) in US dollars: set yours"
        return _Oracle("judge", f"{{ kind: judge, judge: {judge}, {pairs}")
    if spec == "constraints":
        return _Oracle("constraints", "{ kind: constraints } # of each row, by its columns", columns="constraints")
    raise BadInput(f"--oracle {spec}: expected {ORACLES}")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_") or "own"


def _further(known: Sequence[_Oracle]) -> str:
    wanted = {oracle.columns for oracle in known}
    return "all" if "all" in wanted else max(wanted)


def _file(path: str, column: str, iterations: int, further: str) -> _Prompts:
    """Prompts of a file: every row is read, so that a bad one is named now."""
    rows = read_rows(path)
    asked = conversations.distinct(rows, path, column)
    heldout = min(500, max(1, len(asked) // 10))
    train = len(asked) - heldout
    if train < iterations:
        raise BadInput(f"{path}: {len(asked)} different prompts are too few for {iterations} iterations; give more")
    lines = [
        "  source: file",
        f"  path: {json.dumps(path)}",
        *([f"  column: {column}"] if column != "prompt" else []),
        *_further_line(_columns(rows[0], column, further)),
        f"  parts: {iterations} # one for each iteration",
        f"  heldout: {heldout} # of {len(asked)}, kept for evaluation",
        f"  expected: {train} # are left for training",
    ]
    return _Prompts("\n".join(lines), "", train, math.ceil(fmean(map(len, asked)) / CHARACTERS))


def _or_pairs(prompts: str) -> str:
    """What to do without an oracle, if the prompts are a file whose rows say what is better."""
    rows = read_rows(prompts) if Path(prompts).is_file() else []
    if not rows or not {"chosen", "rejected"} <= rows[0].keys():
        return ""
    return (
        f". {prompts} has pairs, chosen and rejected, which need no oracle: begin with the complete example of "
        "docs/data.md, 'Preference pairs of your own'"
    )


def _columns(row: Mapping[str, Any], column: str, further: str) -> list[str]:
    if further == "constraints":
        return [ID_COLUMN, KWARGS_COLUMN]
    own = {column, "prompt", "input", *conversations.CONVENTIONS}
    return [name for name in row if name not in own] if further == "all" else []


def _further_line(names: Sequence[str]) -> list[str]:
    return [f"  further: {json.dumps(names)} # what oracles get beside the prompt"] if names else []


def _hub(given: str, column: str, expected: int | None, iterations: int, further: str) -> _Prompts:
    if Path(given).suffix in (".jsonl", ".json", ".parquet"):
        raise BadInput(f"{given}: no such file")
    if not HUB.fullmatch(given):
        raise BadInput(f"{given}: neither a file nor a data set of the hub (owner/name)")
    if expected is None:
        raise BadInput(f"{given}: about how many prompts are there? Give --expected")
    lines = ["  source: dataset", "  dataset: prompts", *([f"  column: {column}"] if column != "prompt" else [])]
    lines += ["  split: train", *_further_line(_columns({}, column, further))]
    lines += [f"  parts: {iterations} # one for each iteration", "  heldout: 200 # kept for evaluation"]
    lines += [f"  expected: {expected} # about, for training"]
    dataset = f"datasets:\n  prompts: {{ hub: {given} }} # `mnpo pin` fixes the revision\n\n"
    return _Prompts("\n".join(lines), dataset, expected, 190)


def _text(name: str, file: Path, policy: _Model, asked: _Prompts, known: Sequence[_Oracle], iterations: int) -> str:
    sizes = next(sizes for most, sizes in SIZES.items() if policy.size <= most)
    length = min(sizes.max_length, policy.positions or sizes.max_length)
    new = max(8, length // 4)
    a_part = asked.train // iterations
    batch = max(1, min(sizes.batch_size, a_part // 4))
    gpus = int(policy.size >= 0.5e9)
    lr = sizes.learning_rate
    schema = "schema.json" if file.parent.name == "configs" else "configs/schema.json"
    again = "true # computes the forward pass again: less memory, a third more time" if policy.size >= 4e9 else "false"
    first = known[0].name
    scores = ", ".join(dict.fromkeys(o.name for o in known))
    models = "".join(f"  {m}\n" for m in dict.fromkeys(o.model for o in known if o.model))
    oracles = "\n".join(f"  {o.name}: {o.entry}" for o in known)
    runs = "\n".join(f"      - {{ parts: [{t}] }}" for t in range(1, iterations + 1))
    light, heavy = math.ceil(2 + 5 * policy.size / 1e9), math.ceil(4 + 22 * policy.size / 1e9)
    needs = f"gpus: {gpus}, cpus: {8 if gpus else 2}, hours: 8"
    return f"""\
# yaml-language-server: $schema={schema}
# Written by `mnpo init`. Paths start where you run mnpo and snakemake. All keys: docs/configuration.md.
#
#   mnpo plan --config {file}                      what runs, and what it costs
#   snakemake --configfile {file} --cores 1 -n     its jobs
#   snakemake --configfile {file} --cores 1        runs them, one after another; again, it goes on
#   mnpo show --config {file}                      the main table

name: {name} # results go to results/{name}/

models:
  base: {policy.entry}
{models}
{asked.dataset}prompts: # docs/data.md
{asked.block}

reference:
  model: base # what every run starts from, and is compared with (SFT in the tables)

text: # limits in tokens; what is cut is counted
  max_length: {length}
  max_prompt_length: {length - new}

oracles: # who decides which response is better: docs/oracles.md
{oracles}

sampling:
  responses: {RESPONSES} # to each prompt
  temperature: 0.8
  max_new_tokens: {new}
  batch_size: {64 if gpus else 8}
  dtype: {sizes.dtype}

training: # sizes for a model of about {policy.size / 1e9:.3g} billion parameters
  learning_rate: {lr}
  batch_size: {batch} # pairs a step; a part has about {a_part} prompts
  micro_batch_tokens: {min(sizes.micro_batch_tokens, 8 * length)} # of one forward pass: fewer need less memory
  dtype: {sizes.dtype}
  gradient_checkpointing: {again}

runs: # more of them, side by side, share what they can; objectives: docs/configuration.md#objectives
  td-mnpo: # against its own last two policies
    label: TD-MNPO
    # A larger eta moves further from the reference in a step. The paper's 0.0075 is for 9 billion parameters.
    objective: {{ name: td-mnpo, eta: {sizes.eta}, ratio: 1/3, history: 2 }}
    oracle: {first}
    iterations:
{runs}

evaluation: # on held-out prompts
  oracle: {first} # decides wins
  scores: [{scores}]
  responses: 2
  dtype: {sizes.dtype}

tables:
  targets: [heldout, examples, preferences, figures, costs]

resources: # what a job asks for, and what the plan counts with
  gpu: h100
  gpus: 1 # that run at once
  prompt_tokens: {max(1, asked.tokens)}
  response_tokens: {max(1, new // 2)}
  stages:
    sample: &light {{ {needs}, memory_gb: {light} }}
    score: *light
    logps: *light
    assess: *light
    train: {{ {needs}, memory_gb: {heavy} }} # about 16 bytes a parameter, and activations
"""
