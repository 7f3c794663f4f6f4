"""The prompts of configs/smollm2-experiment.yaml: instructions crossed with constraints that a program can verify.

    python -m examples.instructions [examples/instructions]

writes `train.jsonl`, `validation.jsonl` and `test.jsonl`, the same bytes each time. An instruction is a task about a
topic; no topic of one split is in another. Constraints are of IFEval's kinds (mnpo/config/constraints.py).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mnpo.seeds import derive

TASKS = (
    "Explain {} to someone who has never heard of it.",
    "Write a short message to a friend about {}.",
    "Describe {} as you would to a child.",
    "Give one piece of advice about {}.",
    "Say what people often get wrong about {}.",
    "Write the opening of a blog post about {}.",
    "Tell a new neighbour something useful about {}.",
    "Say why {} is worth an afternoon.",
)
TOPICS = {  # split -> topic: two words that a text about it may well have
    "train": {
        "keeping bees": ("honey", "hive"),
        "baking rye bread": ("oven", "dough"),
        "repairing a bicycle": ("wheel", "chain"),
        "growing tomatoes": ("water", "sun"),
        "learning the violin": ("practice", "music"),
        "winter hiking": ("snow", "boots"),
        "night trains": ("sleep", "journey"),
        "the village library": ("books", "quiet"),
        "making soup": ("salt", "pot"),
        "tide pools": ("sea", "rock"),
        "chess openings": ("board", "piece"),
        "old photographs": ("family", "memory"),
        "sharing a garden": ("soil", "plants"),
        "city pigeons": ("bird", "street"),
        "a school orchestra": ("children", "concert"),
        "fixing a leaking tap": ("water", "tool"),
        "thunderstorms": ("rain", "light"),
        "flea markets": ("price", "stall"),
        "long distance running": ("legs", "road"),
        "brewing green tea": ("cup", "leaf"),
        "paper maps": ("paper", "way"),
        "adopting an older dog": ("home", "walk"),
        "knitting a scarf": ("wool", "needle"),
        "volcanoes": ("fire", "mountain"),
        "writing a diary": ("day", "page"),
        "public fountains": ("water", "square"),
        "sailing a small boat": ("wind", "sail"),
        "second-hand clothes": ("money", "shop"),
        "choosing a melon": ("sweet", "hand"),
        "learning to whistle": ("lips", "sound"),
        "rooftop solar panels": ("power", "sun"),
        "the first day at a new job": ("people", "name"),
    },
    "validation": {
        "picking mushrooms": ("forest", "basket"),
        "a weekly market": ("fruit", "morning"),
        "wooden toys": ("child", "hand"),
        "lighthouses": ("ship", "light"),
        "cooking for twelve guests": ("table", "plan"),
        "migrating cranes": ("wing", "autumn"),
        "morning swimming": ("cold", "lake"),
        "amateur theatre": ("stage", "voice"),
    },
    "test": {
        "mending a torn jacket": ("thread", "cloth"),
        "desert nights": ("stars", "sand"),
        "pressing apples for juice": ("apple", "glass"),
        "learning sign language": ("hands", "language"),
        "stone bridges": ("river", "stone"),
        "keeping a cat indoors": ("window", "play"),
        "folk dancing": ("music", "step"),
        "comets": ("sky", "ice"),
        "sourdough pancakes": ("pan", "batter"),
        "painting a fence": ("brush", "wood"),
        "ferry crossings": ("boat", "wait"),
        "growing herbs on a balcony": ("basil", "pot"),
        "ice skating": ("ice", "balance"),
        "neighbourhood watch meetings": ("street", "talk"),
        "hot-air balloons": ("air", "height"),
        "board games on a rainy day": ("rain", "table"),
    },
}
SIZES = {"train": 480, "validation": 64, "test": 128}
ENDINGS = ("That is all for now.", "Try it yourself.", "Ask me for more.")


class Constraint(NamedTuple):
    """What the prompt says, and what the checker is told."""

    says: str
    name: str
    told: dict[str, Any]


Draw = Callable[[random.Random, tuple[str, str]], Constraint]
"""From a topic's words."""


