"""Stage `train`: one preference optimisation, from a policy and the log-probabilities of all who oppose it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo import family
from mnpo.artifacts import artifact
from mnpo.config import REFERENCE, Block, Objective, Text, TextForm, Training
from mnpo.errors import BadInput
from mnpo.ranks import process_group, rank
from mnpo.records import LOGPS, PAIRS, read, rows_of
from mnpo.resume import Session, resumable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from mnpo.chat import Encoded
    from mnpo.objectives import Pair

METRICS = "metrics.jsonl"
# Nats per token that log-probabilities computed twice may differ by: the logps stage's, in float32, and training's.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}


class Settings(Block):
    """What this stage reads."""

    policy: str
    start: str
    objective: Objective
    opponents: list[tuple[str, float]]
    """(scorer, lambda)."""
    scorers: list[str]
    """Whose log-probabilities are given, in the order of the files: for each scorer, one file a part."""
    training: Training
    length_normalised: bool = False
    form: TextForm
    """How training reads a text."""
    opponent_form: TextForm = TextForm()
    """How the given log-probabilities read it."""
    text: Text
    seed: int


def run(
    settings: Settings,
    start: Path,
    pairs: Sequence[Path],
    logps: Sequence[Path],
    output: Path,
    training: Path | None = None,
) -> None:
    """Write the trained policy into the directory `output`: weights, tokenizer, metrics.jsonl, manifest.

    Args:
        start: the policy whose weights training starts from.
        pairs: one file a part.
        logps: `len(scorers) * len(pairs)` files.
        training: where the metrics go too, with a manifest: they outlive a policy that is not kept. TensorBoard's
            events go beside it, into `tensorboard/`.

    Raises:
        BadInput: pairs without log-probabilities, or precomputed ones that disagree with what training computes.
        Diverged: a loss that is not finite.
        Interrupted: a signal asked to stop; the same call goes on from there.

    Run by torchrun or accelerate launch, all ranks train together and rank 0 writes (docs/training.md).
    """
    rows = read(PAIRS, *pairs)
    scored = _log_probabilities(settings, rows, pairs, logps)
    asked = settings.model_dump(exclude_none=True, exclude={"objective": {"history"}})
    inputs = [start, *pairs, *logps]
    with process_group(), resumable(output, "train", asked, inputs, directory=True) as (made, session):
        events = training and training.parent / "tensorboard" / training.stem
        made.facts = _train(settings, rows, scored, start, made.path, session, events)
        if training is not None and rank() == 0:
            with artifact(training, "train", asked, inputs) as copy:
                shutil.copyfile(made.path / METRICS, copy.path)
                copy.facts, copy.earlier_seconds = made.facts, session.seconds


def _log_probabilities(
    settings: Settings, rows: pd.DataFrame, pairs: Sequence[Path], logps: Sequence[Path]
) -> dict[str, pd.DataFrame]:
    """Scorer -> its log-probabilities of `rows`, row by row."""
    if len(logps) != len(settings.scorers) * len(pairs):
        raise BadInput(
            f"{len(settings.scorers)} scorers ({', '.join(settings.scorers)}) of {len(pairs)} pair files need "
            f"{len(settings.scorers) * len(pairs)} log-probability files, got {len(logps)}"
        )
    tables = {}
    for i, scorer in enumerate(settings.scorers):
        files = logps[i * len(pairs) : (i + 1) * len(pairs)]
        table = read(LOGPS, *files).set_index("pair_id")
        if missing := [p for p in rows["pair_id"] if p not in table.index]:
            raise BadInput(
                f"{files[0]}: no log-probabilities of {len(missing)} pairs, such as {missing[0]}; make the file again"
            )
        tables[scorer] = table.loc[rows["pair_id"]]
    return tables


def _train(
    settings: Settings,
    rows: pd.DataFrame,
    scored: Mapping[str, pd.DataFrame],
    start: Path,
    directory: Path,
    session: Session,
    events: Path | None,
) -> dict[str, Any]:
    import torch

    from mnpo.batches import by_tokens, shuffled
    from mnpo.chat import Chat
    from mnpo.checkpoints import load_model, load_tokenizer
    from mnpo.objectives import Pair, preference_loss
    from mnpo.training import optimise, precision, prepared, summary, write

    objective = family.member(**settings.objective.member_settings())
    by_mean = settings.length_normalised or objective.length_normalised
    tokenizer, model = load_tokenizer(start), load_model(start)
    parameters = model.num_parameters()
    chat = Chat(tokenizer, settings.text, settings.form)
    records = rows_of(rows)
    chosen = [chat.encode(r["prompt"], r["chosen"], f"pair {r['pair_id']}, chosen") for r in records]
    rejected = [chat.encode(r["prompt"], r["rejected"], f"pair {r['pair_id']}, rejected") for r in records]
    fixed = {scorer: _pair(table, by_mean, model.device) for scorer, table in scored.items()}
    rewards = _columns(rows, "chosen_score", "rejected_score", model.device)
    wins = _columns(rows, "chosen_win", "rejected_win", model.device)

    def policy(module: Any, batch: list[int]) -> Pair:
        both = module([side[i] for side in (chosen, rejected) for i in batch], reduction="mean" if by_mean else "sum")
        return Pair(both[: len(batch)], both[len(batch) :])

    def losses(module: Any, batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The objective of the pairs in `batch` (docs/method.md, eq. 4 to 11)."""
        log_policy = policy(module, batch)
        outcome = preference_loss(
            objective,
            log_policy,
            [_rows(fixed[scorer], batch) for scorer, _ in settings.opponents],
            [weight for _, weight in settings.opponents],
            _rows(fixed[REFERENCE], batch) if objective.ratio else None,
            rewards=_rows(rewards, batch),
            win_probability=_rows(wins, batch),
        )
        return outcome.loss, {
            "margin": outcome.margin,
            "accuracy": (outcome.margin > 0).float(),
            "chosen_reward": outcome.chosen_reward,
            "rejected_reward": outcome.rejected_reward,
            "chosen_logp": log_policy.chosen,
            "rejected_logp": log_policy.rejected,
            **_against(log_policy, {scorer: _rows(pair, batch) for scorer, pair in fixed.items()}, settings.opponents),
            "chosen_tokens": _tokens(chosen, batch, log_policy.chosen),
            "rejected_tokens": _tokens(rejected, batch, log_policy.chosen),
        }

    # The prompt is encoded once for both responses (mnpo/logprobs.py).
    lengths = [len(c) + len(r.response) for c, r in zip(chosen, rejected, strict=True)]
    torch.manual_seed(settings.seed)
    module = prepared(model, settings.training)
    if settings.start in fixed and settings.form == settings.opponent_form:
        batch = next(shuffled(lengths, settings.training.batch_size, settings.seed))
        batch = [batch[i] for i in by_tokens([lengths[r] for r in batch], settings.training.micro_batch_tokens)[0]]
        tokens = [1 if by_mean else len(side[i].response) for side in (chosen, rejected) for i in batch]
        with torch.no_grad(), precision(settings.training, model):
            _require_same(policy(module, batch), _rows(fixed[settings.start], batch), tokens, settings)
    steps = math.ceil(len(rows) * settings.training.epochs / min(settings.training.batch_size, len(rows)))
    model.train()
    trained = optimise(
        module,
        settings.training,
        losses,
        lengths,
        steps,
        names=[f"pair {r['pair_id']}" for r in records],
        seed=settings.seed,
        what=f"train {settings.policy}",
        session=session,
        events=events,
    )
    write(trained, model, tokenizer, directory, settings.training.lora)
    return {"rows": len(rows), "parameters": parameters, **summary(trained.history), **chat.counts}


