"""Prompt and response -> token ids. The only place that knows templates, BOS, end of turn and truncation."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mnpo.config.text import Text, TextForm
from mnpo.errors import BadInput
from mnpo.models import thinking
from mnpo.models.templates import Opening, Template, Turns, end_of_text


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


class _Prompt(NamedTuple):
    """A conversation that waits for its answer, cut where it was too long."""

    turns: list[dict[str, str]]
    opening: Opening
    ids: list[int]


class Chat:
    """How one tokenizer reads prompts and responses: as its chat template writes them out (mnpo/models/templates.py).

    Args:
        tokenizer: with a chat template.
        text: the limits, and what is said about the template.
        form: `chat` renders the template, `raw` concatenates the strings as the paper's public code does.

    `counts` holds how many prompts and responses were cut so far, or changed.
    """

    def __init__(self, tokenizer: Any, text: Text, form: TextForm | None = None) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.form = form or TextForm()
        self.template = Template(tokenizer, text)
        self.counts: Counter[str] = self.template.counts
        self.counts.update(prompts_cut=0, responses_cut=0)
        self._last: tuple[Any, _Prompt] | None = None

    @property
    def counted(self) -> dict[str, int]:
        """What of `counts` happened at all."""
        return {name: count for name, count in self.counts.items() if count}

    def prompt(self, prompt: str | Turns, where: str = "") -> list[int]:
        """Token ids of `prompt`, ready to be answered: at most `max_prompt_length`.

        A conversation is given as its turns, the last one the user's.

        Raises:
            BadInput: an empty prompt, or one over the limit when the setting is to stop; `where` names the row.
        """
        return self._prompt(prompt, where).ids

    def encode(self, prompt: str | Turns, response: str, where: str = "") -> Encoded:
        """Token ids of both; a response that does not fit is cut at the end, and counted.

        Raises:
            BadInput: also for a response that has no tokens.
        """
        read = self._prompt(prompt, where)
        body = response if self.form.render == "raw" else self._answer(read, response)
        if not body or not (response_ids := self._following(read, body)):
            raise BadInput(
                f"{where}: the response {response!r} has no tokens; drop the row (the pair stage does, and counts it)"
            )
        response_ids.append(self.end_of_turn)
        room = self.text.max_length - len(read.ids)
        if len(response_ids) > room:
            self.counts["responses_cut"] += 1
            response_ids = response_ids[:room]
        return Encoded(read.ids, response_ids)

    def conversation(self, turns: Turns) -> list[int]:
        """Token ids of a finished conversation, all that its template renders."""
        return self._with_bos(self._ids(self.template.render(self.template.prepared(turns))))

    def rendered(self, turns: Turns, going_on: bool = False) -> str:
        """The text whose `ids` those of `prompt` are, of no limited length, for programs that hand on texts.

        `going_on`: the last turn is the beginning of the answer.
        """
        given = self.template.prepared(turns)
        text = self.template.render(given, going_on=True) if going_on else self.template.opening(given).text
        bos = self.tokenizer.bos_token
        if self._bos_is_ours:
            return f"{bos}{text}"
        return text.removeprefix(bos) if self._bos == "none" and bos and not self._bos_opens_turns else text

    def ids(self, rendered: str) -> list[int]:
        """Token ids of a text that begins with what `rendered` returned."""
        if self._bos_is_ours and rendered.startswith(self.tokenizer.bos_token):
            return [self.tokenizer.bos_token_id, *self._ids(rendered.removeprefix(self.tokenizer.bos_token))]
        return self._ids(rendered)

    @cached_property
    def bos(self) -> int | None:
        """The BOS that a prompt begins with, if there is one that does not open other turns too."""
        bos = self.tokenizer.bos_token_id
        begins = bos is not None and self.prompt("x")[:1] == [bos]
        return bos if begins and not self._bos_opens_turns else None

    def decode(self, ids: list[int]) -> str:
        """The text of a generated response without what the template puts around it, and without special tokens but
        those that enclose its thinking."""
        text = thinking.decode(self.tokenizer, ids)
        if self.form.render == "raw":
            return text
        return text.removeprefix(self._usual.lead).removesuffix(self._before_end(self._usual))

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a response.

        That is what `text.end_of_turn` names, or the first special token behind a response in the template, or the
        model's EOS (the tokenizer's in raw form).
        """
        if self.form.render == "raw":
            return int(self.tokenizer.eos_token_id)
        if self.text.end_of_turn is not None:
            return self._named(self.text.end_of_turn)
        if found := self.template.specials.search(self._usual.trail):
            return self._named(found[0])
        if not (ends := end_of_text(self.tokenizer)):
            raise BadInput(
                f"{self.template.where}: the chat template does not end an assistant's turn with a special token, and "
                "the model names no EOS; name the token that ends one in text.end_of_turn"
            )
        return ends[0]

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens at which sampling stops."""
        return sorted({self.end_of_turn, *end_of_text(self.tokenizer)})

    # ---------------------------------------------------------------------------------------------------------- prompts

    def _prompt(self, prompt: str | Turns, where: str) -> _Prompt:
        given = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if not given[-1]["content"].strip():
            raise BadInput(f"{where}: empty prompt; remove the row")
        turns = self.template.prepared(given) if self.form.render == "chat" else given
        if self._last is not None and self._last[0] == turns:  # the other side of a pair, another of K responses
            read = self._last[1]
        else:
            read = self._read(turns)
            self._last = turns, read
        limit = self.text.max_prompt_length
        if len(read.ids) <= limit:
            return read
        if self.text.overflow == "error":
            raise BadInput(
                f"{where}: a prompt of {len(read.ids)} tokens, the limit is {limit}; shorten it, raise "
                "text.max_prompt_length or set text.overflow to truncate"
            )
        self.counts["prompts_cut"] += 1
        return self._cut(read, limit)

    def _read(self, turns: list[dict[str, str]]) -> _Prompt:
        if self.form.render == "raw":
            text = "".join(turn["content"] for turn in turns)
            opening = Opening(text, text, "", "")
        else:
            opening = self.template.opening(turns)
        return _Prompt(turns, opening, self._with_bos(self._ids(opening.text)))

    def _cut(self, read: _Prompt, limit: int) -> _Prompt:
        """Keep the end of the text, where the question usually is: the oldest turn loses its beginning first, and
        the last one never all of it; the template stays whole."""
        cut = [dict(turn) for turn in read.turns]
        for turn in cut:
            content = self._ids(self.template.mark(turn["content"]))
            kept = 1 if turn is cut[-1] else 0
            while len(read.ids) > limit and len(content) > kept:
                content = content[min(len(read.ids) - limit, len(content) - kept) :]
                turn["content"] = self.tokenizer.decode(content).lstrip("\ufffd")  # half a character at the cut
                read = self._read(cut)
        if len(read.ids) > limit:
            raise BadInput(f"text.max_prompt_length = {limit} is shorter than the chat template itself")
        return read

    # -------------------------------------------------------------------------------------------------------- responses

    def _answer(self, read: _Prompt, response: str) -> str:
        """What the model is to say: the response as the template writes it, up to where it ends its turn."""
        said = self.template.answer(read.turns, read.opening, response)
        return said + self._before_end(read.opening) if said.removeprefix(read.opening.lead) else ""

    def _before_end(self, opening: Opening) -> str:
        """What the template puts between a response and the token that ends it: some have a space there."""
        before, ended, _ = opening.trail.partition(self._end)
        return before if ended and not self.template.specials.search(before) else ""

    @cached_property
    def _end(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.end_of_turn))

    def _following(self, read: _Prompt, text: str) -> list[int]:
        """Token ids of `text` behind a prompt."""
        if self._starts_anew:
            return self._ids(text)
        before = self._ids(read.opening.text)
        both = self._ids(read.opening.text + text)
        return both[len(before) :] if both[: len(before)] == before else self._behind(text, inert=False)

    @cached_property
    def _usual(self) -> Opening:
        """What the template does with one turn of the user's."""
        return self.template.opening([{"role": "user", "content": "x"}])

    def _named(self, token: str | int) -> int:
        """The id of a token that is named."""
        ids = [token] if isinstance(token, int) else self._plain(token)
        if len(ids) != 1 or not 0 <= ids[0] < len(self.tokenizer):
            what = f"the {len(ids)} tokens {ids}" if len(ids) != 1 else f"beyond its {len(self.tokenizer)} ids"
            raise BadInput(
                f"text.end_of_turn: {token!r} is no token of {self.template.where} ({what}); name one of its vocabulary"
            )
        return int(ids[0])

    # -------------------------------------------------------------------------------------------------------- token ids

    def _with_bos(self, ids: list[int]) -> list[int]:
        """`ids` with BOS in front as template and tokenizer make it together, once, or as it is said."""
        bos = self.tokenizer.bos_token_id
        if bos is None or self._bos == "template":
            return ids
        if self._bos == "add":
            return ids if ids[:1] == [bos] else [bos, *ids]
        return ids[1:] if ids[:1] == [bos] and not self._bos_opens_turns else ids

    @cached_property
    def _bos(self) -> str:
        """What becomes of BOS: template, add or none."""
        if self.form.render == "raw" or not self.form.bos:
            return "add" if self.form.bos else "none"
        adds = self.tokenizer("x")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return self.text.bos or ("add" if adds else "template")

    @cached_property
    def _bos_is_ours(self) -> bool:
        """Whether BOS is put in front of what the template renders."""
        bos = self.tokenizer.bos_token_id
        return bos is not None and self._bos == "add" and self._ids(self._usual.text)[:1] != [bos]

    @cached_property
    def _bos_opens_turns(self) -> bool:
        """Whether BOS is no more than what opens each turn, as ChatML's `<|im_start|>` is in SmolLM2."""
        if self.form.render == "raw":
            return False
        return self.tokenizer.bos_token_id in self._ids(self._usual.text)[2:]

    def _ids(self, text: str) -> list[int]:
        """Token ids of a rendered text. What is marked in it stays text."""
        ids: list[int] = []
        for piece, inert in self.template.pieces(text):
            ids += self._behind(piece, inert) if ids else self._plain(piece, inert)
        return ids

    def _behind(self, text: str, inert: bool) -> list[int]:
        """Token ids of a text that goes on from another, by tokenizers that begin a text with a space too."""
        if self._starts_anew:
            return self._plain(text, inert)
        before, both = self._plain("\n", inert), self._plain("\n" + text, inert)
        return both[len(before) :] if both[: len(before)] == before else self._plain(text, inert)

    @cached_property
    def _starts_anew(self) -> bool:
        """Whether a text has the same tokens at the beginning and behind another."""
        return self._plain("\nx") == [*self._plain("\n"), *self._plain("x")]

    def _plain(self, text: str, inert: bool = False) -> list[int]:
        how = {"split_special_tokens": True} if inert else {}
        return list(self.tokenizer(text, add_special_tokens=False, **how)["input_ids"])
