"""Policies on disk: which attention and dtype they are loaded with, one BOS, and padding that no setting moves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mnpo.config.sampling import Decoding
from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.models import checkpoints
from mnpo.models.checkpoints import SOFT_CAPPING, load_model, load_tokenizer, parameters, readable, save, save_copy
from tests.helpers import tiny

IDS = torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(0))
SIZES = tiny.SIZES | {"vocab_size": 64, "initializer_range": 0.5}


def gemma2(directory: Path, cap: float | None, kind: str = "ForCausalLM", **changes: Any) -> Path:
    """Large random weights, so that attention logits run into the cap."""
    import transformers

    config = transformers.Gemma2Config(**SIZES, query_pre_attn_scalar=16, attn_logit_softcapping=cap, **changes)
    torch.manual_seed(0)
    getattr(transformers, f"Gemma2{kind}")(config).save_pretrained(directory)
    return directory


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@torch.no_grad()
def logits(path: Path, **how: Any) -> torch.Tensor:
    return load_model(path, **how)(input_ids=IDS).logits


# ------------------------------------------------------------------------------------------------------------ attention


def capped_by_hand(monkeypatch: pytest.MonkeyPatch, path: Path, cap: float | None) -> torch.Tensor:
    """The logits of `path` with attention written out here, from Gemma-2's report: cap * tanh(q k / sqrt(d) / cap)."""
    from transformers.models.gemma2 import modeling_gemma2

    def attend(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> Any:
        k, v = (t.repeat_interleave(module.num_key_value_groups, 1) for t in (k, v))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scaling
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        future = torch.ones(scores.shape[-2:]).triu(1).bool()
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return torch.einsum("bhqk,bhkd->bqhd", weights, v).contiguous(), weights

    with monkeypatch.context() as patch:
        patch.setattr(modeling_gemma2, "eager_attention_forward", attend)
        return logits(path, attention="eager")


@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_model_with_soft_capping_is_loaded_with_attention_that_caps(
    attention: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gemma2(tmp_path, cap=0.5)
    expected, uncapped = (capped_by_hand(monkeypatch, path, cap) for cap in (0.5, None))
    torch.testing.assert_close(logits(path, attention=attention), expected, rtol=0, atol=1e-4)
    assert (expected - uncapped).abs().max() > 1  # or the test would not see a cap that is left out
    torch.testing.assert_close(logits(path, attention=attention, soft_cap=False), uncapped, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "classifier"])
def test_attention_without_the_soft_cap_is_refused(kind: Any, tmp_path: Path) -> None:
    path = gemma2(tmp_path, 50.0, {"causal": "ForCausalLM", "classifier": "ForSequenceClassification"}[kind])
    with pytest.raises(BadInput, match=r"'sdpa' was asked for.*attn_logit_softcapping = 50.0.*eager"):
        load_model(path, kind, attention="sdpa")
    edit(path / "config.json", attn_implementation="sdpa")
    with pytest.raises(BadInput, match=r"'sdpa' is asked for by attn_implementation in its config.json"):
        load_model(path, kind)
    assert load_model(path, kind, attention="eager").config._attn_implementation == "eager"
    edit(path / "config.json", attn_implementation="flex_attention")
    with pytest.raises(BadInput, match="'flex_attention'"):
        load_model(path, kind)
    edit(path / "config.json", attn_implementation="eager")
    assert load_model(path, kind).config._attn_implementation == "eager"


def test_attention_that_is_not_installed_is_one_message(tmp_path: Path) -> None:
    assert "flash_attention_2" in SOFT_CAPPING
    with pytest.raises(BadInput, match="FlashAttention2"):
        load_model(gemma2(tmp_path, 50.0), attention="flash_attention_2")


def test_a_model_without_soft_capping_keeps_what_transformers_prefers(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    assert load_model(tmp_path).config._attn_implementation == "sdpa"
    assert load_model(tmp_path, attention="eager").config._attn_implementation == "eager"


def test_the_final_soft_cap_is_in_log_probabilities(tmp_path: Path) -> None:
    from mnpo.models.chat import Encoded
    from mnpo.models.logprobs import response_logprobs

    model = load_model(gemma2(tmp_path, 0.5, final_logit_softcapping=0.5))
    prompt, response = IDS[0, :10].tolist(), IDS[0, 10:].tolist()
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=IDS[:1]).last_hidden_state[0, 9:23]
        capped = 0.5 * torch.tanh(model.get_output_embeddings()(hidden) / 0.5)
        expected = capped.log_softmax(-1).gather(-1, IDS[0, 10:, None]).sum()
        (found,) = response_logprobs(model, [Encoded(prompt, response)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------------- dtype


def test_weights_are_float32_unless_bfloat16_is_asked_for(tmp_path: Path) -> None:
    path = gemma2(tmp_path, 50.0, dtype="bfloat16")
    assert {p.dtype for p in load_model(path).parameters()} == {torch.float32}
    halved = load_model(path, dtype="bfloat16")
    assert {p.dtype for p in halved.parameters()} == {torch.bfloat16}
    for half, whole in zip(halved.parameters(), load_model(path).parameters(), strict=True):
        torch.testing.assert_close(half, whole.bfloat16(), rtol=0, atol=0)


def test_a_large_policy_is_saved_in_several_files_that_read_as_one(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model(random_policy), load_tokenizer(random_policy)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    save(model, tokenizer, whole)
    monkeypatch.setattr(checkpoints, "FILE_SIZE", "20KB")
    save(model, tokenizer, parted)
    assert len(list(whole.glob("*.safetensors"))) == 1 < len(list(parted.glob("*.safetensors")))
    assert parameters(parted) == parameters(whole) == model.num_parameters()
    for a, b in zip(load_model(parted).parameters(), load_model(whole).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------- the copy in bfloat16


def llama(directory: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(directory)
    return directory


def moved(path: Path) -> Path:
    """As training leaves it: all weights, those of norms too, are no numbers that bfloat16 has."""
    model = load_model(path)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    (path / "model.safetensors").unlink()
    model.save_pretrained(path, max_shard_size="20KB")
    return path


def copied(path: Path, source: Path) -> Path:
    """With its copy in bfloat16, and a manifest as what stages make has one."""
    load_tokenizer(source).save_pretrained(path)
    save_copy(path)
    (path / "manifest.json").write_text("{}")
    return path


def stored(path: Path) -> dict[str, torch.Tensor]:
    return {name: weight for file in sorted(path.glob("*.safetensors")) for name, weight in load_file(file).items()}


MADE = {"gemma2": lambda path: gemma2(path, 5.0, final_logit_softcapping=2.0), "llama": llama}


@pytest.mark.parametrize("kind", MADE)
def test_the_copy_gives_the_numbers_that_casting_gives_to_the_last_bit(
    kind: str, random_policy: Path, tmp_path: Path
) -> None:
    path = moved(MADE[kind](tmp_path / kind))
    assert len(list(path.glob("*.safetensors"))) > 1
    cast, whole, count = logits(path, dtype="bfloat16"), logits(path), parameters(path)
    copied(path, random_policy)
    copy = path / "bfloat16"
    assert readable(path, "bfloat16") == copy and readable(path, "float32") == path
    assert torch.equal(logits(path), whole) and parameters(path) == parameters(copy) == count
    saved, master = stored(copy), stored(path)
    assert {n: w.dtype for n, w in saved.items()} == dict.fromkeys(master, torch.bfloat16)
    assert all(torch.equal(saved[n], w.bfloat16()) and not torch.equal(saved[n].float(), w) for n, w in master.items())
    files = [{file.name for file in directory.glob("*.safetensors*")} for directory in (path, copy)]
    assert files[0] == files[1]
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * count and set(index["weight_map"]) == set(master)
    assert json.loads((copy / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_tokenizer(copy)("cat")["input_ids"] == load_tokenizer(random_policy)("cat")["input_ids"]
    for file in path.glob("*.safetensors"):
        file.unlink()  # whoever reads bfloat16 now reads the copy, or fails
    assert torch.equal(logits(path, dtype="bfloat16"), cast)
    with pytest.raises(BadInput, match="without weights"):
        load_model(path)


def test_a_weight_between_two_numbers_of_bfloat16_goes_to_the_even_one(random_policy: Path, tmp_path: Path) -> None:
    """From 1 on they are 2^-7 apart. 1 + 2^-8 lies in the middle of 1 and 1 + 2^-7; 1 + 3 2^-8 of 1 + 2^-7 and
    1 + 2^-6; the even last bit is that of 1 and of 1 + 2^-6. A little more than the middle goes up."""
    model = load_model(llama(tmp_path))
    with torch.no_grad():
        model.model.norm.weight[:3] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20])
    model.save_pretrained(tmp_path)
    copied(tmp_path, random_policy)
    assert stored(tmp_path / "bfloat16")["model.norm.weight"][:3].tolist() == [1, 1 + 2**-6, 1 + 2**-7]


def test_weights_that_stay_in_float32_where_bfloat16_is_asked_for_do_so_in_the_copy(
    random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["layernorm"])
    path = moved(llama(tmp_path))
    cast = load_model(path, dtype="bfloat16").state_dict()
    copied(path, random_policy)
    read = load_model(path, dtype="bfloat16").state_dict()
    assert {w.dtype for n, w in read.items() if "layernorm" in n} == {torch.float32}
    assert {w.dtype for n, w in read.items() if "layernorm" not in n} == {torch.bfloat16}
    assert all(torch.equal(read[name], weight) for name, weight in cast.items())


@pytest.mark.parametrize("kept", [["layernorm"], ["experts"], []])
def test_weights_that_transformers_renames_as_it_loads_them_are_the_same_too(
    kept: list[str], random_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixtral's experts are single matrices in files, and one in memory. Those may be what stays in float32."""
    from transformers import MixtralConfig, MixtralForCausalLM

    monkeypatch.setattr(MixtralForCausalLM, "_keep_in_fp32_modules_strict", kept)
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).save_pretrained(tmp_path)
    path = moved(tmp_path)
    assert not set(stored(path)) & {name for name in load_model(path).state_dict() if ".experts." in name}
    cast = load_model(path, dtype="bfloat16").state_dict()
    copied(path, random_policy)
    read = load_model(path, dtype="bfloat16").state_dict()
    assert {n: w.dtype for n, w in read.items()} == {n: w.dtype for n, w in cast.items()}
    assert all(torch.equal(read[name], weight) for name, weight in cast.items())
    halved = {w.dtype for n, w in stored(path / "bfloat16").items() if ".experts." in n}
    assert halved == {torch.float32 if kept == ["experts"] else torch.bfloat16}


def test_a_policy_without_a_copy_or_whose_manifest_was_taken_away_is_read_itself(
    random_policy: Path, tmp_path: Path
) -> None:
    """As after a change by hand, which the copy has not seen. A directory of that name alone is no copy."""
    path = llama(tmp_path)
    assert readable(path, "bfloat16") == path
    (path / "bfloat16").mkdir()
    (path / "manifest.json").write_text("{}")
    assert readable(path, "bfloat16") == path
    (path / "bfloat16").rmdir()
    copied(path, random_policy)
    assert readable(path, "bfloat16") == readable(readable(path, "bfloat16"), "bfloat16") == path / "bfloat16"
    (path / "manifest.json").unlink()
    assert readable(path, "bfloat16") == path
    assert readable(tmp_path / "nowhere", "bfloat16") == tmp_path / "nowhere"


# ------------------------------------------------------------------------------------------------------------------ BOS

GEMMA = "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['content'] }}<end_of_turn>{% endfor %}"
LLAMA3 = (  # BOS within the loop, in the first turn's text
    "{% for m in messages %}{% set text = '<start_of_turn>' + m['content'] + '<end_of_turn>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
)
QWEN = GEMMA.replace("{{ bos_token }}", "")


def tokenizer_with(directory: Path, source: Path, template: str, adds_bos: bool) -> Path:
    """The tiny policy's tokenizer with another template; `adds_bos`: whether it puts BOS before plain text."""
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    if not adds_bos:
        edit(directory / "tokenizer.json", post_processor=None)
    return directory


@pytest.mark.parametrize(
    ("template", "adds_bos", "count"),
    [(GEMMA, True, 1), (LLAMA3, True, 1), (GEMMA, False, 1), (QWEN, False, 0)],
    ids=["gemma", "llama3", "template-only", "qwen"],
)
def test_one_bos_or_none_at_all(template: str, adds_bos: bool, count: int, random_policy: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_with(tmp_path, random_policy, template, adds_bos))
    assert tokenizer("x")["input_ids"].count(tokenizer.bos_token_id) == adds_bos
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text.count("<bos>") == count


@pytest.mark.parametrize("adds_bos", [True, False])
def test_two_bos_are_refused(adds_bos: bool, random_policy: Path, tmp_path: Path) -> None:
    path = tokenizer_with(tmp_path, random_policy, "{{ bos_token }}" + GEMMA, adds_bos)
    with pytest.raises(BadInput, match=r"renders 2 <bos> before a prompt"):
        load_tokenizer(path)


def test_no_bos_where_the_tokenizer_wants_one_gets_it(random_policy: Path, tmp_path: Path) -> None:
    from mnpo.models.chat import Chat

    tokenizer = load_tokenizer(tokenizer_with(tmp_path, random_policy, QWEN, adds_bos=True))
    room = Text(max_length=80, max_prompt_length=48)
    bos, rendered = tokenizer.bos_token_id, tokenizer("<start_of_turn>x<end_of_turn>", add_special_tokens=False)
    assert Chat(tokenizer, room).prompt("x") == [bos, *rendered["input_ids"]]
    for said, front in (("template", []), ("none", []), ("add", [bos])):
        chat = Chat(tokenizer, room.model_copy(update={"bos": said}))
        assert chat.prompt("x") == [*front, *rendered["input_ids"]]


def test_a_template_that_refuses_a_users_turn_is_one_message(random_policy: Path, tmp_path: Path) -> None:
    from mnpo.models.chat import Chat

    path = tokenizer_with(tmp_path, random_policy, "{{ raise_exception('system first') }}", adds_bos=True)
    with pytest.raises(BadInput, match=f"{path}: the chat template does not render turns of user .system first."):
        Chat(load_tokenizer(path), Text()).prompt("x")


# -------------------------------------------------------------------------------------------------------------- padding


def test_no_stage_listens_to_the_tokenizers_padding_side(random_policy: Path, tmp_path: Path) -> None:
    """Sampling pads left, scoring right, whatever tokenizer_config.json says; alone and padded agree."""
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    from mnpo.models.chat import Chat
    from mnpo.models.logprobs import score_texts
    from mnpo.oracles import Question
    from mnpo.oracles.reward_models import reward_model
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    decoding = Decoding(temperature=0.0, top_p=1.0, max_new_tokens=8)
    prompts = ["What is 1 + 1?", "A much longer question, so that one of the two is padded."]
    torch.manual_seed(0)
    classifier = Gemma2ForSequenceClassification(
        Gemma2Config.from_pretrained(random_policy, num_labels=1, initializer_range=0.2)
    )
    found = {}
    for side in ("left", "right"):
        policy, reward = tmp_path / side, tmp_path / f"reward-{side}"
        shutil.copytree(random_policy, policy)
        edit(policy / "tokenizer_config.json", padding_side=side)
        tokenizer = load_tokenizer(policy)
        assert tokenizer.padding_side == side
        chat, model = Chat(tokenizer, Text(max_length=80, max_prompt_length=48)), load_model(policy)
        requests = [Request(chat.prompt(prompt), seed=0) for prompt in prompts]
        texts = [chat.encode(prompt, "two") for prompt in prompts]
        classifier.save_pretrained(reward)
        tokenizer.save_pretrained(reward)
        judge = reward_model(str(reward))

        drawn = draw(model, requests, decoding, chat.stop_ids, 2, "")
        sums = score_texts(model, texts, max_tokens=4096).sums
        rewards = [r for row in judge.score([Question(p, "", ["two", "2"]) for p in prompts]) for r in row]
        assert drawn == [draw(model, [r], decoding, chat.stop_ids, 1, "")[0] for r in requests]
        alone = torch.cat([score_texts(model, [text], max_tokens=4096).sums for text in texts])
        torch.testing.assert_close(sums, alone, rtol=0, atol=1e-4)
        alone_too = [judge.score([Question(p, "", [r])])[0][0] for p in prompts for r in ("two", "2")]
        assert rewards == pytest.approx(alone_too, abs=1e-5)
        found[side] = drawn, sums.tolist(), rewards
    assert found["left"] == found["right"]
