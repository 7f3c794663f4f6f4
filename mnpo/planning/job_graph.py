"""The work that a plan means: which jobs make which files out of which, for which runs. Pure, as the plan is.

One piece of work is all jobs of one stage on one noun: the 16 shards of a policy's samples on a part are one piece.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mnpo.config.blocks import DATASET, REFERENCE
from mnpo.planning.files import HELDOUT, part_name
from mnpo.planning.fits import AGAINST
from mnpo.planning.targets import FIGURES

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

Item = TypeVar("Item")
PRINTED = ("tabulate", "players", "exploitability", "preferences", "compare", "benchmarks", "plot")
UNPRICED = ("download", "miniature", "prompts", *PRINTED)


@dataclass(frozen=True)
class Work:
    """Jobs of one stage that together make one noun."""

    stage: str
    what: str
    """Which noun: `td-mnpo.1 part2`, `inpo.3 mt-bench.gpt-5-mini`."""
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    jobs: int = 1
    policy: str | None = None
    """The policy that computes (samples, scores texts, is trained, answers)."""
    models: tuple[str, ...] = ()
    """Entries of `models` that compute: the policy's architecture, or the oracle's."""
    part: int | str | None = None
    """Of the prompts: 1, 2, ... or HELDOUT."""
    benchmark: str | None = None
    oracle: str | None = None
    """Who scores."""
    judge: str | None = None
    """Who is asked: an entry of `judges`, or an oracle that asks one."""

    @property
    def name(self) -> str:
        """Unique in a plan."""
        return f"{self.stage} {self.what}"

    @property
    def needs(self) -> str:
        """The entry of `resources.stages` that its jobs follow."""
        return "judge" if self.judge else self.stage


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
    targets = [t for t in plan.config.tables.targets if t not in ("costs", "theory")]
    made = [w for w in _upstream(files(plan, targets), _measured(plan)) if w.stage not in UNPRICED]
    return [o for w in made for o in (w.outputs if w.stage != "train" else [plan.files.training(w.policy or "")])]


def everything(plan: Plan) -> list[Work]:
    """All work that the configuration can ask for, whichever targets are made."""
    return [*_measured(plan), Work("costs", "costs", tuple(plan.targets.of("costs")), tuple(priced(plan)))]


def _measured(plan: Plan) -> list[Work]:
    return [
        *_downloads(plan),
        *_miniatures(plan),
        *_prompts(plan),
        *_policies(plan),
        *_samples(plan),
        *_scores(plan),
        *_pairs(plan),
        *_logps(plan),
        *_evaluations(plan),
        *_tables(plan),
    ]


def _downloads(plan: Plan) -> list[Work]:
    directories: dict[str, list[str]] = {}
    for kind in ("models", "datasets"):
        for name, entry in getattr(plan.config, kind).items():
            if entry.downloaded:
                directories.setdefault(plan.files.source(kind, name), []).append(name)
    return [
        Work("download", " ".join(names), (directory,), (), models=tuple(n for n in names if n in plan.config.models))
        for directory, names in directories.items()
    ]


def _miniatures(plan: Plan) -> list[Work]:
    made = [name for name, entry in plan.config.datasets.items() if entry.demo]
    return [Work("miniature", name, (plan.files.miniature(name),), ()) for name in made]


def _prompts(plan: Plan) -> list[Work]:
    return [Work("prompts", "all parts", tuple(plan.files.prompt_files), tuple(plan.files.prompt_sources))]


def _policies(plan: Plan) -> list[Work]:
    prepared = [
        Work(
            "sft",
            policy,
            (plan.files.policy(policy),),
            (*plan.files.model_sources([model]), plan.files.demonstrations),
            policy=policy,
            models=(model,),
        )
        for policy, model in plan.policies.prepared.items()
    ]
    base = plan.config.reference.model
    trained = [
        Work(
            "train",
            fit.policy,
            (plan.files.policy(fit.policy), plan.files.training(fit.policy)),
            (plan.files.policy(fit.start), *plan.files.fit_pairs(fit), *plan.files.fit_logps(fit)),
            policy=fit.policy,
            models=(base,),
        )
        for fit in plan.policies.fits.values()
    ]
    return prepared + trained


def _samples(plan: Plan) -> list[Work]:
    base = plan.config.reference.model
    fits = plan.policies.fits.values()
    drawn: list[tuple[str, int | str]] = [(fit.sampler, part) for fit in fits for part in fit.parts]
    drawn += [(fit.exploits, part) for fit in fits if fit.exploits for part in fit.parts]
    drawn += [(policy, HELDOUT) for policies in plan.policies.exploiters.values() for policy in policies]
    shards = plan.files.shards
    work = []
    for policy, part in _unique(drawn):
        outputs, prompts = tuple(plan.files.sample_shards(policy, part)), plan.files.prompts(part)
        if policy == DATASET:
            work.append(Work("reuse", part_name(part), outputs, (plan.files.responses, prompts), shards, part=part))
        else:
            inputs, what = (plan.files.policy(policy), prompts), f"{policy} {part_name(part)}"
            work.append(Work("sample", what, outputs, inputs, shards, policy=policy, models=(base,), part=part))
    return work


def _scores(plan: Plan) -> list[Work]:
    decides, scored = plan.policies.exploited, list[tuple[str, int | str, str]](plan.policies.paired)
    scored += [(e, HELDOUT, f"{decides[p]}{AGAINST}{p}") for p, some in plan.policies.exploiters.items() for e in some]
    shards = range(plan.files.shards)
    return [
        Work(
            "score",
            f"{policy} {part_name(part)} {oracle}",
            tuple(plan.files.score_shards(policy, part, oracle)),
            (
                *plan.files.sample_shards(policy, part),
                *(file for s in shards for file in plan.files.against(part, oracle, s)),
                *plan.files.model_sources(plan.oracles.models([oracle])),
            ),
            len(shards),
            models=tuple(plan.oracles.models([oracle])),
            part=part,
            oracle=oracle,
            judge=oracle if oracle.partition(AGAINST)[0] in plan.oracles.asking else None,
        )
        for policy, part, oracle in scored
    ]


def _pairs(plan: Plan) -> list[Work]:
    return [
        Work(
            "pair",
            f"{policy} part{part} {oracle}",
            (plan.files.pairs(policy, part, oracle),),
            (*plan.files.sample_shards(policy, part), *plan.files.score_shards(policy, part, oracle)),
            part=part,
        )
        for policy, part, oracle in plan.policies.paired
    ]


def _logps(plan: Plan) -> list[Work]:
    base = plan.config.reference.model
    scored = _unique(
        (fit.sampler, part, fit.oracle, fit.protocol.opponent_text.tag(), scorer)
        for fit in plan.policies.fits.values()
        for scorer in fit.scorers
        for part in fit.parts
    )
    return [
        Work(
            "logps",
            f"{policy} part{part} {oracle} {text} under {scorer}",
            (plan.files.logps(policy, part, oracle, text, scorer),),
            (plan.files.policy(scorer), plan.files.pairs(policy, part, oracle), *said),
            policy=scorer,
            models=() if said else (scorer if scorer in plan.config.models else base,),
            part=part,
        )
        for policy, part, oracle, text, scorer in scored
        for said in [plan.files.reused_logprobs(policy, part, scorer)]
    ]


def _evaluations(plan: Plan) -> list[Work]:
    return [*(w for policy in plan.policies.finals for w in _benchmarks(plan, policy)), *_heldout(plan)]


def _benchmarks(plan: Plan, policy: str) -> list[Work]:
    """A policy on the public benchmarks: the harness, answers to judged ones, and each judgement of these."""
    base = policy if policy in plan.config.models else plan.config.reference.model
    files = (plan.files.policy(policy),) if plan.policies.has_files(policy) else ()
    work = []
    if plan.measurements.harness and files:
        outputs = tuple(plan.files.evaluation(policy, b) for b in plan.measurements.harness)
        inputs = (*files, *plan.measurements.sources(plan.measurements.harness))
        work.append(Work("harness", policy, outputs, inputs, policy=policy, models=(base,)))
    if plan.measurements.evalscope and files:
        outputs = tuple(plan.files.evaluation(policy, b) for b in plan.measurements.evalscope)
        inputs = (*files, *plan.measurements.sources(plan.measurements.evalscope))
        work.append(Work("evalscope", policy, outputs, inputs, policy=policy, models=(base,)))
    for benchmark in plan.measurements.answered:
        data, answers = plan.measurements.sources([benchmark]), plan.files.answers(policy, benchmark)
        what = f"{policy} {benchmark}"
        work.append(
            Work("answer", what, (answers,), (*files, *data), policy=policy, models=(base,), benchmark=benchmark)
        )
        for stem, (of, judge) in plan.measurements.measured.items():
            if of == benchmark:
                output, inputs = (plan.files.evaluation(policy, stem),), (answers, *data)
                what = f"{policy} {stem}"
                work.append(Work("judge", what, output, inputs, policy=policy, benchmark=benchmark, judge=judge))
    return work


def _heldout(plan: Plan) -> list[Work]:
    oracles = plan.oracles.models(plan.oracles.of_evaluation)
    shared = (plan.files.policy(REFERENCE), plan.files.prompts(HELDOUT), *plan.files.model_sources(oracles))
    models = (plan.config.reference.model, *oracles)
    return [
        Work(
            "assess",
            policy,
            (plan.files.evaluation(policy, HELDOUT),),
            (plan.files.policy(policy), *shared),
            policy=policy,
            models=models,
        )
        for policy in plan.policies.evaluated
    ]


def _tables(plan: Plan) -> list[Work]:
    heldout = tuple(plan.files.evaluation(policy, HELDOUT) for policy in plan.policies.evaluated)
    return [
        *(
            Work("compare", table, tuple(plan.targets.of(table)), tuple(plan.targets.evaluations(table)))
            for table in plan.targets.of_paper
        ),
        Work("tabulate", "heldout", tuple(plan.targets.of("heldout")), heldout),
        Work("players", "players", tuple(plan.targets.of("players")), heldout),
        *_exploitability(plan),
        Work("preferences", "preferences", tuple(plan.targets.of("preferences")), tuple(_preferences(plan))),
        Work("benchmarks", "benchmarks", tuple(plan.targets.of("benchmarks")), tuple(plan.measurements.evaluations)),
        Work("plot", "figures", tuple(plan.targets.of("figures")), tuple(plan.targets.heldout), len(FIGURES)),
        Work("theory", "theory", tuple(plan.targets.of("theory")), ()),
    ]


def _exploitability(plan: Plan) -> list[Work]:
    outputs = tuple(plan.targets.of("exploitability"))
    return (
        [Work("exploitability", "exploitability", outputs, tuple(plan.targets.exploit_scores))]
        if plan.policies.exploited
        else []
    )


def _preferences(plan: Plan) -> list[str]:
    return [
        file
        for policy, part, oracle in plan.policies.annotated
        for file in (
            plan.files.pairs(policy, part, oracle),
            *plan.files.score_shards(policy, part, oracle),
            *plan.files.sample_shards(policy, part),
        )
    ]


def _unique(items: Iterable[Item]) -> list[Item]:
    return list(dict.fromkeys(items))
