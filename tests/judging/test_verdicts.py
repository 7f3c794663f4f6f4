"""What whoever asks for verdicts does alike."""

from __future__ import annotations

from typing import Any

import pytest

from mnpo.config.oracles import Judge
from mnpo.judging.verdicts import judge_decoding


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 2048}),
        ({"temperature": 0.5}, {"max_tokens": 2048}),
        ({"max_tokens": 9, "reasoning_effort": "none"}, {"temperature": 0.0}),
        ({"reasoning_effort": "minimal"}, {}),
    ],
)
def test_the_judges_own_settings_go_before_the_protocols(own: dict[str, Any], expected: dict[str, Any]) -> None:
    assert judge_decoding(Judge(model="j", **own), temperature=0.0, max_tokens=2048) == expected
