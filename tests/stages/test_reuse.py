"""Responses that came with the prompts: cut with them, reused instead of sampling, nothing lost uncounted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages import prompts, reuse
from mnpo.storage.records import DEMONSTRATIONS, PROMPTS, SAMPLES, read, rows_of, write

Manifest = Callable[[Path], dict[str, Any]]


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A data set as the hub has it: Parquet files named by their split, below data/."""
    directory = tmp_path / "snapshot"
    (directory / "data").mkdir(parents=True)
    rows = [{"prompt": f"Question {i}?", "all": [f"{i}a", f"{i}b", " ", f"{i}c"]} for i in range(12)]
    pd.DataFrame([*rows, rows[0]]).to_parquet(directory / "data/train-00000-of-00001.parquet")
    apart = [{"prompt": f"Held out {i}?", "all": []} for i in range(5)] + [{"prompt": "Question 3?", "all": []}]
    pd.DataFrame(apart).to_parquet(directory / "data/test-00000-of-00001.parquet")
    return directory


def cut(snapshot: Path, output: Path, **changes: Any) -> Path:
    asked = {
        "source": "dataset",
        "dataset": "own",
        "heldout_split": "test",
        "responses": "all",
        "parts": 2,
        "heldout": 6,
    }
    prompts.run(prompts.Settings.model_validate({"prompts": asked | changes, "seed": 0}), output, snapshot)
    return output


def test_a_snapshot_is_cut_with_its_own_split_held_out(snapshot: Path, tmp_path: Path, manifest_of: Manifest) -> None:
    output = cut(snapshot, tmp_path / "prompts")
    heldout = set(read(PROMPTS, output / "heldout.parquet")["prompt"])
    assert heldout == {*(f"Held out {i}?" for i in range(5)), "Question 3?"}
    parts = [read(PROMPTS, output / f"part{t}.parquet")["prompt"].tolist() for t in (1, 2)]
    trained = [prompt for part in parts for prompt in part]
    # 12 different questions, one of which is held out: 11 left, five a part, one over.
    assert [len(part) for part in parts] == [5, 5]
    assert len(set(trained)) == 10 and "Question 3?" not in trained
    facts = manifest_of(output / "part1.parquet")
    assert (facts["unused_prompts"], facts["repeated_prompts"]) == (1, 1)


def test_responses_stay_with_their_prompts_and_blank_ones_are_counted(
    snapshot: Path, tmp_path: Path, manifest_of: Manifest
) -> None:
    output = cut(snapshot, tmp_path / "prompts")
    rows = rows_of(read(DEMONSTRATIONS, output / "responses.parquet"))
    number = {row["prompt"]: row["prompt"].removeprefix("Question ").removesuffix("?") for row in rows}
    assert all(row["response"].startswith(number[row["prompt"]]) for row in rows)
    twice = "Question 0?" in number  # that row stands twice in the data: all its responses are its own
    assert len(rows) == 3 * (10 + twice)
    assert manifest_of(output / "responses.parquet")["blank_responses"] == 10 + twice


def test_the_shards_hold_the_responses_of_all_prompts(snapshot: Path, tmp_path: Path, manifest_of: Manifest) -> None:
    made = cut(snapshot, tmp_path / "prompts")
    files = []
    for shard in range(2):
        settings = reuse.Settings(shard=shard, shards=2, responses=2)
        files.append(tmp_path / f"{shard}.parquet")
        reuse.run(settings, made / "responses.parquet", made / "part1.parquet", files[-1])
    samples = read(SAMPLES, *files)
    assert len(samples) == 5 * 2 and set(samples["k"]) == {0, 1}
    assert set(samples["prompt"]) == set(read(PROMPTS, made / "part1.parquet")["prompt"])
    assert sum(manifest_of(file)["further_responses"] for file in files) >= 5
    assert all(r.endswith("ab"[k]) for r, k in zip(samples["response"], samples["k"], strict=True) if len(r) == 2)


def test_a_prompt_without_responses_is_refused(snapshot: Path, tmp_path: Path) -> None:
    made = cut(snapshot, tmp_path / "prompts")
    responses = read(DEMONSTRATIONS, made / "responses.parquet")
    first = read(PROMPTS, made / "part1.parquet")["prompt_id"].iloc[0]
    write(DEMONSTRATIONS, responses[responses["prompt_id"] != first], tmp_path / "fewer.parquet")
    with pytest.raises(BadInput, match=f"1 prompts of .* came without responses, such as {first}"):
        reuse.run(
            reuse.Settings(shard=0, shards=1, responses=2),
            tmp_path / "fewer.parquet",
            made / "part1.parquet",
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"responses": "prompt"}, "row 1: prompt is 'Question 0?', expected a list of texts; set prompts.responses"),
        ({"split": "validation"}, "cannot be read as a data set with the split 'validation'"),
        ({"heldout": 7}, "6 different prompts, and prompts.heldout asks for 7"),
    ],
)
def test_what_does_not_fit_the_data_is_named(
    snapshot: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        cut(snapshot, tmp_path / "prompts", **changes)
    assert said in str(caught.value)
