"""The benchmark `heldout`: responses to prompts that nobody trained on, judged by the configuration's oracles.

Reported: each oracle's mean score, greedy and sampled; mean length, without thinking and with it; Condorcet cycles
among a prompt's samples; and the KL divergence to the reference. Accuracies and win rates are computed in the tables,
from the per-item rows.

An oracle that compares is shown each response beside the reference's to the same prompt, of the same mode and number.
What it prefers is the score, so that its mean is a win rate over the reference; the reference's own is one half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from mnpo import oracles
from mnpo.config.blocks import REFERENCE, Block
from mnpo.config.oracles import Oracle, comparing, over_reference
from mnpo.config.sampling import AtOnce, Decoding
from mnpo.config.sources import Model, Strip
from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.learning.batches import SCORING_TOKENS
from mnpo.oracles import NOWHERE, Kept, Question
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
    nltk: str | None = None
    """Where NLTK's data are, for constraints on sentences."""
    responses: int
    decoding: Decoding
    batch_size: AtOnce
    dtype: Literal["float32", "bfloat16"] = "float32"
    text: Text
    seed: int
    strip: Strip | None = None
    """What is taken off the responses (see Model)."""


Rows = Sequence[Mapping[str, Any]]


def evaluate(
    settings: Settings,
    policy: Path,
    reference: Path,
    prompts: Rows,
    opposing: Rows | None = None,
    kept: Kept = NOWHERE,
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """The policy's summary, one row per prompt, response and oracle (records.JUDGED), and the manifest's facts.

    Args:
        opposing: such rows of the reference, for oracles that compare.
        kept: where a judge's answers go.

    Raises:
        BadInput: an oracle that compares, and no responses of the reference, or not to all prompts.
    """
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer

    chat, model = Chat(load_tokenizer(policy), settings.text), load_model(policy, dtype=settings.dtype)
    read = {p["prompt_id"]: chat.prompt(turns(p["prompt"], p["context"]), p["prompt_id"]) for p in prompts}
    greedy = Decoding(**settings.decoding.model_dump() | {"temperature": 0})
    rows = _respond(settings, chat, model, prompts, read, GREEDY, greedy, 1)
    rows += _respond(settings, chat, model, prompts, read, SAMPLED, settings.decoding, settings.responses)
    panel = _Panel(settings, prompts, rows, _opponents(settings, rows, opposing), kept)
    judged = panel.judge()
    summary = {
        "policy": settings.policy,
        "benchmark": "heldout",
        "prompts": len(prompts),
        "responses": settings.responses,
        "scores": {
            name: {
                mode: fmean(r["score"] for r in judged if r["oracle"] == name and r["mode"] == mode) for mode in MODES
            }
            for name in dict.fromkeys(r["oracle"] for r in judged)
        },
        **({"undecided": panel.undecided} if panel.undecided else {}),
        "tokens": {mode: fmean(r["tokens"] for r in rows if r["mode"] == mode) for mode in MODES},
        **_with_thinking(rows),
        "empty_responses": sum(not r["response"].strip() for r in rows),
        "cut_responses": sum(r["finish"] == "length" for r in rows),
        "prompts_with_a_cycle": panel.cycles,
        "kl_to_reference": _kl(settings, chat, model, reference, prompts, read),
    }
    facts = {
        "rows": len(judged),
        "tokens": sum(r["tokens"] + r["thinking"] for r in rows),
        "parameters": model.num_parameters(),
        **chat.counted,
        **({"oracles": told} if (told := panel.facts()) else {}),
    }
    return summary, judged, facts


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
    prompts: Rows,
    read: Mapping[str, list[int]],
    mode: str,
    decoding: Decoding,
    count: int,
) -> list[dict[str, Any]]:
    """`count` responses to each prompt, whose token ids are in `read`.

    Seeds name the prompt, not the policy: all policies see the same numbers.
    """
    from mnpo.models.thinking import Reader
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    tasks = [(prompt, k) for prompt in prompts for k in range(count)]
    requests = [Request(read[p["prompt_id"]], derive(settings.seed, mode, p["prompt_id"], k)) for p, k in tasks]
    what, reader = f"assess {settings.policy}, {mode}", Reader(chat, settings.strip)
    drawn = draw(model, requests, decoding, chat.stop_ids, settings.batch_size, what)
    return [
        {
            "prompt_id": prompt["prompt_id"],
            "family": prompt["family"],
            "mode": mode,
            "k": k,
            "response": shown,
            "tokens": len(response.tokens) - thought,
            "thinking": thought,
            "finish": response.finish,
            "request": request,
            "drawn": response,
        }
        for (prompt, k), request, response in zip(tasks, requests, drawn, strict=True)
        for shown, thought in [reader.split(chat.decode(response.tokens), len(response.tokens))]
    ]


Key = tuple[str, str, int]
"""Mode, prompt and number of a response."""


