"""Stage `score`: what an oracle thinks of every sampled response, and of each against the prompt's others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from mnpo import oracles
from mnpo.config.blocks import Block
from mnpo.config.oracles import Oracle
from mnpo.config.sources import Model, Strip, directories
from mnpo.errors import BadInput
from mnpo.models import thinking
from mnpo.oracles import Judgement, Question
from mnpo.storage.artifacts import artifact, manifest_path, remove
from mnpo.storage.records import SAMPLES, SCORES, Table, read, write
from mnpo.storage.resume import resumable

if TYPE_CHECKING:
    import pandas as pd

ENVIRONMENT = "infer"
OBJECTIVES = Table(
    "objectives",
    {"prompt_id": "string", "k": "int", "objective": "string", "score": "float"},
    ("prompt_id", "k", "objective"),
    ("prompt_id", "objective"),
)
COMPARISONS = Table(
    "comparisons",
    {"prompt_id": "string", "k": "int", "other": "int", "preference": "float"},  # P(response k > response other)
    ("prompt_id", "k", "other"),
    ("prompt_id",),
)


class Settings(Block):
    """What this stage reads."""

    oracle: str
    oracles: dict[str, Oracle]
    models: dict[str, Model] = {}
    strip: Strip | None = None
    """What is taken off the responses (see Model); None: what their policy's template says."""
    strip_against: Strip | Literal["template"] | None = None
    """The same of the other policy's; None: as `strip` says."""
    functions: dict[str, str] = {}
    """A user's file -> the digest of its code, when the job was planned."""
    nltk: str | None = None
    """Where NLTK's data are, for constraints on sentences."""

    @property
    def strip_of_others(self) -> Strip | None:
        """What is taken off the other policy's responses; None: what its template says."""
        if self.strip_against is None:
            return self.strip
        return None if self.strip_against == "template" else self.strip_against


def run(
    settings: Settings, samples: Path, output: Path, against: Path | None = None, store: Path | None = None
) -> None:
    """Ask an oracle what it thinks of sampled responses.

    The oracle is shown each response without its thinking. A score and a win rate for each row; prompts whose
    preferences run in circles are counted.

    Beside `output`, by the same name: `.objectives.parquet` where scores are made of several, `.comparisons.parquet`
    where preferences are more than who scores higher, a judge's answers in `.judge.sqlite`, which outlives failures.
    What models have read when a kill comes is not read again.

    Args:
        samples: what `mnpo sample` wrote.
        output: the scores, a Parquet file.
        against: samples of another policy. Then score and win rate of a response are how often it beats that policy's
            responses to the same prompt, whatever the kind of oracle, and no tables lie beside.
        store: where a judge's answers are kept; beside the scores, if it is not given.

    Raises:
        BadInput: `against` has no response to one of the prompts; a function's file changed since the job was planned.
    """
    further = oracles.prepared(settings.functions, settings.nltk)
    rows = read(SAMPLES, samples)
    settings_text = settings.model_dump(exclude_none=True)
    inputs = [*([samples] if against is None else [samples, against]), *directories(settings.models.values())]
    inputs += further
    modules = oracles.modules(oracle.kind for oracle in settings.oracles.values())
    with resumable(output, "score", settings_text, inputs, modules=modules) as (made, session):
        groups = [group for _, group in rows.groupby("prompt_id", sort=False)]
        ids, ks = [str(g["prompt_id"].iloc[0]) for g in groups], [[int(k) for k in g["k"]] for g in groups]
        others = dict.fromkeys(ids, []) if against is None else _others(against, ids, settings.strip_of_others)
        shown = [thinking.answers(g["response"], g["thinking"], settings.strip) for g in groups]
        questions = [
            Question(first["prompt"], first["truth"], [*own, *others[id]], id, first["context"])
            for first, own, id in zip((g.iloc[0] for g in groups), shown, ids, strict=True)
        ]
        kept = oracles.Kept(store or output.with_suffix(".judge.sqlite"), session.journal("batches"))
        oracle = oracles.load(settings.oracle, settings.oracles, settings.models, kept)
        judgements = oracle.judge(questions)
        judged = list(zip(ids, ks, judgements, strict=True))
        own = bool(settings.oracles[settings.oracle].own_response)
        scores = _scores(judged, own) if against is None else _scores_against(judged)
        write(SCORES, scores, made.path)
        alone = against is None
        _write_beside(output, settings_text, samples, OBJECTIVES, _objectives(judged) if alone else [])
        told = alone and not _tell_all(oracle)
        _write_beside(output, settings_text, samples, COMPARISONS, _comparisons(judged) if told else [])
        made.facts = {
            "rows": len(scores),
            "mean_score": fmean(row["score"] for row in scores),
            "prompts": len(groups),
            **_thinking(groups, shown),
            "prompts_with_a_cycle": sum(oracles.has_cycle(j.preferences) for j in judgements),
            "responses_without_a_comparison": sum(_compared_with_none(j) for j in judgements),
            **_mean_objectives(judgements),
            **oracle.facts(),
        }


