"""The family against TRL 1.16: its own trainers, run on a tiny Llama, must charge each pair what ours does.

TRL computes its DPO losses inline, so the real `DPOTrainer.compute_loss` runs on batches of one pair: a per-pair loss.
Ours gets log-probabilities that this file takes from the full logits of the same models on the same tokens. Where the
two differ in what they feed the loss, the test says so: TRL's `ipo` averages over tokens, its CPO averages the NLL.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mnpo.method.family import member
from mnpo.method.objectives import Pair, preference_loss

pytest.importorskip("trl")
pytest.importorskip("datasets")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

ROWS = [
    {"prompt": "a b c", "chosen": " d e f", "rejected": " g"},
    {"prompt": "b", "chosen": " a", "rejected": " c d e f g"},
    {"prompt": "c a", "chosen": " g f", "rejected": " e d"},
    {"prompt": "d d", "chosen": " b a c d", "rejected": " b a c e"},
]
BETA = 0.3


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<eos>", "<unk>", *"abcdefg"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def model(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,  # far apart: log-ratios of several nats, not of rounding
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="float32",
    )
    return LlamaForCausalLM(config).eval()


def log_probabilities(of: Any, ids: torch.Tensor, response: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over the response's tokens of log pi(token | before), and how many there are; from the full logits."""
    with torch.no_grad():
        logs = of(ids).logits.log_softmax(-1)[:, :-1]
    of_tokens = logs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (of_tokens * response[:, 1:]).sum(1), response.sum(1)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.item() == pytest.approx(ours.item(), rel=2e-5, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- with a reference


def dpo_trainer(directory: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(str(directory), beta=BETA, report_to="none", use_cpu=True, bf16=False, **settings)
    return DPOTrainer(
        model(0), model(1), args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer()
    )


def dpo_pairs(trainer: Any) -> Iterator[tuple[torch.Tensor, Pair, Pair, Pair]]:
    """TRL's loss of each pair alone; the pair's summed log-probabilities under policy and reference; its lengths."""
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        response = batch["completion_mask"]
        policy, lengths = log_probabilities(trainer.model, batch["input_ids"], response)
        reference, _ = log_probabilities(trainer.ref_model, batch["input_ids"], response)
        theirs = trainer.compute_loss(trainer.model, batch).detach()
        yield theirs, *(Pair(t[:1], t[1:]) for t in (policy, reference, lengths))


def mean(log_probability: Pair, lengths: Pair) -> Pair:
    return Pair(log_probability.chosen / lengths.chosen, log_probability.rejected / lengths.rejected)


# TRL's loss, our member with its settings, whether TRL feeds it means over tokens.
SAME = [
    ("sigmoid", "dpo", {"beta": BETA}, False),
    ("sigmoid", "dno-prct", {"beta": BETA}, False),  # the "reference" is pi_t
    ("sigmoid", "spin", {"beta": BETA}, False),
    ("sigmoid", "td-mnpo", {"beta": BETA, "distance": "bernoulli-kl"}, False),
    ("sigmoid_norm", "dpo", {"beta": BETA}, True),
    ("ipo", "ipo", {"eta": BETA}, True),  # TRL's beta is IPO's tau
    ("ipo", "inpo", {"eta": BETA}, True),  # no reference beside the opponent
    ("sppo_hard", "sppo", {"eta": BETA}, False),  # TRL's beta is SPPO's 1/eta
    ("sppo_hard", "sppo", {"eta_rate": 1 / BETA}, False),
]


@pytest.mark.parametrize(("loss_type", "name", "settings", "by_mean"), SAME, ids=[f"{s[0]}-{s[1]}" for s in SAME])
def test_a_pair_costs_what_trls_dpo_trainer_charges(
    tmp_path: Path, loss_type: str, name: str, settings: dict[str, Any], by_mean: bool
) -> None:
    trainer = dpo_trainer(tmp_path, loss_type=loss_type)
    seen = []
    for theirs, policy, opponent, lengths in dpo_pairs(trainer):
        if by_mean:
            policy, opponent = mean(policy, lengths), mean(opponent, lengths)
        close(preference_loss(member(name, **settings), policy, [opponent], [1.0]).loss, theirs)
        seen.append(theirs.item())
    assert len({round(s, 3) for s in seen}) == len(ROWS)  # four different pairs, not four times ln 2


def test_trls_batch_loss_is_the_mean_over_pairs_and_its_rewards_are_our_implicit_rewards(tmp_path: Path) -> None:
    trainer = dpo_trainer(tmp_path, loss_type="sigmoid")
    outcomes = [
        preference_loss(member("dpo", beta=BETA), policy, [reference], [1.0])
        for _, policy, reference, _ in dpo_pairs(trainer)
    ]
    theirs = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))
    logged = {name: values[-1] for mode in trainer._metrics.values() for name, values in mode.items()}
    close(torch.cat([o.loss for o in outcomes]).mean(), theirs)
    close(torch.cat([o.margin for o in outcomes]).mean(), torch.tensor(logged["rewards/margins"]))
    close(torch.cat([o.chosen_reward for o in outcomes]).mean(), torch.tensor(logged["rewards/chosen"]))
    close(torch.cat([o.rejected_reward for o in outcomes]).mean(), torch.tensor(logged["rewards/rejected"]))


