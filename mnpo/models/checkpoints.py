"""A policy on disk: a directory that transformers loads. What is missing from it is an error, not a random weight."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from mnpo.config.text import Reading
from mnpo.errors import BadInput
from mnpo.models.named_templates import named
from mnpo.models.templates import Template
from mnpo.storage.artifacts import loading, manifest_path, seal

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

SOFT_CAPPING = ("eager", "flash_attention_2", "flex_attention")
"""Attention implementations that cap attention logits where the model says so, as Gemma-2 does (its report, section 2).

sdpa cannot: transformers refuses it from 5.23 on, but 5.19, which vLLM 0.32 needs, takes it by default and leaves the
cap out without a word. Eager and flex_attention were compared by number on CPUs; flash-attn has had a cap since 2.6,
and was not tried here.
"""
COMPILED_KINDS = 64
"""Of inputs that attention is compiled for: one row or several, one block or several, a window, gradients, a dtype."""


def device() -> torch.device:
    """This process's accelerator when there is one."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Asked(NamedTuple):
    """The arguments of `load_model`."""

    path: str
    kind: Literal["causal", "classifier"]
    dtype: Literal["float32", "bfloat16"]
    attention: str | None
    soft_cap: bool
    on_cpu: bool


HELD: dict[Asked, PreTrainedModel] = {}
"""Models that were loaded before this process was forked, each for the first who asks (mnpo/warm/held.py)."""
WHEN_ASKED: list[Callable[[Asked], None]] = []
"""Who is told what was asked for."""


@loading()
def load_model(
    path: str | Path,
    kind: Literal["causal", "classifier"] = "causal",
    dtype: Literal["float32", "bfloat16"] = "float32",
    attention: str | None = None,
    soft_cap: bool = True,
    on_cpu: bool = False,
) -> PreTrainedModel:
    """The model in `path`, in evaluation mode, on `device()`.

    Args:
        path: a directory with config.json and safetensors weights.
        kind: `causal` (a policy) or `classifier` (a reward model).
        dtype: of its weights, and so of its products; a model that is to be trained wants float32. The files that are
            read are those of `readable`.
        attention: transformers' name of an implementation. None: what config.json says, else eager for a model that
            caps its attention logits, else what transformers prefers. flex_attention is for GPUs (docs/training.md).
        soft_cap: False leaves out the cap of the attention logits that config.json asks for.
        on_cpu: for its weights alone, beside a model that a GPU holds.

    Raises:
        BadInput: no such directory, no weights in it, weights that do not fit the architecture, an attention that is
            not installed, that this device does not have, or that would leave out the model's soft-capping.
    """
    asked = Asked(str(path), kind, dtype, attention, soft_cap, on_cpu)
    for tell in [*WHEN_ASKED]:
        tell(asked)
    return HELD.pop(asked) if asked in HELD else _load(asked)


def _load(asked: Asked) -> PreTrainedModel:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    path, kind, dtype, attention, soft_cap, on_cpu = asked
    logging.disable_progress_bar()
    directory = checkpoint(readable(path, dtype))
    loader = {"causal": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}[kind]
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        config._attn_implementation = _attention(path, config, attention)
        if not soft_cap:
            config.get_text_config().attn_logit_softcapping = None
        model, info = loader.from_pretrained(
            directory,
            config=config,
            dtype=getattr(torch, dtype),
            # weight by weight, past this machine's memory
            device_map=device() if torch.cuda.is_available() and not on_cpu else None,
            output_loading_info=True,
            local_files_only=True,
        )
    except BadInput:
        raise
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"{path}: not a {kind} model that transformers loads ({str(error).splitlines()[0]})") from error
    if lacking := [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]:
        raise BadInput(
            f"{path}: {len(lacking)} weights are missing or have the wrong shape, such as {lacking[0]}; "
            "the directory was made for another architecture, or its weights are incomplete"
        )
    return model.eval()


def _attention(path: str | Path, config: Any, asked: str | None) -> str | None:
    """The attention implementation to load a model with; None leaves it to transformers."""
    chosen: str | None = asked or config._attn_implementation
    where = "was asked for" if asked else "is asked for by attn_implementation in its config.json"
    if chosen == "flex_attention":
        require_flex(f"{path}: attention {chosen!r} {where}")
    cap = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if cap is None:
        return chosen
    if chosen not in (None, *SOFT_CAPPING):
        raise BadInput(
            f"{path}: attention {chosen!r} {where}, but would leave out this model's attn_logit_softcapping = {cap}; "
            f"use one of {', '.join(SOFT_CAPPING)}, or name none"
        )
    return chosen or "eager"


