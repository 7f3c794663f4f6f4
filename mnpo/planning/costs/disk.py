"""Bytes on disk: what a piece of work leaves, and what it takes while it runs."""

from __future__ import annotations

from mnpo.planning.costs.assumptions import (
    CHECKPOINT_BYTES,
    DATASET_BYTES,
    ROW_BYTES,
    SAVED_BYTES,
    TOKEN_BYTES,
    WEIGHT_BYTES,
)
from mnpo.planning.costs.calls import calls
from mnpo.planning.costs.passes import passes
from mnpo.planning.costs.quantities import Quantities, parameters
from mnpo.planning.registry import Work


def kept_bytes(q: Quantities, work: Work) -> float:
    """Disk that a piece of work's outputs take."""
    prompt, response = q.prompt * TOKEN_BYTES, q.response * TOKEN_BYTES
    sampled, row = q.prompts(work) * q.k, ROW_BYTES
    match work.stage:
        case "download":
            return max(_downloaded(q, name) for name in work.what.split())
        case "sft" if not passes(q, work) and q.plan.config.models[work.models[0]].architecture is None:
            return 0.0  # links to the model's files
        case "sft" | "train":
            return saved_bytes(q, work)
        case "prompts":
            own = q.k * response if q.plan.config.prompts.responses is not None else 0.0
            return (q.train + q.heldout) * prompt + q.train * own
        case "demonstrations":
            return q.demonstrations * (prompt + response)
        case "sample" | "reuse":
            return sampled * (prompt + response + row)
        case "score":
            asked = calls(q, work)
            return sampled * row + (asked.input_tokens + asked.output_tokens) * TOKEN_BYTES
        case "pair" | "prefer":
            return q.pairs_of(work.oracle or "") * (prompt + 2 * response + row)
        case "logps":
            return float(q.pairs_of(work.oracle or "") * row)
        case "answer":
            return q.requests(work.benchmark or "") * (q.generated(work.benchmark or "") * TOKEN_BYTES + row)
        case "assess":
            drawn = q.heldout * (1 + q.plan.config.evaluation.responses)
            return drawn * (prompt + response) + drawn * len(q.plan.oracles.of_evaluation) * row
        case "harness":
            return sum(q.requests(b) * (q.generated(b) * TOKEN_BYTES + row) for b in q.plan.measurements.harness)
        case "evalscope":
            return sum(q.items(b) * (q.generated(b) * TOKEN_BYTES + row) for b in q.plan.measurements.evalscope)
        case "judge":
            asked = calls(q, work)
            return (asked.input_tokens + asked.output_tokens) * TOKEN_BYTES
    return 0.0


def saved_bytes(q: Quantities, work: Work) -> float:
    """Of the policy that a job makes: in float32, and its copy in bfloat16 where there is one."""
    how = q.learning(work.policy)
    return (SAVED_BYTES + WEIGHT_BYTES * bool(how and how.bfloat16_copy)) * q.size(work.models[0])


def _downloaded(q: Quantities, name: str) -> float:
    c = q.plan.config
    if name in c.models:
        model = c.models[name]
        return model.gigabytes * 1e9 if model.gigabytes else WEIGHT_BYTES * parameters(model)
    stated = c.datasets[name].gigabytes
    return stated * 1e9 if stated else DATASET_BYTES


def passing_bytes(q: Quantities, work: Work) -> float:
    """Disk that a job takes beside its output while it runs: a training's checkpoint, and the next being written."""
    learns = any(step.kind == "train" for step in passes(q, work))
    return 2 * CHECKPOINT_BYTES * q.size(work.models[0]) if learns else 0.0