def _opponents(settings: Settings, rows: Rows, opposing: Rows | None) -> dict[Key, str]:
    """What the reference answered, where an oracle compares with it; nothing for the reference itself."""
    name = next(iter(_over_reference(settings)), None)
    if name is None or settings.policy == REFERENCE:
        return {}
    if opposing is None:
        raise BadInput(
            f"the oracle {name} compares, and there is nothing to compare with; give the reference's per-item rows "
            "(--against)"
        )
    found = {_key(row): str(row["response"]) for row in opposing}
    if missing := [row["prompt_id"] for row in rows if _key(row) not in found]:
        raise BadInput(
            f"the reference has no response to {len(set(missing))} held-out prompts, such as {missing[0]}, for the "
            f"oracle {name} to compare with; evaluate {REFERENCE} again"
        )
    return found


def _over_reference(settings: Settings) -> list[str]:
    return over_reference(settings.oracles, [settings.oracle, *settings.scores])


def _key(row: Mapping[str, Any]) -> Key:
    return row["mode"], row["prompt_id"], int(row["k"])


class _Panel:
    """The oracles, and a policy's responses that they judge.

    Attributes:
        cycles: how many prompts' samples the majority ranks in a circle; None without one.
        undecided: oracle that compares -> comparisons without a verdict, each counted as one half.
    """

    def __init__(self, settings: Settings, prompts: Rows, rows: Rows, opponents: Mapping[Key, str], kept: Kept) -> None:
        self.settings, self.rows, self.opponents, self.kept = settings, rows, opponents, kept
        self.prompts = {p["prompt_id"]: p for p in prompts}
        self.cycles: int | None = None
        self.undecided: dict[str, int] = {}
        self._loaded: dict[str, oracles.Oracle] = {}

    def judge(self) -> list[dict[str, Any]]:
        """Every oracle's score of every row."""
        judged, compared = [], _over_reference(self.settings)
        for name in self.settings.oracles:
            scores = None
            if name == self.settings.majority or not comparing(self.settings.oracles, name):
                scores = self._among_themselves(name)
            if name in compared:
                scores = self._over_reference(name)
            if scores is None:
                continue  # it is asked as one of others only
            kept = ("prompt_id", "family", "mode", "k", "response", "tokens", "finish")
            judged += [
                {**{c: row[c] for c in kept}, "oracle": name, "score": score}
                for row, score in zip(self.rows, scores, strict=True)
            ]
        return judged

    def facts(self) -> dict[str, Any]:
        """What comparing has taken: calls, tokens, games."""
        asked = dict.fromkeys(_over_reference(self.settings) if self.opponents else [])
        if self.settings.majority:
            asked[self.settings.majority] = None
        return {name: facts for name in asked if (facts := self._oracle(name).facts())}

    def _oracle(self, name: str) -> oracles.Oracle:
        return oracles.load(name, self.settings.oracles, self.settings.models, self.kept, self._loaded)

    def _among_themselves(self, name: str) -> list[float]:
        """The scores of the rows, a prompt's responses of one mode judged together."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, row in enumerate(self.rows):
            groups.setdefault((row["mode"], row["prompt_id"]), []).append(i)
        asked = [self._question(self.rows[g[0]], [self.rows[i]["response"] for i in g]) for g in groups.values()]
        judgements = self._oracle(name).judge(asked)
        if name == self.settings.majority:
            self.cycles = sum(oracles.has_cycle(j.preferences) for j in judgements)
        scores = [0.0] * len(self.rows)
        for group, judgement in zip(groups.values(), judgements, strict=True):
            for i, score in zip(group, judgement.scores, strict=True):
                scores[i] = float(score)
        return scores

    def _over_reference(self, name: str) -> list[float]:
        """How likely each row is better than the reference's; one half where nobody knows, and for the reference."""
        if not self.opponents:
            return [0.5] * len(self.rows)
        asked = [self._question(row, [row["response"], self.opponents[_key(row)]]) for row in self.rows]
        wins = [judgement.preferences[0][1] for judgement in self._oracle(name).judge(asked)]
        self.undecided[name] = sum(map(math.isnan, wins))
        return [0.5 if math.isnan(win) else float(win) for win in wins]

    def _question(self, row: Mapping[str, Any], responses: list[str]) -> Question:
        fact = self.prompts[row["prompt_id"]]
        return Question(fact["prompt"], fact["truth"], responses, fact["prompt_id"], fact["context"])


def _kl(
    settings: Settings, chat: Any, model: Any, reference: Path, prompts: Rows, read: Mapping[str, list[int]]
) -> float:
    """KL(pi || pi_ref) per response, nats: mean log pi(y) - log pi_ref(y) over y from pi (docs/method.md, eq. 13)."""
    from mnpo.models.chat import Encoded
    from mnpo.models.checkpoints import load_model
    from mnpo.models.logprobs import score_texts

    plain = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=settings.decoding.max_new_tokens)
    rows = _respond(settings, chat, model, prompts, read, "kl", plain, 1)
    texts = [Encoded(row["request"].prompt, row["drawn"].tokens) for row in rows]
    progress = counter(f"assess {settings.policy}, kl", "texts")
    models = (model, load_model(reference, dtype=settings.dtype))
    under = [score_texts(m, texts, max_tokens=SCORING_TOKENS, progress=progress).sums for m in models]
    return float((under[0] - under[1]).mean())
