"""Progress of a stage as its log shows it."""

from __future__ import annotations

import itertools

import pytest

from mnpo.progress import track


def test_a_log_gets_a_line_now_and_then_and_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps of a second each: a line every 15 s, and none after the last step."""
    monkeypatch.setattr("time.monotonic", itertools.count(1000.0).__next__)
    assert list(track(range(100), 100, "train inpo.1", "steps")) == list(range(100))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in said] == ["15/100", "30/100", "45/100", "60/100", "75/100", "90/100"]
    assert said[0] == "train inpo.1: 15/100 steps, 1.0 steps/s, 85 s left"


def test_work_that_is_over_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(track(range(10_000), 10_000, "read", "batches"))) == 10_000
    assert capsys.readouterr().err == ""
