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
from mnpo.demo.judge import serve
from mnpo.demo.world import RULES
from mnpo.errors import BadInput
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_tokenizer
from mnpo.stages.assess import run
from mnpo.storage.records import JUDGED, PROMPTS, read, write
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
    summary = json.loads(evaluated.read_text())
    cut = rows[rows["finish"] == "length"].groupby("oracle").size()  # every oracle's row says how its response ended
    assert set(rows["finish"]) <= {"stop", "length"} and set(cut) == {summary["cut_responses"]} and set(cut) != {0}
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
        assert "prompts_cut" not in facts


def test_prompts_that_are_cut_are_counted_once_each(
    tmp_path: Path,
    settings: dict[str, Any],
    sft_policy: Path,
    prompts_directory: Path,
    manifest_of: Callable[[Path], Any],
) -> None:
    tokenizer, text = load_tokenizer(sft_policy), settings["text"]
    prompts = read(PROMPTS, prompts_directory / "heldout.parquet")
    lengths = sorted(len(Chat(tokenizer, Text(**text)).prompt(prompt)) for prompt in prompts["prompt"])
    assert lengths[2] > lengths[1]
    short = settings | {"text": text | {"max_prompt_length": lengths[2] - 1}}
    run(short, sft_policy, sft_policy, prompts_directory / "heldout.parquet", tmp_path / "heldout.json")
    assert manifest_of(tmp_path / "heldout.json")["prompts_cut"] == sum(length >= lengths[2] for length in lengths)


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


# ------------------------------------------------------------------------------------------------ oracles that compare


COMPARING = (
    "def longer(first, second): return [(len(a) > len(b)) + (len(a) == len(b)) / 2 for a, b in zip(first, second)]\n"
)


@pytest.fixture
def comparing(tmp_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Wins are decided by a function that prefers the longer response; the majority is asked among samples as well."""
    (tmp_path / "own.py").write_text(COMPARING)
    longer = {"kind": "function", "file": str(tmp_path / "own.py"), "function": "longer", "compare": True}
    vote = {"kind": "majority", "of": ["longer", "brevity", "correctness"]}
    oracles = {**settings["oracles"], "longer": longer, "vote": vote}
    return settings | {"oracle": "longer", "scores": ["vote", "correctness"], "oracles": oracles}


def test_an_oracle_that_compares_is_shown_the_references_response_of_the_same_number(
    tmp_path: Path,
    comparing: dict[str, Any],
    evaluated: Path,
    sft_policy: Path,
    random_policy: Path,
    prompts_directory: Path,
    manifest_of: Callable[[Path], Any],
) -> None:
    prompts, output = prompts_directory / "heldout.parquet", tmp_path / "heldout.json"
    reference = evaluated.with_suffix(".parquet")
    run(comparing | {"policy": "other"}, random_policy, sft_policy, prompts, output, reference)
    rows, summary = read(JUDGED, output.with_suffix(".parquet")), json.loads(output.read_text())
    key = ["prompt_id", "mode", "k"]
    theirs = read(JUDGED, reference).drop_duplicates(key).set_index(key)["response"]
    truth = read(PROMPTS, prompts).set_index("prompt_id")["truth"]
    compared = rows[rows["oracle"] == "longer"]
    assert len(compared) == 7 * (1 + 3) and 0 < compared["score"].mean() < 1
    for row in rows[rows["oracle"].isin(["longer", "vote"])].to_dict("records"):
        other = theirs[row["prompt_id"], row["mode"], row["k"]]

        def vote(mine: float, its: float) -> int:
            return (mine > its) - (mine < its)

        votes = [vote(len(row["response"]), len(other))]
        if row["oracle"] == "vote":
            votes += [
                vote(*(RULES[rule](truth[row["prompt_id"]], r) for r in (row["response"], other)))
                for rule in ("brevity", "correctness")
            ]
        assert row["score"] == {-1: 0.0, 0: 0.5, 1: 1.0}[vote(sum(votes), 0)]
    assert summary["scores"]["longer"]["sampled"] == pytest.approx(
        compared.loc[compared["mode"] == "sampled", "score"].mean()
    )
    assert summary["undecided"] == {"longer": 0, "vote": 0}
    assert manifest_of(output)["oracles"]["longer"]["games"] > 0 and str(reference) in manifest_of(output)["inputs"]
    assert summary["prompts_with_a_cycle"] is not None  # the demo's majority, among a prompt's samples as before


def test_the_reference_is_one_half_and_asks_nobody(
    tmp_path: Path, comparing: dict[str, Any], sft_policy: Path, prompts_directory: Path
) -> None:
    (tmp_path / "own.py").write_text("def longer(first): raise RuntimeError\n")
    prompts, output = prompts_directory / "heldout.parquet", tmp_path / "heldout.json"
    run(comparing, sft_policy, sft_policy, prompts, output)
    rows = read(JUDGED, output.with_suffix(".parquet"))
    assert set(rows.loc[rows["oracle"].isin(["longer", "vote"]), "score"]) == {0.5}
    assert "undecided" not in json.loads(output.read_text())


def test_nothing_to_compare_with_is_refused(
    tmp_path: Path, comparing: dict[str, Any], evaluated: Path, sft_policy: Path, prompts_directory: Path
) -> None:
    prompts, output, other = prompts_directory / "heldout.parquet", tmp_path / "o.json", comparing | {"policy": "other"}
    with pytest.raises(
        BadInput, match=r"the oracle longer compares, and there is nothing to compare with; .*--against"
    ):
        run(other, sft_policy, sft_policy, prompts, output)
    rows = read(JUDGED, evaluated.with_suffix(".parquet"))
    gone = rows["prompt_id"].iloc[0]
    write(JUDGED, rows[rows["prompt_id"] != gone], tmp_path / "fewer.parquet")
    with pytest.raises(BadInput, match=rf"no response to 1 held-out prompts, such as {gone}, .*; evaluate sft again"):
        run(other, sft_policy, sft_policy, prompts, output, tmp_path / "fewer.parquet")


def test_a_judge_decides_and_is_not_paid_twice(
    tmp_path: Path,
    settings: dict[str, Any],
    evaluated: Path,
    sft_policy: Path,
    random_policy: Path,
    prompts_directory: Path,
    manifest_of: Callable[[Path], Any],
) -> None:
    prompts, output = prompts_directory / "heldout.parquet", tmp_path / "heldout.json"
    with serve() as server:
        judge = {"kind": "judge", "judge": {"model": "demo", "endpoint": server.url}}
        asked = settings | {
            "policy": "other",
            "oracle": "llm",
            "scores": [],
            "majority": None,
            "oracles": {"llm": judge},
        }
        for _ in range(2):
            run(asked, random_policy, sft_policy, prompts, output, evaluated.with_suffix(".parquet"))
        facts = manifest_of(output)["oracles"]["llm"]
    assert output.with_suffix(".judge.sqlite").is_file()
    assert facts["games"] > 0 and facts["tally"].get("asked", 0) == 0
    assert 0 <= json.loads(output.read_text())["scores"]["llm"]["sampled"] < 0.5  # SFT is better than random weights
