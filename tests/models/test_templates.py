"""Published families' chat templates: tokens written by hand, the same wherever a text is read; and what is said."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest

from mnpo.benchmarks.lm_eval_model import _Chatting
from mnpo.config.blocks import ConfigError
from mnpo.config.reading import load
from mnpo.config.sampling import Sampling
from mnpo.config.text import Text, TextForm
from mnpo.errors import BadInput
from mnpo.models.chat import Chat, Encoded
from mnpo.models.checkpoints import load_model, load_tokenizer, save
from mnpo.samplers import Response
from mnpo.stages import logps, sample, train
from mnpo.storage.conversations import columns
from mnpo.storage.records import PAIRS, PROMPTS, write
from tests.helpers import tiny
from tests.helpers.families import AGAIN, ANSWER, ASKED, FAMILIES, THINK, Family, saved, tokenizer_of

ROOM = {"max_length": 400, "max_prompt_length": 300}
SYSTEM = [{"role": "system", "content": "Be kind"}, *ASKED]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("families")

    def made(family: str) -> Path:
        return directory / family if (directory / family).exists() else saved(directory / family, family)

    return made


@pytest.fixture
def chat_of(checkpoint: Callable[[str], Path]) -> Callable[..., Chat]:
    """A family's chat, as a stage makes it; `said` adds to block `text`."""
    return lambda family, **said: Chat(
        load_tokenizer(checkpoint(family)), Text.model_validate({**ROOM, **FAMILIES[family].reading, **said})
    )


def tokens(chat: Chat, ids: list[int]) -> list[str]:
    return list(chat.tokenizer.convert_ids_to_tokens(ids))


every_family = pytest.mark.parametrize(("name", "family"), FAMILIES.items(), ids=FAMILIES)

# ------------------------------------------------------------------------------------------------------- tokens by hand


@every_family
def test_a_family_reads_the_tokens_of_its_template(name: str, family: Family, chat_of: Callable[..., Chat]) -> None:
    chat = chat_of(name)
    assert tokens(chat, chat.prompt(ASKED)) == family.asked.split()
    assert tokens(chat, chat.prompt(AGAIN)) == family.again.split()
    assert tokens(chat, chat.encode(ASKED, ANSWER).response) == family.said.split()
    assert tokens(chat, chat.encode(AGAIN, ANSWER).response) == family.said.split()
    assert chat.encode(ASKED, ANSWER).prompt == chat.prompt(ASKED)
    assert set(tokens(chat, chat.stop_ids)) == set(family.stops.split())
    assert tokens(chat, [chat.end_of_turn]) == family.said.split()[-1:]
    assert chat.decode(chat.encode(ASKED, ANSWER).response).endswith(ANSWER)
    assert chat.counts == {"prompts_cut": 0, "responses_cut": 0}


@every_family
def test_prompt_and_response_are_the_whole_conversation_as_transformers_tokenizes_it(
    name: str, family: Family, chat_of: Callable[..., Chat]
) -> None:
    """An independent way to the ids: the finished conversation in one piece, BOS the tokenizer's own or none."""
    chat = chat_of(name, date=datetime.date.today().isoformat())
    options = family.reading.get("template_options", {})
    for turns in (ASKED, AGAIN):
        answered = [*turns, {"role": "assistant", "content": ANSWER}]
        text = chat.tokenizer.apply_chat_template(answered, tokenize=False, **options)
        whole = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        if family.adds_bos and whole[0] != chat.tokenizer.bos_token_id:
            whole = chat.tokenizer(text)["input_ids"]
        encoded = chat.encode(turns, ANSWER)
        ours = [*encoded.prompt, *encoded.response]
        if name == "alpaca":  # nothing ends its turns: EOS takes the place of what stands before the next one
            whole = [*whole[:-2], chat.end_of_turn]
        assert ours == whole[: len(ours)]
        assert chat.conversation(answered)[: len(ours)] == ours or name == "alpaca"


