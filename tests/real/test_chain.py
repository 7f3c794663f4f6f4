"""The chain on a published model: what it trains, scores and samples is what plain transformers makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnpo.config.sampling import Decoding
from mnpo.config.text import Text
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer

pytestmark = pytest.mark.slow

TEXT = Text(max_length=256, max_prompt_length=192)
CONVERSATIONS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Count from 8 to 12.", "Sure:\n\n8, 9, 10, 11,  12."),
    ("Is ice warm?", "No. Ice is frozen water, so it is cold at 0 °C and below. 🧊"),
    ("Name a fruit, and say why you like it. One sentence, please; it is for a child of five.", "Pears: they drip!"),
]


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    """As transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    """Likewise."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


@pytest.fixture(scope="module")
def rendered(tokenizer: Any) -> Callable[..., list[int]]:
    """The token ids of a conversation by the published template; without a response, ready for one."""

    def ids(prompt: str, response: str | None = None) -> list[int]:
        turns = [{"role": "user", "content": prompt}]
        turns += [{"role": "assistant", "content": response}] if response is not None else []
        return tokenizer.apply_chat_template(  # type: ignore[no-any-return]
            turns, tokenize=True, add_generation_prompt=response is None, return_dict=False
        )

    return ids


def logp(model: Any, prompt: list[int], whole: list[int]) -> float:
    """Log-probability of what follows the prompt, from one forward pass of transformers; nats."""
    with torch.no_grad():
        log = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(log[i - 1, whole[i]]) for i in range(len(prompt), len(whole)))


@pytest.mark.parametrize(("prompt", "response"), CONVERSATIONS)
def test_token_ids_are_those_of_the_published_template(
    smollm2: Path, tokenizer: Any, rendered: Callable[..., list[int]], prompt: str, response: str
) -> None:
    """But for the newline after the end of the turn, which no response has."""
    encoded = Chat(load_tokenizer(smollm2), TEXT).encode(prompt, response)
    assert encoded.prompt == rendered(prompt)
    assert [*encoded.prompt, *encoded.response, *tokenizer("\n")["input_ids"]] == rendered(prompt, response)
    assert encoded.response[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_turns_before_the_prompt_are_read_as_the_template_writes_them(smollm2: Path, tokenizer: Any) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": "Another one, please:\n\n1."},
    ]
    expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert Chat(load_tokenizer(smollm2), TEXT).prompt(turns) == expected


def test_a_control_token_that_somebody_typed_ends_nothing(smollm2: Path) -> None:
    chat = Chat(load_tokenizer(smollm2), TEXT)
    end = chat.end_of_turn
    plain, typed = (chat.encode(f"What is {what}?", f"It is {what}.") for what in ("x", "<|im_end|>"))
    assert typed.prompt.count(end) == plain.prompt.count(end) == 2  # of the system's and the user's turn
    assert typed.response.count(end) == 1 and typed.response[-1] == end
    assert chat.decode(typed.response) == "It is <|im_end|>."


def test_log_probabilities_are_those_of_plain_transformers(
    tmp_path: Path, smollm2: Path, model: Any, rendered: Callable[..., list[int]]
) -> None:
    from mnpo.stages.logps import Settings, run
    from mnpo.storage.records import LOGPS, PAIRS, read, write

    scores = dict.fromkeys(("chosen_score", "rejected_score", "chosen_win", "rejected_win"), 0.5)
    rejected = "I do not know; ask somebody else."
    pairs = [
        {"pair_id": str(i), "prompt_id": str(i), "prompt": prompt, "chosen": response, "rejected": rejected, **scores}
        for i, (prompt, response) in enumerate(CONVERSATIONS)
    ]
    write(PAIRS, pairs, tmp_path / "pairs.parquet")
    run(Settings(form={}, text=TEXT), smollm2, tmp_path / "pairs.parquet", tmp_path / "logps.parquet")
    found = read(LOGPS, tmp_path / "logps.parquet")
    for pair, row in zip(pairs, found.to_dict("records"), strict=True):
        prompt = rendered(pair["prompt"])
        for side in ("chosen", "rejected"):
            whole = rendered(pair["prompt"], pair[side])[:-1]  # no newline after the turn
            assert row[side] == pytest.approx(logp(model, prompt, whole), abs=1e-4)
            assert row[f"{side}_tokens"] == len(whole) - len(prompt)
            assert row[side] < -1


def test_greedy_responses_are_those_of_generate(smollm2: Path, model: Any, rendered: Callable[..., list[int]]) -> None:
    """Ours in one batch of prompts of different lengths, transformers' one by one."""
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    chat = Chat(load_tokenizer(smollm2), TEXT)
    prompts = [prompt for prompt, _ in CONVERSATIONS]
    requests = [Request(chat.prompt(prompt), 0) for prompt in prompts]
    decoding = Decoding(temperature=0, max_new_tokens=24)
    drawn = draw(load_model(smollm2), requests, decoding, chat.stop_ids, 8, "greedy")
    for prompt, response in zip(prompts, drawn, strict=True):
        ids = torch.tensor([rendered(prompt)])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
        assert response.tokens == made[0, ids.shape[1] :].tolist(), prompt
    assert drawn[0].finish == "stop" and chat.decode(drawn[0].tokens) == "The capital of France is Paris."


