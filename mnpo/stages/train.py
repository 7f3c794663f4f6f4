"""Stage `train`: one preference optimisation, from a policy and the log-probabilities of all who oppose it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import REFERENCE, Block
from mnpo.config.runs import Objective
from mnpo.config.text import Text, TextForm
from mnpo.config.training import Training
from mnpo.errors import BadInput
from mnpo.method import family
from mnpo.ranks import process_group, rank, ranks
from mnpo.storage.artifacts import artifact
from mnpo.storage.conversations import turns
from mnpo.storage.records import LOGPS, PAIRS, read, rows_of
from mnpo.storage.resume import Session, resumable

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from mnpo.learning.training import Losses
    from mnpo.method.objectives import Outcome, Pair
    from mnpo.models.chat import Chat, Encoded

ENVIRONMENT = "train"
METRICS = "metrics.jsonl"
# Nats per token that log-probabilities computed twice may differ by: the logps stage's, in float32, and training's.
START_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
FEWEST = 16  # tokens that a shorter response counts as there: the rounding of so few has not averaged out


class Settings(Block):
    """What this stage reads."""

    policy: str
    start: str
    objective: Objective
    opponents: list[tuple[str, float | None]]
    """(scorer, lambda); None: it is in the file that `mnpo weigh` wrote."""
    scorers: list[str]
    """Whose log-probabilities are given, in the order of the files: for each scorer, one file a part."""
    training: Training
    length_normalised: bool = False
    form: TextForm
    """How training reads a text."""
    opponent_form: TextForm = TextForm()
    """How the given log-probabilities read it."""
    opponent_soft_cap: bool | None = None
    """false: they are of models without their soft-cap."""
    text: Text
    seed: int


def run(
    settings: Settings,
    start: Path,
    pairs: Sequence[Path],
    output: Path,
    logps: Sequence[Path] = (),
    training: Path | None = None,
    game: Path | None = None,
) -> None:
    """Optimise a policy on pairs, against the policies whose log-probabilities are given.

    Args:
        start: the policy to start from.
        pairs: what `mnpo pair` wrote, one file a part.
        output: the directory of the trained policy: weights, tokenizer, metrics.jsonl, manifest.
        logps: for each scorer in the settings, one file for each of `pairs`.
        training: where the training's metrics go too, with a manifest: they outlive a policy that is not kept.
            TensorBoard's events go beside it, into `tensorboard/`.
        game: what `mnpo weigh` wrote, where the settings leave the opponents' weights to it.

    Raises:
        BadInput: pairs without log-probabilities, or precomputed ones that disagree with what training computes;
            opponents without a weight.
        Diverged: a loss that is not finite.
        Interrupted: a signal asked to stop; the same call goes on from there.

    Run by torchrun or accelerate launch, all ranks train together and rank 0 writes (docs/training.md).
    """
    rows = read(PAIRS, *pairs)
    scored = _log_probabilities(settings, rows, pairs, logps)
    opponents = _weights(settings, game)
    asked = settings.model_dump(exclude_none=True, exclude={"objective": {"history"}})
    inputs = [start, *pairs, *logps, *([game] if game else [])]
    with process_group(), resumable(output, "train", asked, inputs, directory=True) as (made, session):
        events = training and training.parent / "tensorboard" / training.stem
        made.facts = _train(settings, opponents, rows, scored, start, made.path, session, events)
        if game:
            made.facts["weights"] = dict(opponents)
        if training is not None and rank() == 0:
            with artifact(training, "train", asked, inputs) as copy:
                shutil.copyfile(made.path / METRICS, copy.path)
                copy.facts = {**made.facts, **({"ranks": ranks()} if ranks() > 1 else {})}
                copy.earlier = session.spent


def _weights(settings: Settings, game: Path | None) -> list[tuple[str, float]]:
    """The opponents' lambda: of the settings, or of the game between them."""
    found = json.loads(game.read_text(encoding="utf-8"))["weights"] if game else {}
    weights = []
    for name, given in settings.opponents:
        if (weight := found.get(name) if given is None else given) is None:
            there = f"{game} has those of {', '.join(found)}" if game else "name a file by --game"
            raise BadInput(f"{settings.policy}: no weight of the opponent {name}; {there}")
        weights.append((name, weight))
    return weights


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
    opponents: Sequence[tuple[str, float]],
    rows: pd.DataFrame,
    scored: Mapping[str, pd.DataFrame],
    start: Path,
    directory: Path,
    session: Session,
    events: Path | None,
) -> dict[str, Any]:
    import torch

    from mnpo.learning.training import optimise, prepared, steps_of, summary, write
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer

    tokenizer, model = load_tokenizer(start), load_model(start, attention=settings.training.attention)
    parameters = model.num_parameters()
    chat = Chat(tokenizer, settings.text, settings.form)
    pairs = _pairs(settings, opponents, rows, scored, chat, model.device)
    torch.manual_seed(settings.seed)
    module = prepared(model, settings.training)
    losses: Losses = pairs.losses
    if _is_compared(settings, pairs):
        if ranks() == 1 and session.begins and not _drops(model):
            losses = _first_compared(settings, pairs)
        else:
            _compare_start(settings, pairs, module)
    model.train()
    trained = optimise(
        module,
        settings.training,
        losses,
        pairs.lengths,
        steps_of(len(rows), settings.training),
        names=pairs.names,
        seed=settings.seed,
        what=f"train {settings.policy}",
        session=session,
        events=events,
    )
    write(trained, model, tokenizer, directory, settings.training, start)
    return {"rows": len(rows), "parameters": parameters, **summary(trained.history), **chat.counts}


