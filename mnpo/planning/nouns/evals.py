"""Stages that make evaluations, on public benchmarks and on held-out prompts: what each reads, and its work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import DEMO, REFERENCE, ConfigError
from mnpo.config.sources import ASKED
from mnpo.planning.files import HELDOUT
from mnpo.planning.registry import Work, reads, work
from mnpo.seeds import derive

if TYPE_CHECKING:
    from mnpo.planning.plan import Plan


@reads("harness")
def _harness_settings(plan: Plan, policy: str) -> dict[str, Any]:
    how = _measuring(plan, policy)
    chosen = {b: plan.config.evaluation.of(b).model_dump(exclude_none=True) for b in plan.measurements.harness}
    return {"harness": {**how, "benchmarks": chosen}, "code": plan.code("harness")}


@reads("evalscope", by_name=lambda plan: ["mnpo.stages.answer"])  # which it runs
def _evalscope_settings(plan: Plan, policy: str) -> dict[str, Any]:
    how = _measuring(plan, policy)
    chosen = {b: plan.config.evaluation.of(b).model_dump(exclude_none=True) for b in plan.measurements.evalscope}
    answer = {**how, "seed": derive(plan.config.seed, "answer", "evalscope")}
    return {
        "evalscope": {"policy": policy, "benchmarks": chosen},
        "answer": answer,
        "code": plan.code("evalscope"),
    }


@reads("answer")
def _answer_settings(plan: Plan, policy: str, benchmark: str) -> dict[str, Any]:
    model = plan.config.models.get(policy)
    keys = {"api", "endpoint", "key", *ASKED}
    endpoint = model.model_dump(include=keys, exclude_none=True) if model and model.api else None
    chosen = plan.config.evaluation.of(benchmark).model_dump(include={"limit", "max_new_tokens"}, exclude_none=True)
    if endpoint:
        chosen |= plan.config.evaluation.model_dump(include={"max_empty"}, exclude_defaults=True)
    how = _measuring(plan, policy)
    seed = derive(plan.config.seed, "answer", benchmark)
    return {"asked": {**how, "benchmark": benchmark, "seed": seed, **chosen}, "endpoint": endpoint}


def _measuring(plan: Plan, policy: str) -> dict[str, Any]:
    """How a benchmark runs a policy. What `text` says of its template is said of this configuration's own policies."""
    keys = {"backend", "batch_size", "dtype", "max_length"}
    said = None if policy in plan.config.models else plan.config.text.reading()
    how = plan.config.evaluation.model_dump(include=keys, exclude_none=True)
    return {"policy": policy, **how, **({"text": said} if said else {}), **plan.policies.strip(policy)}


def _own_judge(plan: Plan) -> list[str]:
    return ["mnpo.demo.judge"] if any(judge.endpoint == DEMO for judge in plan.config.judges.values()) else []


@reads("judge", by_name=_own_judge)
def _judge_settings(plan: Plan, policy: str, benchmark: str, judge: str, repeat: str) -> dict[str, Any]:
    chosen = plan.config.evaluation.of(benchmark).model_dump(include={"limit"}, exclude_none=True)
    if benchmark == "mt-bench":
        chosen |= plan.config.evaluation.model_dump(include={"ratings"}, exclude_defaults=True)
    seed = derive(plan.config.seed, "judge", benchmark)
    how = {"policy": policy, "judge": judge, "repeat": int(repeat.removeprefix(".r") or 1), "seed": seed}
    spec = plan.config.judges[judge].model_dump(exclude={"label"}, exclude_none=True)
    protocol = {"protocol": p} if (p := plan.config.evaluation.protocol_of(benchmark)) != "harness" else {}
    return {"benchmark": benchmark, **protocol, "judged": {**how, **chosen}, "judge": spec}


@reads("assess")
def _assess_settings(plan: Plan, policy: str) -> dict[str, Any]:
    evaluation, sampling = plan.config.evaluation, plan.config.sampling
    if evaluation.oracle is None:
        raise ConfigError("evaluation.oracle: name who decides wins on held-out prompts; this target needs it")
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
        **plan.policies.strip(policy),
    }


@work
def _evaluations_work(plan: Plan) -> list[Work]:
    return [*(w for policy in plan.policies.finals for w in _benchmarks_of(plan, policy)), *_heldout(plan)]


def _benchmarks_of(plan: Plan, policy: str) -> list[Work]:
    """A policy on the public benchmarks: the harness, answers to judged ones, and each judgement of these."""
    base = plan.policies.model_of(policy)
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
    shared = (
        plan.files.policy(REFERENCE),
        plan.files.prompts(HELDOUT),
        *plan.oracles.sources(plan.oracles.of_evaluation),
    )
    models = (plan.config.reference.model, *oracles)
    return [
        Work(
            "assess",
            policy,
            (plan.files.evaluation(policy, HELDOUT),),
            (plan.files.policy(policy), *shared, *plan.files.opposing(policy, plan.oracles.over_reference)),
            policy=policy,
            models=models,
        )
        for policy in plan.policies.evaluated
    ]
