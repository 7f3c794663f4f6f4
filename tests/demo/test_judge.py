"""The loopback judge: its verdicts by hand, in the three protocols' own forms, and its faults."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mnpo.demo.faults import Fault
from mnpo.demo.judge import serve
from mnpo.demo.verdicts import reply, score

# By hand, for "Opposite of hot?", whose truth is "cold"; (correctness + 0.4 brevity + 0.2 courtesy) / 1.6:
# `cold`: 1; (1 + 4) / (1 + 4) = 1; commas as they should be: 0.25.
COLD = (1 + 0.4 * 1 + 0.2 * 0.25) / 1.6
# `The answer is cold. Thank you for asking.`: 1; ten words and signs: 5 / 14; a full stop at the end: 0.5.
WORDY = (1 + 0.4 * 5 / 14 + 0.2 * 0.5) / 1.6
# `hot`: the word to oppose is a near miss: 0.25; 1; 0.25.
HOT = (0.25 + 0.4 * 1 + 0.2 * 0.25) / 1.6
QUESTION = "Opposite of hot?"
WORTH = {"cold": COLD, "The answer is cold. Thank you for asking.": WORDY, "hot": HOT, "": 0.0}


def test_scores_in_the_demos_world_are_those_of_its_rules() -> None:
    for answer, worth in WORTH.items():
        assert score(QUESTION, answer) == pytest.approx(worth, rel=1e-12)
        assert score(f" {QUESTION}\n", answer) == score(QUESTION, answer)


def test_scores_elsewhere_are_the_stand_in() -> None:
    question = "Describe the harbour of Lisbon"  # four-letter words: describe, harbour, lisbon
    assert score(question, "") == score(question, " ?! ") == 0.0
    assert score(question, "The harbour") == pytest.approx(0.5 * 1 / 3 + 0.5 / (1 + 2 / 200))
    assert score(question, "Lisbon has a harbour " * 50) == pytest.approx(0.5 * 2 / 3 + 0.5 / (1 + 200 / 200))
    # With a reference: two of its four words, in an answer of three.
    assert score(question, "wide and blue", "wide blue open water") == pytest.approx(0.5 * 4 / 7 + 0.5 / (1 + 3 / 200))
    assert score("to be or", "not") == pytest.approx(0.5 / (1 + 1 / 200))


# ---------------------------------------------------------------------------------------------------------- AlpacaEval


def alpaca_eval(instruction: str, one: str, other: str) -> list[dict[str, str]]:
    """The judge's prompt as the installed package words it."""
    package = find_spec("alpaca_eval")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("alpaca_eval is not installed")
    configs = Path(package.submodule_search_locations[0]) / "evaluators_configs"
    template = (configs / "alpaca_eval_clf_gpt4_turbo" / "alpaca_eval_clf.txt").read_text()
    for name, value in {"instruction": instruction, "output_1": one, "output_2": other}.items():
        template = template.replace("{" + name + "}", value)
    parts = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", template, re.DOTALL)
    return [{"role": role, "content": content.strip()} for role, content in parts]


def test_alpaca_eval_weighs_both_models_in_the_first_token() -> None:
    right_first = reply(alpaca_eval(QUESTION, "cold", "hot"))
    assert right_first.text == "m" and [token for token, _ in right_first.first] == ["m", "M"]
    p = {token: math.exp(logprob) for token, logprob in right_first.first}
    assert p["m"] == pytest.approx(1 / (1 + math.exp(-8 * (COLD - HOT))), rel=1e-12)
    assert p["m"] + p["M"] == pytest.approx(1, rel=1e-12)
    right_last = reply(alpaca_eval(QUESTION, "hot", "cold"))
    assert right_last.text == "M"
    assert dict(right_last.first)["M"] == pytest.approx(math.log(p["m"]), rel=1e-12)
    equal = reply(alpaca_eval(QUESTION, "cold", "cold"))
    assert [logprob for _, logprob in equal.first] == pytest.approx([math.log(0.5)] * 2, rel=1e-12)


def test_alpaca_eval_outputs_may_hold_quotes_and_braces() -> None:
    code = 'def f():\n    """A docstring."""\n    return {"a": {}}'
    found = dict(reply(alpaca_eval("Write Python", code, "Python: no")).first)
    lead = score("Write Python", code) - score("Write Python", "Python: no")
    assert found["m"] - found["M"] == pytest.approx(8 * lead, rel=1e-12)


# ---------------------------------------------------------------------------------------------------------- Arena-Hard


