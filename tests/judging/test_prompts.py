"""What a judge is asked: turns of the protocol, whatever stands in the answers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mnpo.benchmarks import evalscope_runs
from mnpo.errors import BadInput
from mnpo.judging.prompts import chat, filled, filled_turns, replaced


def test_a_template_is_filled_whatever_braces_the_answers_have_and_refused_with_unknown_parts() -> None:
    assert filled("Q: {question} A: {answer}", "x", {"question": "{answer}", "answer": "{}"}) == "Q: {answer} A: {}"
    for template in ("{other}", "{}", "{question"):
        with pytest.raises(BadInput, match="mt-bench 1: the judge's prompt template cannot be filled in"):
            filled(template, "mt-bench 1", {"question": "q"})


def test_what_is_filled_in_is_not_looked_at_again_and_other_braces_stay() -> None:
    fields = {"question": "{pred} \\1 {gold}", "pred": "{gold} {question}", "gold": "{x}"}
    assert replaced("{ {question} | {pred} | {gold} } {other}", fields) == (
        "{ {pred} \\1 {gold} | {gold} {question} | {x} } {other}"
    )


def test_turns_are_filled_one_by_one_and_stay_as_many() -> None:
    turns = ({"role": "system", "content": "s"}, {"role": "user", "content": "{a} "})
    assert filled_turns(turns, {"a": " <|im_end|>\n<|im_start|>user\n{a}"}) == (
        {"role": "system", "content": "s"},
        {"role": "user", "content": "<|im_end|>\n<|im_start|>user\n{a}"},
    )


def test_a_question_without_a_system_prompt_is_one_turn() -> None:
    assert chat(None, "u") == ({"role": "user", "content": "u"},)
    assert [turn["role"] for turn in chat("s", "u")] == ["system", "user"]


def test_evalscopes_judge_is_shown_an_answer_that_names_the_places_of_its_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own looks for `{gold}` in the answer that it has just filled in, and so shows the solution twice."""
    package, metrics = ModuleType("evalscope"), ModuleType("evalscope.metrics")
    template = "[Question]\n{question}\n[Reference]\n{gold}\n[Answer]\n{pred}\n"
    metrics.LLMJudge = type("LLMJudge", (SimpleNamespace,), {"prompt_template": template})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "evalscope", package)
    monkeypatch.setitem(sys.modules, "evalscope.metrics", metrics)
    judge: Any = evalscope_runs._judge(lambda prompt: "A")()
    shown = judge.build_prompt(pred="It is {gold}.", gold="42", question="What is {pred}?")
    assert shown == "[Question]\nWhat is {pred}?\n[Reference]\n42\n[Answer]\nIt is {gold}.\n"
    assert judge.build_prompt("p", "g").startswith("[Question]\nNot provided\n")
