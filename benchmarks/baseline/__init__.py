"""The plain pipeline: four stages as public pipelines run them, by the same command line and on the same files.

    python -m benchmarks.baseline STAGE ...      # as `python -m mnpo STAGE ...`

sample  one call of transformers' `generate` a prompt, in file order
score   one prompt's K responses at a time, padded
logps   one padded pair a batch, full float32 logits, log-softmax, gather
train   one padded pair a micro-batch, the prompt with each response, full logits, pairs in random order, plain AdamW

Our own code, from that description. What it reads, writes, encodes and optimises is the project's, so that outputs can
be compared (tests/test_baseline.py). It is for measurements: nothing survives a kill, bad input is not named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnpo.learning.training import schedule
from mnpo.method.objectives import Pair
from mnpo.models.chat import Chat
from mnpo.models.checkpoints import load_model, load_tokenizer, save
from mnpo.oracles import Judgement, preferences_from_scores
from mnpo.oracles.reward_models import Classifier
from mnpo.seeds import derive
from mnpo.stages import score as score_stage
from mnpo.stages import train as train_stage
from mnpo.storage.artifacts import artifact
from mnpo.storage.conversations import turns
from mnpo.storage.records import LOGPS, PAIRS, PROMPTS, SAMPLES, SCORES, read, rows_of, write


def sums(model: Any, texts: Sequence[Any]) -> Tensor:
    """Each text's response log-probability, ``[texts]``, in nats: one padded batch, by full float32 logits."""
    width = max(len(t.prompt) + len(t.response) for t in texts)
    rows = [[*t.prompt, *t.response] for t in texts]
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    per_token = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[:, :, 0]
    column = torch.arange(width - 1, device=ids.device)
    start = torch.tensor([[len(t.prompt) - 1] for t in texts], device=ids.device)
    length = torch.tensor([[len(t.response)] for t in texts], device=ids.device)
    return (per_token * ((column >= start) & (column < start + length))).sum(1)


# ---------------------------------------------------------------------------------------------------------- the stages


def sample(settings: Any, policy: Path, prompts: Path, output: Path, logps: Path | None = None) -> None:
    rows = rows_of(read(PROMPTS, prompts).iloc[settings.shard :: settings.sampling.shards])
    decoding, chat = settings.sampling, Chat(load_tokenizer(policy), settings.text)
    with artifact(output, "sample", settings.model_dump(), [policy, prompts]) as made:
        model: Any = load_model(policy, dtype=decoding.dtype)
        samples = []
        for row in rows:
            ids = torch.tensor([chat.prompt(row["prompt"])], device=model.device)
            seed = derive(settings.seed, row["prompt_id"])
            torch.manual_seed(seed)
            drawn = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
            texts = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=decoding.max_new_tokens,
                num_return_sequences=decoding.responses if decoding.temperature else 1,
                eos_token_id=chat.stop_ids,
                pad_token_id=0,
                **(drawn if decoding.temperature else {"do_sample": False}),
            )[:, ids.shape[1] :].tolist()
            for k, tokens in enumerate(texts):
                end = next((i + 1 for i, token in enumerate(tokens) if token in chat.stop_ids), None)
                said = {"response": chat.decode(tokens[:end]), "tokens": end or len(tokens)}
                samples.append({**row, "k": k, **said, "finish": "stop" if end else "length", "seed": seed})
        write(SAMPLES, samples, made.path)
        made.facts = {"tokens": sum(s["tokens"] for s in samples), "parameters": model.num_parameters()}


@torch.inference_mode()
def score(settings: Any, samples: Path, output: Path, against: Path | None = None) -> None:
    oracle = settings.oracles[settings.oracle]
    with artifact(output, "score", settings.model_dump(exclude_none=True), [samples]) as made:
        reward = Classifier(settings.models[oracle.model].path, oracle.dtype or "float32")
        model = reward._load()
        model.config.pad_token_id = 0 if model.config.pad_token_id is None else model.config.pad_token_id
        judged, tokens = [], 0
        for prompt_id, group in read(SAMPLES, samples).groupby("prompt_id", sort=False):
            texts = [reward._text(turns(row["prompt"], row["context"]), row["response"]) for row in rows_of(group)]
            width, pad = max(map(len, texts)), model.config.pad_token_id
            ids = torch.tensor([t + [pad] * (width - len(t)) for t in texts], device=model.device)
            mask = torch.tensor([[1] * len(t) + [0] * (width - len(t)) for t in texts], device=model.device)
            scores = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
            judged.append((str(prompt_id), group["k"].tolist(), Judgement(scores, preferences_from_scores(scores))))
            tokens += sum(map(len, texts))
        write(SCORES, score_stage._scores(judged), made.path)
        made.facts = {"tokens": tokens, "parameters": model.num_parameters()}