@every_family
def test_what_is_sampled_is_scored_and_trained_and_asked_by_the_harness(
    name: str, family: Family, chat_of: Callable[..., Chat], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Through the stages' own code: both samplers' requests, what is scored, training's pairs, lm-eval's prompts."""
    policy, expected = checkpoint(name), chat_of(name).encode(AGAIN, ANSWER)
    text = Text.model_validate({**ROOM, **family.reading})
    assert sampled_from(policy, text, tmp_path) == [expected.prompt] * 4
    row = {"pair_id": "p", "prompt_id": "p", "chosen": ANSWER, "rejected": "one", **columns(AGAIN)}
    row |= dict.fromkeys(("chosen_score", "rejected_score", "chosen_win", "rejected_win"), 0.0)
    both = [expected, chat_of(name).encode(AGAIN, "one")]
    assert scored_under(policy, text, row, tmp_path) == both
    settings = train.Settings.model_validate(tiny.first_iteration(text, {}))
    trained = train._pairs(settings, settings.opponents, pd.DataFrame([row]), {}, chat_of(name), "cpu")
    assert [*trained.chosen, *trained.rejected] == both
    harness = _Chatting()
    harness.chat, harness.conversing = chat_of(name), True
    assert harness.tok_encode(harness.apply_chat_template(AGAIN)) == expected.prompt


def sampled_from(policy: Path, text: Text, directory: Path) -> list[list[int]]:
    """The prompts that the stage `sample` hands to transformers and to vLLM."""
    prompts, asked = directory / "prompts.parquet", list[list[int]]()
    write(PROMPTS, [{"prompt_id": "p", "family": "f", "truth": "", **columns(AGAIN)}], prompts)

    def draw(of: Any, requests: Any, *_: Any, **__: Any) -> list[Response]:
        asked.extend(request.prompt for request in requests)
        return [Response(request.prompt[-1:], "stop") for request in requests]

    for sampler in ("transformers", "vllm"):
        sampling = Sampling.model_validate({"sampler": sampler, "responses": 2, "max_new_tokens": 4})
        settings = sample.Settings(sampling=sampling, text=text, shard=0, seed=0)
        with mock.patch(f"mnpo.samplers.{sampler}.draw", draw):
            sample.run(settings, policy, prompts, directory / f"{sampler}.parquet")
    return asked


def scored_under(policy: Path, text: Text, row: dict[str, Any], directory: Path) -> list[Encoded]:
    """The texts whose log-probabilities the stage `logps` computes."""
    pairs, seen = directory / "pairs.parquet", list[Encoded]()
    write(PAIRS, [row], pairs)

    def computed(_: Any, __: Any, texts: Any, ___: Any) -> tuple[list[float], dict[str, Any]]:
        seen.extend(texts)
        return [0.0] * len(texts), {}

    with mock.patch("mnpo.stages.logps._computed", computed):
        logps.run(logps.Settings(form=TextForm(), text=text), policy, pairs, directory / "logps.parquet")
    return seen


@every_family
def test_a_sampled_response_is_read_again_as_the_tokens_that_were_drawn(
    name: str, family: Family, chat_of: Callable[..., Chat]
) -> None:
    """What the model said as it was trained to, thinking included where there is any, through its text."""
    chat = chat_of(name)
    drawn = chat.encode(ASKED, ANSWER).response
    assert chat.encode(ASKED, chat.decode(drawn)).response == drawn
    if THINK[0] in family.added:
        thought = chat.encode(ASKED, "<think>\none\n</think>\n\nTwo words").response
        assert chat.encode(ASKED, chat.decode(thought)).response == thought
        assert "one" in tokens(chat, thought)


PUBLISHED = {
    "gemma": "gemma-2",
    "gemma3": "gemma-3",
    "llama3": "llama-3",
    "llama3_1": "llama-3.1",
    "llama3_2": "llama-3.1",
    "phi3": "phi-3",
    "qwen2_5": "qwen-2.5",
    "qwen3": "qwen-3",
    "qwen3_instruct_2507": "qwen-3-2507",
    "deepseek_r1_distill": "deepseek-r1-distill",
}
"""Families whose templates TRL carries for its own tests."""


@pytest.mark.parametrize(("file", "name"), PUBLISHED.items())
def test_the_published_template_reads_the_same_where_a_library_carries_it(
    file: str, name: str, chat_of: Callable[..., Chat]
) -> None:
    trl = pytest.importorskip("trl")
    ours, theirs = chat_of(name), chat_of(name)
    source = Path(trl.__file__).parent / "chat_templates" / f"{file}.jinja"
    theirs.tokenizer.chat_template = source.read_text(encoding="utf-8")
    for turns in (ASKED, AGAIN, SYSTEM, [SYSTEM[0], *AGAIN]):
        if name == "qwen-2.5" and turns[0] != SYSTEM[0]:
            continue  # its own system's turn is another than the short one here
        for response in (ANSWER, "<think>\none\n</think>\n\nTwo words", " Two\n"):
            assert theirs.encode(turns, response) == ours.encode(turns, response)
    assert theirs.stop_ids == ours.stop_ids


# ---------------------------------------------------------------------------------------------------- what templates do


def test_thinking_that_the_template_leaves_out_of_what_was_answered_stays_as_it_was_sampled(
    chat_of: Callable[..., Chat],
) -> None:
    """DeepSeek's: the prompt does not open the block, so that answers with and without it follow the same prompt."""
    chat = chat_of("deepseek-r1-distill")
    read = chat.encode(ASKED, "<think>\none\n</think>Two words")
    thought = "<think> Ċ one Ċ </think> Two Ġwords <｜end▁of▁sentence｜>"
    assert tokens(chat, read.response) == thought.split()
    assert read.prompt == chat.encode(ASKED, ANSWER).prompt
    assert chat.counts["responses_left_as_they_are"] == 1
    earlier = [*ASKED, {"role": "assistant", "content": "<think>\none\n</think>Yes"}, AGAIN[-1]]
    assert chat.prompt(earlier) == chat.prompt(AGAIN)  # an earlier answer loses it


def test_thinking_behind_an_empty_block_follows_it_as_it_is_and_is_counted(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("qwen-3-without-thinking")
    read = chat.encode(ASKED, "<think>one</think>Two words")
    assert tokens(chat, read.prompt) == FAMILIES["qwen-3-without-thinking"].asked.split()
    assert tokens(chat, read.response) == ["<think>", "one", "</think>", "Two", "Ġwords", "<|im_end|>"]
    assert chat.counts["responses_left_as_they_are"] == 1


def test_thinking_that_was_cut_gets_no_empty_block_in_front(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("qwen-3")
    assert tokens(chat, chat.encode(ASKED, "<think>\none").response) == ["<think>", "Ċ", "one", "<|im_end|>"]
    assert chat.counts["responses_left_as_they_are"] == 1


@pytest.mark.parametrize("name", ["gemma-2", "gemma-3", "llama-2", "mistral"])
def test_a_response_that_the_template_strips_is_trained_as_it_renders_it_and_counted(
    name: str, chat_of: Callable[..., Chat]
) -> None:
    chat = chat_of(name)
    assert chat.encode(ASKED, f"  {ANSWER}\n").response == chat.encode(ASKED, ANSWER).response
    assert chat.counts["responses_changed_by_template"] == 1
    with pytest.raises(BadInput, match="row 3: the response ' ' has no tokens"):
        chat.encode(ASKED, " ", "row 3")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen-2.5", "<|im_start|> system Ċ Be Ġkind <|im_end|> Ċ <|im_start|> user Ċ Hi Ġthere <|im_end|> Ċ"),
        ("gemma-3", "<bos> <start_of_turn> user Ċ Be Ġkind Ċ Ċ Hi Ġthere <end_of_turn> Ċ"),
        ("gemma-2", "<bos> <start_of_turn> user Ċ Be Ġkind Ċ Ċ Hi Ġthere <end_of_turn> Ċ"),
        ("mixtral", "<s> ▁ ▁[ INST ] ▁Be ▁kind <0x0A> <0x0A> Hi ▁there ▁[ / INST ]"),
        ("mistral", "<s> [INST] ▁Be ▁kind <0x0A> <0x0A> Hi ▁there [/INST]"),
        (
            "llama-2",
            "<s> ▁[ INST ] ▁ < < SYS > > <0x0A> Be ▁kind <0x0A> < < / SYS > > <0x0A> <0x0A> Hi ▁there ▁[ / INST ]",
        ),
    ],
)  # fmt: skip
def test_a_system_turn_goes_into_the_users_where_the_template_has_none(
    name: str, expected: str, chat_of: Callable[..., Chat], capsys: pytest.CaptureFixture[str]
) -> None:
    chat = chat_of(name)
    read = chat.encode(SYSTEM, ANSWER)
    assert tokens(chat, chat.prompt(SYSTEM))[: len(expected.split())] == expected.split()
    assert read.prompt == chat.prompt(SYSTEM) and tokens(chat, read.response) == FAMILIES[name].said.split()
    assert chat.counts["systems_in_the_users_turn"] == 3 * (not FAMILIES[name].system)
    assert capsys.readouterr().err.count("has no system's turn") == (not FAMILIES[name].system)
    asked = chat_of(name, system="Be kind")
    assert asked.prompt(ASKED) == asked.prompt(SYSTEM) == chat.prompt(SYSTEM)
    other = [{"role": "system", "content": "You are"}, *ASKED]
    assert asked.prompt(other) == chat.prompt(other)  # a conversation's own comes first


def test_a_date_in_a_template_is_always_the_same_or_the_one_that_is_said(chat_of: Callable[..., Chat]) -> None:
    usual = tokens(chat_of("llama-3.1"), chat_of("llama-3.1").prompt(ASKED))
    said = tokens(chat_of("llama-3.1"), chat_of("llama-3.1", date="2026-07-01").prompt(ASKED))
    assert "".join(usual).count("Ġ26ĠJulĠ2024") == 1 and "".join(said).count("Ġ01ĠJulĠ2026") == 1
    given = chat_of("llama-3.1", template_options={"date_string": "Be kind"})
    assert "Today ĠDate : ĠBe Ġkind" in " ".join(tokens(given, given.prompt(ASKED)))
    with pytest.raises(ValueError, match="'26 Jul' is not a date; write it as 2024-07-26"):
        Text(date="26 Jul")


@pytest.mark.parametrize("code", ["%d", "%b", "%B", "%Y", "%y", "%m", "%a", "%A", "%j", "%-d", "%e"])
def test_the_clock_that_stands_still_writes_dates_as_the_running_one(code: str, chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("qwen-2.5", date=datetime.date.today().isoformat())
    chat.tokenizer.chat_template = "{{ strftime_now('on " + code + " of') }}{{ messages[0].content }}"
    expected = chat.tokenizer.apply_chat_template(ASKED, tokenize=False)
    assert chat.template.render(ASKED) == expected == datetime.date.today().strftime(f"on {code} of") + "Hi there"


# ------------------------------------------------------------------------------------------------------- control tokens

TYPED = "Hi <|im_end|> there"


def test_control_tokens_that_are_typed_stay_text(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("smollm-2")
    end, start = chat.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>"])
    usual, read = chat.encode(ASKED, ANSWER), chat.encode(TYPED, "Two <|im_end|><|im_start|> words")
    assert read.prompt.count(end) == usual.prompt.count(end) and read.prompt.count(start) == usual.prompt.count(start)
    typed = "Two Ġ < | i m _ e n d | > < | i m _ s t a r t | > Ġwords <|im_end|>"
    assert tokens(chat, read.response) == typed.split()
    assert chat.decode(read.response) == "Two <|im_end|><|im_start|> words"
    text = chat.tokenizer.decode(read.prompt)
    assert text.endswith("<|im_start|>user\nHi <|im_end|> there<|im_end|>\n<|im_start|>assistant\n")
    assert chat.counts["prompts_with_control_tokens"] == chat.counts["responses_with_control_tokens"] == 1


def test_control_tokens_that_are_typed_become_tokens_when_that_is_asked_for(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("smollm-2", control_tokens="tokens")
    assert tokens(chat, chat.encode(TYPED, "Two <|im_end|>").response) == ["Two", "Ġ", "<|im_end|>", "<|im_end|>"]
    assert chat.prompt(TYPED).count(chat.end_of_turn) == chat.prompt(ASKED).count(chat.end_of_turn) + 1


@pytest.mark.parametrize("name", ["zephyr", "llama-2", "mistral", "phi-3"])
def test_typed_control_tokens_are_text_for_tokenizers_that_put_spaces_too(
    name: str, chat_of: Callable[..., Chat]
) -> None:
    chat = chat_of(name)
    usual, read = chat.encode(ASKED, ANSWER), chat.encode("Hi</s> there", "Two</s> words")
    assert read.prompt.count(chat.end_of_turn) == usual.prompt.count(chat.end_of_turn)
    assert read.response.count(chat.end_of_turn) == 1
    assert "Hi</s> there" in chat.tokenizer.decode(read.prompt)
    assert chat.decode(read.response).strip() == "Two</s> words"


def test_what_encloses_thinking_is_a_token_where_it_is_special_too(chat_of: Callable[..., Chat]) -> None:
    from tokenizers import AddedToken

    usual, special = chat_of("qwen-3"), chat_of("qwen-3")
    special.tokenizer.add_tokens([AddedToken(tag, special=True) for tag in THINK], special_tokens=True)
    assert THINK[0] in special.template.special_tokens and THINK[0] not in usual.template.special_tokens
    response = "<think>\none\n</think>\n\nTwo words"
    assert special.encode(ASKED, response) == usual.encode(ASKED, response)
    assert special.end_of_turn == usual.end_of_turn and "responses_with_control_tokens" not in special.counts


def test_the_marks_themselves_are_text_too(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("smollm-2")
    typed = "Hi \ufdd0<|im_end|>\ufdd1 there \ufdd1\ufdd0"
    assert chat.decode(chat.encode(typed, typed).response) == typed
    assert chat.encode(typed, typed).response.count(chat.end_of_turn) == 1


def test_a_cut_prompt_keeps_typed_control_tokens_as_text(chat_of: Callable[..., Chat]) -> None:
    chat = chat_of("smollm-2", max_prompt_length=60)
    ids = chat.prompt("<|im_end|> Hi " * 20 + "there")
    assert len(ids) <= 60 and ids.count(chat.end_of_turn) == chat.prompt(ASKED).count(chat.end_of_turn)
    assert chat.tokenizer.decode(ids).endswith("<|im_end|> Hi there<|im_end|>\n<|im_start|>assistant\n")


# ------------------------------------------------------------------------------------------------------ named templates


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma"])
def test_a_base_model_gets_a_named_template_with_its_control_tokens_and_keeps_it(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(checkpoint("alpaca"), name), load_model(checkpoint("alpaca"))
    before = model.get_input_embeddings().num_embeddings
    chat = Chat(tokenizer, Text(**ROOM))
    read = chat.encode(ASKED, ANSWER)
    assert chat.end_of_turn >= before and max(read.prompt) >= before and "<unk>" not in tokens(chat, read.prompt)
    model.resize_token_embeddings(len(tokenizer))
    save(model, tokenizer, tmp_path)
    again = Chat(load_tokenizer(tmp_path), Text(**ROOM))
    assert again.encode(ASKED, ANSWER) == read and again.stop_ids == chat.stop_ids
    assert again.decode(read.response) == ANSWER
    assert load_model(tmp_path).get_input_embeddings().num_embeddings == len(tokenizer) > before


@pytest.mark.parametrize("name", ["zephyr", "alpaca"])
def test_a_named_template_without_control_tokens_adds_none(name: str, checkpoint: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(checkpoint("alpaca"), name)
    chat = Chat(tokenizer, Text(**ROOM))
    assert len(tokenizer) == len(tokenizer_of("alpaca"))
    said = tokens(chat, chat.encode(SYSTEM, ANSWER).response)
    assert said == ["Two", "Ġwords", "</s>"] and tokens(chat, chat.prompt(SYSTEM))[0] == "<s>"


def test_a_template_comes_from_a_file_too(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(FAMILIES["zephyr"].template, encoding="utf-8")
    by_file = Chat(load_tokenizer(checkpoint("alpaca"), str(file)), Text(**ROOM))
    by_text = Chat(load_tokenizer(checkpoint("alpaca"), FAMILIES["zephyr"].template), Text(**ROOM))
    assert by_file.prompt(ASKED) == by_text.prompt(ASKED)
    with pytest.raises(
        BadInput, match="text.template: 'chatlm' is no file and no template's name; did you mean 'chatm"
    ):
        load_tokenizer(checkpoint("alpaca"), "chatlm")


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_template_that_does_not_render_is_one_message_with_the_models_path(
    chat_of: Callable[..., Chat], checkpoint: Callable[[str], Path]
) -> None:
    chat = chat_of("qwen-2.5")
    chat.tokenizer.chat_template = "{{ tools[0].name }}"
    with pytest.raises(BadInput, match=f"{checkpoint('qwen-2.5')}: the chat template does not render turns of user .*"):
        chat.prompt(ASKED)
    given = chat_of("qwen-2.5", template_options={"persona": "Be"})
    given.tokenizer.chat_template = "{{ persona + messages[0].content }}"
    with pytest.raises(BadInput, match="does not render an assistant's turn; give another in text.template"):
        given.prompt(ASKED)


def test_settings_of_block_text_that_are_not_said_are_not_in_what_a_stage_reads() -> None:
    """Results made before there were such keys stay valid."""
    assert Text().model_dump() == {"max_length": 2048, "max_prompt_length": 1800, "overflow": "truncate"}
    assert Text().reading() is None and json.loads(Text().model_dump_json()) == Text().model_dump()
    assert Text(system="x", template="chatml").reading() == {"system": "x"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"bos": "yes"}, "text.bos: Input should be 'template', 'add' or 'none'"),
        ({"date": "tomorrow"}, "text.date: 'tomorrow' is not a date; write it as 2024-07-26"),
        ({"control_token": "text"}, "text.control_token: unknown key; did you mean 'control_tokens'"),
        ({"system": ""}, "text.system: String should have at least 1 character"),
    ],
)
def test_what_is_said_of_a_template_is_checked(demo: Path, said: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(demo, {"text": said})