def test_gradients_on_the_model_are_trls(tmp_path: Path) -> None:
    """Not only the value: back through the model, every parameter gets TRL's gradient of the DPO loss."""
    trainer = dpo_trainer(tmp_path, loss_type="sigmoid", gradient_checkpointing=False)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    theirs = torch.autograd.grad(trainer.compute_loss(trainer.model, batch), parameters)
    ids, response = batch["input_ids"], batch["completion_mask"]
    logs = trainer.model(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    policy = (logs * response[:, 1:]).sum(1)
    reference, _ = log_probabilities(trainer.ref_model, ids, response)
    outcome = preference_loss(
        member("dpo", beta=BETA), Pair(policy[:1], policy[1:]), [Pair(reference[:1], reference[1:])], [1.0]
    )
    ours = torch.autograd.grad(outcome.loss.mean(), parameters)
    assert max(g.abs().max().item() for g in ours) > 1e-2
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


# -------------------------------------------------------------------------------------------------- without a reference


def cpo_trainer(directory: Path, **settings: Any) -> Any:
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    arguments = CPOConfig(
        str(directory), beta=BETA, report_to="none", use_cpu=True, bf16=False, max_length=32, **settings
    )
    return CPOTrainer(model(0), args=arguments, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer())


def cpo_pairs(trainer: Any) -> Iterator[tuple[torch.Tensor, Pair, Pair]]:
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        sides = [
            log_probabilities(trainer.model, batch[f"{side}_input_ids"], (batch[f"{side}_labels"] != -100).long())
            for side in ("chosen", "rejected")
        ]
        theirs = trainer.compute_loss(trainer.model, batch).detach()
        yield theirs, Pair(sides[0][0], sides[1][0]), Pair(sides[0][1], sides[1][1])


def test_simpo_is_trls(tmp_path: Path) -> None:
    trainer = cpo_trainer(tmp_path, loss_type="simpo", simpo_gamma=0.4, cpo_alpha=0.0)
    objective = member("simpo", beta=BETA, margin=0.4)
    assert objective.length_normalised
    for theirs, policy, lengths in cpo_pairs(trainer):
        close(preference_loss(objective, mean(policy, lengths)).loss, theirs)


def test_cpo_is_trls_where_the_nll_weight_is_alpha_per_chosen_token(tmp_path: Path) -> None:
    """TRL averages the NLL over the chosen response's tokens; eq. 11 sums it, as the CPO paper writes it."""
    trainer = cpo_trainer(tmp_path, loss_type="sigmoid", cpo_alpha=0.7)
    for theirs, policy, lengths in cpo_pairs(trainer):
        objective = member("cpo", beta=BETA, nll_weight=0.7 / lengths.chosen.item())
        close(preference_loss(objective, policy).loss, theirs)
