"""Pair-preference language models: shown both responses, the logits of the tokens A and B say which is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.oracles import Kept, Oracle
from mnpo.oracles.forward import Reader, Whole
from mnpo.oracles.pairs import Game, Pairwise
from mnpo.oracles.reward_models import local
from mnpo.storage.conversations import Turn
from mnpo.storage.journal import Journal


class PairModel(Pairwise):
    """A causal model in the format of RLHFlow/pair-preference-model-LLaMA3-8B (2405.07863).

    The conversation and both responses are one user's turn of the model's own chat template; P(A) is the softmax of
    the two logits where the answer begins. As published, the BOS of the template is taken off. The published code
    renders without add_generation_prompt: the tokenizer of its time opened the assistant's turn in any case, and so it
    is opened here. Neither tokenizer nor weights were at hand.

    Raises:
        BadInput: a checkpoint without tokenizer or template, or one in which A or B is not one token.
    """

    def __init__(
        self,
        path: str,
        comparisons: int | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        journal: Journal | None = None,
    ) -> None:
        super().__init__(comparisons)
        self.path, self.dtype = path, dtype
        self.tokenizer: Any = load_tokenizer(path)
        self.chat = Chat(self.tokenizer, Text())
        self.letters = [self._letter(letter) for letter in "AB"]
        self.reader = Reader(journal)

    def prefer(self, games: Sequence[Game]) -> list[float | None]:
        """P(A) of each game, in (0, 1)."""
        texts = [self._text(game.question.turns, *game.shown) for game in games]
        (read,) = self.reader.read(self._opened, [texts], f"pair model {self.path} in {self.dtype}")
        return [p for (p,) in read]

    def _opened(self) -> Whole:
        model: Any = load_model(self.path, "causal", self.dtype)

        def forward(ids: Any, mask: Any, lengths: list[int]) -> Any:
            from mnpo.oracles.heads import at

            hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = model.get_output_embeddings()(at(hidden, [n - 1 for n in lengths])).float()
            if cap := getattr(model.config, "final_logit_softcapping", None):
                logits = cap * (logits / cap).tanh()
            first, second = self.letters
            return (logits[:, first] - logits[:, second]).sigmoid()[:, None]

        return Whole(model, forward, pad=0)

    def facts(self) -> dict[str, Any]:
        """What was read, and how the games went."""
        return {**self.reader.facts(), **super().facts()}

    def _text(self, conversation: list[Turn], a: str, b: str) -> list[int]:
        context = "".join(f"\n<turn> {turn['role']}\n {turn['content']}" for turn in conversation)
        said = f"[CONTEXT] \n{context}\n [RESPONSE A] {a} [RESPONSE B] {b} \n"
        ids = self.chat.ids(self.chat.rendered([{"role": "user", "content": said}]))
        return ids[1:] if ids[0] == self.tokenizer.bos_token_id else ids

    def _letter(self, letter: str) -> int:
        ids = self.tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise BadInput(f"{self.path}: {letter} is {len(ids)} tokens here; a pair model answers with one")
        return int(ids[0])


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    return PairModel(local(models, settings.model), settings.comparisons, settings.dtype or "float32", kept.journal)
