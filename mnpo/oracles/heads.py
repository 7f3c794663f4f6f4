"""The heads of reward models that transformers does not know, on its Llama backbone, with the published weights' names.

Importing this imports torch: do it inside the function that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, LlamaPreTrainedModel

from mnpo.errors import BadInput
from mnpo.models.checkpoints import device

ARMORM_OBJECTIVES = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)
"""The order of its model card."""


def at(hidden: Tensor, positions: list[int]) -> Tensor:
    """``[texts, tokens, hidden] -> [texts, hidden]``: each text's state at its own position."""
    index = torch.tensor(positions, device=hidden.device)
    return hidden[torch.arange(len(positions), device=hidden.device), index]


class Gating(nn.Module):
    """How much each objective counts for a prompt: ``[prompts, hidden] -> [prompts, objectives]``.

    ReLU layers, a softmax at a temperature, times a learnt scale.
    """

    def __init__(self, width: int, inner: int, depth: int, objectives: int, temperature: float) -> None:
        super().__init__()
        sizes = [width, *[inner] * depth, objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Weights that sum to the learnt scale."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        shares: Tensor = (self.layers[-1](x) / self.temperature).softmax(-1)
        return self.logit_scale * shares


class ArmoRM(LlamaPreTrainedModel):  # type: ignore[misc]
    """RLHFlow/ArmoRM-Llama3-8B-v0.1: Interpretable Preferences via Multi-Objective Reward Modeling (2406.12845).

    Of the last token's hidden state a linear layer makes one reward an objective; the hidden state at the end of the
    prompt gates them, after a matrix that takes the verbosity out of each: score = gate . (rewards @ matrix).
    Heads work in float32 whatever the backbone does. Weights: `regression_layer.weight`, `reward_transform_matrix`,
    `gating.layers.N.weight` and `.bias`, `gating.logit_scale`. Settings of config.json: `num_objectives`,
    `gating_hidden_dim`, `gating_n_hidden`, `gating_temperature`.

    Compared with the published modelling code and config.json; the weights themselves were not at hand.
    """

    _keep_in_fp32_modules_strict = ["regression_layer", "reward_transform_matrix", "gating"]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        n = config.num_objectives
        self.regression_layer = nn.Linear(config.hidden_size, n, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(n), requires_grad=False)
        self.gating = Gating(
            config.hidden_size, config.gating_hidden_dim, config.gating_n_hidden, n, config.gating_temperature
        )
        self.post_init()

    def rewards(self, last: Tensor, prompt_end: Tensor) -> Tensor:
        """The score and each objective's reward, ``[texts, 1 + objectives]``, of states ``[texts, hidden]``."""
        rewards = self.regression_layer(last.float())
        gate = self.gating(prompt_end.float())
        score = (gate * (rewards @ self.reward_transform_matrix)).sum(-1, keepdim=True)
        return torch.cat([score, rewards], -1)


class Athene(LlamaPreTrainedModel):  # type: ignore[misc]
    """Nexusflow/Athene-RM-8B (and -70B): one linear value without bias, `v_head.weight`, read at a CLS token.

    From the code in its model card, which transformers does not contain; neither its config.json nor its weights were
    at hand. The value is computed in float32 whatever the backbone does.
    """

    _keep_in_fp32_modules_strict = ["v_head"]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def rewards(self, last: Tensor) -> Tensor:
        """``[texts, 1]``: the value of the states of each text's last token, its CLS, ``[texts, hidden]``."""
        value: Tensor = self.v_head(last.float())
        return value


SETTINGS = {ArmoRM: ("num_objectives", "gating_hidden_dim", "gating_n_hidden", "gating_temperature"), Athene: ()}


def load(path: str | Path, architecture: type[ArmoRM] | type[Athene], dtype: str) -> Any:
    """The reward model in `path`, its weights by name, in evaluation mode, on the accelerator when there is one.

    Raises:
        BadInput: settings that config.json lacks; weights that are missing, too many or of the wrong shape.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    name = architecture.__name__
    config = AutoConfig.from_pretrained(path, local_files_only=True)
    if config.model_type != "llama":
        raise BadInput(f"{path}: {name}'s weights on a backbone {config.model_type}; only llama is known")
    if absent := [key for key in SETTINGS[architecture] if getattr(config, key, None) is None]:
        raise BadInput(
            f"{path}: config.json lacks {', '.join(absent)}, which {name} cannot do without; download it anew"
        )
    try:
        model, info = architecture.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: not a {name} that can be loaded ({str(error).splitlines()[0]})") from error
    wrong = {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        found = ", ".join(f"{len(keys)} {kind} (such as {keys[0]})" for kind, keys in wrong.items() if keys)
        raise BadInput(
            f"{path}: not the weights of {name}: {found}; the directory holds another architecture, or its files are "
            "incomplete"
        )
    return model.eval().to(device())
