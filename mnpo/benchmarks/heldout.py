"""The benchmark `heldout`: responses to prompts that nobody trained on, judged by the configuration's oracles.

Reported: each oracle's mean score, greedy and sampled; mean length, without thinking and with it; Condorcet cycles
among a prompt's samples; and the KL divergence to the reference. Accuracies and win rates are computed in the tables,
from the per-item rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from mnpo import oracles
from mnpo.config.blocks import Block
from mnpo.config.oracles import Oracle
from mnpo.config.sampling import Decoding
from mnpo.config.sources import Model, Strip
from mnpo.config.text import Text
from mnpo.learning.batches import SCORING_TOKENS
from mnpo.oracles import Question
from mnpo.progress import counter
from mnpo.seeds import derive
from mnpo.storage.conversations import turns
from mnpo.storage.records import GREEDY, SAMPLED

MODES = (GREEDY, SAMPLED)


class Settings(Block):
    """What this benchmark reads."""

    policy: str
    oracle: str
    scores: list[str]
    majority: str | None = None
    oracles: dict[str, Oracle]
    models: dict[str, Model] = {}
    functions: dict[str, str] = {}
    """A user's file -> the digest of its code, when the job was planned."""
    responses: int
    decoding: Decoding
    batch_size: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    text: Text
    seed: int
    strip: Strip | None = None
    """What is taken off the responses (see Model)."""


def evaluate(
    settings: Settings, policy: Path, reference: Path, prompts: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The policy's summary, and one row per prompt, response and oracle (records.JUDGED)."""
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer

    chat, model = Chat(load_tokenizer(policy), settings.text), load_model(policy, dtype=settings.dtype)
    rows = _respond(
        settings, chat, model, prompts, GREEDY, Decoding(**settings.decoding.model_dump() | {"temperature": 0}), 1
    )
    rows += _respond(settings, chat, model, prompts, SAMPLED, settings.decoding, settings.responses)
    judged, cycles = _judge(settings, prompts, rows)
    summary = {
        "policy": settings.policy,
        "benchmark": "heldout",
        "prompts": len(prompts),
        "responses": settings.responses,
        "scores": {
            name: {
                mode: fmean(r["score"] for r in judged if r["oracle"] == name and r["mode"] == mode) for mode in MODES
            }
            for name in settings.oracles
        },
        "tokens": {mode: fmean(r["tokens"] for r in rows if r["mode"] == mode) for mode in MODES},
        **_with_thinking(rows),
        "empty_responses": sum(not r["response"].strip() for r in rows),
        "cut_responses": sum(r["finish"] == "length" for r in rows),
        "prompts_with_a_cycle": cycles,
        "generated_tokens": sum(r["tokens"] + r["thinking"] for r in rows),
        "parameters": model.num_parameters(),
        "kl_to_reference": _kl(settings, chat, model, reference, prompts),
    }
    return summary, judged


def _with_thinking(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean length of the whole replies, where thinking was taken off some."""
    if not any(r["thinking"] for r in rows):
        return {}
    of = {mode: [r["tokens"] + r["thinking"] for r in rows if r["mode"] == mode] for mode in MODES}
    return {"tokens_with_thinking": {mode: fmean(lengths) for mode, lengths in of.items()}}


def _respond(
    settings: Settings,
    chat: Any,
    model: Any,
    prompts: Sequence[Mapping[str, Any]],
    mode: str,
    decoding: Decoding,
    count: int,
) -> list[dict[str, Any]]:
    """`count` responses to each prompt. Seeds name the prompt, not the policy: all policies see the same numbers."""
    from mnpo.models.thinking import Reader, answer
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    tasks = [(prompt, k) for prompt in prompts for k in range(count)]
    requests = [
        Request(
            chat.prompt(turns(p["prompt"], p["context"]), p["prompt_id"]),
            derive(settings.seed, mode, p["prompt_id"], k),
        )
        for p, k in tasks
    ]
    what, reader = f"assess {settings.policy}, {mode}", Reader(chat, settings.strip)
    drawn = draw(model, requests, decoding, chat.stop_ids, settings.batch_size, what)
    return [
        {
            "prompt_id": prompt["prompt_id"],
            "family": prompt["family"],
            "mode": mode,
            "k": k,
            "response": answer(reply, reader.characters(reply)),
            "tokens": len(response.tokens) - (thought := reader.tokens(reply, len(response.tokens))),
            "thinking": thought,
            "finish": response.finish,
            "request": request,
            "drawn": response,
        }
        for (prompt, k), request, response in zip(tasks, requests, drawn, strict=True)
        for reply in [chat.decode(response.tokens)]
    ]


def _judge(
    settings: Settings, prompts: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], int | None]:
    """Every oracle's score of every row, and how many prompts' samples the majority ranks in a circle."""
    by_prompt: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault((row["mode"], row["prompt_id"]), []).append(row)
    facts = {p["prompt_id"]: p for p in prompts}
    groups = list(by_prompt.values())
    questions = [
        Question(fact["prompt"], fact["truth"], [r["response"] for r in g], fact["prompt_id"], fact["context"])
        for g, fact in ((g, facts[g[0]["prompt_id"]]) for g in groups)
    ]
    kept = ("prompt_id", "family", "mode", "k", "response", "tokens")
    judged, cycles, loaded = [], None, dict[str, oracles.Oracle]()
    for name in settings.oracles:
        judgements = oracles.load(name, settings.oracles, settings.models, loaded=loaded).judge(questions)
        for group, judgement in zip(groups, judgements, strict=True):
            judged += [
                {**{c: row[c] for c in kept}, "oracle": name, "score": float(score)}
                for row, score in zip(group, judgement.scores, strict=True)
            ]
        if name == settings.majority:
            cycles = sum(oracles.has_cycle(j.preferences) for j in judgements)
    return judged, cycles


def _kl(settings: Settings, chat: Any, model: Any, reference: Path, prompts: Sequence[Mapping[str, Any]]) -> float:
    """KL(pi || pi_ref) per response, nats: mean log pi(y) - log pi_ref(y) over y from pi (docs/method.md, eq. 13)."""
    from mnpo.models.chat import Encoded
    from mnpo.models.checkpoints import load_model
    from mnpo.models.logprobs import score_texts

    plain = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=settings.decoding.max_new_tokens)
    rows = _respond(settings, chat, model, prompts, "kl", plain, 1)
    texts = [Encoded(row["request"].prompt, row["drawn"].tokens) for row in rows]
    progress = counter(f"assess {settings.policy}, kl", "texts")
    models = (model, load_model(reference, dtype=settings.dtype))
    under = [score_texts(m, texts, max_tokens=SCORING_TOKENS, progress=progress).sums for m in models]
    return float((under[0] - under[1]).mean())
