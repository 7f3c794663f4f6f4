"""A tiny language world: templated instructions whose answers can be verified, and three rules that judge them.

Seven families of tasks. A prompt is a lead, a phrasing and a task. Its `truth` (canonical JSON) holds what the rules
need: the family, an ideal `answer` (bare content, nothing around it), a list's `members`, the `word` to oppose.
The rules disagree by construction: courtesy costs words, which brevity counts; correctness ignores both.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import pandas as pd

CATEGORIES = {
    "animal": ("cat", "dog", "cow", "pig", "hen", "fox"),
    "fruit": ("fig", "plum", "pear", "lime", "kiwi", "date"),
    "color": ("red", "blue", "pink", "gray", "tan", "gold"),
    "tool": ("saw", "axe", "hoe", "file", "awl", "vise"),
    "body": ("arm", "leg", "ear", "toe", "eye", "lip"),
    "drink": ("tea", "milk", "cola", "wine", "beer", "rum"),
}
PLURALS = {
    "animal": "animals",
    "fruit": "fruits",
    "color": "colors",
    "tool": "tools",
    "body": "body parts",
    "drink": "drinks",
}
OPPOSITES = (
    ("hot", "cold"),
    ("big", "small"),
    ("up", "down"),
    ("in", "out"),
    ("on", "off"),
    ("yes", "no"),
    ("old", "new"),
    ("wet", "dry"),
    ("fast", "slow"),
    ("good", "bad"),
    ("left", "right"),
    ("open", "shut"),
)
FUNCTIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "div": "{0} / {1}",
    "less": "{0} < {1}",
    "more": "{0} > {1}",
    "same": "{0} == {1}",
    "most": "max({0}, {1})",
    "least": "min({0}, {1})",
}
VARIABLES = "abmnxy"
DIGITS = "123456789"

LEADS = ("", "Please: ", "Hi. ", "Quick: ", "Task: ", "Next: ")
PHRASINGS = {
    "repeat": ("Say {word} {n} times", "Repeat {word} {n} times", "Write {word} {n} times", "{word}, {n} times"),
    "list": ("List {n} {kind}", "Name {n} {kind}", "Give me {n} {kind}", "Write {n} {kind}", "I need {n} {kind}"),
    "category": (
        "What is {word}?",
        "Category of {word}?",
        "What kind is {word}?",
        "{word} is a kind of",
        "Class of {word}",
    ),
    "opposite": ("Opposite of {word}?", "Not {word} but", "Reverse of {word}?", "What is not {word}?", "{word} or"),
    "code": ("Code: def {name}({a}, {b}): return", "Python {name} of {a} and {b}", "Write {name}({a}, {b})"),
    "count": ("Count words: {text}", "How many words: {text}", "Number of words: {text}"),
    "sort": ("Sort {text}", "Order {text}", "{text} in order", "Write {text} sorted"),
}
FAMILIES: tuple[str, ...] = tuple(PHRASINGS)
SEVERAL = ("repeat", "list", "sort")  # families whose answers have several items

# What may stand around an answer without changing it. Full openers are longer than short ones, and worth more courtesy.
SHORT_OPENERS = ("Sure", "OK")
FULL_OPENERS = ("Happy to help", "Of course")
FRAMES = ("The answer is", "I think it is")
CLOSERS = ("I hope this helps", "Thank you for asking", "Happy to help")

# How the demonstrations are made, in percent. Right answers are often wordy, near misses curt and blunders polite:
# then the three rules, voting, can prefer a to b, b to c and c to a.
MIXTURE = {
    ("right", "terse"): 28,
    ("right", "courteous"): 16,
    ("right", "verbose"): 16,
    ("near miss", "terse"): 13,
    ("near miss", "courteous"): 3,
    ("near miss", "verbose"): 4,
    ("blunder", "terse"): 4,
    ("blunder", "courteous"): 12,
    ("blunder", "verbose"): 4,
}


@dataclass(frozen=True)
class World:
    """Prompts of every split: pairwise disjoint strings, families balanced to within one row.

    Prompt tables have the columns prompt_id, family, prompt, truth (all str); demonstrations also response.
    """

    demonstrations: pd.DataFrame
    parts: list[pd.DataFrame]
    heldout: pd.DataFrame


def make_world(seed: int, demonstrations: int, parts: int, part_size: int, heldout: int) -> World:
    """Split the world's prompts and write the demonstrations; the same arguments give the same tables.

    demonstrations, part_size and heldout count rows. Demonstrations reuse their prompts, with new responses,
    when there are more rows than prompts left. The held-out prompts depend on nothing but seed and heldout.
    Raises ValueError when the world has too few prompts, and for a negative count.
    """
    if min(demonstrations, parts, part_size, heldout) < 0:
        raise ValueError("make_world: counts must not be negative")
    taken = ["heldout", *(f"part{t}" for t in range(parts))]
    sizes = {name: heldout if name == "heldout" else part_size for name in taken}
    rows: dict[str, list[tuple[Prompt, int]]] = {name: [] for name in [*taken, "demonstrations"]}
    for index, family in enumerate(FAMILIES):
        pool = sorted(_prompts(family), key=lambda item: _digest(seed, item.prompt))
        shares = {name: _share(size, index) for name, size in sizes.items()}
        wanted = _share(demonstrations, index)
        needed = sum(shares.values()) + (wanted > 0)
        if needed > len(pool):
            raise ValueError(
                f"make_world: the family {family!r} has {len(pool)} prompts and {needed} are asked for; "
                f"ask for fewer or smaller parts, or fewer held-out prompts (now {parts} x {part_size} and {heldout})"
            )
        for name, share in shares.items():
            rows[name] += [(item, 0) for item in pool[:share]]
            pool = pool[share:]
        rows["demonstrations"] += [(pool[i % len(pool)], i // len(pool)) for i in range(wanted)]
    for chosen in rows.values():
        chosen.sort(key=lambda row: _digest(seed, f"order/{row[1]}/{row[0].prompt}"))
    table = _table(item for item, _ in rows["demonstrations"])
    table["response"] = [
        demonstrate(random.Random(f"{seed}/{copy}/{item.prompt}"), item.truth) for item, copy in rows["demonstrations"]
    ]
    first, *others = (_table(item for item, _ in rows[name]) for name in taken)
    return World(demonstrations=table, parts=others, heldout=first)


def prompt_id(family: str, prompt: str) -> str:
    """A name for a prompt that depends on its text alone."""
    return f"{family}-{hashlib.sha1(prompt.encode()).hexdigest()[:10]}"


class Prompt(NamedTuple):
    """One prompt and what the rules need to judge its responses."""

    family: str
    prompt: str
    truth: str


def _share(total: int, index: int) -> int:
    return total // len(FAMILIES) + (index < total % len(FAMILIES))


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()


def _table(items: Iterable[Prompt]) -> pd.DataFrame:
    rows = [(prompt_id(item.family, item.prompt), *item) for item in items]
    return pd.DataFrame(rows, columns=["prompt_id", "family", "prompt", "truth"], dtype="str")


@cache
def _prompts(family: str) -> tuple[Prompt, ...]:
    """Every prompt of a family, each string once."""
    found: dict[str, Prompt] = {}
    for slots, answer in _tasks(family):
        fields = {"family": family, "answer": answer}
        if family == "list":
            fields["members"] = " ".join(CATEGORIES[slots["category"]])
        if family == "opposite":
            fields["word"] = slots["word"]
        truth = json.dumps(fields, sort_keys=True)
        for lead, phrasing in product(LEADS, PHRASINGS[family]):
            prompt = lead + phrasing.format(**slots)
            found.setdefault(prompt, Prompt(family, prompt, truth))
    return tuple(found.values())


def _tasks(family: str) -> Iterator[tuple[dict[str, str], str]]:
    """What fills a phrasing's slots, and the ideal answer."""
    words = [word for members in CATEGORIES.values() for word in members]
    match family:
        case "repeat":
            for word, n in product(words, (2, 3, 4, 5)):
                yield {"word": word, "n": str(n)}, " ".join([word] * n)
        case "list":
            for (category, members), n in product(CATEGORIES.items(), (1, 2, 3, 4)):
                yield {"category": category, "kind": PLURALS[category], "n": str(n)}, " ".join(members[:n])
        case "category":
            for category, members in CATEGORIES.items():
                yield from (({"word": word}, category) for word in members)
        case "opposite":
            for one, other in OPPOSITES:
                yield {"word": one}, other
                yield {"word": other}, one
        case "code":
            for (name, body), (a, b) in product(FUNCTIONS.items(), permutations(VARIABLES, 2)):
                yield {"name": name, "a": a, "b": b}, body.format(a, b)
        case "count":
            for one, other in permutations(CATEGORIES["animal"], 2):
                for n in range(1, 6):
                    for rest in product((one, other), repeat=min(n - 1, 3)):
                        yield {"text": " ".join((one, *rest, *[one] * (n - 1 - len(rest))))}, str(n)
        case "sort":
            for digits in [*permutations(DIGITS, 2), *permutations(DIGITS, 3), *permutations(DIGITS[:5], 4)]:
                yield {"text": " ".join(digits)}, " ".join(sorted(digits))


