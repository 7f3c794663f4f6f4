"""Pairs: never from a tie or from one text; whatever makes no pair is counted by its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnpo.config.sampling import Pairing
from mnpo.errors import BadInput
from mnpo.stages.pair import REASONS, Settings, pairs_of, run
from mnpo.storage.records import PAIRS, SAMPLES, SCORES, read, write

Answers = list[tuple[str, float]]


@pytest.fixture
def paired(tmp_path: Path, manifest_of: Callable[[Path], Any]) -> Callable[..., tuple[pd.DataFrame, dict[str, Any]]]:
    """Pairs and manifest for prompts given as lists of (response, score); win is score / 10."""

    def _paired(
        prompts: dict[str, Answers], min_gap: float = 0.0, shuffle: bool = False, form: str = "best-worst"
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        samples, scores = [], []
        for name, answers in prompts.items():
            for k, (response, score) in enumerate(answers):
                samples.append(
                    {
                        "prompt_id": name,
                        "family": "",
                        "prompt": f"Prompt {name}",
                        "truth": "",
                        "k": k,
                        "response": response,
                    }
                    | {"tokens": 1, "finish": "stop", "seed": k}
                )
                scores.append({"prompt_id": name, "k": k, "score": score, "win": score / 10})
        if shuffle:
            samples, scores = samples[::-1], scores[1::2] + scores[::2]
        files = [tmp_path / "samples.parquet", tmp_path / "scores.parquet", tmp_path / "pairs.parquet"]
        write(SAMPLES, samples, files[0])
        write(SCORES, scores, files[1])
        run(Settings(pairing={"min_gap": min_gap, "form": form}), [files[0]], [files[1]], files[2])
        return read(PAIRS, files[2]), manifest_of(files[2])

    return _paired


Paired = Callable[..., tuple[pd.DataFrame, dict[str, Any]]]
GOOD: Answers = [("fair", 2.0), ("best", 3.0), ("worst", 1.0)]


def test_the_best_is_chosen_over_the_worst(paired: Paired) -> None:
    pairs, facts = paired({"p": GOOD})
    assert pairs.to_dict("records") == [
        {
            "pair_id": "p:5cf8b8349762",  # sha256 of "best\\0worst"
            "prompt_id": "p",
            "prompt": "Prompt p",
            "context": "",
            "chosen": "best",
            "rejected": "worst",
            "chosen_score": 3.0,
            "rejected_score": 1.0,
            "chosen_win": 0.3,
            "rejected_win": 0.1,
        }
    ]
    assert (facts["rows"], facts["prompts"]) == (1, 1)


@pytest.mark.parametrize(
    ("answers", "counts"),
    [
        ([("a", 1.0), ("b", 1.0), ("c", 1.0)], {"tied_scores": 1}),
        ([("a", 1.0), ("a", 1.0), ("a", 1.0)], {"identical_responses": 1}),
        ([("a", 1.0)], {"fewer_than_two_responses": 1}),
        ([("a", 1.0), ("", 0.0), (" \n", 0.0)], {"empty_responses": 2, "fewer_than_two_responses": 1}),
        ([("", 1.0), ("", 0.0)], {"empty_responses": 2, "fewer_than_two_responses": 1}),
    ],
)
def test_what_makes_no_pair_is_counted_by_its_reason(paired: Paired, answers: Answers, counts: dict[str, int]) -> None:
    pairs, facts = paired({"good": GOOD, "bad": answers})
    assert pairs["prompt_id"].tolist() == ["good"]
    assert {r: facts[r] for r in REASONS} == {**dict.fromkeys(REASONS, 0), **counts}
    assert (facts["rows"], facts["prompts"], facts["prompts_without_a_pair"]) == (1, 2, 1)


def test_empty_responses_are_left_out_and_the_others_make_the_pair(paired: Paired) -> None:
    pairs, facts = paired({"p": [("", 9.0), ("good", 2.0), ("bad", 1.0), (" ", -9.0)]})
    assert pairs[["chosen", "rejected"]].to_numpy().tolist() == [["good", "bad"]]
    assert facts["empty_responses"] == 2


@pytest.mark.parametrize(("min_gap", "made"), [(0.0, 3), (0.25, 2), (0.5, 1), (0.75, 1)])
def test_a_gap_of_no_more_than_the_smallest_is_a_tie(paired: Paired, min_gap: float, made: int) -> None:
    prompts = {f"p{gap}": [("a", 1.0), ("b", 1.0 + gap)] for gap in (0.25, 0.5, 1.0)}
    pairs, facts = paired(prompts, min_gap)
    assert len(pairs) == made
    assert facts["tied_scores"] == 3 - made


def test_equal_scores_are_decided_by_the_smallest_k_in_any_order_of_rows(paired: Paired) -> None:
    answers = [("low 0", 1.0), ("high 1", 2.0), ("low 2", 1.0), ("high 3", 2.0)]
    for shuffle in (False, True):
        pairs, _ = paired({"p": answers, "q": GOOD}, shuffle=shuffle)
        pairs = pairs.set_index("prompt_id")
        assert pairs.loc["p", ["chosen", "rejected"]].tolist() == ["high 1", "low 0"]
        assert pairs.loc["q", ["chosen", "rejected"]].tolist() == ["best", "worst"]


def test_a_text_is_never_paired_with_itself_though_its_copies_score_apart(paired: Paired) -> None:
    pairs, _ = paired({"p": [("a", 1.0), ("a", 1.2), ("b", 1.1)]})
    assert pairs[["chosen", "rejected", "rejected_score"]].to_numpy().tolist() == [["a", "b", 1.1]]


# Scores 5, 4, 3, 1 and 0.5: ten pairs, of which e and d (a half apart) are a tie when the smallest gap is 1/2.
FIVE: Answers = [("c", 3.0), ("a", 5.0), ("e", 0.5), ("b", 4.0), ("d", 1.0)]


def two_texts(pairs: pd.DataFrame) -> list[str]:
    return [chosen + rejected for chosen, rejected in zip(pairs["chosen"], pairs["rejected"], strict=True)]


def test_all_pairs_above_the_gap_are_made(paired: Paired) -> None:
    for shuffle in (False, True):
        pairs, facts = paired({"p": FIVE, "q": [("x", 1.0), ("y", 1.0)]}, 0.5, shuffle, "all")
        assert two_texts(pairs) == ["ab", "ac", "ad", "ae", "bc", "bd", "be", "cd", "ce"]
        assert (facts["rows"], facts["tied_scores"], facts["prompts_without_a_pair"]) == (9, 2, 1)
        assert pairs["chosen_win"].tolist()[:5] == [0.5, 0.5, 0.5, 0.5, 0.4] and pairs["pair_id"].is_unique


def test_each_response_is_in_one_pair_and_the_middle_one_is_counted(paired: Paired) -> None:
    """SPPO's sum over responses: their own P(y > pi_t) stand in the pairs, each once."""
    pairs, facts = paired({"p": FIVE, "q": GOOD[:2]}, form="each")
    assert two_texts(pairs) == ["ae", "bd", "bestfair"]
    assert pairs[["chosen_win", "rejected_win"]].to_numpy().tolist() == [[0.5, 0.05], [0.4, 0.1], [0.3, 0.2]]
    assert (facts["middle_responses"], facts["tied_scores"]) == (1, 0)