def _write_beside(
    output: Path, settings: dict[str, Any], samples: Path, table: Table, rows: list[dict[str, Any]]
) -> None:
    """Write a table beside `output`; without rows, leave none of an earlier run."""
    path = output.with_suffix(f".{table.noun}.parquet")
    if rows:
        with artifact(path, "score", settings, [samples]) as made:
            write(table, rows, made.path)
    else:
        remove(path)
        remove(manifest_path(path))


def _thinking(groups: Sequence[pd.DataFrame], shown: Sequence[Sequence[str]]) -> dict[str, int]:
    """How many responses were shown without their thinking, and with nothing left; nothing where none was."""
    texts = [text for group in groups for text in group["response"]]
    pairs = zip(texts, (rest for some in shown for rest in some), strict=True)
    without = [rest for text, rest in pairs if rest != text]
    return {"without_thinking": len(without), "empty_without_thinking": without.count("")} if without else {}


Judged = Sequence[tuple[str, Sequence[int], Judgement]]
"""Prompt id, the responses' k, and what was thought of them; of another policy's, which come last, there is no k."""


def _others(against: Path, ids: Sequence[str], strip: Strip | None) -> dict[str, list[str]]:
    """Prompt -> the other policy's responses, as they are shown."""
    groups = read(SAMPLES, against).groupby("prompt_id", sort=False)
    found = {str(id): thinking.answers(g["response"], g["thinking"], strip) for id, g in groups}
    if missing := [id for id in ids if id not in found]:
        raise BadInput(
            f"{against}: no response to {len(missing)} prompts, such as {missing[0]}, to compare with; "
            "sample that part again, with sampling.truncated: keep"
        )
    return found


def _scores(judged: Judged, own: bool = False) -> list[dict[str, Any]]:
    return [
        {"prompt_id": id, "k": k, "score": float(score), "win": win}
        for id, ks, judgement in judged
        for k, score, win in zip(ks, judgement.scores, oracles.win_rates(judgement.preferences, own), strict=True)
    ]


def _scores_against(judged: Judged) -> list[dict[str, Any]]:
    return [
        {"prompt_id": id, "k": k, "score": win, "win": win}
        for id, ks, judgement in judged
        for k, win in zip(ks, oracles.win_rates_against(judgement.preferences, len(ks)), strict=True)
    ]


def _objectives(judged: Judged) -> list[dict[str, Any]]:
    return [
        {"prompt_id": id, "k": k, "objective": name, "score": float(score)}
        for id, ks, judgement in judged
        for name, rewards in judgement.objectives.items()
        for k, score in zip(ks, rewards, strict=True)
    ]


def _tell_all(oracle: oracles.Oracle) -> bool:
    """Whether preferences are just who scores higher."""
    return isinstance(oracle, oracles.Scorer) and oracle.temperature is None


def _comparisons(judged: Judged) -> list[dict[str, Any]]:
    """All that is known of preferences, once a pair."""
    return [
        {"prompt_id": id, "k": k, "other": other, "preference": judgement.preferences[a][b]}
        for id, ks, judgement in judged
        for a, k in enumerate(ks)
        for b, other in enumerate(ks)
        if a < b and not math.isnan(judgement.preferences[a][b])
    ]


def _compared_with_none(judgement: Judgement) -> int:
    """Responses whose win rate is 1/2 for want of any comparison; a prompt's only response is none of them."""
    n = len(judgement.preferences)
    return sum(
        n > 1 and all(math.isnan(p) for j, p in enumerate(row) if j != i) for i, row in enumerate(judgement.preferences)
    )


def _mean_objectives(judgements: Sequence[Judgement]) -> dict[str, dict[str, float]]:
    rewards: dict[str, list[float]] = {}
    for judgement in judgements:
        for name, values in judgement.objectives.items():
            rewards.setdefault(name, []).extend(values)
    return {"objectives": {name: round(fmean(values), 6) for name, values in rewards.items()}} if rewards else {}
