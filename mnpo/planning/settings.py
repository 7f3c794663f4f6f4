"""What each stage reads: its settings, and the code behind it. What stands here decides what reruns.

A stage has one entry here: a function of the plan, and of what tells its jobs apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import DEMO, REFERENCE, Block
from mnpo.config.runs import PRESETS
from mnpo.config.sampling import Pairing
from mnpo.oracles import modules
from mnpo.planning.files import HELDOUT
from mnpo.planning.fits import AGAINST
from mnpo.seeds import derive
from mnpo.storage import code_digests, hub

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan

Entry = Callable[..., dict[str, Any]]
STAGES: dict[str, Entry] = {}


def of_stage(stage: str) -> Callable[[Entry], Entry]:
    """Register what a stage reads."""

    def register(entry: Entry) -> Entry:
        STAGES[stage] = entry
        return entry

    return register


def settings_of(plan: Plan, stage: str, **of: str) -> str:
    """The settings that a stage reads for one job, as canonical JSON."""
    return json.dumps(STAGES[stage](plan, **of), sort_keys=True, default=_plain)


def code_of(plan: Plan, stage: str, oracles: Iterable[str] = ()) -> str:
    """The digest of the code behind a stage; `oracles` adds the modules of the kinds of oracle it uses."""
    config = plan.config
    further = modules({spec["kind"] for spec in plan.oracles.settings(oracles)["oracles"].values()})
    if stage == "prompts" and config.prompts.source == "demo":
        further.append("mnpo.demo.world")
    if stage == "judge" and any(judge.endpoint == DEMO for judge in config.judges.values()):
        further.append("mnpo.demo.judge")
    if stage == "evalscope":
        further.append("mnpo.stages.answer")  # which it runs
    if stage == "sft" and any(m.architecture is not None for m in config.models.values()):
        further.append("mnpo.demo.model")
    return code_digests.digest(f"mnpo.stages.{stage}", *further)


def _plain(value: Any) -> Any:
    if isinstance(value, Block):
        return value.model_dump(exclude_none=True)
    raise TypeError(f"{value!r} has no canonical form")


@of_stage("prompts")
def _prompts(plan: Plan) -> dict[str, Any]:
    return {"prompts": plan.config.prompts, "seed": plan.config.seed}


@of_stage("sft")
def _sft(plan: Plan, policy: str) -> dict[str, Any]:
    trained = plan.config.reference.sft if policy == REFERENCE else None
    return {
        "policy": policy,
        "model": plan.files.made_of(plan.policies.prepared[policy]),
        "sft": trained,
        "text": plan.config.text,
        "seed": derive(plan.config.seed, "sft", policy),
    }


@of_stage("sample")
def _sample(plan: Plan, policy: str, part: str, shard: str) -> dict[str, Any]:
    of_others = {"prompts_a_job": 1, "reuse_logprobs": False}  # what the other stages read
    return {
        "sampling": plan.config.sampling.model_copy(update={"shards": plan.files.shards, **of_others}),
        "text": plan.config.text,
        "shard": int(shard),
        "seed": derive(plan.config.seed, "sample", policy, part.removeprefix("part")),
    }


@of_stage("score")
def _score(plan: Plan, oracle: str) -> dict[str, Any]:
    return plan.oracles.settings([oracle]) | {"oracle": oracle.partition(AGAINST)[0]}


@of_stage("pair")
def _pair(plan: Plan, oracle: str) -> dict[str, Any]:
    """`min_gap` is in the units of the oracle's scores; win rates against a policy have none."""
    return {"pairing": Pairing() if AGAINST in oracle else plan.config.pairing}


@of_stage("logps")
def _logps(plan: Plan, text: str) -> dict[str, Any]:
    forms = {f.tag(): f for p in PRESETS.values() for f in (p.opponent_text, p.policy_text)}
    return {"form": forms[text], "text": plan.config.text, "dtype": plan.config.training.dtype}


