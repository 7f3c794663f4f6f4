"""Log-probabilities of pairs, against full logits computed one text at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mnpo.config.sampling import Sampling
from mnpo.config.text import Text, TextForm
from mnpo.errors import BadInput, Interrupted
from mnpo.models import logprobs
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer
from mnpo.stages import sample
from mnpo.stages.logps import Settings, run
from mnpo.storage.records import LOGPS, PAIRS, SAMPLER_LOGPS, SAMPLES, read, rows_of, write
from tests.helpers.interrupting import Signalled


def by_full_logits(policy: Path, text: Text, form: TextForm, prompt: str, response: str) -> tuple[float, int]:
    """Sum of log softmax over the response's tokens, and their number."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64).eval()
    encoded = Chat(load_tokenizer(policy), text, form).encode(prompt, response)
    ids = torch.tensor([[*encoded.prompt, *encoded.response]])
    with torch.no_grad():
        log = model(input_ids=ids).logits[0].log_softmax(-1)
    first = len(encoded.prompt)
    return sum(float(log[i - 1, ids[0, i]]) for i in range(first, ids.shape[1])), len(encoded.response)


@pytest.mark.parametrize("form", [TextForm(), TextForm(render="raw", bos=False)], ids=["chat", "raw-nobos"])
def test_sums_and_counts_are_those_of_full_logits(
    tmp_path: Path, chain: dict[str, Path], text: Text, form: TextForm, manifest_of: Callable[[Path], Any]
) -> None:
    output = tmp_path / "logps.parquet"
    run(Settings(form=form, text=text), chain["policy"], chain["pairs"], output)
    pairs, logps = read(PAIRS, chain["pairs"]), read(LOGPS, output)
    assert logps["pair_id"].tolist() == pairs["pair_id"].tolist()
    assert len(pairs) >= 10
    for pair, row in list(zip(pairs.to_dict("records"), logps.to_dict("records"), strict=True))[:4]:
        for side in ("chosen", "rejected"):
            value, tokens = by_full_logits(chain["policy"], text, form, pair["prompt"], pair[side])
            assert row[side] == pytest.approx(value, abs=1e-4)
            assert row[f"{side}_tokens"] == tokens
    facts = manifest_of(output)
    assert facts["rows"] == len(pairs) and facts["responses_cut"] == 0


def test_without_the_soft_cap_the_sums_are_those_of_attention_that_does_not_cap(
    tmp_path: Path, chain: dict[str, Path], text: Text
) -> None:
    """What the public code's opponents were scored by (ledger, point 44). A cap of 0.05 makes the two far apart on a
    model as small as this one."""
    policies = {}
    for cap in (0.05, None):
        policies[cap] = tmp_path / f"cap-{cap}"
        shutil.copytree(chain["policy"], policies[cap], ignore=shutil.ignore_patterns("manifest.json"))
        config = policies[cap] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"attn_logit_softcapping": cap}))
    for soft_cap, name in ((None, "capped"), (False, "uncapped")):
        run(
            Settings(form={}, text=text, soft_cap=soft_cap),
            policies[0.05],
            chain["pairs"],
            tmp_path / f"{name}.parquet",
        )
    capped, uncapped = (read(LOGPS, tmp_path / f"{name}.parquet")["chosen"] for name in ("capped", "uncapped"))
    pair = rows_of(read(PAIRS, chain["pairs"]))[0]
    for cap, found in ((0.05, capped), (None, uncapped)):
        value, _ = by_full_logits(policies[cap], text, TextForm(), pair["prompt"], pair["chosen"])
        assert found.iloc[0] == pytest.approx(value, abs=1e-4)
    assert (capped - uncapped).abs().max() > 1e-3


def test_another_policy_gives_other_numbers_of_the_same_tokens(
    tmp_path: Path, chain: dict[str, Path], random_policy: Path, text: Text
) -> None:
    run(Settings(form={}, text=text), random_policy, chain["pairs"], tmp_path / "logps.parquet")
    own, other = read(LOGPS, chain["logps"]), read(LOGPS, tmp_path / "logps.parquet")
    assert own["chosen_tokens"].tolist() == other["chosen_tokens"].tolist()
    assert ((own["chosen"] - other["chosen"]).abs() > 0.1).all()