@dataclass(frozen=True)
class _Pairs:
    """All pairs, row by row, as the losses read them: texts, log-probabilities of each scorer, what oracles say."""

    objective: family.Objective
    opponents: Sequence[tuple[str, float]]
    names: Sequence[str]
    chosen: Sequence[Encoded]
    rejected: Sequence[Encoded]
    by_mean: bool
    fixed: Mapping[str, Pair]
    rewards: Pair
    wins: Pair

    @property
    def lengths(self) -> list[int]:
        """Tokens: the prompt is encoded once for both responses (mnpo/models/logprobs.py)."""
        return [len(c) + len(r.response) for c, r in zip(self.chosen, self.rejected, strict=True)]

    def losses(self, module: Any, batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The objective of the pairs in `batch` (docs/method.md, eq. 4 to 11)."""
        from mnpo.method.objectives import Pair

        texts = [side[i] for side in (self.chosen, self.rejected) for i in batch]
        both = module(texts, reduction="mean" if self.by_mean else "sum")
        policy, fixed = (
            Pair(both[: len(batch)], both[len(batch) :]),
            {s: _rows(p, batch) for s, p in self.fixed.items()},
        )
        outcome = self.outcome(policy, fixed, batch)
        return outcome.loss, {
            "margin": outcome.margin,
            "accuracy": (outcome.margin > 0).float(),
            "chosen_reward": outcome.chosen_reward,
            "rejected_reward": outcome.rejected_reward,
            "chosen_logp": policy.chosen,
            "rejected_logp": policy.rejected,
            **_against(policy, fixed, self.opponents),
            "chosen_tokens": _tokens(self.chosen, batch, policy.chosen),
            "rejected_tokens": _tokens(self.rejected, batch, policy.chosen),
        }

    def outcome(self, policy: Pair, fixed: Mapping[str, Pair], batch: list[int]) -> Outcome:
        """The objective where the policy and the scorers give the pairs in `batch` these log-probabilities."""
        from mnpo.method.objectives import preference_loss

        return preference_loss(
            self.objective,
            policy,
            [fixed[scorer] for scorer, _ in self.opponents],
            [weight for _, weight in self.opponents],
            fixed[REFERENCE] if self.objective.ratio else None,
            rewards=_rows(self.rewards, batch),
            win_probability=_rows(self.wins, batch),
        )


def _pairs(
    settings: Settings,
    opponents: Sequence[tuple[str, float]],
    rows: pd.DataFrame,
    scored: Mapping[str, pd.DataFrame],
    chat: Chat,
    device: Any,
) -> _Pairs:
    objective = family.member(**settings.objective.member_settings())
    by_mean = settings.length_normalised or objective.length_normalised
    records = rows_of(rows)
    texts = [
        [
            chat.encode(turns(r["prompt"], r["context"]), r[side], f"pair {r['pair_id']}, {side}")
            for side in ("chosen", "rejected")
        ]
        for r in records
    ]
    return _Pairs(
        objective=objective,
        opponents=opponents,
        names=[f"pair {r['pair_id']}" for r in records],
        chosen=[chosen for chosen, _ in texts],
        rejected=[rejected for _, rejected in texts],
        by_mean=by_mean,
        fixed={scorer: _pair(table, by_mean, device) for scorer, table in scored.items()},
        rewards=_columns(rows, "chosen_score", "rejected_score", device),
        wins=_columns(rows, "chosen_win", "rejected_win", device),
    )


def _pair(table: pd.DataFrame, by_mean: bool, device: Any) -> Pair:
    """Log-probabilities of all pairs under one scorer: sums, or means over the response's tokens."""
    import torch

    from mnpo.method.objectives import Pair

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

    from mnpo.method.objectives import Pair

    return Pair(*(torch.tensor(rows[c].tolist(), dtype=torch.float32, device=device) for c in (chosen, rejected)))


def _rows(pair: Pair, batch: list[int]) -> Pair:
    from mnpo.method.objectives import Pair

    return Pair(pair.chosen[batch], pair.rejected[batch])


def _is_compared(settings: Settings, pairs: _Pairs) -> bool:
    """Whether the `logps` stage read the policy that training starts from, and as training reads it."""
    otherwise = settings.form != settings.opponent_form or settings.opponent_soft_cap is False
    return settings.start in pairs.fixed and not otherwise


def _drops(model: Any) -> bool:
    """Whether a forward pass in training is another than in evaluation."""
    dropped = [m.p for m in model.modules() if type(m).__name__.startswith("Dropout")]
    return any([*dropped, getattr(model.config, "attention_dropout", 0.0)])


def _first_compared(settings: Settings, pairs: _Pairs) -> Losses:
    """The losses of training, the first of which is compared: nothing has moved yet, and no pass is spent on it."""
    left = iter([True])

    def losses(module: Any, batch: list[int]) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, shown = pairs.losses(module, batch)
        if next(left, False):
            _compare(settings, pairs, batch, loss.detach(), {name: value.detach() for name, value in shown.items()})
        return loss, shown

    return losses


def _compare_start(settings: Settings, pairs: _Pairs, module: Any) -> None:
    """The same by a pass of its own: where training goes on, drops units, or deals a batch out over ranks."""
    import torch

    from mnpo.learning.batches import by_tokens
    from mnpo.learning.training import drawn, precision

    lengths = pairs.lengths
    batch = next(drawn(settings.training, lengths, settings.seed))
    batch = [batch[i] for i in by_tokens([lengths[r] for r in batch], settings.training.micro_batch_tokens)[0]]
    with torch.no_grad(), precision(settings.training, module):
        loss, shown = pairs.losses(module, batch)
    _compare(settings, pairs, batch, loss, shown)


def _compare(settings: Settings, pairs: _Pairs, batch: list[int], loss: Tensor, shown: Mapping[str, Tensor]) -> None:
    """Training's first forward pass and the `logps` stage must agree on the policy that training starts from.

    Where it is the only opponent, and the reference if there is one, the margin is 0 at first, which alone gives the
    loss, as ``(1 / (2 eta))^2`` or ``ln 2``; it may be off by what the tolerance of the log-probabilities does to it.
    """
    import torch

    before, tolerance = _rows(pairs.fixed[settings.start], batch), START_TOLERANCE[settings.training.dtype]
    tokens = [shown[f"{side}_tokens"] for side in before._fields]
    summed = [n if pairs.by_mean else torch.ones_like(n) for n in tokens]  # terms of a sum in what is compared
    allowed = [tolerance * n.clamp(min=FEWEST) / terms for n, terms in zip(tokens, summed, strict=True)]
    ours = [shown[f"{side}_logp"] for side in before._fields]
    apart = tolerance * max(
        float(((a - b).abs() / most).max()) for a, b, most in zip(ours, before, allowed, strict=True)
    )
    found, wrong = f"differ by {apart:.3f} nats a token between the logps stage and training", apart > tolerance
    if {scorer for scorer, _ in pairs.opponents} | ({REFERENCE} if pairs.objective.ratio else set()) == {
        settings.start
    }:
        first = float(loss.mean())
        expected, off = _without_margin(pairs, batch, allowed)
        found += f", and the first loss is {first:.4f} where it is its own opponent, which makes {expected:.4f}"
        wrong |= abs(first - expected) > off
    if wrong:
        raise BadInput(
            f"{settings.policy}: log-probabilities of {settings.start} {found}; the texts are read differently "
            "(template, BOS, truncation) or in other precision, or the logps files are another policy's or were edited"
        )


def _without_margin(pairs: _Pairs, batch: list[int], slack: Sequence[Tensor]) -> tuple[float, float]:
    """The mean loss of `batch` where the policy is its opponents, and how far off it may be.

    That is as far as it gets when each response's log-probability is off by `slack` nats, for the loss is convex.
    """
    import torch

    from mnpo.method.objectives import Pair

    zero = Pair(*(torch.zeros_like(side) for side in slack))

    def at(chosen: int, rejected: int) -> Tensor:
        policy = Pair(chosen * slack[0], rejected * slack[1])
        return pairs.outcome(policy, dict.fromkeys(pairs.fixed, zero), batch).loss

    expected = at(0, 0)
    worst = torch.stack([at(*signs) for signs in product((-1, 1), repeat=2)]).amax(0)
    return float(expected.mean()), float((worst - expected).mean())
