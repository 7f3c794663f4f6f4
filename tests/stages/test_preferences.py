"""The table of cycles and pairs, from real scores and pairs whose counts are known by construction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages import pair, preferences, score
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import SAMPLES, write

TRUTH = '{"answer": "cat cat cat", "family": "repeat"}'
# Right and wordy, nearly right and curt, wrong and polite: each beats the next by two rules of three.
CIRCLE = ["I think it is cat cat cat. I hope this helps.", "cat cat", "Of course: dog, dog, dog."]
RANKED = ["cat cat cat", "cat dog dog dog", " "]
SAME = ["cat", "cat", "cat"]


def shard(directory: Path, prompts: dict[str, list[str]], oracles: dict[str, Any]) -> tuple[Path, Path]:
    rows = [
        {"prompt_id": name, "family": "repeat", "prompt": "Say cat 3 times", "truth": TRUTH, "k": k, "response": text}
        | {"tokens": 5, "finish": "stop", "seed": k}
        for name, texts in prompts.items()
        for k, text in enumerate(texts)
    ]
    directory.mkdir(parents=True)
    with artifact(directory / "samples.parquet", "sample", {}, []) as made:
        write(SAMPLES, rows, made.path)
        made.facts = {"dropped_responses": 4, "prompts_without_a_response": 1}
    asked = score.Settings(oracle="majority", oracles=oracles)
    score.run(asked, directory / "samples.parquet", directory / "scores.parquet")
    return directory / "samples.parquet", directory / "scores.parquet"


def test_cycles_add_up_over_shards_and_what_made_no_pair_has_its_reason(
    tmp_path: Path, oracle_settings: dict[str, Any]
) -> None:
    parts = [
        [shard(tmp_path / "1/0", {"a": CIRCLE, "b": RANKED}, oracle_settings)]
        + [shard(tmp_path / "1/1", {"c": CIRCLE, "d": SAME}, oracle_settings)],
        [
            shard(tmp_path / "2/0", {"a": RANKED}, oracle_settings),
            shard(tmp_path / "2/1", {"b": RANKED}, oracle_settings),
        ],
    ]
    pairs = []
    for n, shards in enumerate(parts):
        pairs.append(tmp_path / f"pairs{n}.parquet")
        pair.run(pair.Settings(pairing={}), *map(list, zip(*shards, strict=True)), pairs[-1])
    samples, scores = map(list, zip(*(shard for shards in parts for shard in shards), strict=True))
    settings = preferences.Settings(rows=[("SFT", 1, "majority"), ("INPO 1", 2, "majority")])
    preferences.run(settings, pairs, tmp_path / "table", scores, samples)
    table = pd.read_csv(tmp_path / "table.csv")
    first, second = table.to_dict("records")
    assert first == {
        "policy": "SFT", "part": 1, "oracle": "majority",
        "prompts": 4, "prompts_with_a_cycle": 2, "responses_without_a_comparison": 0,
        "dropped_responses": 8, "prompts_without_a_response": 2,
        "pairs": 1, "prompts_without_a_pair": 3,  # a circle's three responses win one half each: a tie
        "empty_responses": 1, "repeated_responses": 0, "middle_responses": 0,
        "fewer_than_two_responses": 0, "identical_responses": 1, "tied_scores": 2,
    }  # fmt: skip
    assert (second["prompts_with_a_cycle"], second["pairs"], second["empty_responses"]) == (0, 2, 2)
    assert "prompts_with_a_cycle" in (tmp_path / "table.md").read_text()


def test_pairs_that_the_data_prefer_have_a_row_without_cycles(tmp_path: Path, oracle_settings: dict[str, Any]) -> None:
    samples, scores = shard(tmp_path / "1", {"a": CIRCLE, "b": RANKED}, oracle_settings)
    scored, given = tmp_path / "scored.parquet", tmp_path / "given.parquet"
    pair.run(pair.Settings(pairing={}), [samples], [scores], scored)
    with artifact(given, "prefer", {}, []) as made:
        made.path.write_text("")
        made.facts = dict.fromkeys(pair.REASONS, 0) | {"identical_responses": 2}
        made.facts |= {"rows": 5, "prompts": 7, "prompts_without_a_pair": 2}
    settings = preferences.Settings(rows=[("INPO 1", 1, "majority"), ("data set", 1, "dataset")])
    preferences.run(settings, [scored, given], tmp_path / "table", [scores], [samples])
    first, second = pd.read_csv(tmp_path / "table.csv").to_dict("records")
    assert (first["oracle"], first["prompts"], first["prompts_with_a_cycle"], first["pairs"]) == ("majority", 2, 1, 1)
    assert (second["oracle"], second["prompts"], second["pairs"], second["identical_responses"]) == (
        "data set",
        7,
        5,
        2,
    )
    assert pd.isna(second["prompts_with_a_cycle"]) and pd.isna(second["dropped_responses"])
    assert "n/a" in (tmp_path / "table.md").read_text()


def test_files_that_do_not_fit_the_rows_are_refused(tmp_path: Path, chain: dict[str, Path]) -> None:
    settings = preferences.Settings(rows=[("SFT", 1, "overall")])
    with pytest.raises(BadInput, match="1 rows, 0 files of pairs, 1 of scores and 1 of samples do not fit"):
        preferences.run(settings, [], tmp_path / "table", [chain["scores"]], [chain["samples"]])
    bare = tmp_path / "bare.parquet"
    bare.write_bytes(chain["pairs"].read_bytes())
    with pytest.raises(BadInput, match=r"bare\.parquet: no manifest"):
        preferences.run(settings, [bare], tmp_path / "table", [chain["scores"]], [chain["samples"]])
