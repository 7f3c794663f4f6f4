"""Reward models in miniature, with the published weights' names, against the formulas written out by hand."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mnpo.config.oracles import Oracle
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.models import packing
from mnpo.models.checkpoints import load_tokenizer
from mnpo.oracles import Question, forward, load
from mnpo.oracles.reward_models import ArmoRM, Athene, Classifier, RewardModel, reward_model
from mnpo.stages import score
from mnpo.storage.records import SAMPLES, read, write

KINDS = ("armorm", "athene", "skywork")
EOT_HEADER = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def rewards(judged: list[list[float]]) -> list[float]:
    return [r for question in judged for r in question]


def rendered(prompt: str, response: str) -> str:
    """Llama 3's template, written out."""
    return f"<bos><|start_header_id|>user<|end_header_id|>\n\n{prompt}{EOT_HEADER}{response}<|eot_id|>"


def states(path: Path, text: str) -> tuple[list[int], Any]:
    """Token ids of a text, and its last hidden states, one text at a time without padding."""
    ids = load_tokenizer(path)(text, add_special_tokens=False)["input_ids"]
    config = transformers.LlamaConfig.from_pretrained(path)
    backbone = transformers.LlamaModel(config).eval()
    weights = {n.removeprefix("model."): w for n, w in load_file(path / "model.safetensors").items() if "model." in n}
    backbone.load_state_dict(weights)
    with torch.no_grad():
        return ids, backbone(torch.tensor([ids])).last_hidden_state[0].double()


# --------------------------------------------------------------------------------------------------------------- heads


def test_armorm_gates_its_objectives_by_the_end_of_the_prompt(armorm: Path, questions: list[Question]) -> None:
    """score = scale * sum_i softmax(mlp(h_prompt) / 10)_i * (W h_last @ T)_i, with sums written out."""
    weights = {name: w.double() for name, w in load_file(armorm / "model.safetensors").items()}
    model = reward_model(str(armorm))
    assert isinstance(model, ArmoRM)
    judged = model.judge(questions)
    for question, judgement in zip(questions, judged, strict=True):
        for k, response in enumerate(question.responses):
            ids, hidden = states(armorm, rendered(question.prompt, response))
            eot = load_tokenizer(armorm).convert_tokens_to_ids("<|eot_id|>")
            end, last = [i for i, token in enumerate(ids) if token == eot]
            assert last == len(ids) - 1
            x = hidden[end]
            for layer in range(4):
                x = weights[f"gating.layers.{layer}.weight"] @ x + weights[f"gating.layers.{layer}.bias"]
                x = torch.maximum(x, torch.zeros(())) if layer < 3 else x
            gate = [math.exp(z / 10) for z in x.tolist()]
            objectives = (weights["regression_layer.weight"] @ hidden[last]).tolist()
            matrix = weights["reward_transform_matrix"].tolist()
            adjusted = [sum(objectives[i] * matrix[i][j] for i in range(19)) for j in range(19)]
            score = weights["gating.logit_scale"].item() * sum(g * r for g, r in zip(gate, adjusted, strict=True))
            assert judgement.scores[k] == pytest.approx(score / sum(gate), rel=1e-4, abs=1e-5)
            found = [values[k] for values in judgement.objectives.values()]
            assert found == pytest.approx(objectives, rel=1e-4, abs=1e-5)
    names = list(judged[0].objectives)
    assert len(names) == 19 and names[0] == "helpsteer-helpfulness" and names[10] == "beavertails-is_safe"
    scores = rewards([j.scores for j in judged])
    assert max(scores) - min(scores) > 0.1


def test_the_gate_sees_the_prompt_only(armorm: Path, tmp_path: Path, save_llama: Any, armorm_parts: Any) -> None:
    """With the gate's weights on one objective by its bias alone, the score is that objective's reward."""
    weights, settings = armorm_parts
    chosen = {name: torch.zeros_like(w) if "gating.layers" in name else w for name, w in weights.items()}
    chosen["gating.layers.3.bias"][7] = 1e4  # softmax over it: one
    chosen |= {"gating.logit_scale": torch.ones(1), "reward_transform_matrix": torch.eye(19)}
    path = save_llama(tmp_path, chosen, **settings)
    (judgement,) = reward_model(str(path)).judge([Question("Say cat", "", ["cat", "dog dog"])])
    assert judgement.scores == pytest.approx(judgement.objectives["ultrafeedback-truthfulness"], rel=1e-5)