@pytest.mark.parametrize(("form", "made"), [("all", ["ba", "bc", "ac"]), ("each", ["bc"])])
def test_copies_of_a_text_count_once_by_the_best_score(paired: Paired, form: str, made: list[str]) -> None:
    pairs, facts = paired({"p": [("a", 1.0), ("c", 0.0), ("b", 2.0), ("a", 1.5), ("c", 0.0)]}, form=form)
    assert two_texts(pairs) == made and facts["repeated_responses"] == 2
    assert form == "each" or pairs["rejected_score"].tolist() == [1.5, 0.0, 0.0]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "c", ""]), st.integers(0, 3).map(float)), max_size=6),
    st.sampled_from([0.0, 1.0]),
    st.sampled_from(["best-worst", "all", "each"]),
    st.randoms(use_true_random=False),
)
def test_pairs_are_two_texts_a_gap_apart_whatever_the_order_and_all_that_is_left_out_is_counted(
    answers: Answers, min_gap: float, form: str, random: Any
) -> None:
    rows = [
        {"prompt_id": "p", "prompt": "P", "context": "", "k": k, "response": r, "answer": r, "score": s, "win": 0.5}
        for k, (r, s) in enumerate(answers)
    ]
    counts, again = Counter[str](), Counter[str]()
    pairs = pairs_of(rows, Pairing(form=form, min_gap=min_gap), counts)  # type: ignore[arg-type]
    random.shuffle(rows)
    assert pairs_of(rows, Pairing(form=form, min_gap=min_gap), again) == pairs and again == counts  # type: ignore[arg-type]
    for pair in pairs:
        assert pair["chosen"] != pair["rejected"] and pair["chosen_score"] - pair["rejected_score"] > min_gap
    best = {text: max(s for r, s in answers if r == text) for text, _ in answers if text}
    texts, answered = len(best), sum(bool(r) for r, _ in answers)
    assert counts["empty_responses"] == len(answers) - answered
    assert counts["fewer_than_two_responses"] == (answered < 2)
    assert counts["identical_responses"] == (answered >= 2 and texts == 1)
    if texts >= 2:
        assert counts["repeated_responses"] == answered - texts
        assert counts["middle_responses"] == (texts % 2 if form == "each" else 0)
        tried = {"best-worst": 1, "all": texts * (texts - 1) // 2, "each": texts // 2}[form]
        assert len(pairs) + counts["tied_scores"] == tried
    if form == "best-worst":
        for pair in pairs:
            assert pair["chosen_score"] == max(best.values())
            assert pair["rejected_score"] == min(s for r, s in answers if r and r != pair["chosen"])
    if form == "all":
        apart = {frozenset(two) for two in combinations(best, 2) if abs(best[two[0]] - best[two[1]]) > min_gap}
        assert {frozenset((pair["chosen"], pair["rejected"])) for pair in pairs} == apart
    if form == "each":
        used = [text for pair in pairs for text in (pair["chosen"], pair["rejected"])]
        assert len(used) == len(set(used))


def test_no_pair_at_all_is_refused_with_the_counts(paired: Paired, tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"no pair can be made of 2 prompts \(.*'identical_responses': 1, 'tied_scores': 1"
    ):
        paired({"p": [("a", 1.0), ("a", 1.0)], "q": [("a", 1.0), ("b", 1.0)]})
    assert not (tmp_path / "pairs.parquet").exists()


def test_a_sample_without_a_score_is_refused(paired: Paired, tmp_path: Path) -> None:
    paired({"p": GOOD})
    scores = read(SCORES, tmp_path / "scores.parquet")
    write(SCORES, scores.iloc[:2], tmp_path / "scores.parquet")
    with pytest.raises(BadInput, match="no score for prompt p, k = 2; score these samples again"):
        run(
            Settings(pairing={}),
            [tmp_path / "samples.parquet"],
            [tmp_path / "scores.parquet"],
            tmp_path / "again.parquet",
        )


def test_shards_give_the_same_pairs_as_the_whole(chain: dict[str, Path], tmp_path: Path) -> None:
    samples, scores = read(SAMPLES, chain["samples"]), read(SCORES, chain["scores"])
    files: dict[str, list[Path]] = {"samples": [], "scores": []}
    for shard in range(2):
        mine = samples["prompt_id"].isin(samples["prompt_id"].unique()[shard::2])
        for noun, table, rows in (("samples", SAMPLES, samples[mine]), ("scores", SCORES, scores[mine])):
            files[noun].append(tmp_path / f"{noun}-{shard}.parquet")
            write(table, rows, files[noun][-1])
    run(Settings(pairing={}), files["samples"], files["scores"][::-1], tmp_path / "pairs.parquet")
    whole = read(PAIRS, chain["pairs"]).set_index("pair_id")
    together = read(PAIRS, tmp_path / "pairs.parquet").set_index("pair_id").loc[whole.index]
    pd.testing.assert_frame_equal(together, whole)


@pytest.mark.parametrize(("strip", "left"), [(None, ["a</think>7", "b</think>8"]), ("none", ["c", "a</think>7"])])
def test_a_response_that_never_ends_its_thinking_is_empty_and_training_sees_what_was_sampled(
    strip: str | None, left: list[str], tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    texts = [("a</think>7", 9, 2.0), ("b</think>8", 9, 3.0), ("c", 1, 9.0)]
    row = {"prompt_id": "p", "family": "", "prompt": "P", "truth": "", "tokens": 1, "finish": "stop", "seed": 0}
    samples = [row | {"k": k, "response": text, "thinking": n} for k, (text, n, _) in enumerate(texts)]
    scores = [{"prompt_id": "p", "k": k, "score": score, "win": 0.5} for k, (_, _, score) in enumerate(texts)]
    files = [tmp_path / f"{name}.parquet" for name in ("samples", "scores", "pairs")]
    write(SAMPLES, samples, files[0])
    write(SCORES, scores, files[1])
    run(Settings(pairing=Pairing(), strip=strip), [files[0]], [files[1]], files[2])  # type: ignore[arg-type]
    pairs = read(PAIRS, files[2])
    assert sorted(pairs[["chosen", "rejected"]].to_numpy()[0]) == sorted(left)
    assert manifest_of(files[2])["empty_responses"] == (strip is None)
