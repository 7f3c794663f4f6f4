"""Block `text`, and how a text becomes tokens."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from mnpo.config.blocks import Block


class Reading(Block):
    """What is said about a policy's chat template where it does not say it itself (docs/templates.md)."""

    bos: Literal["template", "add", "none"] | None = None
    """BOS in front of a prompt: as the template renders it, one added, or none. None: what template and tokenizer make
    together."""
    end_of_turn: str | int | None = None
    """The token that ends a response, or its id. None: the first special token that the template renders behind one,
    else the model's EOS."""
    system: str | None = Field(None, min_length=1)
    """The system's turn of a conversation that has none."""
    template_options: dict[str, Any] | None = None
    """What the template is given, such as `enable_thinking: false`."""
    date: str | None = None
    """Today, for templates that print it: YYYY-MM-DD. None: always 2024-07-26."""
    control_tokens: Literal["text", "tokens"] | None = None
    """What a control token that is typed in a prompt or a response becomes. None: text."""

    @field_validator("date")
    @classmethod
    def _is_a_date(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                datetime.date.fromisoformat(value)
            except ValueError:
                raise ValueError(f"{value!r} is not a date; write it as 2024-07-26") from None
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_not_said(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Settings of results that were made before there was a key stay what they were."""
        return {key: value for key, value in dump(self).items() if value is not None}


class Text(Reading):
    """Lengths in tokens, and what happens at them; how a policy's chat template is read."""

    max_length: int = Field(2048, ge=8)
    """Prompt and response together."""
    max_prompt_length: int = Field(1800, ge=4)
    """The rendered prompt."""
    overflow: Literal["truncate", "error"] = "truncate"
    """A longer prompt: cut its text from the left, and count it, or stop."""
    template: str | None = Field(None, min_length=1)
    """The chat template that the reference policy gets, and all that come of it: a file, or chatml, zephyr, llama-3,
    gemma or alpaca. None: the model's own."""

    @model_validator(mode="after")
    def _room(self) -> Text:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(f"max_prompt_length {self.max_prompt_length} leaves no room in {self.max_length}")
        return self

    def reading(self) -> dict[str, Any] | None:
        """What of it is about the template, None where nothing is said."""
        return self.model_dump(include=set(Reading.model_fields)) or None


class TextForm(Block):
    """How a scored text becomes tokens."""

    render: Literal["chat", "raw"] = "chat"
    bos: bool = True

    def tag(self) -> str:
        """Its name in file names."""
        return self.render if self.bos else f"{self.render}-nobos"