@torch.no_grad()
def logps(settings: Any, policy: Path, pairs: Path, output: Path, sampler: Sequence[Path] = ()) -> None:
    rows = read(PAIRS, pairs)
    with artifact(output, "logps", settings.model_dump(), [policy, pairs]) as made:
        chat = Chat(load_tokenizer(policy), settings.text, settings.form)
        model: Any = load_model(policy, dtype=settings.dtype)
        table, tokens = rows[["pair_id"]].copy(), 0
        both = []
        for row in rows_of(rows):
            texts = [chat.encode(row["prompt"], row[side]) for side in ("chosen", "rejected")]
            both.append([*sums(model, texts).tolist(), *(len(t.response) for t in texts)])
            tokens += sum(map(len, texts))
        columns = ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
        for name, values in zip(columns, zip(*both, strict=True), strict=True):
            table[name] = list(values)
        write(LOGPS, table, made.path)
        made.facts = {"tokens": tokens, "parameters": model.num_parameters()}


def train(
    settings: Any,
    start: Path,
    pairs: Sequence[Path],
    output: Path,
    logps: Sequence[Path] = (),
    training: Path | None = None,
) -> None:
    rows = read(PAIRS, *pairs)
    scored = train_stage._log_probabilities(settings, rows, pairs, logps)
    asked = settings.model_dump(exclude_none=True)
    with artifact(output, "train", asked, [start, *pairs, *logps], directory=True) as made:
        tokenizer, model = load_tokenizer(start), load_model(start)
        data = train_stage._pairs(
            settings, settings.opponents, rows, scored, Chat(tokenizer, settings.text, settings.form), model.device
        )
        size = min(settings.training.batch_size, len(rows))
        steps = math.ceil(len(rows) * settings.training.epochs / size)
        order = torch.cat(
            [
                torch.randperm(len(rows), generator=torch.Generator().manual_seed(settings.seed + epoch))
                for epoch in range(settings.training.epochs + 1)
            ]
        ).tolist()
        model.train()
        losses = fit(model, settings.training, data, (order[i * size : (i + 1) * size] for i in range(steps)), steps)
        save(model, tokenizer, made.path)
        lines = [json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate(losses)]
        (made.path / train_stage.METRICS).write_text("".join(lines), encoding="utf-8")
        tokens = sum(len(t) for i in order[: steps * size] for t in (data.chosen[i], data.rejected[i]))
        made.facts = {"rows": len(rows), "tokens": tokens, "parameters": model.num_parameters()}


def fit(model: Any, training: Any, data: Any, batches: Iterable[Sequence[int]], steps: int) -> list[float]:
    """The loss of each step; moves the weights."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=training.betas, weight_decay=training.weight_decay)
    losses = []
    for step, batch in enumerate(batches):
        total = 0.0
        for i in batch:
            both = sums(model, [data.chosen[i], data.rejected[i]])
            if data.by_mean:
                both = both / both.new_tensor([len(data.chosen[i].response), len(data.rejected[i].response)])
            fixed = {name: Pair(pair.chosen[[i]], pair.rejected[[i]]) for name, pair in data.fixed.items()}
            loss = data.outcome(Pair(both[:1], both[1:]), fixed, [i]).loss.mean() / len(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate * schedule(training, step, steps)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(total)
    return losses


STAGES: dict[str, Callable[..., None]] = {"sample": sample, "score": score, "logps": logps, "train": train}


def install() -> None:
    """Let the command line run these in place of ours, in this process."""
    for name, plain in STAGES.items():
        import_module(f"mnpo.stages.{name}").run = plain  # type: ignore[attr-defined]
