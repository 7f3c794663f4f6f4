"""Stages that make tables and figures, everything that is printed: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import REFERENCE
from mnpo.planning.files import HELDOUT
from mnpo.planning.registry import Work, reads, work
from mnpo.planning.targets import EXACT, FIGURES
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


def _labels(plan: Plan, policies: list[str]) -> list[list[str]]:
    return [[policy, plan.policies.label(policy)] for policy in policies]


def _intervals(plan: Plan, stage: str) -> dict[str, Any]:
    """How a stage draws the intervals of its figures."""
    evaluation = plan.config.evaluation
    how = {"bootstrap": evaluation.bootstrap, "confidence": evaluation.confidence}
    return {**how, "seed": derive(plan.config.seed, stage)}


def _scoring(plan: Plan) -> list[str | None]:
    """The oracles whose mean scores are printed."""
    return list(dict.fromkeys([plan.config.evaluation.oracle, *plan.config.evaluation.scores]))


def _over_reference(plan: Plan) -> dict[str, Any]:
    """Those of them that compare, where there are any."""
    return {"over_reference": found} if (found := plan.oracles.over_reference) else {}


def _family_value(plan: Plan) -> str:
    if plan.config.evaluation.accuracy:
        return "accuracy, sampled"
    compares = plan.config.evaluation.oracle in plan.oracles.over_reference
    return f"win rate over {plan.policies.label(REFERENCE)}, sampled" if compares else "mean score, sampled"


@reads("compare")
def _compare_settings(plan: Plan, table: str) -> dict[str, Any]:
    return {
        "table": table,
        "rows": [[row, policies] for row, policies in plan.targets.rows(table).items()],
        "judges": [list(names) for names in plan.targets.judges(table).items()],
    } | _intervals(plan, "compare")


@reads("tabulate")
def _tabulate_settings(plan: Plan) -> dict[str, Any]:
    evaluation = plan.config.evaluation
    return (
        {
            "labels": _labels(plan, plan.policies.evaluated),
            "win_against": plan.config.tables.win_against,
            "oracle": evaluation.oracle,
            "scores": evaluation.scores,
            "accuracy": evaluation.accuracy,
        }
        | _over_reference(plan)
        | _intervals(plan, "tabulate")
    )


@reads("players")
def _players_settings(plan: Plan) -> dict[str, Any]:
    return (
        {
            "labels": _labels(plan, plan.policies.evaluated),
            "players": [
                [
                    policy,
                    {
                        "oracle": oracle,
                        "opponents": list(plan.policies.opponents(policy).items()),
                    },
                ]
                for policy, oracle in plan.policies.judged_by.items()
            ],
            "scores": _scoring(plan),
        }
        | _over_reference(plan)
        | _intervals(plan, "players")
    )


@reads("examples")
def _examples_settings(plan: Plan) -> dict[str, Any]:
    return {
        "labels": _labels(plan, plan.policies.shown),
        "scores": _scoring(plan),
        "prompts": plan.config.tables.examples,
        "seed": derive(plan.config.seed, "examples", plan.config.name),
    } | _over_reference(plan)


@reads("exploitability")
def _exploitability_settings(plan: Plan) -> dict[str, Any]:
    return {
        "exploited": [
            [p, {"label": plan.policies.label(p), "oracle": oracle, "exploiters": plan.policies.exploiters[p]}]
            for p, oracle in plan.policies.exploited.items()
        ],
        "shards": plan.files.shards,
    } | _intervals(plan, "exploitability")


@reads("rehearsal")
def _rehearsal_settings(plan: Plan) -> dict[str, Any]:
    return {"of": plan.config.tables.rehearsal_of}


@reads("preferences")
def _preferences_settings(plan: Plan) -> dict[str, Any]:
    policies = plan.policies
    return {"rows": [[policies.sampler_label(p), part, o] for p, part, o in (*policies.annotated, *policies.preferred)]}


@reads("benchmarks")
def _benchmarks_settings(plan: Plan) -> dict[str, Any]:
    return {
        "labels": _labels(plan, plan.policies.finals),
        "benchmarks": list(plan.measurements.measured),
    }


@reads("plot")
def _plot_settings(plan: Plan) -> dict[str, Any]:
    def of_runs(policies: list[str]) -> list[Any]:
        return [[run, [p for p in policies if p.rpartition(".")[0] == run]] for run in plan.config.runs]

    return {
        "labels": _labels(plan, plan.policies.evaluated),
        "runs": of_runs(plan.policies.evaluated),
        "trainings": of_runs(plan.policies.whole),
        "run_labels": {run: plan.policies.run_label(run) for run in plan.config.runs},
        "oracle": plan.config.evaluation.oracle,
        "scores": _scoring(plan),
        "family_value": _family_value(plan),
    } | _over_reference(plan)


@work
def _tables_work(plan: Plan) -> list[Work]:
    heldout = tuple(plan.files.evaluation(policy, HELDOUT) for policy in plan.policies.evaluated)
    shown = [plan.files.evaluation(policy, HELDOUT) for policy in plan.policies.shown]
    return [
        *(
            Work("compare", table, tuple(plan.targets.of(table)), tuple(plan.targets.evaluations(table)))
            for table in plan.targets.of_paper
        ),
        Work("tabulate", "heldout", tuple(plan.targets.of("heldout")), heldout),
        Work("players", "players", tuple(plan.targets.of("players")), heldout),
        Work("examples", "examples", tuple(plan.targets.of("examples")), (*shown, plan.files.prompts(HELDOUT))),
        *_exploitability_work(plan),
        Work("preferences", "preferences", tuple(plan.targets.of("preferences")), tuple(_preference_files(plan))),
        Work("benchmarks", "benchmarks", tuple(plan.targets.of("benchmarks")), tuple(plan.measurements.evaluations)),
        Work("plot", "figures", tuple(plan.targets.of("figures")), tuple(plan.targets.heldout), len(FIGURES)),
        *(Work(name, name, tuple(plan.targets.of(name)), ()) for name in EXACT),
    ]


def _exploitability_work(plan: Plan) -> list[Work]:
    if not plan.policies.exploited:
        return []
    outputs = tuple(plan.targets.of("exploitability"))
    return [Work("exploitability", "exploitability", outputs, tuple(plan.targets.exploit_scores))]


def _preference_files(plan: Plan) -> list[str]:
    return [
        file
        for policy, part, oracle in plan.policies.annotated
        for file in (
            plan.files.pairs(policy, part, oracle),
            *plan.files.score_shards(policy, part, oracle),
            *plan.files.sample_shards(policy, part),
        )
    ] + [plan.files.pairs(*of) for of in plan.policies.preferred]
