"""What replies say: answers, and when to ask again."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import pytest

from mnpo.judging.replies import Trouble, read_answer, retry_after
from mnpo.judging.requests import Answer
from tests.helpers.repeated_words import asked


def test_what_retry_after_may_say() -> None:
    def seconds(value: str) -> float | None:
        return retry_after({"retry-after": value})

    assert [seconds(v) for v in ("2", "0.5", "-3", "0")] == [2.0, 0.5, 0.0, 0.0]
    assert [seconds(v) for v in ("", "soon", "nan", "Wed, 99 Foo")] == [None] * 4
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    ahead = seconds(email.utils.formatdate(time.time() + 5000, usegmt=True))
    assert ahead is not None and 4000 < ahead <= 5000


def test_replies_that_say_less_or_other_than_they_should() -> None:
    (request,) = asked("cat", logprobs=2)  # 15 bytes

    def read(choice: Any, usage: Any = None, **more: Any) -> Answer:
        return read_answer(json.dumps({"choices": [choice], "usage": usage, **more}), request)

    said = {"message": {"content": "né"}}  # 3 bytes
    assert read(said) == Answer("né", "stop", None, 15, 3)
    assert read({"message": {"content": None}, "finish_reason": "content_filter"}, {"prompt_tokens": 7}) == Answer(
        "", "content_filter", None, 7, 0
    )
    tops = [{"token": "m", "logprob": -0.25}, {"token": "M", "logprob": -1.5}]
    for given, found in [(None, None), ({"content": []}, None), ({"content": [{"top_logprobs": tops}] * 2}, tops)]:
        logprobs = found and tuple((top["token"], top["logprob"]) for top in found)
        assert read(said | {"logprobs": given}).logprobs == logprobs
    for wrong in ({}, {"message": None}, {"message": {"content": 3}}, "text", said | {"logprobs": {"content": [{}]}}):
        with pytest.raises(Trouble, match="no chat completion"):
            read(wrong)
    for text in ("", "null", "[]", '{"error": {"message": "overloaded"}}', '{"choices": []}'):
        with pytest.raises(Trouble, match="no chat completion"):
            read_answer(text, request)
