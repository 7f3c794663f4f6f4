"""The small benchmarks: the real ones' files and columns, right answers, items that a policy of the demo can read."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.questions import read_questions
from mnpo.demo import benchmarks, world
from mnpo.demo.verdicts import reply
from mnpo.storage.records import read_rows

HARNESS = [card for card in CARDS.values() if card.harness == "lm-eval"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("benchmarks")
    make_all(directory, seed=0)
    return directory


def make_all(directory: Path, seed: int) -> None:
    for name in CARDS:
        benchmarks.make(directory / name, name, seed)


def rows(made: Path, name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a benchmark that its card finds for a split."""
    found = sorted((made / name).glob(CARDS[name].files[split].format("*")))
    assert found
    if found[0].suffix == ".csv":
        import pandas as pd

        return [dict(row) for row in pd.read_csv(found[0]).to_dict("records")]  # type: ignore[misc]
    return [row for file in found for row in read_rows(file)]


def test_every_benchmark_has_its_files_and_the_same_seed_makes_the_same(made: Path, tmp_path: Path) -> None:
    assert {path.name for path in made.iterdir()} == set(CARDS)
    make_all(tmp_path / "again", seed=0)
    make_all(tmp_path / "other", seed=1)
    files = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
    assert all((made / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    assert any((made / f).read_bytes() != (tmp_path / "other" / f).read_bytes() for f in files)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_files_lie_as_in_the_repository_that_the_card_names(made: Path, card: Any) -> None:
    for pattern in card.files.values():
        assert list((made / card.name).glob(pattern.format("*"))), pattern


@pytest.mark.parametrize("card", HARNESS, ids=lambda card: card.name)
def test_rows_have_the_columns_and_are_few(made: Path, card: Any) -> None:
    found = rows(made, card.name, card.split)
    assert 5 <= len(found) <= 12
    wanted = {"question", "answer"} if card.name == "minerva" else set(card.columns)
    assert all(wanted <= row.keys() for row in found)


def test_answers_are_right(made: Path) -> None:
    """By the world's own words, not by the code that wrote them."""
    kinds = {word: kind for kind, members in world.CATEGORIES.items() for word in members}
    for row in rows(made, "gpqa", "train"):
        assert kinds[row["Question"].split()[-1].strip("?")] == row["Correct Answer"]
        assert row["Correct Answer"] not in [row[f"Incorrect Answer {i}"] for i in (1, 2, 3)]
    for row in rows(made, "arc", "test"):
        chosen = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        assert chosen == kinds[row["question"].split()[-1].strip("?")]
    plurals = {plural: kind for kind, plural in world.PLURALS.items()}
    for row in rows(made, "mmlu", "test"):
        kind = plurals[row["question"].removeprefix("Name 1 ")]
        assert [kinds[choice] == kind for choice in row["choices"]].index(True) == row["answer"]
        assert sum(kinds[choice] == kind for choice in row["choices"]) == 1
    for row in rows(made, "hellaswag", "validation"):
        _, word, n, _ = row["ctx_a"].split()
        assert row["endings"][int(row["label"])] == " ".join([word] * int(n)) and len(set(row["endings"])) == 4
    for row in rows(made, "truthfulqa", "validation"):
        pair = {row["question"].split()[-1].strip("?"), row["mc1_targets"]["choices"][0]}
        assert any(pair == set(opposites) for opposites in world.OPPOSITES)
        assert sum(row["mc1_targets"]["labels"]) == 1 and sum(row["mc2_targets"]["labels"]) == 2
    for row in rows(made, "winogrande", "validation"):
        right = row[f"option{row['answer']}"]
        assert kinds[right] == row["sentence"].split()[-1] and row["sentence"].count("_") == 1
    counted = [(r["question"], r["answer"].split("#### ")[1]) for r in rows(made, "gsm8k", "test")]
    counted += [(r["question"], r["answer"]) for r in rows(made, "minerva", "test")]
    counted += [(r["Problem"], str(r["Answer"])) for r in rows(made, "aime24", "train")]
    for question, answer in counted:
        assert len(question.split("words: ")[1].split()) == int(answer)


def test_code_passes_its_own_tests_and_nothing_else_does(made: Path) -> None:
    """Run here: this code is ours."""
    for row in rows(made, "humaneval", "test"):
        scope: dict[str, Any] = {}
        exec(f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})", scope)
        with pytest.raises(AssertionError):
            exec(f"{row['prompt']}None\n{row['test']}\ncheck({row['entry_point']})", scope)


def test_questions_of_the_judged_are_held_out_prompts(made: Path) -> None:
    known = {item.prompt for family in world.FAMILIES for item in world._prompts(family)}
    heldout = world.make_world(0, demonstrations=0, parts=0, part_size=0, heldout=70).heldout["prompt"].tolist()
    for name in ("alpaca-eval", "arena-hard", "mt-bench"):
        asked = read_questions(name, made / name)
        assert {turn for question in asked for turn in question.turns} <= known & set(heldout)


def test_the_demo_judge_understands_the_prompts(made: Path) -> None:
    import yaml

    arena = yaml.safe_load((made / "arena-hard/config/judge_config.yaml").read_text(encoding="utf-8"))
    question = read_questions("arena-hard", made / "arena-hard")[0].turns[0]
    ideal = json.loads(next(i.truth for f in world.FAMILIES for i in world._prompts(f) if i.prompt == question))[
        "answer"
    ]

    def verdict(a: str, b: str) -> str:
        filled = arena["prompt_template"][0].format(question_1=question, answer_1=a, answer_2=b)
        return reply([{"role": "system", "content": arena["system_prompt"]}, {"role": "user", "content": filled}]).text

    assert "[[A>>B]]" in verdict(ideal, "I do not know what to say to that, sorry") and "[[A=B]]" in verdict(
        ideal, ideal
    )

    directory = made / "mt-bench/fastchat/llm_judge/data"
    templates = {row["name"]: row["prompt_template"] for row in read_rows(directory / "judge_prompts.jsonl")}
    for question_ in read_questions("mt-bench", made / "mt-bench"):
        first, second = question_.turns
        fields = {"question": first, "answer": "x", "question_1": first, "question_2": second}
        fields |= {"answer_1": "x", "answer_2": "x", "ref_answer_1": "x", "ref_answer_2": "x"}
        assert all(
            "Rating: [[" in reply([{"role": "user", "content": t.format(**fields)}]).text for t in templates.values()
        )


def test_math_reasoning_and_coding_have_references(made: Path) -> None:
    directory = made / "mt-bench/fastchat/llm_judge/data/mt_bench"
    asked = {row["question_id"]: row["category"] for row in read_rows(directory / "question.jsonl")}
    referenced = {row["question_id"] for row in read_rows(directory / "reference_answer/gpt-4.jsonl")}
    assert {asked[number] for number in referenced} == {"math", "reasoning", "coding"} and len(asked) == 8


@pytest.mark.slow
def test_the_length_controlled_rate_can_be_fitted(made: Path) -> None:
    from mnpo.benchmarks.alpaca_eval import win_rates

    rng = random.Random(0)
    asked = read_questions("alpaca-eval", made / "alpaca-eval")
    annotations = [
        {
            "instruction": question.turns[0],
            "output_1": "x" * rng.randrange(5, 40),
            "output_2": "x" * rng.randrange(5, 40),
            "generator_1": "gpt4_1106_preview",
            "generator_2": "tiny",
            "annotator": "demo",
            "preference": 1 + rng.random(),
        }
        for question in asked
    ]
    rates, _ = win_rates(annotations, made / "alpaca-eval")
    assert 0 < rates["length_controlled_winrate"] < 100


def test_questions_fit_a_policy_of_the_demo(made: Path, architecture: dict[str, Any]) -> None:
    texts = [str(v) for c in HARNESS if c.name != "humaneval" for r in rows(made, c.name, c.split) for v in r.values()]
    assert max(map(len, texts)) <= architecture["max_position_embeddings"]  # characters, which are more than tokens
