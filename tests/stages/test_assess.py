"""Evaluation: summaries are the means of the rows beside them, and a policy is no distance from itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.text import Text
from mnpo.demo.world import RULES
from mnpo.stages.assess import run
from mnpo.storage.records import JUDGED, PROMPTS, read
from tests.helpers.templated import THINKING, saying, thinking_policy

ORACLES = ("overall", "correctness", "brevity", "courtesy", "majority")


@pytest.fixture(scope="module")
def settings(text: Text, oracle_settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "policy": "sft",
        "oracle": "overall",
        "scores": ["correctness"],
        "majority": "majority",
        "oracles": {name: oracle_settings[name] for name in ORACLES},
        "models": {},
        "responses": 3,
        "decoding": {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 12},
        "batch_size": 16,
        "text": text.model_dump(),
        "seed": 9,
    }


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any], sft_policy: Path, prompts_directory: Path
) -> Path:
    """sft, with itself as the reference."""
    output = tmp_path_factory.mktemp("evals") / "sft" / "heldout.json"
    run(settings, sft_policy, sft_policy, prompts_directory / "heldout.parquet", output)
    return output


def test_there_is_a_row_for_each_prompt_response_and_oracle(evaluated: Path, prompts_directory: Path) -> None:
    rows = read(JUDGED, evaluated.with_suffix(".parquet"))
    prompts = read(PROMPTS, prompts_directory / "heldout.parquet")
    assert len(rows) == 7 * (1 + 3) * 5
    assert set(rows["prompt_id"]) == set(prompts["prompt_id"])
    assert rows.groupby(["oracle", "mode"]).size().to_dict() == {
        (oracle, mode): 7 * n for oracle in ORACLES for mode, n in (("greedy", 1), ("sampled", 3))
    }
    truth = prompts.set_index("prompt_id")["truth"]
    for row in rows[rows["oracle"].isin(RULES)].to_dict("records"):
        assert row["score"] == RULES[row["oracle"]](truth[row["prompt_id"]], row["response"])


def test_the_summary_is_of_the_rows(evaluated: Path) -> None:
    summary = json.loads(evaluated.read_text())
    rows = read(JUDGED, evaluated.with_suffix(".parquet"))
    assert (summary["policy"], summary["benchmark"], summary["prompts"], summary["responses"]) == (
        "sft",
        "heldout",
        7,
        3,
    )
    for mode in ("greedy", "sampled"):
        mine = rows[rows["mode"] == mode]
        assert summary["tokens"][mode] == pytest.approx(mine["tokens"].mean())
        for oracle in ORACLES:
            scores = mine.loc[mine["oracle"] == oracle, "score"]
            assert summary["scores"][oracle][mode] == pytest.approx(fmean(scores))
    once = rows[rows["oracle"] == "overall"]
    assert summary["empty_responses"] == (once["response"].str.strip() == "").sum()
    assert 0 <= summary["prompts_with_a_cycle"] <= 14


def test_a_policys_divergence_from_itself_is_exactly_zero(evaluated: Path) -> None:
    assert json.loads(evaluated.read_text())["kl_to_reference"] == 0.0


def test_a_policys_divergence_from_another_is_positive_and_nothing_else_depends_on_the_reference(
    tmp_path: Path,
    settings: dict[str, Any],
    evaluated: Path,
    sft_policy: Path,
    random_policy: Path,
    prompts_directory: Path,
) -> None:
    run(settings, sft_policy, random_policy, prompts_directory / "heldout.parquet", tmp_path / "heldout.json")
    one, other = (json.loads(p.read_text()) for p in (evaluated, tmp_path / "heldout.json"))
    assert other.pop("kl_to_reference") > 1 and one.pop("kl_to_reference") == 0
    assert one == other
    assert (tmp_path / "heldout.parquet").read_bytes() == evaluated.with_suffix(".parquet").read_bytes()


def test_both_outputs_have_manifests(evaluated: Path, manifest_of: Callable[[Path], Any]) -> None:
    for path in (evaluated, evaluated.with_suffix(".parquet")):
        facts = manifest_of(path)
        assert facts["stage"] == "assess" and facts["rows"] == 140 and len(facts["inputs"]) == 2  # one policy twice


def test_settings_that_the_benchmark_does_not_know_are_refused(
    tmp_path: Path, settings: dict[str, Any], sft_policy: Path, prompts_directory: Path
) -> None:
    with pytest.raises(ConfigError, match="^settings: respones: unknown key; did you mean 'responses'"):
        run(
            {**settings, "respones": 1},
            sft_policy,
            sft_policy,
            prompts_directory / "heldout.parquet",
            tmp_path / "o.json",
        )


def test_oracles_are_shown_no_thinking_and_both_lengths_are_told(
    tmp_path: Path, settings: dict[str, Any], prompts_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right answer after thinking; tokens are bytes, and one is the end of turn."""
    policy = thinking_policy(tmp_path / "policy", THINKING["opened"])
    prompts = read(PROMPTS, prompts_directory / "heldout.parquet")
    right = {row["prompt"]: json.loads(row["truth"])["answer"] for row in prompts.to_dict("records")}
    answers = {prompt: answer if isinstance(answer, str) else str(answer) for prompt, answer in right.items()}

    def said(prompt: str) -> tuple[str, str]:
        return "So 6.</think>" + answers[prompt.split("user\n")[1].split("<|im_end|>")[0]], "stop"

    saying(monkeypatch, policy, said)
    long = Text(max_length=400, max_prompt_length=300).model_dump()
    for strip in ("think", "none"):
        given = {**settings, "text": long, "strip": strip}
        run(given, policy, policy, prompts_directory / "heldout.parquet", tmp_path / f"{strip}.json")
    shown, whole = (read(JUDGED, tmp_path / f"{strip}.parquet") for strip in ("think", "none"))
    assert set(shown["response"]) == set(answers.values())
    assert (shown.loc[shown["oracle"] == "correctness", "score"] == 1).all()
    assert not (whole.loc[whole["oracle"] == "correctness", "score"] == 1).any()
    assert (whole["tokens"] - shown["tokens"] == len("So 6.</think>")).all()
    one, other = (json.loads((tmp_path / f"{strip}.json").read_text()) for strip in ("think", "none"))
    assert one["tokens_with_thinking"] == other["tokens"] and "tokens_with_thinking" not in other
    for mode in ("greedy", "sampled"):
        assert one["tokens"][mode] == pytest.approx(other["tokens"][mode] - len("So 6.</think>"))
