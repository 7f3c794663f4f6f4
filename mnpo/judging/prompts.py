"""A judge's prompt: its turns are the protocol's, and what it judges is filled into them and read no further.

A policy's answer may hold anything: the words with which a template divides its turns, and names of its places too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mnpo.errors import BadInput

Turn = Mapping[str, str]
"""Of the chat: {"role": ..., "content": ...}."""


def chat(system: str | None, user: str) -> tuple[Turn, ...]:
    """The turns of one question, the system's first where there is one."""
    first = ({"role": "system", "content": system},) if system else ()
    return (*first, {"role": "user", "content": user})


def filled(template: str, where: str, fields: Mapping[str, str]) -> str:
    """A template in the form of str.format. Raises BadInput for one with other placeholders."""
    try:
        return template.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        raise BadInput(
            f"{where}: the judge's prompt template cannot be filled in ({error}); what is known is {', '.join(fields)}"
        ) from None


def replaced(template: str, fields: Mapping[str, str]) -> str:
    """A template whose braces are its own but for `{name}` of each field; what is filled in is not looked at again."""
    places = "|".join(map(re.escape, fields))
    return re.sub(rf"\{{({places})\}}", lambda place: fields[place[1]], template)


def filled_turns(turns: Sequence[Mapping[str, Any]], fields: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """A template's turns, each filled in by itself (see `replaced`), without the blanks around it."""
    return tuple({**turn, "content": replaced(turn["content"], fields).strip()} for turn in turns)