def test_fine_tuning_on_a_handful_of_conversations_teaches_them(
    tmp_path: Path, smollm2: Path, model: Any, tokenizer: Any
) -> None:
    """Every answer of the assistant's, behind what the template puts before it; and the system's turn is none."""
    from mnpo.stages import demonstrations, sft

    told = [user_and_assistant(*pair) for pair in CONVERSATIONS[:3]]
    told.append([{"role": "system", "content": "Be brief."}, *told[0], *user_and_assistant("And of Italy?", "Rome!")])
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps({'messages': turns})}\n" for turns in told))
    asked = demonstrations.Settings.model_validate({"data": {"file": str(tmp_path / "own.jsonl")}, "seed": 0})
    demonstrations.run(asked, tmp_path / "own.jsonl", tmp_path / "data")
    settings = {
        "policy": "sft",
        "model": {"path": str(smollm2)},
        "sft": {"steps": 5, "batch_size": 4, "learning_rate": 1e-4},
        "turns": "all",
        "text": TEXT.model_dump(),
        "seed": 0,
    }
    sft.run(sft.Settings.model_validate(settings), tmp_path / "data/train.parquet", tmp_path / "sft")
    history = [json.loads(line)["loss"] for line in (tmp_path / "sft/metrics.jsonl").read_text().splitlines()]
    answers = [
        (
            tokenizer.apply_chat_template(turns[:i], add_generation_prompt=True, return_dict=False),
            tokenizer.apply_chat_template(turns[: i + 1], return_dict=False)[:-1],  # no newline after the turn
        )
        for turns in told
        for i, turn in enumerate(turns)
        if turn["role"] == "assistant"
    ]
    assert len(answers) == 5
    tokens = sum(len(whole) - len(prompt) for prompt, whole in answers)
    before, after = (
        -sum(logp(m, *answer) for answer in answers) / tokens for m in (model, load_model(tmp_path / "sft"))
    )
    assert history[0] == pytest.approx(before, abs=1e-4)
    assert after < before / 2


def user_and_assistant(prompt: str, response: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


INSTRUCTIONS: list[tuple[str, str, dict[str, Any], Callable[[str], bool]]] = [
    ("Describe the sea without any commas.", "punctuation:no_comma", {}, lambda r: "," not in r),
    ("Name three colours, without commas.", "punctuation:no_comma", {}, lambda r: "," not in r),
    (
        "Write about rain. Use the words cloud and river.",
        "keywords:existence",
        {"keywords": ["cloud", "river"]},
        lambda r: all(word in r.lower() for word in ("cloud", "river")),
    ),
    (
        "What is a cat? Do not use the word animal.",
        "keywords:forbidden_words",
        {"forbidden_words": ["animal"]},
        lambda r: not re.search(r"\banimal\b", r.lower()),
    ),
    (
        "What is the capital of Italy? Answer with less than 12 words.",
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 12},
        lambda r: len(re.findall(r"\w+", r)) < 12,
    ),
    (
        "Tell me about bread with at least 20 words.",
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 20},
        lambda r: len(re.findall(r"\w+", r)) >= 20,
    ),
    (
        "Write a title about birds, wrapped in double angular brackets, such as <<wings>>.",
        "detectable_format:title",
        {},
        lambda r: bool(re.search(r"<<[^\n]*\w[^\n]*>>", r)),
    ),
    (
        "Say good morning. Wrap your whole answer in double quotation marks.",
        "startend:quotation",
        {},
        lambda r: len(r.strip()) > 1 and r.strip()[0] == r.strip()[-1] == '"',
    ),
    (
        "Give exactly 2 bullet points about tea, each beginning with *.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        lambda r: len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", r, re.M)) == 2,
    ),
    (
        "Say what snow is. Finish with: That is all.",
        "startend:end_checker",
        {"end_phrase": "That is all."},
        lambda r: r.strip().strip('"').lower().endswith("that is all."),
    ),
]
"""Ten items in IFEval's form, of our own: prompt, instruction, its arguments, and what its check comes to."""


def test_ifeval_on_ten_items(tmp_path: Path, smollm2: Path, model: Any, rendered: Callable[..., list[int]]) -> None:
    """Replies are the greedy ones of transformers; an item's value is what a check written here says of its reply."""
    from mnpo.benchmarks import lm_eval

    items = [
        {"key": key, "prompt": prompt, "instruction_id_list": [name], "kwargs": [kwargs]}
        for key, (prompt, name, kwargs, _) in enumerate(INSTRUCTIONS)
    ]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    sentences = tmp_path / "nltk_data/tokenizers/punkt_tab/english"  # which none of the ten counts
    sentences.mkdir(parents=True)
    chosen = {"ifeval": {"max_new_tokens": 40}}
    settings = lm_eval.Settings.model_validate({"policy": "smollm2", "benchmarks": chosen, "batch_size": 10})
    summary, rows = lm_eval.evaluate(settings, smollm2, {"ifeval": tmp_path})["ifeval"]
    assert [row["value"] for row in rows] == [
        float(check(row["response"])) for row, (*_, check) in zip(rows, INSTRUCTIONS, strict=True)
    ]
    assert summary["items"] == 10 and summary["value"] == pytest.approx(10 * sum(row["value"] for row in rows))
    assert 0 < summary["value"] < 100
    for row, (prompt, *_) in list(zip(rows, INSTRUCTIONS, strict=True))[:3]:
        ids = torch.tensor([rendered(prompt)])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
        assert row["response"].strip() == Chat(load_tokenizer(smollm2), TEXT).decode(made[0, ids.shape[1] :].tolist())
