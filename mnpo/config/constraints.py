"""Constraints on a text that a program can verify: those of IFEval, by its names, and what each has to be told.

IFEval's own code draws at random what it is not told; here everything has to be said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnpo.config.blocks import nearest

COUNT, TEXT, TEXTS, RELATION, LETTER, LANGUAGE = "count", "text", "texts", "relation", "letter", "language"
CONSTRAINTS: dict[str, dict[str, str]] = {
    "keywords:existence": {"keywords": TEXTS},
    "keywords:frequency": {"keyword": TEXT, "frequency": COUNT, "relation": RELATION},
    "keywords:forbidden_words": {"forbidden_words": TEXTS},
    "keywords:letter_frequency": {"letter": LETTER, "let_frequency": COUNT, "let_relation": RELATION},
    "language:response_language": {"language": LANGUAGE},
    "length_constraints:number_sentences": {"num_sentences": COUNT, "relation": RELATION},
    "length_constraints:number_paragraphs": {"num_paragraphs": COUNT},
    "length_constraints:number_words": {"num_words": COUNT, "relation": RELATION},
    "length_constraints:nth_paragraph_first_word": {
        "num_paragraphs": COUNT,
        "nth_paragraph": COUNT,
        "first_word": TEXT,
    },
    "detectable_content:number_placeholders": {"num_placeholders": COUNT},
    "detectable_content:postscript": {"postscript_marker": TEXT},
    "detectable_format:number_bullet_lists": {"num_bullets": COUNT},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": COUNT},
    "detectable_format:multiple_sections": {"section_spliter": TEXT, "num_sections": COUNT},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": TEXT},
    "startend:end_checker": {"end_phrase": TEXT},
    "change_case:capital_word_frequency": {"capital_frequency": COUNT, "capital_relation": RELATION},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    "startend:quotation": {},
}
"""Its name -> what it has to be told -> of which kind that is."""
RELATIONS = ("less than", "at least")
LANGUAGES = (
    "en", "es", "pt", "ar", "hi", "fr", "ru", "de", "ja", "it", "bn", "uk", "th", "ur", "ta", "te", "bg", "ko", "pl",
    "he", "fa", "vi", "ne", "sw", "kn", "mr", "gu", "pa", "ml", "fi",
)  # fmt: skip
PATTERNS = ("keywords", "keyword", "forbidden_words", "section_spliter", "postscript_marker")
"""What is read as a regular expression."""
SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
"""Those that need NLTK's sentence model."""
ID_COLUMN, KWARGS_COLUMN = "instruction_id_list", "kwargs"
"""The columns of a row with constraints of its own, as IFEval's."""


def checked(constraint: Any) -> dict[str, Any]:
    """A constraint, `{id: ..., ...}`, without what is None. Raises ValueError for one that nothing could verify."""
    if not isinstance(constraint, Mapping) or not isinstance(constraint.get("id"), str):
        raise ValueError(f"a constraint is {{id: ..., ...}}, and this is {constraint!r}")
    name, told = constraint["id"], {k: v for k, v in constraint.items() if k != "id" and v is not None}
    if name not in CONSTRAINTS:
        raise ValueError(f"unknown constraint {name!r}{nearest(name, CONSTRAINTS)}")
    wanted = CONSTRAINTS[name]
    if unknown := [key for key in told if key not in wanted]:
        raise ValueError(f"{name} does not read {unknown[0]!r}{nearest(unknown[0], wanted)}")
    if missing := [key for key in wanted if key not in told]:
        raise ValueError(f"{name} needs {missing[0]}")
    values = {key: _value(f"{name}: {key}", told[key], wanted[key], key in PATTERNS) for key in wanted}
    if "nth_paragraph" in values and not 1 <= values["nth_paragraph"] <= values["num_paragraphs"]:
        raise ValueError(f"{name}: nth_paragraph {values['nth_paragraph']} of {values['num_paragraphs']} paragraphs")
    return {"id": name, **values}


def of_row(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The constraints of a row by its columns. Raises ValueError, also for a row with none."""
    names: Any = columns.get(ID_COLUMN)
    told: Any = columns.get(KWARGS_COLUMN)
    if not _is_list(names) or not _is_list(told) or len(names) != len(told):
        raise ValueError(
            f"{ID_COLUMN} and {KWARGS_COLUMN} are {str(names)[:60]} and {str(told)[:60]}, expected two lists of one "
            "length"
        )
    if not len(names):
        raise ValueError(f"{ID_COLUMN} is empty: no constraint, no score; leave the row out")
    return [checked({**(kwargs or {}), "id": name}) for name, kwargs in zip(names, told, strict=True)]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _value(where: str, value: Any, kind: str, pattern: bool) -> Any:
    if kind == COUNT:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
            raise ValueError(f"{where} is {value!r}, expected a whole number, 0 or more")
        return int(value)
    if kind == RELATION and value not in RELATIONS:
        raise ValueError(f"{where} is {value!r}, expected one of: {', '.join(RELATIONS)}")
    if kind == LETTER and not (isinstance(value, str) and re.fullmatch("[A-Za-z]", value)):
        raise ValueError(f"{where} is {value!r}, expected one letter, a to z")
    if kind == LANGUAGE and value not in LANGUAGES:
        raise ValueError(f"{where} is {value!r}, expected one of: {', '.join(LANGUAGES)}")
    texts = [value] if kind != TEXTS else list(value) if _is_list(value) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{where} is {value!r}, expected {'a list of texts' if kind == TEXTS else 'a text'}")
    for text in texts if pattern else []:
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(
                f"{where}: {text!r} is read as a regular expression, and is none ({error}); write {re.escape(text)!r}"
            ) from None
    return texts if kind == TEXTS else value
