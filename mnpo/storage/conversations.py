"""Conversations as data sets spell them: what a row's prompt, demonstration or preference is, and how tables keep one.

A conversation is a list of turns: at most one of the system, first; then user and assistant in turn. Tables hold the
last user's turn as `prompt`, and those before it as `context`, JSON, empty where there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mnpo.errors import BadInput

Turn = dict[str, str]
"""Of a conversation: role (system, user or assistant) and content."""
Row = Mapping[str, Any]

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
"""What data sets call those who speak: by `role` and `content`, or by `from` and `value`."""
CONVENTIONS = ("messages", "conversations", "instruction")
"""Columns that hold a row's conversation where there is no `prompt`; `instruction` goes with `input` and `output`."""
RESPONSES = ("response", "output", "completion")
"""Columns that answer a row's prompt."""


class Preference(NamedTuple):
    """A conversation that ends with the user, and two answers to it."""

    prompt: list[Turn]
    chosen: str
    rejected: str


def turns(prompt: str, context: str = "") -> list[Turn]:
    """The conversation of a table's row: what came before, then the user's `prompt`."""
    return [*(json.loads(context) if context else []), {"role": "user", "content": prompt}]


def columns(conversation: Sequence[Turn]) -> dict[str, str]:
    """What a table's row holds of a conversation that ends with the user."""
    *before, last = conversation
    return {"context": json.dumps(before, ensure_ascii=False) if before else "", "prompt": last["content"]}


def prompt_of(row: Row, where: str, column: str = "prompt") -> list[Turn]:
    """The conversation that a row asks to be answered; an answer that stands behind it in `messages` is left off.

    Args:
        row: of a data set.
        where: its file and number, for messages.
        column: what holds its prompt, a text or a list of messages. A row without a `prompt` is read by CONVENTIONS, or
            as what its conversations `chosen` and `rejected` answer.

    Raises:
        BadInput: none found; a turn that is empty, of an unknown role, or out of turn; no user at the end.
    """
    if not _has_prompt(row, column) and {"chosen", "rejected"} <= row.keys():
        return preference_of(row, where, column).prompt
    name = _column(row, where, column)
    found = _read(row, name, where)
    return checked(found[:-1] if _answered(name, found) else found, f"{where}: {name}", "user")


def answered(row: Row, where: str, column: str = "prompt") -> bool:
    """Whether a row's conversation ends with an answer, which `prompt_of` leaves off. Arguments as there."""
    if not _has_prompt(row, column):  # chosen and rejected, which are answers and kept
        return False
    name = _column(row, where, column)
    return _answered(name, _read(row, name, where))


def _answered(column: str, turns: list[Turn]) -> bool:
    return bool(turns) and column in CONVENTIONS and turns[-1]["role"] == "assistant"


def distinct(rows: Iterable[Row], where: str, column: str = "prompt") -> set[str]:
    """The different prompts of a file's rows, as JSON. Arguments and errors as of `prompt_of`."""
    return {json.dumps(prompt_of(row, f"{where}: row {number}", column)) for number, row in enumerate(rows, 1)}


def demonstration_of(row: Row, where: str, column: str = "prompt") -> list[Turn]:
    """The conversation that a row shows, its last turn the assistant's. Arguments and errors as of `prompt_of`."""
    name = _column(row, where, column)
    if name == "prompt" and not any(answer in row for answer in RESPONSES):  # which may be the first turn of them only
        name = next((whole for whole in CONVENTIONS[:2] if whole in row), name)
    found = _read(row, name, where)
    if found and found[-1]["role"] == "user" and (answer := next((c for c in RESPONSES if c in row), None)):
        found = [*found, {"role": "assistant", "content": _text(row, answer, where)}]
    return checked(found, f"{where}: {name}", "assistant")


