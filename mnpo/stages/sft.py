"""Stage `sft`: the reference policy, from a model or from nothing, fine-tuned on demonstrations when asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import Block
from mnpo.config.sources import Model, directories
from mnpo.config.text import Text
from mnpo.config.training import SFT
from mnpo.errors import BadInput
from mnpo.ranks import barrier, process_group, rank
from mnpo.storage.artifacts import NOT_CONTENT
from mnpo.storage.conversations import turns
from mnpo.storage.records import DEMONSTRATIONS, read, rows_of
from mnpo.storage.resume import Session, resumable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

ENVIRONMENT = "train"


class Settings(Block):
    """What this stage reads."""

    policy: str
    model: Model
    sft: SFT | None = None
    text: Text
    seed: int


def run(settings: Settings, demonstrations: Path, output: Path, events: Path | None = None) -> None:
    """Prepare the reference policy, fine-tuned on the demonstrations when the settings say so.

    Args:
        demonstrations: what `mnpo prompts` wrote of them.
        output: the directory of the policy: weights, tokenizer, metrics.jsonl, manifest.
        events: the directory of what TensorBoard shows of the fine-tuning.
    """
    rows = read(DEMONSTRATIONS, demonstrations)
    inputs = [demonstrations, *directories([settings.model])]
    with (
        process_group(),
        resumable(output, "sft", settings.model_dump(), inputs, directory=True) as (made, session),
    ):
        if rank() == 0:
            _start(settings, rows, made.path)
        barrier()
        if settings.sft is not None:
            made.facts = _fine_tune(settings, settings.sft, rows, made.path, session, events)


def _start(settings: Settings, rows: pd.DataFrame, directory: Path) -> None:
    """Put the base model into `directory`."""
    from mnpo.models.checkpoints import load_model, load_tokenizer, save

    model = settings.model
    if model.architecture is not None:
        if rows.empty:
            raise BadInput("a tokenizer is trained on demonstrations, and there are no demonstrations")
        tiny = import_module("mnpo.demo.model")  # by name: only the demo depends on it (mnpo/storage/code_digests.py)
        texts = (f"{prompt} {response}" for prompt, response in zip(rows["prompt"], rows["response"], strict=True))
        tiny.build(directory, texts, vocab_size=model.vocab_size, architecture=model.architecture, seed=settings.seed)
    elif model.path is None:
        raise BadInput("settings.model: an architecture, or the path of a directory")
    elif settings.sft is None:
        _link(Path(model.path), directory)
    else:
        save(load_model(model.path), load_tokenizer(model.path), directory)


def _link(source: Path, directory: Path) -> None:
    """The policy is the model as it is: its files are linked, not copied.

    What says when the model was made is no file of it: Snakemake would take its time for the policy's, older than the
    policy's other inputs, and refuse the policy.
    """
    from mnpo.models.checkpoints import checkpoint, load_tokenizer

    for file in checkpoint(source).iterdir():
        if file.is_file() and file.name not in NOT_CONTENT:
            (directory / file.name).symlink_to(file.resolve())
    load_tokenizer(directory)


def _fine_tune(
    settings: Settings, sft: SFT, rows: pd.DataFrame, directory: Path, session: Session, events: Path | None
) -> dict[str, Any]:
    import torch

    from mnpo.learning.training import optimise, prepared, summary, write
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer

    if rows.empty:
        raise BadInput("reference.sft is given, but the prompts' source has no demonstrations to learn from")
    tokenizer = load_tokenizer(directory)
    model = load_model(directory)
    chat = Chat(tokenizer, settings.text)
    names = [f"demonstration {row}" for row in rows["row"]]
    texts = [
        chat.encode(turns(r["prompt"], r["context"]), r["response"], n)
        for r, n in zip(rows_of(rows), names, strict=True)
    ]
    response_tokens = [float(len(text.response)) for text in texts]

    def losses(module: Any, batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean negative log-likelihood of each row's response tokens, nats (docs/method.md, eq. 1)."""
        return -module([texts[i] for i in batch], reduction="mean"), {}

    torch.manual_seed(settings.seed)
    parameters = model.num_parameters()
    module = prepared(model, sft)
    model.train()
    trained = optimise(
        module,
        sft,
        losses,
        [len(t) for t in texts],
        sft.steps,
        weights=response_tokens,
        names=names,
        seed=settings.seed,
        what="sft",
        session=session,
        events=events,
    )
    write(trained, model, tokenizer, directory, sft.lora)
    return {"rows": len(texts), "parameters": parameters, **summary(trained.history), **chat.counts}
