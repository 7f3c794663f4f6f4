"""A user's own files: a configuration of a model and prompts, rows, and an oracle in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.helpers.checkouts import Checkout


def configuration(policy: Path) -> dict[str, Any]:
    """Of nothing but a model, prompts and an evaluation, for runs to be added to."""
    return {
        "name": "small",
        "prompts": {"source": "file", "path": "rows.jsonl", "parts": 1, "heldout": 2},
        "models": {"base": {"path": str(policy)}},
        "text": {"max_length": 80, "max_prompt_length": 48},
        "reference": {"model": "base"},
        "oracles": {"short": {"kind": "function", "file": "rewards.py", "function": "brevity"}},
        "sampling": {"responses": 2, "max_new_tokens": 6},
        "training": {"batch_size": 4, "learning_rate": 1e-3},
        "evaluation": {"oracle": "short"},
        "tables": {"targets": ["preferences"]},
    }


def project(path: Path, config: dict[str, Any], rows: list[Any]) -> Checkout:
    """A checkout with such files; to its oracle shorter is better."""
    checkout = Checkout.of_project(path, "own.yaml")
    (path / "own.yaml").write_text(yaml.safe_dump(config))
    (path / "rewards.py").write_text("def brevity(responses):\n    return [-len(text) for text in responses]\n")
    jsonl(path / "rows.jsonl", rows)
    return checkout


def jsonl(file: Path, rows: list[Any]) -> None:
    """Write rows, a JSON value a line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
