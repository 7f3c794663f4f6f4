"""Stage `sft`: the reference policy, from a model or from nothing, fine-tuned on demonstrations when asked."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

    from mnpo.learning.lessons import Lesson
    from mnpo.models.chat import Chat

ENVIRONMENT = "train"


class Settings(Block):
    """What this stage reads."""

    policy: str
    model: Model
    sft: SFT | None = None
    turns: Literal["all", "last"] = "last"
    """Which of the assistant's turns are learnt."""
    text: Text
    seed: int


def run(
    settings: Settings,
    demonstrations: Path,
    output: Path,
    events: Path | None = None,
    heldout: Path | None = None,
) -> None:
    """Prepare the reference policy, fine-tuned on the demonstrations when the settings say so.

    Args:
        demonstrations: what `mnpo prompts` or `mnpo demonstrations` wrote of them.
        output: the directory of the policy: weights, tokenizer, metrics.jsonl, manifest.
        events: the directory of what TensorBoard shows of the fine-tuning.
        heldout: demonstrations that are not learnt from, whose loss is taken.

    Run by torchrun or accelerate launch, all ranks train together and rank 0 writes (docs/training.md).
    """
    rows = read(DEMONSTRATIONS, demonstrations)
    aside = read(DEMONSTRATIONS, heldout) if heldout else rows[:0]
    inputs = [demonstrations, *([heldout] if heldout else []), *directories([settings.model])]
    with (
        process_group(),
        resumable(output, "sft", settings.model_dump(), inputs, directory=True) as (made, session),
    ):
        facts = _start(settings, rows, made.path) if rank() == 0 else {}
        barrier()
        if settings.sft is not None:
            facts |= _fine_tune(settings, settings.sft, rows, aside, made.path, session, events)
        made.facts = facts


def _start(settings: Settings, rows: pd.DataFrame, directory: Path) -> dict[str, Any]:
    """Put the base model into `directory`, with the chat template that it is given; what the manifest says of it."""
    from mnpo.models.checkpoints import load_model, load_tokenizer, save

    model, template = settings.model, settings.text.template
    if model.architecture is not None:
        if rows.empty:
            raise BadInput("a tokenizer is trained on demonstrations, and there are no demonstrations")
        tiny = import_module("mnpo.demo.model")  # by name: only the demo depends on it (mnpo/storage/code_digests.py)
        texts = (f"{prompt} {response}" for prompt, response in zip(rows["prompt"], rows["response"], strict=True))
        tiny.build(directory, texts, vocab_size=model.vocab_size, architecture=model.architecture, seed=settings.seed)
    elif model.path is None:
        raise BadInput("settings.model: an architecture, or the path of a directory")
    elif template is not None:
        return _with_template(settings, model.path, template, directory)
    elif settings.sft is None:
        _link(Path(model.path), directory)
    else:
        save(load_model(model.path), load_tokenizer(model.path), directory)
    return {}


def _with_template(settings: Settings, path: str, template: str, directory: Path) -> dict[str, Any]:
    """A model with another chat template: its new tokens, and where its turns end, are saved with it."""
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer, save
    from mnpo.models.vocabulary import grow, known_tokens, set_ends

    tokenizer, model = load_tokenizer(path, template), load_model(path)
    new = grow(model, tokenizer, known_tokens(path))
    if new and (settings.sft is None or settings.sft.lora is not None):
        how = "no fine-tuning (reference.sft)" if settings.sft is None else "adapters (reference.sft.lora)"
        raise BadInput(
            f"{path}: text.template {template!r} adds {new} tokens to the vocabulary, and {how} would leave them as "
            "they begin; fine-tune all weights, or take a template of tokens that the model has, such as zephyr"
        )
    set_ends(model, Chat(tokenizer, settings.text).stop_ids)
    save(model, tokenizer, directory)
    return {"new_tokens": new}


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
    settings: Settings,
    sft: SFT,
    rows: pd.DataFrame,
    aside: pd.DataFrame,
    directory: Path,
    session: Session,
    events: Path | None,
) -> dict[str, Any]:
    import torch

    from mnpo.learning.heldout import BEST, Heldout, least
    from mnpo.learning.training import optimise, prepared, steps_of, summary, write
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer

    if rows.empty:
        raise BadInput("reference.sft is given, but the prompts' source has no demonstrations to learn from")
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, attention=sft.attention)
    chat = Chat(tokenizer, settings.text)
    learnt, kept = _Texts(chat, rows, settings.turns), _Texts(chat, aside, settings.turns)
    heldout = None
    if kept.texts:
        place = session.directory / BEST if sft.keep == "best" else None
        heldout = Heldout(kept.losses, kept.lengths, kept.weights, sft, sft.evaluate_every, place)
    torch.manual_seed(settings.seed)
    parameters = model.num_parameters()
    module = prepared(model, sft)
    model.train()
    trained = optimise(
        module,
        sft,
        learnt.losses,
        learnt.lengths,
        steps_of(len(learnt.texts), sft),
        weights=learnt.weights,
        names=learnt.names,
        seed=settings.seed,
        what="sft",
        session=session,
        events=events,
        heldout=heldout,
    )
    write(trained, model, tokenizer, directory, sft, directory)
    facts = {"rows": len(rows), **({"texts": len(learnt.texts)} if len(learnt.texts) != len(rows) else {})}
    facts |= {"parameters": parameters, **summary(trained.history), **chat.counts}
    return facts | ({"heldout_rows": len(aside)} if heldout else {}) | least(trained.history, sft.keep == "best")


class _Texts:
    """Demonstrations as they are learnt from, some of them in several texts."""

    def __init__(self, chat: Chat, rows: pd.DataFrame, which: Literal["all", "last"]) -> None:
        from mnpo.learning.lessons import lessons

        self.texts: list[Lesson] = []
        self.names: list[str] = []
        for row in rows_of(rows):
            name = f"demonstration {row['row']}"
            conversation = [*turns(row["prompt"], row["context"]), {"role": "assistant", "content": row["response"]}]
            found = lessons(chat, conversation, which, name)
            self.texts += found
            self.names += [name] * len(found)

    @property
    def lengths(self) -> list[int]:
        """Tokens."""
        return [len(text) for text in self.texts]

    @property
    def weights(self) -> list[float]:
        """Tokens that are learnt."""
        return [float(len(text.learnt)) for text in self.texts]

    def losses(self, module: Any, batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Mean negative log-likelihood of each text's learnt tokens, nats (docs/method.md, eq. 1)."""
        return -module([self.texts[i] for i in batch], reduction="mean"), {}