def arena_hard(question: str, a: str, b: str) -> list[dict[str, str]]:
    content = (
        f"<|User Prompt|>\n{question}\n\n"
        f"<|The Start of Assistant A's Answer|>\n{a}\n<|The End of Assistant A's Answer|>\n\n"
        f"<|The Start of Assistant B's Answer|>\n{b}\n<|The End of Assistant B's Answer|>"
    )
    return [{"role": "system", "content": "Output [[A>>B]], [[A>B]] or [[A=B]]."}, {"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ("cold", "hot", "A>>B"),  # 0.47 apart
        ("hot", "cold", "B>>A"),
        ("cold", "The answer is cold. Thank you for asking.", "A>B"),  # 0.13
        ("The answer is cold. Thank you for asking.", "cold", "B>A"),
        ("cold", "cold.", "A=B"),  # 0.01
        ("cold.", "cold", "A=B"),
        ("", "", "A=B"),
        ("", "cold", "B>>A"),
    ],
)
def test_arena_hard_verdicts_keep_to_their_form(a: str, b: str, verdict: str) -> None:
    text = reply(arena_hard(QUESTION, a, b)).text
    assert re.findall(r"\[\[([AB<>=]+)\]\]", text) == [verdict]


# ------------------------------------------------------------------------------------------------------------ MT-Bench


def single(question: str, answer: str, reference: str = "") -> list[dict[str, str]]:
    given = f"[The Start of Reference Answer]\n{reference}\n[The End of Reference Answer]\n\n" if reference else ""
    content = (
        f'[Instruction]\nRate it, for example: "Rating: [[5]]".\n\n[Question]\n{question}\n\n{given}'
        f"[The Start of Assistant's Answer]\n{answer}\n[The End of Assistant's Answer]"
    )
    return [{"role": "user", "content": content}]


def conversation(turns: list[tuple[str, str]], references: list[str]) -> list[dict[str, str]]:
    def told(speaker: str, texts: list[str]) -> str:
        return "\n\n".join(
            f"### User:\n{question}\n\n### {speaker}:\n{text}" for (question, _), text in zip(turns, texts, strict=True)
        )

    content = (
        f"<|The Start of Assistant A's Conversation with User|>\n\n{told('Assistant A', [a for _, a in turns])}\n\n"
        "<|The End of Assistant A's Conversation with User|>"
    )
    if references:
        content = (
            f"<|The Start of Reference Answer|>\n\n{told('Reference answer', references)}\n\n"
            f"<|The End of Reference Answer|>\n\n\n{content}"
        )
    return [{"role": "system", "content": 'For example: "Rating: [[5]]".'}, {"role": "user", "content": content}]


def ratings(messages: list[dict[str, str]]) -> list[int]:
    return [int(n) for n in re.findall(r"\[\[(\d+)\]\]", reply(messages).text)]


def test_mt_bench_rates_from_one_to_ten() -> None:
    assert ratings(single(QUESTION, "cold")) == [9]  # 1 + 9 * 0.906
    assert ratings(single(QUESTION, "hot")) == [5]  # 1 + 9 * 0.4375
    assert ratings(single(QUESTION, "")) == [1]
    assert ratings(single("How many moons has Mars?", "It has two", "two")) == [1 + round(9 * (0.25 + 0.5 / 1.015))]
    assert ratings(single(QUESTION, "cold", "an odd reference")) == [9]  # the world's truth outweighs it


def test_mt_bench_rates_the_second_turn() -> None:
    right, wrong = (QUESTION, "cold"), ("Opposite of up?", "up")
    assert ratings(conversation([wrong, right], [])) == [9]
    assert ratings(conversation([right, wrong], [])) == [5]
    assert ratings(conversation([right, wrong], ["cold", "down"])) == [5]
    other = [("Name a planet", "Mars"), ("How many moons has it?", "It has two")]
    assert ratings(conversation(other, ["Mars", "two"])) == [1 + round(9 * (0.25 + 0.5 / 1.015))]


def test_mt_benchs_own_prompts_are_understood(root: Path) -> None:
    path = root.parent / "shared" / "benchmarks" / "mt_bench" / "judge_prompts.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    fields = {
        "question": QUESTION, "answer": "cold", "question_1": "Opposite of up?", "answer_1": "up",
        "question_2": QUESTION, "answer_2": "cold", "ref_answer_1": "down", "ref_answer_2": "cold",
    }  # fmt: skip
    prompts = [prompt for line in path.read_text().splitlines() if (prompt := json.loads(line))["type"] == "single"]
    assert len(prompts) == 4
    for prompt in prompts:
        system, user = prompt["system_prompt"], prompt["prompt_template"].format(**fields)
        assert ratings([{"role": "system", "content": system}, {"role": "user", "content": user}]) == [9]


def test_whoever_asks_in_no_protocol_gets_an_answer() -> None:
    assert reply([{"role": "user", "content": "Sort 3 1 2"}]).text == "1 2 3"
    assert (
        reply([{"role": "user", "content": "Where is Lisbon?"}]).text
        == "I think that this is about where and is and lisbon."
    )


# ----------------------------------------------------------------------------------------------------- over the network


