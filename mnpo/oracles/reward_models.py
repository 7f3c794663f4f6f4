"""Reward models that are sequence classifiers with one output, under their own chat template."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mnpo.batches import SCORING_TOKENS, by_tokens
from mnpo.config import Model
from mnpo.config import Oracle as OracleSettings
from mnpo.errors import BadInput
from mnpo.oracles import Oracle, Question, Scorer
from mnpo.progress import track


class RewardModel(Scorer):
    """r(x, y) of a sequence classifier: texts of similar length share a batch, padded on the right."""

    def __init__(self, path: str) -> None:
        from mnpo.checkpoints import load_model, load_tokenizer

        self.model: Any = load_model(path, "classifier")
        self.tokenizer: Any = load_tokenizer(path)
        if self.model.config.num_labels != 1:
            raise BadInput(
                f"{path}: a classifier of {self.model.config.num_labels} outputs is no reward model; expected 1"
            )
        self.model.config.pad_token_id = self.tokenizer.pad_token_id

    def score(self, questions: Sequence[Question]) -> list[list[float]]:
        """The model's raw output for each response."""
        ids = [self._ids(q.prompt, response) for q in questions for response in q.responses]
        rewards = iter(self._rewards(ids))
        return [[next(rewards) for _ in q.responses] for q in questions]

    def _ids(self, prompt: str, response: str) -> list[int]:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _rewards(self, ids: list[list[int]]) -> list[float]:
        import torch

        rewards = [math.nan] * len(ids)
        batches = by_tokens([len(i) for i in ids], SCORING_TOKENS)
        for batch in track(batches, len(batches), "reward model", "batches"):
            width = max(len(ids[i]) for i in batch)
            pad = self.tokenizer.pad_token_id
            rows = torch.tensor([ids[i] + [pad] * (width - len(ids[i])) for i in batch], device=self.model.device)
            mask = torch.tensor(
                [[1] * len(ids[i]) + [0] * (width - len(ids[i])) for i in batch], device=self.model.device
            )
            with torch.inference_mode():
                out = self.model(input_ids=rows, attention_mask=mask).logits[:, 0].float().tolist()
            for i, reward in zip(batch, out, strict=True):
                rewards[i] = reward
        return rewards


def build(settings: OracleSettings, members: Mapping[str, Oracle], models: Mapping[str, Model]) -> Oracle:
    """The oracle that `settings` describe."""
    assert settings.model is not None
    path = models[settings.model].path
    if path is None:
        raise BadInput(
            f"models.{settings.model}: a reward model must be on this machine; download it and give its path"
        )
    return RewardModel(path)
