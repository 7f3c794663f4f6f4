"""What the demo's judge says: verdicts by the rules of the demo's world, in the form of whoever asks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from mnpo.demo import world

WEIGHTS = {"correctness": 1.0, "brevity": 0.4, "courtesy": 0.2}  # the demo's oracle `overall`
SHARPNESS = 8.0  # P(better wins) = sigmoid(SHARPNESS * difference of scores)
SLIGHT, CLEAR = 0.05, 0.4  # differences of scores from which an answer is better, and much better
TERSE = 200  # words at which brevity, outside the demo's world, is worth half
_QUOTED = r'(?P<quotes>"""|")(?P<{}>.*?)(?P=quotes),?\s*\}}'  # AlpacaEval quotes three times, EvalScope once
INSTRUCTION = re.compile('"instruction": ' + _QUOTED.format("instruction"), re.DOTALL)
OUTPUT = re.compile(r'"model_identifier": "(?P<model>[^"]+)",\s*"output": ' + _QUOTED.format("output"), re.DOTALL)
USER_PROMPT = re.compile(r"<\|User Prompt\|>\n(.*?)\n*<\|The Start of Assistant", re.DOTALL)
SIDE = re.compile(
    r"<\|The Start of Assistant ([AB])'s Answer\|>\n(.*?)\n?<\|The End of Assistant \1's Answer\|>", re.DOTALL
)
SINGLE_QUESTION = re.compile(r"\[Question\]\n(.*?)\n*\[The Start of", re.DOTALL)
SINGLE = re.compile(r"\[The Start of Assistant's Answer\]\n(.*?)\n?\[The End of Assistant's Answer\]", re.DOTALL)
SINGLE_REFERENCE = re.compile(r"\[The Start of Reference Answer\]\n(.*?)\n?\[The End of Reference Answer\]", re.DOTALL)
CONVERSATION = re.compile(
    r"<\|The Start of Assistant A's Conversation with User\|>(.*?)<\|The End of Assistant A's Conversation", re.DOTALL
)
REFERENCES = re.compile(r"<\|The Start of Reference Answer\|>(.*?)<\|The End of Reference Answer\|>", re.DOTALL)
GOLD = re.compile(r"\[Reference Answer\]\n(.*?)\n*\[Predicted Answer\]\n(.*?)\n*Evaluate the model's answer", re.DOTALL)
TURN = re.compile(r"^### (User|Assistant A|Reference answer):\n", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """A text, and the first token's alternatives with their log-probabilities where the judge weighed them."""

    text: str
    first: tuple[tuple[str, float], ...] = ()


def reply(messages: Sequence[dict[str, str]]) -> Reply:
    """What the judge says, in the form of AlpacaEval 2, Arena-Hard, MT-Bench or EvalScope's mathematics when asked in
    theirs, else an answer."""
    text = "\n".join(message["content"] for message in messages)
    if compared := pair(text):
        return _best_model(*compared)
    if len(sides := dict(SIDE.findall(text))) == 2:
        return _verdict(_found(USER_PROMPT, text), sides["A"], sides["B"])
    if conversation := _found(CONVERSATION, text):
        references = _turns(_found(REFERENCES, text), "Reference answer")
        question, answer = _turns(conversation, "User"), _turns(conversation, "Assistant A")
        return _rating(question[-1], answer[-1], references[-1] if references else "")
    if SINGLE.search(text):
        return _rating(_found(SINGLE_QUESTION, text), _found(SINGLE, text), _found(SINGLE_REFERENCE, text))
    if graded := GOLD.search(text):
        return _grade(*graded.groups())
    return Reply(_own_answer(messages[-1]["content"]))


def score(question: str, answer: str, reference: str = "") -> float:
    """How good an answer is, in [0, 1].

    A prompt of the demo's world: the rules' weighted sum, over the weights' sum. Anything else gets a stand-in that
    only has to be deterministic and to tell answers apart, 0 for a blank one: half for the words that it shares with
    the reference (F1) or, without one, the share of the question's words of four letters and more that it mentions;
    half for brevity, 1 / (1 + words / TERSE).
    """
    truth = _truths().get(question.strip())
    if truth is not None:
        total = sum(weight * world.RULES[rule](truth, answer) for rule, weight in WEIGHTS.items())
        return total / sum(WEIGHTS.values())
    words = _words(answer)
    if not words:
        return 0.0
    given = set(words)
    if reference:
        wanted = set(_words(reference))
        apt = 2 * len(given & wanted) / (len(given) + len(wanted))
    else:
        wanted = {word for word in _words(question) if len(word) >= 4}
        apt = len(given & wanted) / len(wanted) if wanted else 0.0
    return 0.5 * apt + 0.5 / (1 + len(words) / TERSE)


def _best_model(question: str, outputs: dict[str, str]) -> Reply:
    """AlpacaEval 2: the better model's identifier, weighed in the log-probabilities of the only token."""
    weights = {name: math.exp(SHARPNESS * score(question, output)) for name, output in outputs.items()}
    total = sum(weights.values())
    alternatives = sorted(((name, math.log(weight / total)) for name, weight in weights.items()), key=lambda a: -a[1])
    return Reply(alternatives[0][0], tuple(alternatives))


def _verdict(question: str, a: str, b: str) -> Reply:
    """Arena-Hard: [[A>>B]] to [[B>>A]]."""
    scores = score(question, a), score(question, b)
    lead = scores[0] - scores[1]
    sign = "=" if abs(lead) < SLIGHT else (">" if abs(lead) < CLEAR else ">>")
    order = f"A{sign}B" if lead > 0 or sign == "=" else f"B{sign}A"
    return Reply(
        f"By my rules assistant A's answer is worth {scores[0]:.3f} and assistant B's {scores[1]:.3f}.\n\n"
        f"My final verdict is: [[{order}]]"
    )


def _rating(question: str, answer: str, reference: str) -> Reply:
    """MT-Bench: 1 to 10."""
    value = score(question, answer, reference)
    return Reply(f"By my rules the answer is worth {value:.3f} of 1.\n\nRating: [[{1 + round(9 * value)}]]")


def _grade(solution: str, answer: str) -> Reply:
    """EvalScope: A for an answer that says the solution's last word, B for another."""
    return Reply("A" if set(_words(solution)[-1:]) & set(_words(answer)) else "B")


def _own_answer(question: str) -> str:
    """The ideal answer in the demo's world; elsewhere a sentence that depends on the question."""
    truth = _truths().get(question.strip())
    if truth is not None:
        return str(json.loads(truth)["answer"])
    return f"I think that this is about {' and '.join(_words(question)[:3]) or 'nothing'}."


@cache
def _truths() -> dict[str, str]:
    """Every prompt of the demo's world with its truth."""
    return {item.prompt: item.truth for family in world.FAMILIES for item in world._prompts(family)}


def pair(text: str) -> tuple[str, dict[str, str]] | None:
    """The instruction and the models' outputs, if a prompt compares two as AlpacaEval 2 does."""
    instruction, outputs = INSTRUCTION.search(text), {m["model"]: m["output"] for m in OUTPUT.finditer(text)}
    return (instruction["instruction"].strip() if instruction else "", outputs) if outputs else None


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match.group(1).strip() if match else ""


def _turns(conversation: str, speaker: str) -> list[str]:
    """What a speaker says, turn by turn."""
    _, *pieces = TURN.split(conversation)
    return [said.strip() for who, said in zip(pieces[::2], pieces[1::2], strict=True) if who == speaker]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