def test_an_opponent_with_another_tokenizer_reads_the_text_by_its_own(
    tmp_path: Path, chain: dict[str, Path], prompts_directory: Path, architecture: dict[str, Any], text: Text
) -> None:
    """An external policy whose tokenizer was trained on other texts, with a smaller vocabulary: other tokens, and other
    numbers of them; the pairs stay the same."""
    from mnpo.demo.model import build

    words = [f"{a} {b}" for a in ("alpha", "beta", "gamma") for b in ("delta", "epsilon")]
    build(tmp_path / "external", words, vocab_size=300, architecture=architecture, seed=1)
    run(Settings(form={}, text=text), tmp_path / "external", chain["pairs"], tmp_path / "logps.parquet")
    pairs, own, other = (
        read(PAIRS, chain["pairs"]),
        read(LOGPS, chain["logps"]),
        read(LOGPS, tmp_path / "logps.parquet"),
    )
    assert own["pair_id"].tolist() == other["pair_id"].tolist()
    assert (own["chosen_tokens"] != other["chosen_tokens"]).mean() > 0.5
    pair, row = pairs.to_dict("records")[0], other.to_dict("records")[0]
    for side in ("chosen", "rejected"):
        value, tokens = by_full_logits(tmp_path / "external", text, TextForm(), pair["prompt"], pair[side])
        assert row[side] == pytest.approx(value, abs=1e-4) and row[f"{side}_tokens"] == tokens


def test_a_response_over_the_limit_is_cut_and_counted(
    tmp_path: Path, chain: dict[str, Path], manifest_of: Callable[[Path], Any]
) -> None:
    pairs = read(PAIRS, chain["pairs"])
    pairs.loc[0, "chosen"] = "cat dog " * 50
    write(PAIRS, pairs, tmp_path / "pairs.parquet")
    run(
        Settings(form={}, text=Text(max_length=80, max_prompt_length=48)),
        chain["policy"],
        tmp_path / "pairs.parquet",
        tmp_path / "l",
    )
    assert manifest_of(tmp_path / "l")["responses_cut"] == 1
    tokenizer = load_tokenizer(chain["policy"])
    prompt = Chat(tokenizer, Text(max_length=80, max_prompt_length=48)).prompt(pairs.loc[0, "prompt"])
    assert read(LOGPS, tmp_path / "l").loc[0, "chosen_tokens"] == 80 - len(prompt)


def test_a_prompt_that_is_too_long_is_named_with_its_pair(tmp_path: Path, chain: dict[str, Path]) -> None:
    limits = Text(max_length=80, max_prompt_length=12, overflow="error")
    with pytest.raises(BadInput, match=f"{chain['pairs']}: pair .*, chosen: a prompt of .* tokens, the limit is 12"):
        run(Settings(form={}, text=limits), chain["policy"], chain["pairs"], tmp_path / "logps.parquet")
    assert not list(tmp_path.iterdir())


def test_stopped_after_a_batch_and_continued_the_file_is_the_same_byte_for_byte(
    tmp_path: Path,
    chain: dict[str, Path],
    text: Text,
    monkeypatch: pytest.MonkeyPatch,
    manifest_of: Callable[[Path], Any],
) -> None:
    monkeypatch.setattr("mnpo.stages.logps.SCORING_TOKENS", 60)
    sums = Signalled(monkeypatch, logprobs, "_sums")
    output, settings = tmp_path / "logps.parquet", Settings(form={}, text=text)
    run(settings, chain["policy"], chain["pairs"], output)
    whole, batches = output.read_bytes(), sums.calls
    assert batches > 3
    output.unlink()
    sums.again(2)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after 3 batches; to be continued"):
        run(settings, chain["policy"], chain["pairs"], output)
    assert not output.exists()
    sums.again()
    run(settings, chain["policy"], chain["pairs"], output)
    assert output.read_bytes() == whole and sums.calls == batches - 3
    assert manifest_of(output)["resumed"] == 1 and not list(tmp_path.glob(".*"))


# --------------------------------------------------------------------------------------------- what the sampler said