def _words(rng: random.Random, _: tuple[str, str]) -> Constraint:
    if rng.random() < 0.7:
        n = rng.choice((15, 20, 25, 30))
        return _told(f"Use fewer than {n} words.", "length_constraints:number_words", num_words=n, relation="less than")
    n = rng.choice((20, 25, 30))
    return _told(f"Use at least {n} words.", "length_constraints:number_words", num_words=n, relation="at least")


def _sentences(rng: random.Random, _: tuple[str, str]) -> Constraint:
    name = "length_constraints:number_sentences"
    if rng.random() < 0.7:
        n = rng.choice((2, 3))
        says = "Write a single sentence." if n == 2 else "Write at most two sentences."
        return _told(says, name, num_sentences=n, relation="less than")
    return _told("Write three sentences or more.", name, num_sentences=3, relation="at least")


def _keywords(rng: random.Random, words: tuple[str, str]) -> Constraint:
    word, other = rng.sample(words, 2)
    kind = rng.randrange(3)
    if kind == 0:
        return _told(f'Mention the words "{word}" and "{other}".', "keywords:existence", keywords=[word, other])
    if kind == 1:
        return _told(f'Do not use the word "{word}".', "keywords:forbidden_words", forbidden_words=[word])
    says = f'Let the word "{word}" appear two times or more.'
    return _told(says, "keywords:frequency", keyword=word, frequency=2, relation="at least")


def _format(rng: random.Random, _: tuple[str, str]) -> Constraint:
    kind = rng.randrange(3)
    if kind == 0:
        says = 'Answer as a list of exactly two bullet points, each begun with "* ".'
        return _told(says, "detectable_format:number_bullet_lists", num_bullets=2)
    if kind == 1:
        says = "Put one phrase between asterisks, *like this*."
        return _told(says, "detectable_format:number_highlighted_sections", num_highlights=1)
    return _told("Begin with a title in double angle brackets, <<such as this>>.", "detectable_format:title")


def _case(rng: random.Random, _: tuple[str, str]) -> Constraint:
    if rng.random() < 0.5:
        return _told("Write in small letters only, without any capital.", "change_case:english_lowercase")
    return _told("WRITE IN CAPITAL LETTERS ONLY.", "change_case:english_capital")


def _ending(rng: random.Random, _: tuple[str, str]) -> Constraint:
    kind = rng.randrange(3)
    if kind == 0:
        end = rng.choice(ENDINGS)
        return _told(f'Close with exactly these words: "{end}"', "startend:end_checker", end_phrase=end)
    if kind == 1:
        return _told("Put the whole answer in double quotation marks.", "startend:quotation")
    return _told("Add a postscript that begins with P.S.", "detectable_content:postscript", postscript_marker="P.S.")


def _commas(_: random.Random, __: tuple[str, str]) -> Constraint:
    return _told("Use no commas.", "punctuation:no_comma")


def _told(says: str, name: str, **told: Any) -> Constraint:
    return Constraint(says, name, told)


KINDS: tuple[Draw, ...] = (_words, _sentences, _keywords, _format, _case, _ending, _commas)


def rows(split: str) -> Iterator[dict[str, Any]]:
    """A split's rows: each of its instructions in turn, with two or three constraints of different kinds."""
    rng = random.Random(derive(0, "instructions", split))
    instructions = [(task.format(topic), words) for topic, words in TOPICS[split].items() for task in TASKS]
    rng.shuffle(instructions)
    seen: set[str] = set()
    while len(seen) < SIZES[split]:
        instruction, words = instructions[len(seen) % len(instructions)]
        constraints = [draw(rng, words) for draw in rng.sample(KINDS, rng.choice((2, 2, 3)))]
        prompt = " ".join([instruction, *(constraint.says for constraint in constraints)])
        if prompt not in seen:
            seen.add(prompt)
            names, told = [c.name for c in constraints], [c.told for c in constraints]
            yield {"prompt": prompt, "instruction_id_list": names, "kwargs": told}


def main(directory: Path) -> None:
    """Write the three files."""
    directory.mkdir(parents=True, exist_ok=True)
    for split in TOPICS:
        lines = [json.dumps(row) + "\n" for row in rows(split)]
        (directory / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(*sys.argv[1:] or ["examples/instructions"]))
