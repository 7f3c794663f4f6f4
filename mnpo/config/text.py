"""Block `text`, and how a text becomes tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mnpo.config.blocks import Block


class Text(Block):
    """Lengths in tokens, and what happens at them."""

    max_length: int = Field(2048, ge=8)
    """Prompt and response together."""
    max_prompt_length: int = Field(1800, ge=4)
    """The rendered prompt."""
    overflow: Literal["truncate", "error"] = "truncate"
    """A longer prompt: cut its text from the left, and count it, or stop."""

    @model_validator(mode="after")
    def _room(self) -> Text:
        if self.max_prompt_length >= self.max_length:
            raise ValueError(f"max_prompt_length {self.max_prompt_length} leaves no room in {self.max_length}")
        return self


class TextForm(Block):
    """How a scored text becomes tokens."""

    render: Literal["chat", "raw"] = "chat"
    bos: bool = True

    def tag(self) -> str:
        """Its name in file names."""
        return self.render if self.bos else f"{self.render}-nobos"