def preference_of(row: Row, where: str, column: str = "prompt") -> Preference:
    """What a row with `chosen` and `rejected` prefers: texts, the assistant's turn alone, or whole conversations.

    Args as of `prompt_of`.

    Raises:
        BadInput: also for two conversations that differ before their last turn, or answer another prompt than the
            row's.
    """
    sides = {}
    for side in ("chosen", "rejected"):
        if side not in row:
            raise BadInput(f"{where} has no {side!r} (it has {', '.join(row)}); a preference needs chosen and rejected")
        sides[side] = _text(row, side, where) if isinstance(row[side], str) else messages(row[side], f"{where}: {side}")
    before = {side: value[:-1] for side, value in sides.items() if not isinstance(value, str)}
    whole = [value for value in before.values() if value]
    prompt = prompt_of(row, where, column) if _has_prompt(row, column) else whole[0] if whole else None
    if prompt is None:
        raise BadInput(
            f"{where} has neither a prompt nor conversations in chosen and rejected; add a column {column!r}"
        )
    for side, value in before.items():
        if value and value[-1:] != prompt[-1:]:
            raise BadInput(f"{where}: {side} answers {value[-1]['content'][:60]!r}, not the row's prompt; mend the row")
    if len(whole) == 2 and whole[0] != whole[1]:
        raise BadInput(f"{where}: chosen and rejected are different conversations before their last turn; mend the row")
    if whole and len(whole[0]) > len(prompt):
        prompt = whole[0]  # a `prompt` that is the last turn only
    prompt = checked(prompt, where, "user")
    answers = [value if isinstance(value, str) else _answer(value, f"{where}: {side}") for side, value in sides.items()]
    return Preference(prompt, *answers)


def messages(value: Any, where: str) -> list[Turn]:
    """A list of messages as turns, by `role` and `content` or by `from` and `value`. Raises BadInput."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(m, Mapping) for m in value):
        raise BadInput(
            f"{where} is {repr(value)[:60]}, expected a text that is not empty, or a list of messages; mend or remove "
            "the row"
        )
    return [_turn(message, f"{where}, message {number}") for number, message in enumerate(value, 1)]


def checked(conversation: list[Turn], where: str, ends: str) -> list[Turn]:
    """`conversation`, if it is one that ends with `ends`. Raises BadInput."""
    if not conversation:
        raise BadInput(f"{where}: a conversation without a turn; remove the row")
    for number, turn in enumerate(conversation, 1):
        if not turn["content"].strip():
            raise BadInput(f"{where}: message {number}, the {turn['role']}'s, is empty; mend or remove the row")
    spoken = [turn["role"] for turn in conversation]
    if spoken.count("system") > 1:
        raise BadInput(f"{where}: {spoken.count('system')} system turns; join them into one, at the beginning")
    if "system" in spoken[1:]:
        raise BadInput(f"{where}: the system's turn is message {spoken.index('system') + 1}; put it first")
    talk = spoken[spoken[0] == "system" :]
    for number, role in enumerate(talk):
        if role != ("user", "assistant")[number % 2]:
            raise BadInput(
                f"{where}: message {number + 1 + len(spoken) - len(talk)} is the {role}'s, where the "
                f"{('user', 'assistant')[number % 2]}'s is due; user and assistant speak in turn, the user first"
            )
    if spoken[-1] != ends:
        raise BadInput(f"{where}: the conversation ends with the {spoken[-1]}, expected the {ends}; mend the row")
    return conversation


def _columns(column: str) -> tuple[str, ...]:
    """Where a row's conversation may be."""
    return (column, *(CONVENTIONS if column == "prompt" else ()))


def _has_prompt(row: Row, column: str) -> bool:
    return any(name in row for name in _columns(column))


def _column(row: Row, where: str, column: str) -> str:
    """The column that holds a row's conversation."""
    for name in _columns(column):
        if name in row:
            return name
    raise BadInput(f"{where} has no {column!r} (it has {', '.join(row)}); set prompts.column")


def _read(row: Row, column: str, where: str) -> list[Turn]:
    value = row[column]
    if column == "instruction":
        given = row.get("input")
        extra = _text(row, "input", where) if given else ""
        return [{"role": "user", "content": "\n\n".join(filter(None, (_text(row, column, where), extra)))}]
    if isinstance(value, str) and value.strip():
        return [{"role": "user", "content": value}]
    return messages(value, f"{where}: {column}")


def _turn(message: Mapping[str, Any], where: str) -> Turn:
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise BadInput(f"{where}: role {role!r} is none of {', '.join(sorted(ROLES))}; remove the row")
    if not isinstance(content, str):
        raise BadInput(f"{where}: its content is {repr(content)[:60]}, expected a text; mend or remove the row")
    return {"role": ROLES[role], "content": content}


def _text(row: Row, column: str, where: str) -> str:
    if not isinstance(row[column], str):
        raise BadInput(f"{where}: {column} is {repr(row[column])[:60]}, expected a text; mend or remove the row")
    return str(row[column])


def _answer(conversation: list[Turn], where: str) -> str:
    if not conversation or conversation[-1]["role"] != "assistant":
        raise BadInput(f"{where}: does not end with the assistant's turn; mend the row")
    return conversation[-1]["content"]