def test_athene_reads_its_value_at_the_cls_token_after_the_conversation(
    athene: Path, questions: list[Question]
) -> None:
    head = load_file(athene / "model.safetensors")["v_head.weight"].double()[0]
    expected = []
    for question in questions:
        for response in question.responses:
            text = rendered(question.prompt, response) + "<|reserved_special_token_1|>"
            _, hidden = states(athene, text)
            expected.append(float(hidden[-1] @ head))
    model = reward_model(str(athene))
    assert isinstance(model, Athene)
    assert rewards(model.score(questions)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_classifier_reads_the_last_token(skywork: Path, questions: list[Question]) -> None:
    head = load_file(skywork / "model.safetensors")["score.weight"].double()[0]
    expected = [float(states(skywork, rendered(q.prompt, r))[1][-1] @ head) for q in questions for r in q.responses]
    model = reward_model(str(skywork))
    assert isinstance(model, Classifier)
    assert rewards(model.score(questions)) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_classifier_published_to_pad_by_the_end_of_turn_pools_before_it(
    skywork: Path, tmp_path: Path, questions: list[Question]
) -> None:
    """transformers pools at the last token that is not padding, alone or in a batch: here the one before <|eot_id|>."""
    for file in skywork.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    eot = load_tokenizer(skywork).convert_tokens_to_ids("<|eot_id|>")
    content = json.loads((tmp_path / "config.json").read_text()) | {"pad_token_id": eot}
    (tmp_path / "config.json").write_text(json.dumps(content))
    head = load_file(skywork / "model.safetensors")["score.weight"].double()[0]
    texts = [rendered(q.prompt, r) for q in questions[2:] for r in q.responses]
    expected = [float(states(skywork, text)[1][-2] @ head) for text in texts]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = load_tokenizer(tmp_path)(texts[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert model(ids).logits.item() == pytest.approx(expected[0], rel=1e-4)  # what it is published to say
    assert rewards(reward_model(str(tmp_path)).score(questions[2:])) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("architecture", ["Gemma2", "Bert"])  # a decoder that reads its last token, and an encoder
def test_any_sequence_classifier_is_read_under_its_own_template(
    architecture: str,
    tmp_path: Path,
    random_policy: Path,
    tiny: dict[str, Any],
    questions: list[Question],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "PASS", 10**6)
    path = classifier(tmp_path, random_policy, architecture, tiny)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(path)
    expected = []
    for q in questions:
        for r in q.responses:
            turns = f"<start_of_turn>user\n{q.prompt}<end_of_turn>\n<start_of_turn>model\n{r}<end_of_turn>\n"
            ids = torch.tensor([tokenizer(f"<bos>{turns}", add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                expected.append(float(model(input_ids=ids).logits[0, 0]))
    judge = reward_model(str(path))
    assert rewards(judge.score(questions)) == pytest.approx(expected, abs=1e-5)
    assert judge.reader.padding > 0 and max(expected) - min(expected) > 0.01


def classifier(directory: Path, tokenizer: Path, architecture: str, tiny: dict[str, Any], labels: int = 1) -> Path:
    settings = tiny | {"pad_token_id": 0, "num_labels": labels, "vocab_size": 340}
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**settings)
    getattr(transformers, f"{architecture}ForSequenceClassification")(config).save_pretrained(directory)
    load_tokenizer(tokenizer).save_pretrained(directory)
    return directory


# ------------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03)])
def test_a_batch_gives_each_response_what_it_gets_alone(
    checkpoint: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch, dtype: Any, tolerance: float
) -> None:
    """Tolerances in shares of the largest score; bfloat16 keeps 8 bits. Measured here: 5e-7 and 1e-2."""
    monkeypatch.setattr(packing, "PASS", 10**6)  # few texts, of all lengths, in one batch
    model = reward_model(str(checkpoint), dtype)
    together = rewards(model.score(questions))
    assert model.reader.padding > 0
    alone = reward_model(str(checkpoint), dtype)
    monkeypatch.setattr(forward, "SCORING_TOKENS", 1)
    scale = max(map(abs, together))
    assert rewards(alone.score(questions)) == pytest.approx(together, abs=tolerance * scale)
    assert alone.reader.padding == 0 and alone.reader.tokens == model.reader.separate > model.reader.tokens


def test_bfloat16_is_float32_rounded(checkpoint: Path, questions: list[Question]) -> None:
    full, half = (rewards(reward_model(str(checkpoint), d).score(questions)) for d in ("float32", "bfloat16"))
    assert half == pytest.approx(full, abs=0.1 * max(map(abs, full))) and half != full
    assert not all(float(torch.tensor(x).bfloat16()) == x for x in half)  # the head itself works in float32


def test_rewards_keep_the_order_of_questions_and_responses(checkpoint: Path, questions: list[Question]) -> None:
    backwards = [Question(q.prompt, q.truth, q.responses[::-1]) for q in questions[::-1]]
    model = reward_model(str(checkpoint))
    assert rewards(model.score(backwards))[::-1] == pytest.approx(rewards(model.score(questions)), abs=1e-5)


def test_every_text_is_read_once_with_one_bos_and_counted(skywork: Path) -> None:
    """Equal responses are one text, and get one score; what both texts begin with is read once."""
    model = reward_model(str(skywork))
    (scores,) = model.score([Question("Say cat", "", ["cat", "dog dog dog", "cat"])])
    assert scores[0] == scores[2] != scores[1]
    texts = [model._text(Question("Say cat", "", []).turns, response) for response in ("cat", "dog dog dog")]
    assert all(ids.count(model.tokenizer.bos_token_id) == 1 and ids[0] == model.tokenizer.bos_token_id for ids in texts)
    common, separate = texts[0].index(model._ids("cat<|eot_id|>")[0], 12), sum(map(len, texts))
    assert texts[0][:common] == texts[1][:common] and texts[0][common] != texts[1][common]
    parameters = sum(w.numel() for w in load_file(skywork / "model.safetensors").values())
    assert model.facts() == {
        "tokens": separate - common,
        "padding_share": 0.0,
        "shared_prompt_share": round(common / separate, 4),
        "parameters": parameters,
    }


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_a_conversation_is_scored_whole_its_system_turn_in_the_users_where_the_template_has_none(
    kind: str, skywork: Path, tmp_path: Path, random_policy: Path, tiny: dict[str, Any]
) -> None:
    context = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Say dog"},
        {"role": "assistant", "content": "dog"},
    ]
    question = Question("Say cat", "", ["cat"], context=json.dumps(context))
    path = skywork if kind == "Llama" else classifier(tmp_path, random_policy, kind, tiny)
    judge = reward_model(str(path))
    judge.judge([question])
    (read,) = judge.reader._found
    if kind == "Llama":
        turns = [("system", "Be brief"), ("user", "Say dog"), ("assistant", "dog"), ("user", "Say cat")]
        header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
        text = "<bos>" + "".join(header.format(*turn) for turn in [*turns, ("assistant", "cat")])
    else:
        turns = [("user", "Be brief\n\nSay dog"), ("model", "dog"), ("user", "Say cat"), ("model", "cat")]
        text = "<bos>" + "".join("<start_of_turn>{}\n{}<end_of_turn>\n".format(*turn) for turn in turns)
    assert judge.tokenizer.decode(list(read)) == text
    assert judge.facts().get("systems_in_the_users_turn") == (None if kind == "Llama" else 1)


def test_a_control_token_that_is_typed_does_not_move_where_a_model_reads(skywork: Path) -> None:
    judge = reward_model(str(skywork))
    eot = judge.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    text = judge._text(Question("Say <|eot_id|> cat", "", []).turns, "cat<|eot_id|>")
    assert [i for i, token in enumerate(text) if token == eot][-1] == len(text) - 1 and text.count(eot) == 2


def test_what_several_oracles_are_made_of_is_loaded_once_and_reads_no_text_twice(
    skywork: Path, armorm: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the held-out evaluation asks: each alone, then a sum of both, half of it twice, and one annotator a prompt."""
    settings = {
        "a": Oracle(kind="reward-model", model="skywork"),
        "b": Oracle(kind="reward-model", model="armorm"),
        "sum": Oracle(kind="weighted", weights={"a": 2.0, "b": 1.0}),
        "more": Oracle(kind="weighted", weights={"a": 1.0, "sum": 1.0}),
        "crowd": Oracle(kind="annotator", of=["a", "b"]),
    }
    models = {"skywork": Model(path=str(skywork)), "armorm": Model(path=str(armorm))}
    loads: list[str] = []
    for kind in (Classifier, ArmoRM):
        load_weights = kind._load
        monkeypatch.setattr(kind, "_load", lambda self, load=load_weights: [loads.append(self.path), load(self)][1])
    loaded: dict[str, Any] = {}
    a, b, both, more, crowd = (
        rewards([j.scores for j in load(name, settings, models, loaded=loaded).judge(questions)]) for name in settings
    )
    assert sorted(loads) == sorted([str(skywork), str(armorm)])
    assert both == [2 * x + y for x, y in zip(a, b, strict=True)]
    assert more == [x + y for x, y in zip(a, both, strict=True)]
    assert all(c in (x, y) for c, x, y in zip(crowd, a, b, strict=True))
    read = {}
    for name in "ab":
        alone = load(name, settings, models)
        alone.judge(questions)
        read[name] = alone.facts()["tokens"]
    assert loaded["a"].facts()["tokens"] == read["a"]
    assert loaded["more"].facts()["tokens"] == loaded["crowd"].facts()["tokens"] == read["a"] + read["b"]


def test_a_text_that_the_model_cannot_read_is_refused(skywork: Path) -> None:
    with pytest.raises(BadInput, match=r"response\(s\) of \d+ tokens, the model reads at most 256"):
        reward_model(str(skywork)).score([Question("Say cat", "", ["cat " * 300])])


# ----------------------------------------------------------------------------------------------- settings and refusals


def test_an_oracle_of_this_kind_is_loaded_from_its_models_path(checkpoint: Path, questions: list[Question]) -> None:
    settings = {
        "rm": Oracle(kind="reward-model", model="m"),
        "sum": Oracle(kind="weighted", weights={"rm": 2.0}),
        "bt": Oracle(kind="reward-model", model="m", temperature=2.0, dtype="float32"),
    }
    models = {"m": Model(path=str(checkpoint))}
    one, twice, soft = (load(name, settings, models).judge(questions) for name in ("rm", "sum", "bt"))
    assert [2 * s for j in one for s in j.scores] == pytest.approx([s for j in twice for s in j.scores], abs=1e-5)
    a, b = soft[2].scores[:2]
    assert soft[2].preferences[0][1] == pytest.approx(1 / (1 + math.exp(-(a - b) / 2)))
    assert one[2].preferences[0][1] == float(a > b)
    with pytest.raises(BadInput, match=r"models\.m: an oracle's model must be on this machine"):
        load("rm", settings, {"m": Model(hub="someone/something")})


Spoil = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w, s: w.pop("gating.layers.1.bias"), r"1 missing \(such as gating\.layers\.1\.bias\)"),
        (lambda w, s: w.update({"lm_head.weight": torch.zeros(9, 32)}), r"1 unexpected \(such as lm_head\.weight\)"),
        (lambda w, s: s.pop("gating_temperature"), "config.json lacks gating_temperature"),
        (lambda w, s: s.update(gating_n_hidden=4), r"missing|mismatch"),
        (lambda w, s: w.update({"regression_layer.weight": torch.zeros(19 * 5, 32)}), r"mismatch|size|shape"),
    ],
)
def test_an_armorm_that_is_not_quite_one_is_refused(
    spoil: Spoil, message: str, tmp_path: Path, save_llama: Any, armorm_parts: Any
) -> None:
    weights, settings = (dict(part) for part in armorm_parts)
    spoil(weights, settings)
    path = save_llama(tmp_path, weights, **settings)
    with pytest.raises(BadInput, match=message) as error:
        reward_model(str(path)).score([Question("Say cat", "", ["cat"])])
    assert str(path) in str(error.value)


def test_armorm_under_a_foreign_template_is_refused(armorm: Path, tmp_path: Path, random_policy: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((armorm / file).read_bytes())
    load_tokenizer(random_policy).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="does not begin the assistant's turn with"):
        reward_model(str(tmp_path)).score([Question("Say cat", "", ["cat"])])


def test_athene_without_a_cls_token_is_refused(athene: Path, tmp_path: Path, random_policy: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((athene / file).read_bytes())
    load_tokenizer(random_policy).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="the tokenizer names no cls_token"):
        reward_model(str(tmp_path)).score([Question("Say cat", "", ["cat"])])


def test_a_causal_model_is_refused_for_its_missing_head(random_policy: Path) -> None:
    with pytest.raises(BadInput, match=r"1 weights are missing .* score\.weight"):
        reward_model(str(random_policy)).score([Question("Say cat", "", ["cat"])])


def test_code_that_comes_with_a_checkpoint_is_never_run(skywork: Path, tmp_path: Path) -> None:
    """One that transformers knows without it is read; one that it does not know is refused."""
    for file in skywork.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ran = tmp_path / "ran"
    (tmp_path / "modeling_custom.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    code = {f"Auto{n}": f"modeling_custom.{n}" for n in ("Config", "Tokenizer", "ModelForSequenceClassification")}
    content = json.loads((skywork / "config.json").read_text()) | {"auto_map": code}
    (tmp_path / "config.json").write_text(json.dumps(content))
    questions = [Question("Say cat", "", ["cat", "dog"])]
    assert reward_model(str(tmp_path)).score(questions) == reward_model(str(skywork)).score(questions)
    (tmp_path / "config.json").write_text(json.dumps(content | {"model_type": "custom"}))
    with pytest.raises(BadInput, match="not a classifier model that transformers loads"):
        reward_model(str(tmp_path)).score(questions)
    assert not ran.exists()


def test_a_classifier_of_several_outputs_is_refused(tmp_path: Path, random_policy: Path, tiny: dict[str, Any]) -> None:
    path = classifier(tmp_path, random_policy, "Llama", tiny, labels=2)
    with pytest.raises(BadInput, match="a classifier of 2 outputs is no reward model; expected 1"):
        reward_model(str(path)).score([Question("Say cat", "", ["cat"])])


def test_pairrm_is_refused_with_the_reason(tmp_path: Path) -> None:
    save_file({"head_layer.0.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["DebertaV2PairRM"]}))
    with pytest.raises(BadInput, match=r"llm-blender 0\.0\.2 .* use an oracle of kind pair-model or judge"):
        reward_model(str(tmp_path))


def test_a_directory_without_weights_or_tokenizer_is_refused(skywork: Path, tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / file).write_bytes((skywork / file).read_bytes())
    with pytest.raises(BadInput, match="a checkpoint without weights"):
        reward_model(str(tmp_path)).score([Question("Say cat", "", ["cat"])])
    (tmp_path / "model.safetensors").write_bytes((skywork / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(BadInput, match="not a whole file of weights"):
        reward_model(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match=r"no tokenizer_config\.json"):
        reward_model(str(tmp_path))


# ----------------------------------------------------------------------------------------------------------- the stage


def test_objectives_lie_beside_the_scores_and_their_means_in_the_manifest(
    tmp_path: Path, armorm: Path, manifest_of: Callable[[Path], Any]
) -> None:
    """In the score stage; the k of the first prompt are out of order."""
    samples, scores = tmp_path / "samples.parquet", tmp_path / "scores.parquet"
    rows = [
        {"prompt_id": prompt, "family": "", "prompt": f"Say {prompt}", "truth": "", "tokens": 5, "finish": "stop"}
        | {"k": k, "response": response, "seed": k}
        for prompt, responses in (("cat", {2: "cat", 0: "a dog", 1: "cat cat"}), ("dog", {0: "dog", 1: "cow cow"}))
        for k, response in responses.items()
    ]
    write(SAMPLES, rows, samples)
    score.run(
        score.Settings(
            oracle="rm", oracles={"rm": {"kind": "reward-model", "model": "m"}}, models={"m": {"path": str(armorm)}}
        ),
        samples,
        scores,
    )
    table = read(score.OBJECTIVES, scores.with_suffix(".objectives.parquet"))
    assert len(table) == 19 * 5
    facts = manifest_of(scores)
    assert facts["objectives"].keys() == set(table["objective"])
    for name, group in table.groupby("objective"):
        assert facts["objectives"][name] == pytest.approx(group["score"].mean(), abs=1e-5)
    question = Question("Say cat", "", ["cat", "a dog", "cat cat"])
    (judgement,) = reward_model(str(armorm)).judge([question])
    of_cat = table[(table["prompt_id"] == "cat") & (table["objective"] == "code-style")].set_index("k")["score"]
    assert [of_cat[k] for k in (2, 0, 1)] == pytest.approx(judgement.objectives["code-style"], abs=1e-5)
    assert facts["tokens"] > 0 and 0 < facts["shared_prompt_share"] < 1 and facts["parameters"] > 10_000
    assert facts["tokens_per_second"] > 0
    assert not scores.with_suffix(".comparisons.parquet").exists()  # they follow from the scores


# ---------------------------------------------------------------------------------------------- published configuration


def test_armorm_in_its_published_size_has_its_published_number_of_parameters(tmp_path: Path) -> None:
    """7.51 billion, as its page says; here from the layers' sizes."""
    from mnpo.oracles import heads

    published = {
        "vocab_size": 128257, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False, "pad_token_id": 128256,
        "num_objectives": 19, "gating_temperature": 10, "gating_hidden_dim": 1024, "gating_n_hidden": 3,
    }  # fmt: skip
    with torch.device("meta"):
        model = heads.ArmoRM(transformers.LlamaConfig(**published))
    attention, feed_forward = 2 * 4096 * 4096 + 2 * 4096 * 1024, 3 * 4096 * 14336
    backbone = 128257 * 4096 + 32 * (attention + feed_forward + 2 * 4096) + 4096
    gating = (4096 + 1) * 1024 + 2 * (1024 + 1) * 1024 + (1024 + 1) * 19 + 1
    count = sum(p.numel() for p in model.parameters())
    assert count == backbone + gating + 19 * 4096 + 19 * 19 == 7_511_320_957


PUBLISHED = {
    "RLHFlow--ArmoRM-Llama3-8B-v0.1": {"num_objectives": 19, "gating_temperature": 10, "gating_n_hidden": 3},
    "Skywork--Skywork-Reward-V2-Llama-3.1-8B": {"num_labels": 1},
    "Nexusflow--Athene-RM-8B": {},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_downloaded_reward_model_is_configured_as_we_think(name: str) -> None:
    cache = Path(os.environ.get("MNPO_CACHE", "~/.cache/mnpo")).expanduser()
    found = sorted((cache / "models" / name).glob("*/config.json"))
    if not found:
        pytest.skip(f"no {name} in {cache} (set MNPO_CACHE to where `mnpo download` put it)")
    config = transformers.AutoConfig.from_pretrained(found[0].parent, local_files_only=True)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 4096, 32)
    assert {key: getattr(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    kinds: dict[str, type[RewardModel]] = dict(zip(PUBLISHED, (ArmoRM, Classifier, Athene), strict=True))
    assert type(reward_model(str(found[0].parent))) is kinds[name]