def post(url: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/chat/completions", data, headers or {})) as response:
        return json.load(response)


def asked(content: str, **settings: Any) -> dict[str, Any]:
    return {"model": "demo", "messages": [{"role": "user", "content": content}], **settings}


def test_a_completion_has_the_form_that_clients_expect() -> None:
    with serve() as server:
        whole = post(server.url, asked("Say cat 3 times"))
        cut = post(server.url, asked("Say cat 3 times", max_completion_tokens=2, logprobs=True, top_logprobs=3))
        (message,) = alpaca_eval(QUESTION, "hot", "cold")[1:]
        judged = post(server.url, asked(message["content"], max_tokens=1, logprobs=True, top_logprobs=5))
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": "cat cat cat"}
    assert (whole["choices"][0]["finish_reason"], whole["choices"][0]["logprobs"]) == ("stop", None)
    assert whole["usage"] == {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
    assert (cut["choices"][0]["message"]["content"], cut["choices"][0]["finish_reason"]) == ("cat cat", "length")
    assert [token["token"] for token in cut["choices"][0]["logprobs"]["content"]] == ["cat", " cat"]
    (token,) = judged["choices"][0]["logprobs"]["content"]
    assert token["token"] == "M" and [top["token"] for top in token["top_logprobs"]] == ["M", "m"]
    assert sum(math.exp(top["logprob"]) for top in token["top_logprobs"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "body",
    [
        b"{not JSON",
        {"messages": []},
        {"model": "demo", "messages": []},
        {"model": "demo", "messages": [{"role": "user", "content": None}]},
        asked("hello", top_logprobs=5),
        asked("hello", logprobs=True, top_logprobs=21),
    ],
)
def test_what_is_no_request_is_refused_and_not_counted(body: Any) -> None:
    with serve() as server:
        with pytest.raises(urllib.error.HTTPError) as caught:
            post(server.url, body)
        caught.value.close()
        assert caught.value.code == 400 and server.requests == 0


def test_faults_come_when_they_are_told_to() -> None:
    every = [Fault.read("500@3"), Fault.read("reset@5-6"), Fault.read("schema%4")]
    hits = {n: [fault.kind for fault in every if fault.hits(n)] for n in range(1, 10)}
    assert {n: kinds for n, kinds in hits.items() if kinds} == {
        3: ["500"], 4: ["schema"], 5: ["reset"], 6: ["reset"], 8: ["schema"],
    }  # fmt: skip
    for wrong in ("500", "500@", "500@x", "418@1", "500%0", "500@1-", ""):
        with pytest.raises(ValueError, match="no such fault"):
            Fault.read(wrong)


def test_what_each_fault_looks_like_from_outside() -> None:
    faults = ["429@1", "429-date@2", "500@3", "truncated@4", "cut@5", "schema@6", "reset@7", "unparsable@8", "401@9"]
    with serve(faults=[*faults, "quota@10"], retry_after=7) as server:

        def refusal(headers: dict[str, str] | None = None) -> tuple[int, str | None, str]:
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(server.url, asked("hello"), headers)
            with caught.value as error:
                return error.code, error.headers["Retry-After"], json.load(error)["error"]["message"]

        assert refusal()[:2] == (429, "7")
        status, date, _ = refusal()
        assert status == 429 and re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", str(date))
        assert refusal()[:2] == (500, None)
        with pytest.raises(json.JSONDecodeError):
            post(server.url, asked("hello"))
        with pytest.raises(HTTPException):
            post(server.url, asked("hello"))
        assert "choices" not in post(server.url, asked("hello"))
        with pytest.raises(ConnectionResetError):
            post(server.url, asked("hello"))
        (choice,) = post(server.url, asked(arena_hard(QUESTION, "cold", "hot")[1]["content"]))["choices"]
        assert "[[" not in choice["message"]["content"]
        assert refusal({"Authorization": "Bearer abc"}) == (401, None, "Incorrect API key provided: Bearer abc")
        assert refusal()[0] == 429
        assert (server.requests, server.answered) == (10, 1)


def test_it_runs_as_a_program_and_shows_its_counts() -> None:
    command = [sys.executable, "-m", "mnpo.demo.judge", "--fault", "500@2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
            assert post(url, asked("Opposite of hot?"))["choices"][0]["message"]["content"] == "cold"
            with pytest.raises(urllib.error.HTTPError) as caught:
                post(url, asked("Opposite of hot?"))
            caught.value.close()
            with urllib.request.urlopen(f"{url.removesuffix('/v1')}/stats") as response:
                assert json.load(response) == {"requests": 2, "answered": 1, "peak": 1, "faults": {"500": 1}}
        finally:
            process.terminate()


def test_a_wrong_fault_on_the_command_line_is_one_message() -> None:
    command = [sys.executable, "-m", "mnpo.demo.judge", "--fault", "418@1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and "no such fault: '418@1'" in result.stderr and "Traceback" not in result.stderr