@of_stage("train")
def _train(plan: Plan, policy: str) -> dict[str, Any]:
    fit = plan.policies.fits[policy]
    chosen = {k: v for k, v in fit.objective.member_settings().items() if v is not None}
    return {
        "policy": policy,
        "start": fit.start,
        "objective": chosen,
        "opponents": list(fit.opponents),
        "scorers": fit.scorers,
        "training": fit.training,
        "length_normalised": fit.protocol.length_normalised,
        "form": fit.protocol.policy_text,
        "opponent_form": fit.protocol.opponent_text,
        "text": plan.config.text,
        "seed": derive(plan.config.seed, "train", policy),
    }


@of_stage("assess")
def _assess(plan: Plan, policy: str) -> dict[str, Any]:
    evaluation, sampling = plan.config.evaluation, plan.config.sampling
    return plan.oracles.settings(plan.oracles.of_evaluation) | {
        "policy": policy,
        "oracle": evaluation.oracle,
        "scores": evaluation.scores,
        "majority": evaluation.majority,
        "responses": evaluation.responses,
        "decoding": sampling.model_dump(include={"temperature", "top_p", "max_new_tokens"}),
        "batch_size": sampling.batch_size,
        "dtype": evaluation.dtype,
        "text": plan.config.text,
        "seed": derive(plan.config.seed, "evaluate", HELDOUT),
    }


@of_stage("download")
def _download(plan: Plan, directory: str) -> dict[str, Any]:
    source = hub.merged(plan.files.downloads(directory).values())
    if locked := plan.lock.entry(hub.kind_of(source), source):
        source = source.model_copy(update={"files": locked.patterns})  # other configurations' files too
    kept = source.model_dump(include={"hub", "github", "revision", "files", "gated"}, exclude_none=True)
    return {"kind": hub.kind_of(source), "source": kept}


@of_stage("reuse")
def _reuse(plan: Plan, shard: str) -> dict[str, Any]:
    return {"shard": int(shard), "shards": plan.files.shards, "responses": plan.config.sampling.responses}


@of_stage("harness")
def _harness(plan: Plan, policy: str) -> dict[str, Any]:
    how = _measuring(plan, policy, "backend", "batch_size", "dtype", "max_length")
    chosen = {b: plan.config.evaluation.of(b).model_dump(exclude_none=True) for b in plan.measurements.harness}
    return {"harness": {**how, "benchmarks": chosen}, "code": plan.code("harness")}


@of_stage("evalscope")
def _evalscope(plan: Plan, policy: str) -> dict[str, Any]:
    how = _measuring(plan, policy, "backend", "batch_size", "dtype", "max_length")
    chosen = {b: plan.config.evaluation.of(b).model_dump(exclude_none=True) for b in plan.measurements.evalscope}
    answer = {**how, "seed": derive(plan.config.seed, "answer", "evalscope")}
    return {
        "evalscope": {"policy": policy, "benchmarks": chosen},
        "answer": answer,
        "code": plan.code("evalscope"),
    }


@of_stage("answer")
def _answer(plan: Plan, policy: str, benchmark: str) -> dict[str, Any]:
    model = plan.config.models.get(policy)
    endpoint = model.model_dump(include={"api", "endpoint", "key"}) if model and model.api else None
    chosen = plan.config.evaluation.of(benchmark).model_dump(include={"limit", "max_new_tokens"}, exclude_none=True)
    how = _measuring(plan, policy, "backend", "batch_size", "dtype", "max_length")
    seed = derive(plan.config.seed, "answer", benchmark)
    return {"asked": {**how, "benchmark": benchmark, "seed": seed, **chosen}, "endpoint": endpoint}


def _measuring(plan: Plan, policy: str, *keys: str) -> dict[str, Any]:
    """How a benchmark runs a policy."""
    how = plan.config.evaluation.model_dump(include=set(keys), exclude_none=True)
    return {"policy": policy, **how}


@of_stage("judge")
def _judge(plan: Plan, policy: str, benchmark: str, judge: str, repeat: str) -> dict[str, Any]:
    chosen = plan.config.evaluation.of(benchmark).model_dump(include={"limit"}, exclude_none=True)
    seed = derive(plan.config.seed, "judge", benchmark)
    how = {"policy": policy, "judge": judge, "repeat": int(repeat.removeprefix(".r") or 1), "seed": seed}
    spec = plan.config.judges[judge].model_dump(exclude={"label"}, exclude_none=True)
    protocol = {"protocol": p} if (p := plan.config.evaluation.protocol_of(benchmark)) != "harness" else {}
    return {"benchmark": benchmark, **protocol, "judged": {**how, **chosen}, "judge": spec}


