"""The tiny checkpoint: bytes that repeat, a template that renders as Gemma's, weights that any tool loads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers

from mnpo.demo.model import build
from tests.helpers import tiny

ARCHITECTURE = tiny.GEMMA | {
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 64,
    "sliding_window": 64,
}
TEXTS = ["Say cat 3 times", "cat cat cat", "Opposite of hot?", "Sure: cold.", "List 3 animals", "cat, dog, cow"] * 5
TURNS = [{"role": "user", "content": " Say cat 3 times\n"}]
RENDERED = "<bos><start_of_turn>user\nSay cat 3 times<end_of_turn>\n<start_of_turn>model\n"


def build_small(directory: Path, seed: int = 0) -> Path:
    build(directory, TEXTS, vocab_size=290, architecture=ARCHITECTURE, seed=seed)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_small(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


def read_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_same_inputs_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    again = read_bytes(build_small(tmp_path / "again"))
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are left alone
    assert again == read_bytes(checkpoint)
    other = read_bytes(build_small(tmp_path / "other", seed=1))
    assert {name for name in again if again[name] != other[name]} == {"model.safetensors"}


def test_the_template_renders_as_gemma_turns(tokenizer) -> None:
    assert tokenizer.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True) == RENDERED
    answered = [*TURNS, {"role": "assistant", "content": "cat cat cat"}]
    expected = RENDERED + "cat cat cat<end_of_turn>\n"
    assert tokenizer.apply_chat_template(answered, tokenize=False) == expected
    answered[1]["role"] = "model"
    assert tokenizer.apply_chat_template(answered, tokenize=False) == expected


@pytest.mark.parametrize(
    "turns",
    [[{"role": "system", "content": "Be brief."}, *TURNS], [*TURNS, *TURNS], [{"role": "model", "content": "cat"}]],
)
def test_the_template_refuses_other_roles_and_orders(tokenizer, turns: list[dict[str, str]]) -> None:
    with pytest.raises(Exception, match=r"role|alternate"):
        tokenizer.apply_chat_template(turns, tokenize=False)


def test_exactly_one_bos(tokenizer) -> None:
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    # As with Gemma's own tokenizer, plain text gets a BOS of its own.
    assert tokenizer("cat")["input_ids"] == [
        tokenizer.bos_token_id,
        *tokenizer("cat", add_special_tokens=False)["input_ids"],
    ]


def test_special_tokens_and_roles_are_single_ids(tokenizer) -> None:
    ids = tokenizer(RENDERED, add_special_tokens=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert pieces[:4] == ["<bos>", "<start_of_turn>", "user", "Ċ"]
    assert pieces[-5:] == ["<end_of_turn>", "Ċ", "<start_of_turn>", "model", "Ċ"]
    assert len(tokenizer) == 290
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<pad>", "<eos>", "right")
    assert tokenizer(["cat", "Say cat 3 times"], padding=True)["attention_mask"][0][-1] == 0


@pytest.mark.parametrize("text", ["cat, dog.", " cat", "naïve 猫 🐈\n\tx == y", "a  +  b"])
def test_any_text_survives_the_round_trip(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_the_model_loads_as_a_gemma2_in_float32(checkpoint: Path, tokenizer) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    assert isinstance(model, transformers.Gemma2ForCausalLM)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"  # the one that honours soft-capping
    # Tied embedding 290 x 32; a layer: q and o 32x32, k and v 32x16, three 32x48 in the MLP, four norms; a last norm.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 4 * 32
    assert sum(parameter.numel() for parameter in model.parameters()) == 290 * 32 + 2 * layer + 32
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, turn]
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert model.generation_config.bos_token_id == model.config.bos_token_id == tokenizer.bos_token_id
    ids = torch.tensor([tokenizer(RENDERED, add_special_tokens=False)["input_ids"]])
    loss = model(input_ids=ids, labels=ids).loss.item()
    assert loss == pytest.approx(math.log(290), rel=0.1)  # random weights know next to nothing


def test_a_vocabulary_without_room_and_an_empty_corpus_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size must be above 262, got 262"):
        build(tmp_path, TEXTS, vocab_size=262, architecture=ARCHITECTURE, seed=0)
    with pytest.raises(ValueError, match="no texts"):
        build(tmp_path, [], vocab_size=300, architecture=ARCHITECTURE, seed=0)
