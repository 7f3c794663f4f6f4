"""The jobs that a plan means: which work makes which files out of which, for which runs. Pure, as the plan is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mnpo.planning.registry import WORK, Work
from mnpo.planning.targets import EXACT

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

PRINTED = ("tabulate", "players", "examples", "exploitability", "preferences", "compare", "benchmarks", "plot")
OF_MANIFESTS = ("costs", "rehearsal")
"""Tables of what jobs cost, by the manifests of what they made."""
UNPRICED = ("download", "miniature", "prompts", "demonstrations", *PRINTED)


def needed(plan: Plan, files: Iterable[str]) -> list[Work]:
    """The work behind `files`, in the order in which it can be done."""
    return _upstream(files, everything(plan))


def _upstream(files: Iterable[str], work: Iterable[Work]) -> list[Work]:
    makers = {output: piece for piece in work for output in piece.outputs}
    done: dict[str, Work] = {}

    def visit(file: str) -> None:
        work = makers.get(file)
        if work is not None and work.name not in done:
            for wanted in work.inputs:
                visit(wanted)
            done[work.name] = work

    for file in files:
        visit(file)
    return list(done.values())


def by_run(plan: Plan, work: Sequence[Work]) -> dict[str, set[str]]:
    """Every run -> the names of the work that it alone would need, of all that is in `work`."""
    ours = {run: set(policies) for run, policies in plan.policies.replicas.items()}
    ends = {run: [o for w in work if w.policy in policies for o in w.outputs] for run, policies in ours.items()}
    return {run: {w.name for w in _upstream(files, work)} for run, files in ends.items()}


def files(plan: Plan, targets: Iterable[str]) -> list[str]:
    """The files of targets; raises KeyError for a name that is none."""
    return [file for target in targets for file in plan.targets.of(target)]


def priced(plan: Plan) -> list[str]:
    """Everything that the other targets rest on and that has a manifest saying what it cost; not what is printed."""
    targets = [t for t in plan.config.tables.targets if t not in (*OF_MANIFESTS, *EXACT)]
    made = [w for w in _upstream(files(plan, targets), _measured(plan)) if w.stage not in UNPRICED]
    return [o for w in made for o in (w.outputs if w.stage != "train" else [plan.files.training(w.policy or "")])]


def everything(plan: Plan) -> list[Work]:
    """All work that the configuration can ask for, whichever targets are made."""
    made = tuple(priced(plan))
    return [*_measured(plan), *(Work(name, name, tuple(plan.targets.of(name)), made) for name in OF_MANIFESTS)]


def _measured(plan: Plan) -> list[Work]:
    return [piece for pieces in WORK for piece in pieces(plan)]
