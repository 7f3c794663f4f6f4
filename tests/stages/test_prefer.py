"""Pairs that the data prefer: chosen and rejected as rows have them, demonstrations over a policy's own responses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.errors import BadInput
from mnpo.stages import prefer, prompts
from mnpo.storage.records import PAIRS, PROMPTS, SAMPLES, read, rows_of, write

Manifest = Callable[[Path], dict[str, Any]]
Row = dict[str, Any]


def said(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def preferred(directory: Path, rows: list[Row], samples: list[Row] | None = None, **asked: Any) -> list[Row]:
    """The pairs of part 1, where `rows` are the file of the prompts."""
    file = directory / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"source": "file", "path": str(file), "parts": 1, "heldout": 1} | asked
    prompts.run(prompts.Settings.model_validate({"prompts": given, "seed": 0}), directory / "prompts")
    part = directory / "prompts/part1.parquet"
    drawn = []
    if samples is not None:
        ids = {row["prompt"]: row["prompt_id"] for row in rows_of(read(PROMPTS, part))}
        blank = {"family": "", "truth": "", "tokens": 1, "finish": "stop", "seed": 0}
        kept = [
            {**blank, **sample, "prompt_id": ids[sample["prompt"]]} for sample in samples if sample["prompt"] in ids
        ]
        write(SAMPLES, kept, directory / "samples.parquet")
        drawn = [directory / "samples.parquet"]
    prefer.run(prefer.Settings.model_validate({"prompts": given}), part, directory / "pairs.parquet", drawn)
    return rows_of(read(PAIRS, directory / "pairs.parquet"))


HELDOUT = {"prompt": "Held out?", "chosen": "Yes.", "rejected": "No."}


def test_chosen_and_rejected_are_the_rows_own(tmp_path: Path) -> None:
    """Of texts, of turns and of whole conversations; only of prompts in the part."""
    rows = [
        {"prompt": "A?", "chosen": "Right.", "rejected": "Wrong."},
        {"prompt": said("B?"), "chosen": said("B?", "Good."), "rejected": said("B?", "Bad.")},
        {"chosen": said("Hi", "Hello", "C?", "Fine."), "rejected": said("Hi", "Hello", "C?", "Poor.")},
        {"prompt": "D?", "chosen": "1", "rejected": "2"},
        {"prompt": "A?", "chosen": "Right!", "rejected": "Wrong."},
    ]
    pairs = preferred(tmp_path, rows, seed=1)
    found = {(p["prompt"], p["chosen"], p["rejected"]) for p in pairs}
    everything = {
        ("A?", "Right.", "Wrong."), ("A?", "Right!", "Wrong."), ("B?", "Good.", "Bad."), ("C?", "Fine.", "Poor."),
        ("D?", "1", "2"),
    }  # fmt: skip
    (heldout,) = read(PROMPTS, tmp_path / "prompts/heldout.parquet")["prompt"]
    assert found == {pair for pair in everything if pair[0] != heldout}
    contexts = {p["prompt"]: p["context"] for p in pairs}
    assert heldout != "C?" and json.loads(contexts["C?"]) == said("Hi", "Hello")
    assert {(p["chosen_score"], p["rejected_score"], p["chosen_win"], p["rejected_win"]) for p in pairs} == {
        (1, 0, 1, 0)
    }
    assert len({p["pair_id"] for p in pairs}) == len(pairs)


def test_what_makes_no_pair_is_counted_and_said(
    tmp_path: Path, manifest_of: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "Z?", "chosen": "Yes.", "rejected": "No."}
    rows = [
        good,
        good,  # again
        {"prompt": "Z?", "chosen": "Same.", "rejected": "Same."},
        {"prompt": "Z?", "chosen": "Yes.", "rejected": " "},
        {"prompt": "Z?", "chosen": "", "rejected": ""},
        {"prompt": "Y?", "chosen": "Y.", "rejected": "Y."},
        {"prompt": "X?", "chosen": "X.", "rejected": "X."},
    ]
    assert len(preferred(tmp_path, rows, seed=3)) == 1
    facts = manifest_of(tmp_path / "pairs.parquet")
    heldout = read(PROMPTS, tmp_path / "prompts/heldout.parquet")["prompt"].tolist()
    assert len(heldout) == 1 and heldout != ["Z?"]  # so that Z and one of the others are in the part
    assert (facts["rows"], facts["prompts"], facts["prompts_without_a_pair"]) == (1, 2, 1)
    assert (facts["empty_responses"], facts["identical_responses"], facts["repeated_pairs"]) == (3, 2, 1)
    assert facts["scored_no_better"] == 0
    said_ = capsys.readouterr().err
    assert "rows 1, prompts 2, prompts_without_a_pair 1" in said_ and "empty_responses 3" in said_


def test_scores_are_those_of_the_named_columns(
    tmp_path: Path, manifest_of: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"{n}?", "chosen": "a", "rejected": "b", "good": 8.5, "bad": bad}
        for n, bad in enumerate((3, 8.5, 9))
    ]
    pairs = preferred(tmp_path, [*rows, HELDOUT | {"good": 1, "bad": 0}], scores=["good", "bad"], part_size=3)
    bad = {p["prompt"]: p["rejected_score"] for p in pairs}
    assert all(p["chosen_score"] == (1 if p["prompt"] == "Held out?" else 8.5) for p in pairs)
    assert bad == {prompt: {"0?": 3, "1?": 8.5, "2?": 9, "Held out?": 0}[prompt] for prompt in bad}
    expected = sum(prompt in ("1?", "2?") for prompt in bad)
    assert manifest_of(tmp_path / "pairs.parquet")["scored_no_better"] == expected > 0
    assert f"scored_no_better {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "A?", "chosen": "x"}, "row 1 has no 'rejected'"),
        ({"prompt": "A?", "chosen": ["x"], "rejected": "y"}, r"row 1: chosen is \['x'\], expected a text"),
        (
            {"prompt": "A?", "chosen": "x", "rejected": "y"},
            r"row 1: good is 'None', expected a score; \(it has prompt,",
        ),
        ({"prompt": "A?", "chosen": "x", "rejected": "y", "good": "8"}, "row 1: good is '8', expected a score; mend"),
        ({"prompt": "A?", "chosen": "x", "rejected": "y", "good": math.nan}, "row 1: good is 'nan', expected a score"),
    ],
)
def test_a_row_that_is_no_preference_is_refused(tmp_path: Path, row: Row, problem: str) -> None:
    with pytest.raises(BadInput, match=rf"rows\.jsonl: {problem}"):
        preferred(tmp_path, [row, {**row, "prompt": "B?"}], scores=["good", "good"])
    assert not (tmp_path / "pairs.parquet").exists()


def test_no_pair_at_all_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?", "chosen": "x", "rejected": "x"} for n in range(3)]
    with pytest.raises(BadInput, match=r"no pair can be made of 2 prompts \(.*'identical_responses': 2"):
        preferred(tmp_path, rows)


def sample(prompt: str, k: int, response: str) -> Row:
    return {"prompt": prompt, "k": k, "response": response}


def test_demonstrations_are_chosen_over_the_first_other_response(tmp_path: Path, manifest_of: Manifest) -> None:
    """By hand: of k = 0, 1, 2 the first that is neither blank nor the demonstration itself."""
    rows = [
        {"messages": said("A?", "Shown.")},
        {"messages": said("B?", "Shown.")},
        {"messages": said("C?", "Shown.")},
        {"messages": said("D?", "Shown.")},
        {"messages": said("E?", "Shown.")},
    ]
    samples = [
        sample("A?", 1, "second"), sample("A?", 0, "first"),
        sample("B?", 0, "Shown."), sample("B?", 1, " "), sample("B?", 2, "third"),
        sample("C?", 0, "Shown."), sample("C?", 1, "Shown."),
        sample("D?", 0, ""),
        sample("E?", 0, "first"),
    ]  # fmt: skip
    for seed in range(50):  # a cut that holds E out
        pairs = preferred(tmp_path, rows, samples, seed=seed)
        if read(PROMPTS, tmp_path / "prompts/heldout.parquet")["prompt"].tolist() == ["E?"]:
            break
    assert sorted((p["prompt"], p["chosen"], p["rejected"]) for p in pairs) == [
        ("A?", "Shown.", "first"),
        ("B?", "Shown.", "third"),
    ]
    facts = manifest_of(tmp_path / "pairs.parquet")
    assert (facts["identical_responses"], facts["empty_responses"], facts["prompts_without_a_pair"]) == (1, 1, 2)


def test_a_demonstration_of_another_prompt_than_was_sampled_for_is_refused(tmp_path: Path) -> None:
    """UltraChat's rows: `prompt` is the first turn of `messages`, whose last turn answers another."""
    row = {"prompt": "A?", "messages": said("A?", "One.", "And?", "Two.")}
    rows = [row, {**row, "prompt": "B?", "messages": said("B?", "One.", "And?", "Two.")}]
    samples = [sample(prompt, 0, "x") for prompt in ("A?", "B?")]
    with pytest.raises(BadInput, match=r"row \d: its demonstration does not answer its prompt; set prompts\.column"):
        preferred(tmp_path, rows, samples)
    pairs = preferred(tmp_path, rows, [sample("And?", 0, "x")], column="messages")
    assert [(p["prompt"], p["chosen"], p["rejected"]) for p in pairs] == [("And?", "Two.", "x")]
    assert [turn["content"] for turn in json.loads(pairs[0]["context"])][1] == "One."


def test_the_prompt_is_the_one_that_was_sampled_for_whatever_its_column(tmp_path: Path) -> None:
    """Rows of a column `instruction`, with a column `prompt` of another meaning beside it, which goes along."""
    rows = [{"instruction": text, "response": "Shown.", "prompt": "a template"} for text in ("A?", "B?")]
    samples = [sample(text, 0, "x") for text in ("A?", "B?")]
    pairs = preferred(tmp_path, rows, samples, column="instruction", further=["prompt"])
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("Shown.", "x")]
    assert pairs[0]["prompt"] in ("A?", "B?")
