"""Stage `score`: what an oracle thinks of every sampled response, and of each against the prompt's others."""

from __future__ import annotations

from pathlib import Path

from mnpo import oracles
from mnpo.artifacts import artifact
from mnpo.config import Block, Model, Oracle
from mnpo.oracles import Question
from mnpo.records import SAMPLES, SCORES, read, write


class Settings(Block):
    """What this stage reads."""

    oracle: str
    oracles: dict[str, Oracle]
    models: dict[str, Model] = {}


def run(settings: Settings, samples: Path, output: Path) -> None:
    """Write a score and a win rate for each row of `samples`; count the prompts whose preferences run in circles."""
    rows = read(SAMPLES, samples)
    with artifact(output, "score", settings.model_dump(exclude_none=True), [samples]) as made:
        groups = [group for _, group in rows.groupby("prompt_id", sort=False)]
        questions = [Question(g["prompt"].iloc[0], g["truth"].iloc[0], g["response"].tolist()) for g in groups]
        judgements = oracles.load(settings.oracle, settings.oracles, settings.models).judge(questions)
        scores = [
            {"prompt_id": group["prompt_id"].iloc[0], "k": int(k), "score": float(score), "win": win}
            for group, judgement in zip(groups, judgements, strict=True)
            for k, score, win in zip(
                group["k"], judgement.scores, oracles.win_rates(judgement.preferences), strict=True
            )
        ]
        write(SCORES, scores, made.path)
        made.facts = {
            "rows": len(scores),
            "mean_score": sum(s["score"] for s in scores) / len(scores),
            "prompts": len(groups),
            "prompts_with_a_cycle": sum(oracles.has_cycle(j.preferences) for j in judgements),
        }
