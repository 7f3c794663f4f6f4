"""What must be there before anything is submitted: tokens, keys and pins of the jobs that are about to run, and locks
where answers that are paid for will be kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from mnpo.config.blocks import DEMO
from mnpo.config.oracles import Judge
from mnpo.config.sources import Source
from mnpo.errors import BadInput
from mnpo.judging.endpoints import require_key
from mnpo.judging.store import require_locks
from mnpo.planning.fits import AGAINST
from mnpo.planning.plan import Plan
from mnpo.storage import hub

DRIVER = 580  # NVIDIA's first for CUDA 13, for which the locks' torch and vLLM are built (docs/environments.md)


def check(plan: Plan, jobs: Iterable[tuple[str, Mapping[str, str]]], *further: Callable[[], None]) -> None:
    """Raises BadInput, one message for everything that is missing. No secret is part of it.

    Args:
        jobs: (rule, wildcards) of every job that is going to run.
        further: checks that raise BadInput, too, such as submission.require_accepted.
    """
    fetched: dict[str, Source] = {}
    judges: dict[str, Judge] = {}
    stores: set[Path] = set()
    on_gpus = False
    for rule, of in jobs:
        on_gpus |= plan.config.resources.of(rule.removesuffix("_passing")).gpus > 0
        if rule == "download":
            fetched |= plan.files.downloads(plan.files.cached(of["kind"], of["repository"], of["revision"]))
        elif rule == "judge":
            stores.add(Path(plan.files.judgements(of["policy"], of["benchmark"], of["judge"])).parent)
            if (judge := plan.config.judges[of["judge"]]).endpoint != DEMO:
                judges[of["judge"]] = judge
        elif rule == "score_asking":
            stores.add(Path(plan.files.opinions(of["policy"], of["part"], of["oracle"], of["shard"])).parent)
            judges |= plan.oracles.judges([of["oracle"]])
        elif rule == "assess" and (asked := plan.oracles.judges(plan.oracles.of_evaluation)):
            stores.add(Path(plan.files.heldout_opinions(of["policy"])).parent)
            judges |= asked
        elif rule == "answer" and not plan.policies.has_files(of["policy"]):
            stores.add(Path(plan.files.said(of["policy"], of["benchmark"])).parent)
            judges[of["policy"]] = plan.config.models[of["policy"]].as_judge()
    requirements: list[Callable[[], None]] = [
        plan.oracles.require_constraints_of_rows,
        partial(hub.require_pinned, fetched, plan.lock, allow_floating=plan.config.floating),
        partial(hub.require_token, fetched, plan.files.cache, plan.lock),
        *(partial(require_key, judge) for judge in judges.values()),
        *(partial(require_locks, directory) for directory in sorted(stores)),
        *further,
        *([require_driver] if on_gpus else []),
    ]
    problems = []
    for requirement in requirements:
        try:
            requirement()
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(dict.fromkeys(problems)))


IMPORTED = """\
import sys
from mnpo.errors import BadInput
from mnpo.oracles.functions import imported
try:
    imported(*sys.argv[1:])
except BadInput as error:
    sys.exit(" ".join(str(error).split()))
"""


def require_functions(plan: Plan, jobs: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """Import, in a process of their own, the users' functions that jobs are going to ask.

    For jobs that run in this Python: other environments have other packages.
    """
    asked: dict[tuple[str, str], None] = {}
    for rule, of in jobs:
        oracles = plan.oracles.of_evaluation if rule == "assess" else []
        oracles = [of["oracle"].partition(AGAINST)[0]] if rule in ("score", "score_asking") else oracles
        specs = [plan.config.oracles[name] for name in plan.config.with_members(oracles)]
        asked |= {(spec.file, spec.function): None for spec in specs if spec.file and spec.function}
    problems = []
    for file, function in asked:
        tried = subprocess.run(
            [sys.executable, "-c", IMPORTED, file, function], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            said = tried.stderr.strip().splitlines() or [f"{file}: the import ends with {tried.returncode}"]
            problems.append(said[-1])
    if problems:
        raise BadInput("\n".join(problems))


def require_driver() -> None:
    """Whether the driver of this machine's GPUs, where there are any, is recent enough."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return
    for driver in answer:
        major = driver.partition(".")[0]
        if major.isdecimal() and int(major) < DRIVER:
            raise BadInput(
                f"a GPU here has driver {driver}; CUDA 13, for which the locked torch and vLLM are built, needs "
                f"{DRIVER} or newer; update the driver, or lock a torch for an older CUDA (docs/environments.md)"
            )
