"""Requests to the demo's judge whose answers are known: it says a word twice when it is told to."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from mnpo.demo.world import CATEGORIES
from mnpo.judging.requests import Answer, Request

WORDS = [word for members in CATEGORIES.values() for word in members]


def asked(*words: str, **settings: Any) -> list[Request]:
    return [Request(word, ({"role": "user", "content": f"Say {word} 2 times"},), **settings) for word in words]


def expected(*words: str) -> list[str]:
    return [f"{word} {word}" for word in words]


def texts(answers: list[Answer]) -> list[str]:
    return [answer.text for answer in answers]


def stored(path: Path) -> list[str]:
    """Names of the stored requests."""
    database = sqlite3.connect(path)
    try:
        return [name for (name,) in database.execute("SELECT name FROM answers ORDER BY name")]
    finally:
        database.close()
