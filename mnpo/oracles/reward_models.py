"""Reward models under their own chat templates: sequence classifiers with one output, ArmoRM, Athene.

Which of them a checkpoint is shows in the names of its weights. Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mnpo.config.oracles import Oracle as OracleSettings
from mnpo.config.sources import Model
from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer
from mnpo.oracles import Judgement, Kept, Oracle, Question, Scorer, preferences_from_scores
from mnpo.oracles.forward import Reader, Shared, Whole
from mnpo.storage.conversations import Turn
from mnpo.storage.journal import Journal

Dtype = Literal["float32", "bfloat16"]
NO_PAIRRM = (
    "PairRM is not supported: its library, llm-blender 0.0.2 of 2024, does not import with transformers 5 (its issue "
    "33 is open; docs/oracles.md); use an oracle of kind pair-model or judge"
)


class RewardModel(Scorer):
    """r(x, y) of a reward model, on the conversation as its own chat template renders it.

    Its weights are in memory only while it scores: an ensemble needs the room of one.

    Args:
        path: the checkpoint.
        dtype: of the backbone.
        journal: keeps finished batches.

    Raises:
        BadInput: a checkpoint without a tokenizer or a chat template.
    """

    def __init__(self, path: str, dtype: Dtype = "float32", journal: Journal | None = None) -> None:
        self.path, self.dtype = path, dtype
        self.tokenizer: Any = load_tokenizer(path)
        self.chat = Chat(self.tokenizer, Text())
        self.reader = Reader(journal)

    def judge(self, questions: Sequence[Question]) -> list[Judgement]:
        """A judgement for each question, with every objective's reward where the model has several.

        Raises:
            BadInput: weights that do not fit, a text that is too long.
        """
        texts = [[self._text(question.turns, response) for response in question.responses] for question in questions]
        what = f"reward model {self.path} in {self.dtype}"
        return [self._judgement(numbers) for numbers in self.reader.read(self._opened, texts, what)]

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The model's raw score of each response."""
        return [judgement.scores for judgement in self.judge(questions)]

    def facts(self) -> dict[str, Any]:
        """What was read, and what its template could not take as it was."""
        return {**self.reader.facts(), **self.chat.counted}

    def _judgement(self, numbers: Sequence[Sequence[float]]) -> Judgement:
        scores = [score for score, *_ in numbers]
        count = len(numbers[0]) - 1
        objectives = {name: [n[1 + i] for n in numbers] for i, name in enumerate(self._objectives(count))}
        return Judgement(scores, preferences_from_scores(scores, self.temperature), objectives)

    def _text(self, turns: list[Turn], response: str) -> list[int]:
        return self.chat.conversation([*turns, {"role": "assistant", "content": response}])

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _opened(self) -> Whole | Shared:
        model = self._load()
        return Shared(model, lambda states: self._rewards(model, states), self._places)

    def _load(self) -> Any:
        raise NotImplementedError

    def _places(self, text: Sequence[int]) -> list[int]:
        """The tokens of a text whose states the score is made of."""
        return [len(text) - 1]

    def _rewards(self, model: Any, states: Any) -> Any:
        """The score, then each objective's reward, ``[texts, 1 + objectives]``, of ``[texts, places, hidden]``."""
        return model.rewards(*states.unbind(1))

    def _objectives(self, count: int) -> list[str]:
        return []


class Classifier(RewardModel):
    """Skywork-Reward-V2, and any sequence classifier of one output that transformers knows."""

    def _load(self) -> Any:
        from torch.nn import Linear

        model: Any = load_model(self.path, "classifier", self.dtype)
        if model.config.num_labels != 1:
            raise BadInput(
                f"{self.path}: a classifier of {model.config.num_labels} outputs is no reward model; expected 1"
            )
        model.config.use_cache = False
        head = getattr(model, "score", None)
        if isinstance(head, Linear):  # in bfloat16 close scores would tie
            head.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        return model

    def _opened(self) -> Whole | Shared:
        """Prompts are shared by decoders that transformers pools at the last token; others get whole texts.

        transformers' pooling takes the last token that is not padding, so padding has to be what ends no text. Where
        config.json names a padding token, that is how the model was published, and it stays.
        """
        from transformers.modeling_layers import GenericForSequenceClassification as Generic

        model = self._load()
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.bos_token_id or 0
        self._padding = int(model.config.pad_token_id)
        if isinstance(model, Generic) and not getattr(model.config, "use_bidirectional_attention", False):
            return Shared(model, lambda states: model.score(states[:, 0]), self._places)
        return Whole(model, lambda ids, mask, lengths: model(input_ids=ids, attention_mask=mask).logits, self._padding)

    def _places(self, text: Sequence[int]) -> list[int]:
        return [max(i for i, token in enumerate(text) if token != self._padding)]