def require_flex(asked: str) -> None:
    """Refuse flex_attention on a CPU, where torch 2.13 has no backward pass of it and cannot compile it for rows of
    several widths; and let no GPU fall back, past torch's limit of 8, to what holds every logit in memory."""
    import torch

    if not torch.cuda.is_available():
        raise BadInput(
            f"{asked}, and needs a GPU: on this CPU torch can neither train with it nor compile it for rows of "
            "different widths; leave `attention` out, or name another such as eager"
        )
    torch._dynamo.config.recompile_limit = COMPILED_KINDS
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@loading()
def load_tokenizer(path: str | Path, template: str | None = None) -> Any:
    """The tokenizer in `path`.

    Args:
        path: its directory.
        template: the chat template that it gets: a name, a file, or the template itself
            (mnpo/models/named_templates.py). Control tokens of a named one that the tokenizer lacks are added to it;
            the model's embeddings have to grow then. What `save` writes carries them.

    Raises:
        BadInput: there is none, it has no chat template, or one that renders several BOS in front.
    """
    from transformers import AutoTokenizer

    directory = Path(path)
    if not (directory / "tokenizer_config.json").is_file():
        raise BadInput(f"{path}: no tokenizer_config.json; a policy's directory holds its tokenizer too")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if template is not None:
        source, tokens = named(template)
        tokenizer.chat_template = source
        if absent := [token for token in tokens if token not in tokenizer.get_vocab()]:
            tokenizer.add_tokens(absent, special_tokens=True)
    if not tokenizer.chat_template:
        raise BadInput(
            f"{path}: the tokenizer has no chat template, so a prompt cannot be rendered; give the reference one with "
            "text.template"
        )
    _check_front(path, tokenizer)
    return tokenizer


def _check_front(path: str | Path, tokenizer: Any) -> None:
    """Refuse a chat template that begins a text with several BOS. One that opens turns too is no matter."""
    bos = tokenizer.bos_token_id
    try:
        asked = Template(tokenizer, Reading()).render([{"role": "user", "content": "x"}], asking=True)
    except BadInput:
        return  # it may be given what it needs later (text.template_options); whoever renders says so if not
    ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
    count = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    if count > 1:
        raise BadInput(
            f"{path}: the chat template renders {count} {tokenizer.bos_token} before a prompt; leave one, or give "
            "another template in text.template"
        )


FILE_SIZE = "5GB"
"""At most, of a file of a saved policy's weights: whoever reads it reads one weight, or one file, at a time."""


def save(model: PreTrainedModel, tokenizer: Any, path: str | Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a policy that `load_model` and any other tool can read, with its own weights or with others for them."""
    model.save_pretrained(path, state_dict=weights, max_shard_size=FILE_SIZE)
    tokenizer.save_pretrained(path)


COPY: Final = "bfloat16"
"""The directory of a policy's copy within the policy's own, and the copy's dtype."""


def save_copy(path: Path) -> None:
    """Save the policy in `path` in bfloat16 too, in a directory of its own there.

    Whoever reads it instead gets what transformers makes of the policy's files where bfloat16 is asked for, to the last
    bit: weights that stay in float32 there do so here. One file is in memory at a time.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map="meta", local_files_only=True)
    dtypes = {name: weight.dtype for name, weight in read.state_dict().items()}
    copy, size, files = path / COPY, 0, sorted(path.glob("*.safetensors"))
    copy.mkdir()
    for file in path.iterdir():
        if file.is_file() and file not in files:
            shutil.copyfile(file, copy / file.name)
    # Where transformers renames weights as it loads them, and keeps some in float32, it may be any of the renamed.
    known = {name for file in files for name in _names(file)}
    otherwise = torch.bfloat16 if all(n in known or d == torch.bfloat16 for n, d in dtypes.items()) else torch.float32
    for file in files:
        with safe_open(file, "pt") as weights:
            cast = {n: weights.get_tensor(n).to(dtypes.get(n, otherwise)) for n in weights.keys()}  # noqa: SIM118
            save_file(cast, copy / file.name, metadata=weights.metadata())
        size += sum(weight.nbytes for weight in cast.values())
    _edit(copy / "config.json", dtype=COPY)
    if (index := copy / "model.safetensors.index.json").is_file():
        _edit(index, metadata={"total_size": size})
    seal(copy)


def _names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "np") as weights:
        return list(weights.keys())


def _edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def readable(path: str | Path, dtype: str) -> Path:
    """The directory whose files a reader in `dtype` loads: a policy's copy in it where there is one, else `path`.

    A policy whose manifest was taken away, as one does that was changed by hand, may be another than its copy.
    """
    directory, copy = Path(path), Path(path) / COPY
    there = dtype == COPY and manifest_path(directory).is_file() and manifest_path(copy).is_file()
    return copy if there else directory


def checkpoint(path: str | Path) -> Path:
    """The directory `path`, which holds a model: its configuration and weights. Raises BadInput otherwise."""
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise BadInput(f"{path}: no model here (config.json is missing)")
    if not list(directory.glob("*.safetensors")):
        raise BadInput(f"{path}: a checkpoint without weights (no *.safetensors); was its copy interrupted?")
    return directory


def parameters(path: str | Path) -> int:
    """How many weights a checkpoint holds, from its files' headers."""
    from safetensors import safe_open

    count = 0
    for file in checkpoint(path).glob("*.safetensors"):
        with safe_open(file, "np") as weights:
            count += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return count
