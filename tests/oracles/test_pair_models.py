"""A pair-preference model in miniature against its logits, read one prompt at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import normalizers

from mnpo.config.oracles import Oracle
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.models.checkpoints import load_tokenizer
from mnpo.oracles import Question, forward, load
from mnpo.oracles.pair_models import PairModel

# The context as the published tokenizer template renders it, in Jinja as transformers sets it up.
CONTEXT = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n {{ message['content'] }}"
    "{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}{% endfor %}\n\n\n"
)


@pytest.fixture(scope="module", params=["Llama", "Gemma2"])
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, skywork: Path, tiny: dict[str, Any]
) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    tokenizer = load_tokenizer(skywork)
    tokenizer.save_pretrained(directory)
    capped = {"final_logit_softcapping": 0.5} if request.param == "Gemma2" else {}
    config = getattr(transformers, f"{request.param}Config")(vocab_size=len(tokenizer), **tiny, **capped)
    torch.manual_seed(5)
    getattr(transformers, f"{request.param}ForCausalLM")(config).save_pretrained(directory)
    return directory


def by_hand(path: Path, prompt: str, a: str, b: str) -> float:
    """exp(A) / (exp(A) + exp(B)) of the logits where the assistant's turn begins, without BOS."""
    tokenizer = load_tokenizer(path)
    turns = [{"role": "user", "content": prompt}]
    context = tokenizer.apply_chat_template(turns, chat_template=CONTEXT, tokenize=False)
    said = f"[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n".strip()  # the template trims
    text = f"<|start_header_id|>user<|end_header_id|>\n\n{said}<|eot_id|>"
    text += "<|start_header_id|>assistant<|end_header_id|>\n\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, -1].double()
    first, second = (math.exp(logits[tokenizer.convert_tokens_to_ids(letter)]) for letter in "AB")
    return first / (first + second)


def test_a_preference_is_the_mean_of_both_orders(checkpoint: Path, questions: list[Question]) -> None:
    oracle = PairModel(str(checkpoint))
    judged = oracle.judge(questions)
    seen = []
    for question, judgement in zip(questions, judged, strict=True):
        n = len(question.responses)
        for a, b in ((a, b) for a in range(n) for b in range(n) if a != b):
            x, y = question.responses[a], question.responses[b]
            p = (by_hand(checkpoint, question.prompt, x, y) + 1 - by_hand(checkpoint, question.prompt, y, x)) / 2
            assert judgement.preferences[a][b] == pytest.approx(p, abs=1e-5)
            seen.append(p)
    assert max(seen) - min(seen) > 0.005
    assert oracle.facts()["games"] == 2 * (3 + 3) and oracle.facts()["tokens"] > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_batch_gives_each_game_what_it_gets_alone(
    checkpoint: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch, dtype: Any, tolerance: float
) -> None:
    together, alone = (PairModel(str(checkpoint), dtype=dtype) for _ in range(2))
    judged = [p for j in together.judge(questions) for row in j.preferences for p in row]
    monkeypatch.setattr(forward, "SCORING_TOKENS", 1)
    one_by_one = [p for j in alone.judge(questions) for row in j.preferences for p in row]
    assert judged == pytest.approx(one_by_one, abs=tolerance)
    assert together.reader.padding > 0 == alone.reader.padding


def test_the_kind_is_loaded_with_its_settings(checkpoint: Path, questions: list[Question]) -> None:
    settings = {"pm": Oracle(kind="pair-model", model="m", comparisons=2, dtype="bfloat16")}
    oracle = load("pm", settings, {"m": Model(path=str(checkpoint))})
    judged = oracle.judge(questions)
    assert sum(math.isnan(p) for j in judged for row in j.preferences for p in row) == 4  # one pair of two prompts
    assert oracle.facts()["games"] == 8


def test_a_letter_of_several_tokens_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer that puts a blank before a text's first word, as Llama 2's did: two tokens here."""
    tokenizer = load_tokenizer(checkpoint)
    tokenizer.backend_tokenizer.normalizer = normalizers.Prepend("~")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="A is 2 tokens here; a pair model answers with one"):
        PairModel(str(tmp_path))


def test_a_conversation_is_the_context_that_the_published_template_renders(checkpoint: Path) -> None:
    model = PairModel(str(checkpoint))
    talk = [("user", "Say dog"), ("assistant", "dog"), ("user", "Say cat")]
    turns = [{"role": role, "content": content} for role, content in talk]
    context = model.tokenizer.apply_chat_template(turns, chat_template=CONTEXT, tokenize=False)
    text = model.tokenizer.decode(model._text(turns, "cat", "dog"))
    assert f"[CONTEXT] {context} [RESPONSE A] cat [RESPONSE B] dog" in text
