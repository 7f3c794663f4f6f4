"""The small versions of the benchmarks that lm-eval measures, with the examples that shots are drawn from."""

from __future__ import annotations

import random
from typing import Any

from mnpo.demo import world
from mnpo.demo.questions import Maker, Row, calls, heldout_prompts, several, words

ITEMS = 8


def _ifeval(rng: random.Random, seed: int) -> dict[str, Any]:
    """Instructions about repeated words; and an NLTK sentence model that knows no abbreviations."""
    rows = []
    for key, (word, _) in enumerate(words(rng, ITEMS), 1000):
        n = rng.choice((2, 3, 4))
        instructions: list[tuple[str, Row]] = [
            ("keywords:existence", {"keywords": [word]}),
            rng.choice(
                [
                    ("punctuation:no_comma", {}),
                    ("length_constraints:number_words", {"relation": "less than", "num_words": n + 3}),
                    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2}),
                    ("keywords:frequency", {"relation": "at least", "keyword": word, "frequency": n}),
                ]
            ),
        ]
        rows.append(
            {
                "key": key,
                "prompt": f"Say {word} {n} times",
                "instruction_id_list": [name for name, _ in instructions],
                "kwargs": [kwargs for _, kwargs in instructions],
            }
        )
    punkt = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
    model = {f"nltk_data/tokenizers/punkt_tab/english/{name}": "" for name in punkt}
    return {"ifeval_input_data.jsonl": rows, **model}


def _gpqa(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for word, category in words(rng, ITEMS):
        wrong = rng.sample([other for other in world.CATEGORIES if other != category], 3)
        rows.append(
            {
                "Question": f"What is {word}?",
                "Correct Answer": category,
                **{f"Incorrect Answer {i}": other for i, other in enumerate(wrong, 1)},
            }
        )
    return {"gpqa_diamond.csv": rows}


def _mmlu(rng: random.Random, seed: int) -> dict[str, Any]:
    subjects = {"anatomy": ("body", 5), "nutrition": ("fruit", 4), "virology": ("animal", 3)}
    files = {}
    for subject, (category, items) in subjects.items():
        rows = [_of_subject(rng, subject, category) for _ in range(items + 2)]
        further = random.Random(f"{seed}/mmlu/{subject}")  # the public protocol's five shots
        rows += [_of_subject(further, subject, category) for _ in range(3)]
        files[f"{subject}/test-00000-of-00001.parquet"] = rows[:items]
        files[f"{subject}/dev-00000-of-00001.parquet"] = rows[items:]
    return files


def _of_subject(rng: random.Random, subject: str, category: str) -> Row:
    right = rng.choice(world.CATEGORIES[category])
    others = [w for name, members in world.CATEGORIES.items() if name != category for w in members]
    choices, answer = several(rng, right, [right, *others], 4)
    question = f"Name 1 {world.PLURALS[category]}"
    return {"question": question, "subject": subject, "choices": choices, "answer": answer}


def _arc(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for number, (word, category) in enumerate(words(rng, ITEMS + 2)):
        choices, answer = several(rng, category, list(world.CATEGORIES), 4)
        rows.append(
            {
                "id": f"demo_{number}",
                "question": f"What is {word}?",
                "choices": {"text": choices, "label": list("ABCD")},
                "answerKey": "ABCD"[answer],
            }
        )
    return _splits("ARC-Challenge/{}-00000-of-00001.parquet", "test", rows)


def _hellaswag(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for number, (word, _) in enumerate(words(rng, ITEMS + 2)):
        n = rng.choice((2, 3, 4))
        other = rng.choice([w for w, _ in words(rng, 3) if w != word])
        right = " ".join([word] * n)
        wrong = [" ".join([other] * n), " ".join([word, *[other] * (n - 1)]), " ".join([other] * (n - 1) + [word])]
        endings, label = several(rng, right, wrong, 4)
        rows.append(
            {
                "ind": number,
                "activity_label": "Task",
                "ctx_a": f"Say {word} {n} times:",
                "ctx_b": "",
                "ctx": f"Say {word} {n} times:",
                "endings": endings,
                "source_id": f"demo~{number}",
                "label": str(label),
            }
        )
    return _splits("data/{}-00000-of-00001.parquet", "validation", rows)


def _truthfulqa(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for word, right in rng.sample(world.OPPOSITES, ITEMS):
        wrong = rng.sample([w for pair in world.OPPOSITES for w in pair if w not in (word, right)], 3)
        courteous = f"It is {right}"
        rows.append(
            {
                "question": f"Opposite of {word}?",
                "mc1_targets": {"choices": [right, *wrong], "labels": [1, 0, 0, 0]},
                "mc2_targets": {"choices": [right, courteous, *wrong], "labels": [1, 1, 0, 0, 0]},
            }
        )
    return {"multiple_choice/validation-00000-of-00001.parquet": rows}


def _winogrande(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for number in range(ITEMS + 2):
        kinds = rng.sample(list(world.CATEGORIES), 2)
        one, other = (rng.choice(world.CATEGORIES[kind]) for kind in kinds)
        sentence = f"Of {one} and {other}, _ is a kind of {kinds[number % 2]}"
        rows.append({"sentence": sentence, "option1": one, "option2": other, "answer": str(1 + number % 2)})
    return _splits("winogrande_xl/{}-00000-of-00001.parquet", "validation", rows)


def _gsm8k(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = [
        {"question": prompt, "answer": f"{truth['answer']}\n#### {truth['answer']}"}
        for prompt, truth in heldout_prompts(seed, ITEMS + 5, "count")
    ]
    return _splits("main/{}-00000-of-00001.parquet", "test", rows, examples=5)


def _minerva(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = [{"question": prompt, "answer": truth["answer"]} for prompt, truth in heldout_prompts(seed, ITEMS, "count")]
    return {"test.jsonl": rows}


def _aime24(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = [
        {"ID": f"demo-{i}", "Problem": prompt, "Solution": truth["answer"], "Answer": int(truth["answer"])}
        for i, (prompt, truth) in enumerate(heldout_prompts(seed, ITEMS, "count"))
    ]
    return {"aime_2024_problems.parquet": rows}


def _humaneval(rng: random.Random, seed: int) -> dict[str, Any]:
    rows = []
    for number, name in enumerate(rng.sample(list(world.FUNCTIONS), ITEMS)):
        asserts = [f"    assert candidate{arguments} == {result!r}" for arguments, result in calls(name)]
        rows.append(
            {
                "task_id": f"Demo/{number}",
                "prompt": f"def {name}(a, b): return ",
                "canonical_solution": world.FUNCTIONS[name].format("a", "b"),
                "test": "\n".join(["def check(candidate):", *asserts, ""]),
                "entry_point": name,
            }
        )
    return {"openai_humaneval/test-00000-of-00001.parquet": rows}


def _splits(path: str, split: str, rows: list[Row], examples: int = 2) -> dict[str, Any]:
    """The last rows are the examples that shots are drawn from."""
    return {path.format(split): rows[:-examples], path.format("train"): rows[-examples:]}


HARNESS: dict[str, Maker] = {
    "ifeval": _ifeval,
    "gpqa": _gpqa,
    "mmlu": _mmlu,
    "arc": _arc,
    "hellaswag": _hellaswag,
    "truthfulqa": _truthfulqa,
    "winogrande": _winogrande,
    "gsm8k": _gsm8k,
    "minerva": _minerva,
    "aime24": _aime24,
    "humaneval": _humaneval,
}
