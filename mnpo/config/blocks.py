"""What every block of the configuration is made of: kinds of values, names with a meaning, one clear message for
whatever is wrong.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails

from mnpo.errors import BadInput

REFERENCE = "sft"  # the policy that every run starts from
UNNAMED = ""  # the tag of a kind of value that a message does not name
DEMO = "demo"  # the endpoint of a judge that the stage starts itself
DATASET = "dataset"  # whose responses, or whose preferences, came with the prompts


class ConfigError(BadInput):
    """A configuration that cannot be run; the message names file, key, value and remedy."""


def _number(value: Any) -> Any:
    """Accept ``1/3`` beside ``0.3333``: YAML reads it as a string (docs/ledger.md, point 5)."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*/\s*\d+\s*", value) and int(value.split("/")[1]):
        return float(Fraction(value.replace(" ", "")))
    return value


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


def _each_once(parts: list[int]) -> list[int]:
    if twice := [part for part in dict.fromkeys(parts) if parts.count(part) > 1]:
        raise ValueError(f"part {twice[0]} is given twice in {parts}, and its pairs would count twice; give it once")
    return parts


Parts = Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)]
AnyBlock = TypeVar("AnyBlock", bound=BaseModel)
Value = TypeVar("Value")
# A mapping whose order matters: also given as pairs, which keep their order in canonical JSON.
Ordered = Annotated[dict[str, Value], BeforeValidator(dict)]


class Block(BaseModel):
    """A block of the configuration: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's true, yes and on are not the number 1."""
        entries = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if any(isinstance(entry, bool) for entry in entries):
            annotation = cls.model_fields[info.field_name or ""].annotation
            if not _takes_bool(annotation):
                raise ValueError(f"{json.dumps(value)} where no true or false is expected; give a number or a name")
        return value


def _takes_bool(annotation: Any) -> bool:
    """Whether a value of this type may be one, or hold one: a block's own fields are asked for themselves."""
    block = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    direct = annotation in (bool, Any) or isinstance(annotation, bool)
    return block or direct or any(map(_takes_bool, get_args(annotation)))


def nearest(name: str, known: Iterable[str]) -> str:
    """What to say after an unknown name: the nearest known one, else all of them."""
    known = [str(k) for k in known]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known)) or 'none'}"


def validated(block: type[AnyBlock], content: Any, where: str) -> AnyBlock:
    """`content` as a `block`. Raises ConfigError, a line per mistake."""
    try:
        return block.model_validate(content)
    except ValidationError as error:
        lines = [_explained(block, e) for e in error.errors()]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explained(block: type[BaseModel], error: ErrorDetails) -> str:
    path = ".".join(str(p) for p in error["loc"] if p != UNNAMED)
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        return f"{path}: unknown key{nearest(str(key), _fields(block, parents))}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{path}: required, and missing"
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {json.dumps(error['input'], default=str)})"


def _fields(block: type[BaseModel], parents: Iterable[Any]) -> list[str]:
    """The keys that the block at `parents` knows."""
    current: Any = block
    for step in parents:
        if isinstance(current, type) and issubclass(current, BaseModel) and step in current.model_fields:
            current = current.model_fields[step].annotation
        else:  # a key of a mapping or an index of a list: go to what it holds
            current = get_args(current)[-1]
        while get_origin(current) not in (None, dict, list) and get_args(current):
            current = get_args(current)[0]  # Optional[X], Annotated[X, ...]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