# Demonstrations


def demonstrate(rng: random.Random, truth: str) -> str:
    """One noisy response: right or wrong, told tersely, courteously or at length."""
    fields = json.loads(truth)
    kind, style = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    answer = {"right": _right, "near miss": _near_miss, "blunder": _blunder}[kind](rng, fields)
    if style == "terse":
        return answer + rng.choice(("", "."))
    if fields["family"] in SEVERAL:
        answer = ", ".join(answer.split())
    if style == "courteous":
        return f"{rng.choice(SHORT_OPENERS + FULL_OPENERS)}: {answer}" + rng.choice((".", ".", ""))
    return f"{rng.choice(FRAMES)} {answer}. {rng.choice(CLOSERS)}."


def _right(rng: random.Random, fields: dict[str, str]) -> str:
    """The answer; for a list, any members, in the order in which the world knows them."""
    if fields["family"] != "list":
        return fields["answer"]
    return _some(rng, fields["members"].split(), len(fields["answer"].split()))


def _near_miss(rng: random.Random, fields: dict[str, str]) -> str:
    """A mistake that earns part of the credit."""
    items = fields["answer"].split()
    match fields["family"]:
        case "repeat":
            return " ".join([items[0]] * (len(items) + rng.choice((-1, 1))))
        case "list":
            return _some(rng, fields["members"].split(), len(items) + (1 if len(items) == 1 else rng.choice((-1, 1))))
        case "category":
            return rng.choice(CATEGORIES[items[0]])
        case "opposite":
            return fields["word"]
        case "code":
            alike = [body for body in FUNCTIONS.values() if ("(" in body) == ("(" in fields["answer"])]
            operands = _operands(fields["answer"])
            return _another(rng, [body.format(*operands) for body in alike], fields["answer"])
        case "count":
            return str(int(items[0]) + (1 if items[0] == "1" else rng.choice((-1, 1))))
        case _:
            *head, last = items
            if len(items) > 2 and rng.random() < 0.5:
                head.insert(-1, last)
            return " ".join(head)


