"""Prompt and response -> token ids. The only place that knows templates, BOS, end of turn and truncation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mnpo.config.text import Text, TextForm
from mnpo.errors import BadInput
from mnpo.models.thinking import decode

Turns = Sequence[Mapping[str, str]]  # of a conversation: role (user or assistant, in turn) and content


@dataclass(frozen=True)
class Encoded:
    """A text as a policy reads it: token ids of the rendered prompt, and of the response with its end of turn."""

    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    def fingerprint(self) -> str:
        """The same for the same token ids, prompt and response told apart."""
        return hashlib.sha256(f"{self.prompt} {self.response}".encode()).hexdigest()


class Chat:
    """How one tokenizer reads prompts and responses.

    Args:
        tokenizer: with a chat template.
        text: the limits.
        form: `chat` renders the template, `raw` concatenates the strings as the paper's public code does.

    `counts` holds how many prompts and responses were cut so far.
    """

    def __init__(self, tokenizer: Any, text: Text, form: TextForm | None = None) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.form = form or TextForm()
        self.counts: Counter[str] = Counter(prompts_cut=0, responses_cut=0)

    def prompt(self, prompt: str | Turns, where: str = "") -> list[int]:
        """Token ids of `prompt`, ready to be answered: at most `max_prompt_length`, exactly one BOS.

        A conversation is given as its turns, the last one the user's.

        Raises:
            BadInput: an empty prompt, or one over the limit when the setting is to stop; `where` names the row.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not turns[-1]["content"].strip():
            raise BadInput(f"{where}: empty prompt; remove the row")
        ids = self._render(turns)
        limit = self.text.max_prompt_length
        if len(ids) <= limit:
            return ids
        if self.text.overflow == "error":
            raise BadInput(
                f"{where}: a prompt of {len(ids)} tokens, the limit is {limit}; shorten it, raise "
                "text.max_prompt_length or set text.overflow to truncate"
            )
        self.counts["prompts_cut"] += 1
        return self._cut(turns, limit)

    def encode(self, prompt: str, response: str, where: str = "") -> Encoded:
        """Token ids of both; a response that does not fit is cut at the end, and counted.

        Raises:
            BadInput: also for a response that has no tokens.
        """
        prompt_ids = self.prompt(prompt, where)
        body = self._ids(response)
        if not body:
            raise BadInput(
                f"{where}: the response {response!r} has no tokens; drop the row (the pair stage does, and counts it)"
            )
        response_ids = [*body, self.end_of_turn]
        room = self.text.max_length - len(prompt_ids)
        if len(response_ids) > room:
            self.counts["responses_cut"] += 1
            response_ids = response_ids[:room]
        return Encoded(prompt_ids, response_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of a generated response, without special tokens but those that enclose its thinking."""
        return decode(self.tokenizer, ids)

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a response: the first one after it in the template (the tokenizer's EOS in raw form)."""
        if self.form.render == "raw":
            return int(self.tokenizer.eos_token_id)
        body = "certainly"  # in no template
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": body}]
        after = self._ids(self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(body)[2])
        if not after or after[0] not in self.tokenizer.all_special_ids:
            raise BadInput("the chat template does not end an assistant's turn with a special token")
        return after[0]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens at which sampling stops."""
        return sorted({self.end_of_turn, self.tokenizer.eos_token_id} - {None})

    def _render(self, turns: Turns) -> list[int]:
        if self.form.render == "raw":
            ids = self._ids("".join(turn["content"] for turn in turns))
        else:
            ids = self._ids(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        return self._with_bos(ids)

    def _with_bos(self, ids: list[int]) -> list[int]:
        """`ids` with exactly one BOS in front, or none where the form has none, whatever the template did."""
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:1] == [bos]:
            ids = ids[1:]
        return [bos, *ids] if self.form.bos and bos is not None else ids

    def _cut(self, turns: Turns, limit: int) -> list[int]:
        """Keep the end of the text, where the question usually is: the oldest turn loses its beginning first, and
        the last one never all of it; the template stays whole."""
        cut = [dict(turn) for turn in turns]
        ids = self._render(cut)
        for turn in cut:
            content = self._ids(turn["content"])
            kept = 1 if turn is cut[-1] else 0
            while len(ids) > limit and len(content) > kept:
                content = content[min(len(ids) - limit, len(content) - kept) :]
                turn["content"] = self.tokenizer.decode(content).lstrip("\ufffd")  # half a character at the cut
                ids = self._render(cut)
        if len(ids) > limit:
            raise BadInput(f"text.max_prompt_length = {limit} is shorter than the chat template itself")
        return ids

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
