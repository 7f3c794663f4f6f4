"""A policy on disk: a directory that transformers loads. What is missing from it is an error, not a random weight."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.errors import BadInput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def device() -> torch.device:
    """The accelerator when there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_model(path: str | Path, kind: str = "causal") -> PreTrainedModel:
    """The model in `path` in float32, in evaluation mode, on `device()`.

    Args:
        path: a directory with config.json and safetensors weights.
        kind: `causal` (a policy) or `classifier` (a reward model).

    Raises:
        BadInput: no such directory, no weights in it, or weights that do not fit the architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory = _checkpoint(path)
    loader = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}[kind]
    try:
        model, info = loader.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: not a {kind} model that transformers loads ({str(error).splitlines()[0]})") from error
    if lacking := [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]:
        raise BadInput(
            f"{path}: {len(lacking)} weights are missing or have the wrong shape, such as {lacking[0]}; "
            "the directory was made for another architecture, or its weights are incomplete"
        )
    model.eval()
    return model.to(device())


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in `path`. Raises BadInput when there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    directory = Path(path)
    if not (directory / "tokenizer_config.json").is_file():
        raise BadInput(f"{path}: no tokenizer_config.json; a policy's directory holds its tokenizer too")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if not tokenizer.chat_template:
        raise BadInput(f"{path}: the tokenizer has no chat template, so a prompt cannot be rendered")
    return tokenizer


def save(model: PreTrainedModel, tokenizer: Any, path: str | Path) -> None:
    """Write a policy that `load_model` and any other tool can read."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _checkpoint(path: str | Path) -> Path:
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise BadInput(f"{path}: no model here (config.json is missing)")
    if not list(directory.glob("*.safetensors")):
        raise BadInput(f"{path}: a checkpoint without weights (no *.safetensors); was its copy interrupted?")
    return directory
