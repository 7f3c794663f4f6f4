"""Small versions of what config.yaml reads beside benchmarks: UltraFeedback with responses, NLTK's sentence model."""

from __future__ import annotations

import io
import random
import zipfile
from typing import Any

from mnpo.demo import world
from mnpo.demo.questions import Maker, Row

TRAIN, TEST, RESPONSES = 96, 24, 5
"""Prompts of each split, and responses to each."""
PUNKT = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


def _ultrafeedback(rng: random.Random, seed: int) -> dict[str, Any]:
    """The columns and splits of princeton-nlp/gemma2-ultrafeedback-armorm."""
    made = world.make_world(seed, demonstrations=0, parts=1, part_size=TRAIN, heldout=TEST)
    splits = {"train": made.parts[0], "test": made.heldout}
    return {
        f"data/{split}-00000-of-00001.parquet": [
            _with_responses(rng, *row) for row in zip(rows["prompt_id"], rows["prompt"], rows["truth"], strict=True)
        ]
        for split, rows in splits.items()
    }


def _with_responses(rng: random.Random, prompt_id: str, prompt: str, truth: str) -> Row:
    responses = [world.demonstrate(rng, truth) for _ in range(RESPONSES)]
    scores = [round(rng.gauss(0.12, 0.02), 6) for _ in responses]
    ranked = sorted(zip(scores, responses, strict=True))
    asked = {"role": "user", "content": prompt}
    return {
        "prompt_id": prompt_id,
        "prompt": prompt,
        "all_generated_responses": responses,
        "all_rm_scores": scores,
        "chosen": [asked, {"role": "assistant", "content": ranked[-1][1]}],
        "rejected": [asked, {"role": "assistant", "content": ranked[0][1]}],
    }


def _nltk(rng: random.Random, seed: int) -> dict[str, Any]:
    """A sentence model that knows no abbreviations, packed as in nltk/nltk_data."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in PUNKT:
            archive.writestr(zipfile.ZipInfo(f"punkt_tab/english/{name}"), "")
    return {"packages/tokenizers/punkt_tab.zip": stream.getvalue()}


REHEARSED: dict[str, Maker] = {"ultrafeedback": _ultrafeedback, "nltk": _nltk}