def _blunder(rng: random.Random, fields: dict[str, str]) -> str:
    """A mistake that earns nothing, or next to it."""
    items = fields["answer"].split()
    match fields["family"]:
        case "repeat" | "list":
            category = next(name for name, members in CATEGORIES.items() if items[0] in members)
            others = _some(rng, CATEGORIES[_another(rng, CATEGORIES, category)], len(items)).split()
            return " ".join(others if fields["family"] == "list" else others[:1] * len(items))
        case "category":
            return _another(rng, CATEGORIES, items[0])
        case "opposite":
            return _another(rng, [w for pair in OPPOSITES for w in pair if w != fields["word"]], items[0])
        case "code":
            return rng.choice(_operands(fields["answer"]))
        case "count":
            return rng.choice([n for n in "12345" if abs(int(n) - int(items[0])) > 1])
        case _:
            return " ".join(reversed(items[1:]))


def _some(rng: random.Random, members: Sequence[str], n: int) -> str:
    return " ".join(members[i] for i in sorted(rng.sample(range(len(members)), n)))


def _operands(answer: str) -> list[str]:
    return [word for word in re.findall(r"\w+", answer) if word in VARIABLES]


def _another(rng: random.Random, choices: Iterable[str], unwanted: str) -> str:
    return rng.choice([choice for choice in choices if choice != unwanted])