@of_stage("miniature")
def _miniature(plan: Plan, benchmark: str) -> dict[str, Any]:
    return {"benchmark": benchmark, "seed": plan.config.seed}  # of the world: its questions are held out there


@of_stage("compare")
def _compare(plan: Plan, table: str) -> dict[str, Any]:
    return {
        "table": table,
        "rows": [[row, policies] for row, policies in plan.targets.rows(table).items()],
        "judges": [list(names) for names in plan.targets.judges(table).items()],
        "bootstrap": plan.config.evaluation.bootstrap,
        "confidence": plan.config.evaluation.confidence,
        "seed": derive(plan.config.seed, "compare"),
    }


@of_stage("tabulate")
def _tabulate(plan: Plan) -> dict[str, Any]:
    evaluation = plan.config.evaluation
    return {
        "labels": [[p, plan.policies.label(p)] for p in plan.policies.evaluated],
        "win_against": plan.config.tables.win_against,
        "oracle": evaluation.oracle,
        "scores": evaluation.scores,
        "accuracy": evaluation.accuracy,
        "bootstrap": evaluation.bootstrap,
        "confidence": evaluation.confidence,
        "seed": derive(plan.config.seed, "tabulate"),
    }


@of_stage("players")
def _players(plan: Plan) -> dict[str, Any]:
    evaluation = plan.config.evaluation
    return {
        "labels": [[p, plan.policies.label(p)] for p in plan.policies.evaluated],
        "players": [
            [
                policy,
                {
                    "oracle": plan.policies.fits[policy].oracle,
                    "opponents": list(plan.policies.opponents(policy).items()),
                },
            ]
            for policy in plan.policies.lasts
        ],
        "scores": list(dict.fromkeys([evaluation.oracle, *evaluation.scores])),
        "bootstrap": evaluation.bootstrap,
        "confidence": evaluation.confidence,
        "seed": derive(plan.config.seed, "players"),
    }


@of_stage("exploitability")
def _exploitability(plan: Plan) -> dict[str, Any]:
    evaluation = plan.config.evaluation
    return {
        "exploited": [
            [p, {"label": plan.policies.label(p), "oracle": oracle, "exploiters": plan.policies.exploiters[p]}]
            for p, oracle in plan.policies.exploited.items()
        ],
        "shards": plan.files.shards,
        "bootstrap": evaluation.bootstrap,
        "confidence": evaluation.confidence,
        "seed": derive(plan.config.seed, "exploitability"),
    }


@of_stage("preferences")
def _preferences(plan: Plan) -> dict[str, Any]:
    return {"rows": [[plan.policies.sampler_label(p), part, oracle] for p, part, oracle in plan.policies.annotated]}


@of_stage("benchmarks")
def _benchmarks(plan: Plan) -> dict[str, Any]:
    return {
        "labels": [[p, plan.policies.label(p)] for p in plan.policies.finals],
        "benchmarks": list(plan.measurements.measured),
    }


@of_stage("plot")
def _plot(plan: Plan) -> dict[str, Any]:
    def of_runs(policies: list[str]) -> list[Any]:
        return [[run, [p for p in policies if p.rpartition(".")[0] == run]] for run in plan.config.runs]

    return {
        "labels": [[p, plan.policies.label(p)] for p in plan.policies.evaluated],
        "runs": [
            [run, [p for p in plan.policies.evaluated if p.rpartition(".")[0] == run]] for run in plan.config.runs
        ],
        "trainings": [
            [run, [p for p in plan.policies.whole if p.rpartition(".")[0] == run]] for run in plan.config.runs
        ],
        "run_labels": {run: plan.policies.run_label(run) for run in plan.config.runs},
        "oracle": plan.config.evaluation.oracle,
        "scores": list(dict.fromkeys([plan.config.evaluation.oracle, *plan.config.evaluation.scores])),
        "family_value": "accuracy, sampled" if plan.config.evaluation.accuracy else "mean score, sampled",
    }
