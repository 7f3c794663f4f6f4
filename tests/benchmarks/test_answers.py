"""A policy's answers against transformers' own generation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mnpo.benchmarks import judged_common
from mnpo.benchmarks.answers import Asked, Given, Settings, converse, of_api, of_policy
from mnpo.benchmarks.questions import Question
from mnpo.config.reading import load
from mnpo.config.sampling import Decoding
from mnpo.config.sources import Model
from mnpo.demo import judge
from mnpo.demo.judge import serve
from mnpo.errors import BadInput
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.planning.plan import Plan
from mnpo.planning.settings import settings_of
from mnpo.storage.records import ANSWERS, check, read, rows_of, write
from tests.helpers.templated import TEMPLATES, THINKING, policy_with, saying, thinking_policy

WRITING = Question("81", "writing", ("Say cat", "Say it again"))
MATH = Question("111", "math", ("Say dog 2 times", "And 1 time"))


def settings(benchmark: str = "mt-bench", **changes: Any) -> Settings:
    return Settings.model_validate({"policy": "p", "benchmark": benchmark, "seed": 3, "max_new_tokens": 10} | changes)


# ------------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize(
    ("benchmark", "category", "temperature", "tokens"),
    [
        ("mt-bench", "writing", 0.7, 1024),
        ("mt-bench", "roleplay", 0.7, 1024),
        ("mt-bench", "stem", 0.1, 1024),
        ("mt-bench", "humanities", 0.1, 1024),
        ("mt-bench", "math", 0.0, 1024),
        ("mt-bench", "coding", 0.0, 1024),
        ("mt-bench", "reasoning", 0.0, 1024),
        ("mt-bench", "extraction", 0.0, 1024),
        ("arena-hard", "writing", 0.0, 4096),
        ("alpaca-eval", "koala", 0.0, 2048),
    ],
)
def test_each_benchmark_decodes_as_its_protocol_says_unless_a_limit_is_set(
    benchmark: str, category: str, temperature: float, tokens: int
) -> None:
    drawn = settings(benchmark, max_new_tokens=None).decoding(category)
    assert (drawn.temperature, drawn.top_p, drawn.max_new_tokens) == (temperature, 1.0, tokens)
    assert settings(benchmark, max_new_tokens=5).decoding(category).max_new_tokens == 5


# -------------------------------------------------------------------------------------------------------------- answers


def test_a_second_turn_continues_the_policys_own_first_answer() -> None:
    seen: list[tuple[Asked, float]] = []

    def answer(asked: Sequence[Asked], decoding: Decoding) -> list[Given]:
        seen.extend((one, decoding.temperature) for one in asked)
        return [Given(f"{one.item_id} says {one.turn}", 4, "stop") for one in asked]

    rows = converse([WRITING, MATH], settings(), answer)
    assert [(r["item_id"], r["turn"], r["prompt"]) for r in rows] == [
        ("81", 1, "Say cat"),
        ("81", 2, "Say it again"),
        ("111", 1, "Say dog 2 times"),
        ("111", 2, "And 1 time"),
    ]
    assert [(one.item_id, one.turn, temperature) for one, temperature in seen] == [
        ("81", 1, 0.7),
        ("111", 1, 0.0),
        ("81", 2, 0.7),
        ("111", 2, 0.0),
    ]
    assert seen[3][0].messages == [
        {"role": "user", "content": "Say dog 2 times"},
        {"role": "assistant", "content": "111 says 1"},
        {"role": "user", "content": "And 1 time"},
    ]


def test_greedy_answers_of_both_turns_are_those_that_transformers_generates(random_policy: Path) -> None:
    rows, facts = of_policy(settings(), random_policy, [WRITING, MATH])
    check(ANSWERS, pd.DataFrame(rows), "rows")
    first, second = rows[2:]
    tokenizer, model = load_tokenizer(random_policy), load_model(random_policy)
    turns = [{"role": "user", "content": MATH.turns[0]}]
    for row, following in ((first, MATH.turns[1]), (second, "")):
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert (ids == tokenizer.bos_token_id).sum() == 1
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10, eos_token_id=[1, 5]
        )
        drawn = whole[0, ids.shape[1] :]
        assert row["response"] == tokenizer.decode(drawn, skip_special_tokens=True).strip()
        assert row["tokens"] == len(drawn)
        turns += [{"role": "assistant", "content": row["response"]}, {"role": "user", "content": following}]
    assert facts["rows"] == 4 and facts["tokens"] == sum(r["tokens"] for r in rows) and facts["prompts_cut"] == 0


@pytest.mark.parametrize(("template", "bos", "specials"), TEMPLATES.values(), ids=TEMPLATES)
def test_the_policy_reads_exactly_one_bos_whoever_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, bos: str | None, specials: list[str]
) -> None:
    """Judged benchmarks, both turns of MT-Bench and EvalScope's prompts, in the ids that the model itself is fed."""
    directory = policy_with(tmp_path / "policy", template, bos, specials)
    tokenizer, model, fed = load_tokenizer(directory), load_model(directory), list[list[int]]()

    def record(module: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids.shape[1] > 1:  # not the single new token of a generation
            fed.append(ids[0].tolist())

    model.register_forward_pre_hook(record, with_kwargs=True)
    monkeypatch.setattr("mnpo.models.checkpoints.load_model", lambda *_, **__: model)
    one = WRITING._replace(turns=WRITING.turns[:1])
    for benchmark, question in (("alpaca-eval", one), ("arena-hard", one), ("mt-bench", MATH), ("evalscope", one)):
        of_policy(settings(benchmark, batch_size=1), directory, [question])
    assert len(fed) == 5 and len(fed[3]) > len(fed[2]) + 10  # the second turn after the first and its answer
    start = [tokenizer.bos_token_id] if bos else []
    for ids in fed:
        assert ids[: len(start) + 1] == [*start, tokenizer.convert_tokens_to_ids(specials[0])]
        assert ids.count(tokenizer.bos_token_id) == len(start)


def test_drawn_answers_depend_on_seed_and_question_not_on_batches(random_policy: Path) -> None:
    other = WRITING._replace(item_id="82")
    rows, _ = of_policy(settings(batch_size=1), random_policy, [WRITING, MATH, other])
    again, _ = of_policy(settings(batch_size=8), random_policy, [WRITING, MATH, other])
    assert rows == again
    assert rows[0]["response"] != rows[4]["response"]  # the same words asked under another id
    reseeded, _ = of_policy(settings(seed=4), random_policy, [WRITING, MATH, other])
    assert reseeded[0]["response"] != rows[0]["response"]
    assert reseeded[2:4] == rows[2:4]  # greedy


def test_a_conversation_beyond_the_window_is_cut_and_counted(random_policy: Path) -> None:
    long = Question("1", "math", (" ".join(f"{n} cat" for n in range(60)), "Again"))
    rows, facts = of_policy(settings(max_length=60), random_policy, [long])
    assert facts["prompts_cut"] == 2 and all(row["tokens"] <= 10 for row in rows)


def test_a_window_without_room_for_the_answers_is_refused_with_the_remedy(random_policy: Path) -> None:
    with pytest.raises(BadInput, match=r"answers of 1024 tokens .* 128 of p; set evaluation.settings.mt-bench.max_new"):
        of_policy(settings(max_new_tokens=None), random_policy, [MATH])
    asked = settings(max_new_tokens=None, benchmark="evalscope", limits={"arc": 8, "gsm8k": 2048})
    with pytest.raises(BadInput, match=r"^gsm8k: answers of 2048 tokens .*evaluation.settings.gsm8k.max_new_tokens"):
        of_policy(asked, random_policy, [MATH])


def test_a_model_behind_an_endpoint_is_asked_each_turn_once_and_never_again(tmp_path: Path) -> None:
    with serve() as server:
        model = Model(api="someone", endpoint=server.url)
        rows, facts = of_api(settings(), model, tmp_path / "store.sqlite", [WRITING, MATH])
        assert server.requests == facts["calls"]["calls"] == 4
        again, _ = of_api(settings(), model, tmp_path / "store.sqlite", [WRITING, MATH])
        assert server.requests == 4
    assert again == rows
    check(ANSWERS, pd.DataFrame(rows), "rows")
    assert rows[1]["response"] == "I think that this is about say and it and"  # the last question, in ten tokens
    assert (rows[1]["tokens"], rows[1]["finish"]) == (10, "length") and facts["cut_responses"] == 2


# ------------------------------------------------------------------------------------------------------------- thinking


@pytest.mark.parametrize("name", THINKING)
def test_thinking_is_taken_off_and_both_lengths_are_told(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens are bytes. An earlier answer's thinking is not part of the conversation; an answer that is cut in its
    thinking is empty."""
    directory = thinking_policy(tmp_path / "policy", THINKING[name])
    thought, shown = f"{'' if name == 'opened' else '<think>'}So 6.</think>", list[str]()

    def said(prompt: str) -> tuple[str, str]:
        shown.append(prompt)
        return (thought[:-8], "length") if "dog" in prompt else (f"{thought}\n\ncat", "stop")

    saying(monkeypatch, directory, said)
    rows, facts = of_policy(settings(max_length=400), directory, [WRITING, MATH])
    assert [row["response"] for row in rows] == ["cat", "cat", "", ""]
    assert [row["finish"] for row in rows] == ["stop", "stop", "length", "length"]
    assert [row["tokens"] for row in rows] == [2 + 3 + 1] * 2 + [0, 0]  # the blank line and the end of turn among them
    assert [row["thinking"] for row in rows] == [len(thought)] * 2 + [len(thought) - 8] * 2
    assert facts["empty_responses"] == 2 and facts["tokens"] == sum(row["tokens"] + row["thinking"] for row in rows)
    assert judged_common.facts(rows) == {
        "answers": 4,
        "empty": {"length": 2},
        "thinking": {
            "answers": 4,
            "empty": 2,
            "mean_tokens": 12 / 4,
            "mean_tokens_with_thinking": (12 + 4 * len(thought) - 16) / 4,
        },
    }
    assert not any("So 6." in prompt for prompt in shown) and any("assistant\ncat<|im_end|>" in p for p in shown)
    write(ANSWERS, rows, tmp_path / "answers.parquet")
    assert rows_of(read(ANSWERS, tmp_path / "answers.parquet")) == rows

    whole, _ = of_policy(settings(max_length=400, strip="none"), directory, [WRITING])
    assert whole[0]["response"] == f"{thought}\n\ncat" and whole[0]["thinking"] == 0


def test_thinking_behind_an_endpoint_is_taken_off_where_a_reply_shows_it_and_counted_where_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 100 tokens, 40 were kept back; 16 of the text's 20 characters are thinking."""
    contents = {"shown": "<think>a</think>cats", "opened": "a</think>cats", "unclosed": "<think>So 6 or 7 but"}
    real = judge._completion

    def completion(asked: dict[str, Any], said: Any, number: int) -> dict[str, Any]:
        found = real(asked, said, number)
        prompt = asked["messages"][-1]["content"]
        found["choices"][0]["message"]["content"] = contents[prompt]
        found["choices"][0]["finish_reason"] = "length" if prompt == "unclosed" else "stop"
        details = {"reasoning_tokens": 40 if prompt == "shown" else 0}
        found["usage"] |= {"completion_tokens": 100, "completion_tokens_details": details}
        return found

    monkeypatch.setattr(judge, "_completion", completion)
    questions = [Question(name, "", (name,)) for name in contents]
    with serve() as server:
        model = Model(api="someone", endpoint=server.url)

        def given(strip: str | None) -> list[tuple[str, int, int]]:
            asked = settings("arena-hard", strip=strip, max_empty=0.9)
            rows, _ = of_api(asked, model, tmp_path / "store.sqlite", questions)
            return [(row["response"], row["tokens"], row["thinking"]) for row in rows]

        assert given(None) == [("cats", 60 - 48, 40 + 48), ("a</think>cats", 100, 0), ("", 0, 100)]
        assert given("think") == [("cats", 12, 88), ("cats", 100 - round(900 / 13), round(900 / 13)), ("", 0, 100)]
        assert [response for response, _, _ in given("none")] == list(contents.values())
        assert server.requests == 3  # how replies are read is not what was asked


def test_strip_is_a_setting_of_a_model_and_of_the_policies_trained_from_it(root: Path) -> None:
    """It is in the settings of whoever reads replies, of nobody else, and nowhere without it."""

    config = load(root / "config.yaml", {"evaluation": {"models": ["smollm3", "gpt-5"]}})
    run = "td-mnpo.3"

    def found(policy: str, **strips: str) -> dict[str, Any]:
        models = {n: m.model_copy(update={"strip": strips[n]} if n in strips else {}) for n, m in config.models.items()}
        plan = Plan(config.model_copy(update={"models": models}))

        def of(stage: str, **names: str) -> dict[str, Any]:
            return json.loads(settings_of(plan, stage, **names))  # type: ignore[no-any-return]

        assert "strip" not in json.dumps(of("sample", policy=policy, part="part1", shard="0"))
        settings = {
            "answer": of("answer", policy=policy, benchmark="mt-bench")["asked"],
            "harness": of("harness", policy=policy)["harness"],
            "evalscope": of("evalscope", policy=policy)["answer"],
            "assess": of("assess", policy=policy),
            "score": of("score", oracle="armorm"),
            "pair": of("pair", oracle="armorm"),
        }
        return {stage: what.get("strip", "absent") for stage, what in settings.items()}

    assert set(found(run).values()) == set(found("smollm3").values()) == {"absent"}
    assert set(found(run, gemma="think").values()) == set(found("reference", gemma="think").values()) == {"think"}
    own = found("smollm3", smollm3="none")
    assert {stage for stage, what in own.items() if what == "none"} == {"answer", "harness", "evalscope", "assess"}
    assert found("gpt-5", **{"gpt-5": "think"})["answer"] == "think"


# ------------------------------------------------------------------------------------------------------- empty answers

CATS = [Question(f"{i:02}", "", (f"Say cat {i:02}",)) for i in range(16)]


def ending(monkeypatch: pytest.MonkeyPatch, how: Callable[[str, int], str | None]) -> None:
    """The server's answers are empty and end as `how` says of a prompt, and how often it was asked; None: as usual."""
    real, times = judge._completion, Counter[str]()

    def completion(asked: dict[str, Any], said: Any, number: int) -> dict[str, Any]:
        prompt = asked["messages"][-1]["content"]
        times[prompt] += 1
        found = real(asked, said, number)
        if (finish := how(prompt, times[prompt])) is not None:
            found["choices"][0] |= {"message": {"role": "assistant", "content": None}, "finish_reason": finish}
        return found

    monkeypatch.setattr(judge, "_completion", completion)


def seven_cut_four_filtered(prompt: str, time: int) -> str | None:
    number = int(prompt[-2:])
    return "length" if number < 7 else "content_filter" if number > 11 else None


def test_more_empty_answers_than_permitted_are_refused_with_what_they_are_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 of 16. The filter may let one pass next time, and is asked twice more; who was cut would be cut again."""
    ending(monkeypatch, seven_cut_four_filtered)
    asked = settings("arena-hard", policy="theirs")
    with serve() as server:
        model = Model(api="someone", endpoint=server.url)
        said = r"^theirs, arena-hard: 11 of 16 answers of someone are empty \(7 length, 4 content_filter\), more than "
        with pytest.raises(
            BadInput, match=said + r"evaluation.max_empty \(0.2\) permits.*models\.theirs\.max_tokens.*raise evaluation"
        ):
            of_api(asked, model, tmp_path / "store.sqlite", CATS)
        assert server.requests == 16 + 2 * 4
        permitted = asked.model_copy(update={"max_empty": 0.7})
        rows, facts = of_api(permitted, model, tmp_path / "store.sqlite", CATS)
        assert server.requests == 16 + 2 * 4 and facts["calls"]["calls"] == 0  # all that is known is kept
    assert facts["empty_responses"] == 11 and sum(not row["response"] for row in rows) == 11
    assert judged_common.facts(rows) == {"answers": 16, "empty": {"length": 7, "content_filter": 4}}


def test_an_empty_answer_is_asked_for_again_where_the_endpoint_may_answer_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(monkeypatch, lambda prompt, time: "stop" if time <= int(prompt[-1]) % 3 else None)
    with serve() as server:
        model = Model(api="someone", endpoint=server.url)
        rows, facts = of_api(settings("arena-hard"), model, tmp_path / "store.sqlite", CATS)
        assert server.requests == 16 + sum(int(q.turns[0][-1]) % 3 for q in CATS)
    assert all(row["response"] for row in rows) and facts["empty_responses"] == 0
    assert facts["calls"]["reasked"] == server.requests - 16


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_nothing_more_is_asked_when_the_first_dozen_answers_are_all_empty(
    finish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(monkeypatch, lambda prompt, time: finish)
    with serve() as server:
        model = Model(api="someone", endpoint=server.url)
        with pytest.raises(
            BadInput, match=rf"^p, arena-hard: the first dozen .* empty \(12 {finish}\).* other 4\. Look"
        ):
            of_api(settings("arena-hard"), model, tmp_path / "store.sqlite", CATS)
        assert server.requests == 12


def test_a_question_that_the_endpoint_refuses_counts_as_an_empty_answer(tmp_path: Path) -> None:
    with serve(faults=["400@3", "422@9"]) as server:
        model = Model(api="someone", endpoint=server.url)
        asked = settings("arena-hard", max_empty=0.1)
        with pytest.raises(BadInput, match=r"2 of 16 answers of someone are empty \(2 refused\)"):
            of_api(asked, model, tmp_path / "store.sqlite", CATS)
        assert server.requests == 16


def test_the_permitted_share_is_a_setting_of_endpoints_that_changes_no_other_job(root: Path) -> None:
    def asked(policy: str, **changes: Any) -> dict[str, Any]:
        evaluation = {"models": ["gpt-5"], **changes}
        plan = Plan(load(root / "config.yaml", {"evaluation": evaluation}))
        return json.loads(settings_of(plan, "answer", policy=policy, benchmark="mt-bench"))["asked"]  # type: ignore[no-any-return]

    assert "max_empty" not in asked("gpt-5") and asked("gpt-5", max_empty=0.05)["max_empty"] == 0.05
    assert asked("reference", max_empty=0.05) == asked("reference")


@pytest.mark.parametrize(
    ("how", "sent"),
    [
        ({}, {"temperature": 0.0, "max_tokens": 10}),
        ({"reasoning_effort": "medium"}, {"reasoning_effort": "medium"}),  # refuses a temperature, thinks in its limit
        (
            {"reasoning_effort": "low", "max_tokens": 99},
            {"reasoning_effort": "low", "max_completion_tokens": 99},
        ),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none", "temperature": 0.0, "max_completion_tokens": 10}),
        ({"temperature": "endpoint"}, {"max_tokens": 10}),
        ({"temperature": 1, "max_tokens": 50}, {"temperature": 1.0, "max_tokens": 50}),
        ({"token_field": "max_completion_tokens"}, {"temperature": 0.0, "max_completion_tokens": 10}),
    ],
)
def test_a_model_behind_an_endpoint_is_asked_as_its_settings_say(
    how: dict[str, Any], sent: dict[str, Any], tmp_path: Path
) -> None:
    with serve() as server:
        model = Model.model_validate({"api": "someone", "endpoint": server.url, **how})
        of_api(settings(), model, tmp_path / "store.sqlite", [MATH])
        (first, _) = (exchange.asked for exchange in server.exchanges)
    assert {k: v for k, v in first.items() if k not in ("model", "messages")} == sent


def test_how_an_endpoint_is_asked_is_for_models_behind_one() -> None:
    with pytest.raises(ValueError, match="reasoning_effort is for a model behind an endpoint"):
        Model.model_validate({"hub": "a/b", "reasoning_effort": "low"})


def test_the_papers_gpt_5_is_sent_no_temperature(root: Path) -> None:
    plan = Plan(load(root / "config.yaml", {"evaluation": {"models": ["gpt-5", "claude-sonnet-4"]}}))
    endpoints = [
        json.loads(settings_of(plan, "answer", policy=policy, benchmark="mt-bench"))["endpoint"]
        for policy in ("gpt-5", "claude-sonnet-4")
    ]
    asked = Model.model_validate(endpoints[0])
    assert asked.decoding(0.0, 1024) == {} and asked.as_judge().reasoning_effort == "medium"
    assert endpoints[1].keys() == {"api", "endpoint", "key"}  # what is not set reruns nothing