class ArmoRM(RewardModel):
    """heads.ArmoRM on Llama 3's template; the gate reads the prompt's end-of-turn token."""

    GATE = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

    def _load(self) -> Any:
        from mnpo.oracles import heads

        return heads.load(self.path, heads.ArmoRM, self.dtype)

    def _places(self, text: Sequence[int]) -> list[int]:
        return [len(text) - 1, self._prompt_end(list(text))]

    def _prompt_end(self, text: list[int]) -> int:
        pattern = self._ids(self.GATE)
        for start in reversed(range(len(text) - len(pattern) + 1)):
            if text[start : start + len(pattern)] == pattern:
                return start
        raise BadInput(
            f"{self.path}: the chat template does not begin the assistant's turn with {self.GATE!r}, where ArmoRM "
            "reads how much each objective counts; put back the tokenizer that came with it"
        )

    def _objectives(self, count: int) -> list[str]:
        from mnpo.oracles.heads import ARMORM_OBJECTIVES as PUBLISHED

        return list(PUBLISHED) if count == len(PUBLISHED) else [f"objective-{i}" for i in range(count)]


class Athene(RewardModel):
    """heads.Athene: the tokenizer's CLS token comes after the rendered conversation, and is read.

    Its model card tokenizes the rendered text with special tokens once more, which puts a second BOS before the
    template's own; here as everywhere there is one.
    """

    def _load(self) -> Any:
        from mnpo.oracles import heads

        return heads.load(self.path, heads.Athene, self.dtype)

    def _text(self, turns: list[Turn], response: str) -> list[int]:
        if self.tokenizer.cls_token_id is None:
            raise BadInput(
                f"{self.path}: the tokenizer names no cls_token, where Athene reads its value "
                "(<|reserved_special_token_1|> as published); put back the tokenizer that came with it"
            )
        return [*super()._text(turns, response), self.tokenizer.cls_token_id]


def reward_model(path: str, dtype: Dtype = "float32", journal: Journal | None = None) -> RewardModel:
    """The reward model in `path`, of the kind that the names of its weights tell. Raises BadInput."""
    names = _weights(Path(path))
    if "gating.logit_scale" in names:
        return ArmoRM(path, dtype, journal)
    if "v_head.weight" in names:
        return Athene(path, dtype, journal)
    if any("PairRM" in name for name in _architectures(Path(path))):
        raise BadInput(f"{path}: {NO_PAIRRM}")
    return Classifier(path, dtype, journal)


def _weights(directory: Path) -> set[str]:
    """The names of a checkpoint's weights, from the headers of its files."""
    from safetensors import SafetensorError, safe_open

    names: set[str] = set()
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as weights:
                names |= set(weights.keys())
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{file}: not a whole file of weights ({error}); fetch it again") from None
    return names


def _architectures(directory: Path) -> list[str]:
    config = directory / "config.json"
    return (json.loads(config.read_text(encoding="utf-8")).get("architectures") or []) if config.is_file() else []


def local(models: Mapping[str, Model], name: str | None) -> str:
    """The directory of a model. Raises BadInput when it is elsewhere."""
    assert name is not None
    path = models[name].path
    if path is None:
        raise BadInput(f"models.{name}: an oracle's model must be on this machine; download it and give its path")
    return path


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model], kept: Kept) -> Oracle:
    """The oracle that `settings` describe."""
    return reward_model(local(models, settings.model), settings.dtype or "float32", kept.journal)