@pytest.fixture
def said(tmp_path: Path, chain: dict[str, Path], sampling: Sampling, text: Text) -> Callable[..., Path]:
    """The chain's samples, drawn again with what the sampler says of them."""

    def draw(**changes: Any) -> Path:
        asked = sample.Settings(
            sampling=Sampling(**sampling.model_dump() | {"logprobs": True} | changes), text=text, shard=0, seed=5
        )
        output = tmp_path / "said.parquet"
        sample.run(asked, chain["policy"], chain["prompts"], tmp_path / "samples.parquet", output)
        assert (tmp_path / "samples.parquet").read_bytes() == chain["samples"].read_bytes()
        return output

    return draw


def test_the_sampler_is_believed_where_the_tokens_are_the_very_same_and_the_model_reads_the_rest(
    tmp_path: Path, chain: dict[str, Path], text: Text, said: Callable[..., Path], manifest_of: Callable[[Path], Any]
) -> None:
    output = tmp_path / "logps.parquet"
    run(Settings(form={}, text=text), chain["policy"], chain["pairs"], output, [said()])
    computed, reused, samples = read(LOGPS, chain["logps"]), read(LOGPS, output), read(SAMPLES, chain["samples"])
    whole = {(r["prompt_id"], r["response"]) for r in samples.to_dict("records") if r["finish"] == "stop"}
    pairs = read(PAIRS, chain["pairs"]).to_dict("records")
    possible = sum((p["prompt_id"], p[side]) in whole for p in pairs for side in ("chosen", "rejected"))
    facts = manifest_of(output)
    assert 0 < facts["said_by_the_sampler"] <= possible < 2 * len(pairs)  # a cut one lacks the end of turn
    assert facts["tokens"] < manifest_of(chain["logps"])["tokens"]
    for side in ("chosen", "rejected"):
        assert (computed[side] - reused[side]).abs().max() < 1e-4  # two float32 passes over the same tokens
        assert computed[f"{side}_tokens"].tolist() == reused[f"{side}_tokens"].tolist()


def test_no_model_is_loaded_when_the_sampler_said_it_all(
    tmp_path: Path, chain: dict[str, Path], text: Text, said: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, table = Chat(load_tokenizer(chain["policy"]), text), read(SAMPLER_LOGPS, said())
    prints, pairs = set(table["read"]), read(PAIRS, chain["pairs"])
    texts = [[chat.encode(p["prompt"], p[s]).fingerprint() for s in ("chosen", "rejected")] for p in rows_of(pairs)]
    some = pairs[[prints.issuperset(both) for both in texts]]
    assert len(some) > 0
    write(PAIRS, some, tmp_path / "pairs.parquet")
    monkeypatch.delattr("mnpo.models.checkpoints.load_model")
    run(
        Settings(form={}, text=text),
        chain["policy"],
        tmp_path / "pairs.parquet",
        tmp_path / "l",
        [tmp_path / "said.parquet"],
    )
    by_print = dict(zip(table["read"], table["logp"], strict=True))
    wanted = [by_print[both[0]] for both in texts if prints.issuperset(both)]
    assert read(LOGPS, tmp_path / "l")["chosen"].tolist() == wanted


def test_texts_that_are_rendered_otherwise_are_computed(
    tmp_path: Path, chain: dict[str, Path], text: Text, said: Callable[..., Path], manifest_of: Callable[[Path], Any]
) -> None:
    raw = Settings(form=TextForm(render="raw"), text=text)
    run(raw, chain["policy"], chain["pairs"], tmp_path / "plain")
    run(raw, chain["policy"], chain["pairs"], tmp_path / "l", [said()])
    assert manifest_of(tmp_path / "l")["said_by_the_sampler"] == 0
    assert (tmp_path / "l").read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_sampler_that_is_too_far_from_training_is_not_believed(
    tmp_path: Path, chain: dict[str, Path], text: Text, said: Callable[..., Path], manifest_of: Callable[[Path], Any]
) -> None:
    table = said(mismatch_warning=1e-12)
    assert len(read(SAMPLER_LOGPS, table)) == 0 and "warning" in manifest_of(tmp_path / "samples.parquet")["mismatch"]
    run(Settings(form={}, text=text), chain["policy"], chain["pairs"], tmp_path / "l", [table])
    assert (tmp_path / "l").read_bytes() == chain["logps"].read_bytes()
