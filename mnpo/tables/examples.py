"""A page of examples: the same prompts under several policies. Responses are a model's text, and never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from mnpo.storage.conversations import turns

HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Examples</title>
<style>
body { font: 14px/1.4 sans-serif; color: #111; background: white; max-width: 75em; overflow-x: auto }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin: 2.5em 0 .5em } small { color: #555; font-weight: normal }
.turn { background: #f2f4f7; padding: .4em .7em; margin: .3em 0 }
.text { white-space: pre-wrap; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { padding: .4em .7em .4em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
thead th { vertical-align: bottom } tbody th { min-width: 7em }
td.response { width: 50%; min-width: 14em } .number { text-align: right }
.mark { color: #a40000; font-style: italic }
</style>
</head>
<body>
<h1>The same prompts under each policy</h1>
"""
UNKNOWN = "Whether a response was cut is not known of all: results of earlier versions do not say it."


@dataclass(frozen=True)
class Answer:
    """A policy's response to a prompt."""

    label: str
    response: str
    tokens: int
    finish: str
    """stop, length (cut), or empty: not known."""
    scores: list[float]
    """Oracle by oracle."""


@dataclass(frozen=True)
class Example:
    """A prompt, and what each policy answers."""

    prompt_id: str
    family: str
    prompt: str
    context: str
    """The turns before it (mnpo/storage/conversations.py)."""
    answers: list[Answer]


def page(examples: Sequence[Example], oracles: Sequence[str], of: int, notes: Sequence[str] = ()) -> str:
    """The page, as HTML that loads and runs nothing.

    Args:
        oracles: who scored, in the order of the answers' scores.
        of: how many prompts the examples were drawn from.
        notes: what else a reader must know of the scores.
    """
    known = all(answer.finish for example in examples for answer in example.answers)
    said = [
        f"Prompts: {len(examples)} of {of} held-out ones, drawn at random, not chosen. The configuration's name and "
        "seed decide, no response and no score.",
        "Responses: the first that each policy sampled, whole, as the oracles saw it.",
        "Scores: each oracle's, in the scale of the other tables. The best of a prompt is bold, unless all are the "
        "same. A few responses are an impression, the tables have the means.",
        *notes,
        *([] if known else [UNKNOWN]),
    ]
    listed = "".join(f"<li>{escape(line)}</li>\n" for line in said)
    sections = "".join(_section(number, example, oracles) for number, example in enumerate(examples, 1))
    return f"{HEAD}<ul>\n{listed}</ul>\n{sections}</body>\n</html>\n"


def _section(number: int, example: Example, oracles: Sequence[str]) -> str:
    told = " · ".join(filter(None, (example.family, example.prompt_id)))
    conversation = "".join(
        f'<div class="turn"><small>{escape(turn["role"])}</small>{_text(turn["content"])}</div>\n'
        for turn in turns(example.prompt, example.context)
    )
    headings = "".join(f'<th scope="col" class="number">{escape(name)}</th>' for name in ("tokens", *oracles))
    shown = [[f"{score:.3f}" for score in answer.scores] for answer in example.answers]
    best = [_best(column) for column in zip(*shown, strict=True)]
    rows = "".join(_row(answer, scores, best) for answer, scores in zip(example.answers, shown, strict=True))
    return (
        f"<section>\n<h2>Prompt {number} <small>{escape(told)}</small></h2>\n{conversation}"
        f'<table>\n<thead><tr><th scope="col">policy</th><th scope="col">response</th>{headings}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table>\n</section>\n"
    )


def _best(column: Sequence[str]) -> float | None:
    """The best score as printed; None where all are the same."""
    scores = {float(score) for score in column}
    return max(scores) if len(scores) > 1 else None


def _row(answer: Answer, scores: Sequence[str], best: Sequence[float | None]) -> str:
    marks = [
        *(["empty response"] if not answer.response.strip() else []),
        *(["cut off at the longest length allowed"] if answer.finish == "length" else []),
    ]
    marked = "".join(f'<div class="mark">{mark}</div>' for mark in marks)
    figures = [f"<b>{score}</b>" if float(score) == top else score for score, top in zip(scores, best, strict=True)]
    numbers = "".join(f'<td class="number">{figure}</td>' for figure in (str(answer.tokens), *figures))
    response = f'<td class="response">{_text(answer.response)}{marked}</td>'
    return f'<tr><th scope="row">{escape(answer.label)}</th>{response}{numbers}</tr>\n'


def _text(text: str) -> str:
    return f'<div class="text" dir="auto">{escape(text)}</div>'