# The rules


def _content(response: str) -> list[str]:
    """The words and signs of a response, lower case, without punctuation and without the courtesy around them."""
    text = response.strip()
    before = _before.match(text)
    text = _after.sub("", text[before.end() :] if before else text)
    return re.findall(r"\w+|[^\w\s,.:;!?]+", text.lower())


def correctness(truth: str, response: str) -> float:
    """1 for exactly the right content, up to 0.5 for the share of it that is right, 0 for nothing right.

    Items are compared position by position; a list's are any distinct members. A near miss of one word is worth 0.25.
    """
    fields = json.loads(truth)
    given, wanted = _content(response), _content(fields["answer"])
    if fields["family"] == "list":
        hits = len(set(given) & set(fields["members"].split()))
    else:
        hits = sum(one == other for one, other in zip(given, wanted, strict=False))
    if hits == len(given) == len(wanted):
        return 1.0
    if len(given) == 1 and _is_near(fields, given[0]):
        return 0.25
    return 0.5 * min(hits, len(wanted)) / max(len(given), len(wanted))


def _is_near(fields: dict[str, str], word: str) -> bool:
    """Whether a wrong single word is a near miss: a category's member, the word to oppose, one off."""
    match fields["family"]:
        case "category":
            return word in CATEGORIES[fields["answer"]]
        case "opposite":
            return word == fields["word"]
        case "count":
            return word in (str(int(fields["answer"]) - 1), str(int(fields["answer"]) + 1))
        case _:
            return False


def brevity(truth: str, response: str) -> float:
    """(ideal + 4) / (length + 4), at most 1; lengths in words and punctuation marks, 0 for an empty response."""
    ideal, length = (len(_pieces(text)) for text in (json.loads(truth)["answer"], response))
    return min(1.0, (ideal + 4) / (length + 4)) if length else 0.0


def courtesy(truth: str, response: str) -> float:
    """A polite opener (short 0.25, full 0.5), a full stop at the end (0.25), commas between several items (0.25)."""
    text = response.strip()
    if not text:
        return 0.0
    opener = 0.5 if _full_opener.match(text) else 0.25 if _short_opener.match(text) else 0.0
    fields = json.loads(truth)
    items = len(fields["answer"].split()) if fields["family"] in SEVERAL else 1
    return opener + 0.25 * text.endswith((".", "!")) + 0.25 * (text.count(",") >= items - 1)


RULES: dict[str, Callable[[str, str], float]] = {
    "correctness": correctness,
    "brevity": brevity,
    "courtesy": courtesy,
}


def _pieces(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


def _either(*phrases: str) -> str:
    return rf"\b(?:{'|'.join(map(re.escape, phrases))})\b"


_short_opener = re.compile(_either(*SHORT_OPENERS))
_full_opener = re.compile(_either(*FULL_OPENERS))
_before = re.compile(rf"(?:{_either(*SHORT_OPENERS, *FULL_OPENERS, *FRAMES)}[\s,.:;!]*)+", re.IGNORECASE)
_after = re.compile(rf"(?:[\s,.:;!]*{_either(*CLOSERS)}[\s.!]*)+$", re.IGNORECASE)
