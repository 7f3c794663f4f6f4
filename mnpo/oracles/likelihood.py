"""How likely a language model finds a response: the mean log-probability of its tokens.

The reference's own likelihood keeps a policy near the language that it came with: what a reward alone would make of a
text (a word repeated, a list of keywords) is unlikely under it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.config.text import Text
from mnpo.learning.batches import SCORING_TOKENS
from mnpo.models.chat import Chat, Encoded
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.models.logprobs import score_texts
from mnpo.oracles import Kept, Oracle, Question, Scorer
from mnpo.oracles.reward_models import local
from mnpo.progress import counter
from mnpo.storage.journal import Journal


class Likelihood(Scorer):
    """The mean of log p(token) over a response's tokens and its end of turn, in nats: 0 at most.

    Its weights are in memory only while it scores, and no text is read twice. An empty response is its end of turn
    alone; one that was cut is scored as if it ended there.

    Args:
        path: the checkpoint of a causal model.
        dtype: of its weights.
        journal: keeps finished batches.

    Raises:
        BadInput: a checkpoint without a tokenizer or a chat template.
    """

    def __init__(
        self, path: str, dtype: Literal["float32", "bfloat16"] = "float32", journal: Journal | None = None
    ) -> None:
        self.path, self.dtype, self.journal = path, dtype, journal
        self.chat = Chat(load_tokenizer(path), Text())
        self.read: Counter[str] = Counter()
        self._found: dict[str, float] = {}

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The means, ``[questions][responses]``."""
        texts = [[self._encoded(question, response) for response in question.responses] for question in questions]
        unread = {t.fingerprint(): t for some in texts for t in some if t.fingerprint() not in self._found}
        if unread:
            self._read(unread)
        return [[self._found[text.fingerprint()] for text in some] for some in texts]

    def facts(self) -> dict[str, Any]:
        """Tokens read, the model's parameters, and what its template could not take as it was."""
        return {**self.read, **self.chat.counted}

    def _encoded(self, question: Question, response: str) -> Encoded:
        if not response.strip():
            return Encoded(self.chat.prompt(question.turns, question.name), [self.chat.end_of_turn])
        return self.chat.encode(question.turns, response, question.name)

    def _read(self, texts: Mapping[str, Encoded]) -> None:
        model = load_model(self.path, dtype=self.dtype)
        scored = score_texts(
            model,
            list(texts.values()),
            max_tokens=SCORING_TOKENS,
            progress=counter(f"likelihood under {self.path}", "texts"),
            journal=self.journal,
        )
        self._found |= dict(zip(texts, scored.means.tolist(), strict=True))
        self.read["tokens"] += scored.needed
        self.read["parameters"] = model.num_parameters()


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    return Likelihood(local(models, settings.model), settings.dtype or "float32", kept.journal)