def _pair(table: pd.DataFrame, by_mean: bool, device: Any) -> Pair:
    """Log-probabilities of all pairs under one scorer: sums, or means over the response's tokens."""
    import torch

    from mnpo.objectives import Pair

    sides = [table[s] / table[f"{s}_tokens"] if by_mean else table[s] for s in ("chosen", "rejected")]
    return Pair(*(torch.tensor(side.tolist(), dtype=torch.float32, device=device) for side in sides))


def _against(policy: Pair, fixed: Mapping[str, Pair], opponents: Sequence[tuple[str, float]]) -> dict[str, Tensor]:
    """How far the policy is from those it plays against and from the reference: ``[pairs]`` each, in nats.

    `margin_{opponent}` is ``m_pi - m_opponent``: the log-ratio of the policy to it, chosen minus rejected.
    `kl` estimates KL(policy || reference) a response: half the squared log-ratio, averaged over both responses. That
    is right to second order in the log-ratio for responses that the policy itself draws; these are the best and the
    worst of the sampler's, so it is biased, upwards as a rule. For length-normalised objectives all is per token.
    """
    margins = {f"margin_{name}": policy.gap - fixed[name].gap for name, _ in opponents}
    if REFERENCE not in fixed:
        return margins
    ratios = [ours - theirs for ours, theirs in zip(policy, fixed[REFERENCE], strict=True)]
    return {**margins, "kl": (ratios[0].square() + ratios[1].square()) / 4}


def _tokens(texts: Sequence[Encoded], batch: list[int], like: Tensor) -> Tensor:
    """The responses' lengths, ``[pairs]``."""
    return like.new_tensor([len(texts[i].response) for i in batch])


def _columns(rows: pd.DataFrame, chosen: str, rejected: str, device: Any) -> Pair:
    import torch

    from mnpo.objectives import Pair

    return Pair(*(torch.tensor(rows[c].tolist(), dtype=torch.float32, device=device) for c in (chosen, rejected)))


def _rows(pair: Pair, batch: list[int]) -> Pair:
    from mnpo.objectives import Pair

    return Pair(pair.chosen[batch], pair.rejected[batch])


def _require_same(now: Pair, before: Pair, tokens: Sequence[int], settings: Settings) -> None:
    """Training's first forward pass and the `logps` stage must agree on the policy that training starts from."""
    import torch

    lengths = torch.tensor(tokens, device=now.chosen.device)
    apart = float(((torch.cat(now) - torch.cat(before)).abs() / lengths).max())
    if apart > START_TOLERANCE[settings.training.dtype]:
        raise BadInput(
            f"{settings.policy}: log-probabilities of {settings.start} differ by {apart:.3f} nats a token between the "
            "logps stage and training; the texts are read differently (template, BOS, truncation) or in other precision"
        )
