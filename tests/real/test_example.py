"""The example of a real model, in miniature and by the workflow: a user's own functions decide what it learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from examples import rewards
from tests.helpers.checkouts import ROOT, Checkout, copy_project

CONFIG = "tests/real/miniature.yaml"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose run is done."""
    path = tmp_path_factory.mktemp("example")
    copy_project(path, "examples")
    (path / CONFIG).parent.mkdir(parents=True)
    shutil.copy(ROOT / CONFIG, path / CONFIG)
    (path / "models").mkdir()
    (path / "models/smollm2-135m").symlink_to(smollm2)
    checkout = Checkout(path, CONFIG)
    checkout.made()
    return checkout


@pytest.fixture(scope="module")
def results(run: Checkout) -> Path:
    return run.path / "results/miniature"


def table(results: Path, pattern: str) -> pd.DataFrame:
    """The one file of that name."""
    (file,) = results.glob(pattern)
    return pd.read_parquet(file)


def test_scores_are_what_the_functions_say(results: Path) -> None:
    samples = table(results, "samples/sft/part1/*.parquet").merge(
        table(results, "scores/sft/part1/overall/*.parquet"), on=["prompt_id", "k"], validate="1:1"
    )
    assert len(samples) == 18
    responses, columns = samples["response"].tolist(), [json.loads(truth) for truth in samples["truth"]]
    expected = [
        brief + about + 0.5 * done
        for brief, about, done in zip(
            rewards.brevity(responses), rewards.on_topic(responses, columns), rewards.finished(responses), strict=True
        )
    ]
    assert samples["score"].tolist() == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_the_policy_learns_to_prefer_what_was_chosen(results: Path, smollm2: Path) -> None:
    """Both policies read by plain transformers; the reference is the published model, as the logps stage has it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pairs = table(results, "pairs/sft/part1/overall.parquet")
    logps = table(results, "logps/sft/part1/overall/chat/sft.parquet")
    assert (pairs["chosen_score"] > pairs["rejected_score"]).all() and len(pairs) >= 3
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    margins = {}
    for name, directory in {"sft": smollm2, "inpo.1": results / "policies/inpo.1"}.items():
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        sums = [
            [_logp(model, tokenizer, p["prompt"], p[side]) for side in ("chosen", "rejected")]
            for _, p in pairs.iterrows()
        ]
        margins[name] = sum(chosen - rejected for chosen, rejected in sums)
        if name == "sft":
            for found, expected in zip(logps[["chosen", "rejected"]].to_numpy().tolist(), sums, strict=True):
                assert found == pytest.approx(expected, abs=1e-4)
    assert margins["inpo.1"] > margins["sft"]


def _logp(model: torch.nn.Module, tokenizer: object, prompt: str, response: str) -> float:
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    before, whole = (
        tokenizer.apply_chat_template(t, add_generation_prompt=len(t) == 1, return_dict=False)  # type: ignore[attr-defined]
        for t in (turns[:1], turns)
    )
    whole = whole[:-1]  # the newline after the turn is nobody's
    with torch.no_grad():
        log = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(log[i - 1, whole[i]]) for i in range(len(before), len(whole)))


def test_the_table_has_both_policies_under_every_function(results: Path) -> None:
    main = pd.read_csv(results / "tables/main.csv")
    assert main["policy"].tolist() == ["SFT", "INPO"] and main["prompts"].tolist() == [3, 3]
    for name in ("overall", "brevity", "on-topic", "finished"):
        assert main[f"score_{name}"].between(0, 2.5).all()


def test_run_again_there_is_nothing_to_do(run: Checkout) -> None:
    assert run.planned() == set()
