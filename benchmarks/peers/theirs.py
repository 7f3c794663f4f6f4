"""What a user would pick instead: TRL, transformers, vLLM. Token ids and nothing else come from us."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.peers import BATCH, BETA, DECODING, GREEDY_TOKENS, NEW_TOKENS, SEED, TEXT, K
from benchmarks.peers.sides import Clock, Made


def _ids(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "ids.json").read_text())
    return found


# ------------------------------------------------------------------------------------------------------------ training


def training(directory: Path, dtype: str, pairs: int, lora: dict[str, int] | None = None) -> Made:
    """`pairs`: of a micro-batch. Batches are ours, in our order. `lora`: adapters alone are trained."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer
    from trl.trainer import dpo_trainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset  # of token ids

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            losses.append(float(loss.detach()))
            return loss

    ids, losses, cuda = _ids(directory), list[float](), torch.cuda.is_available()
    reading, whole, reference = directory / "model", Clock(), Clock()
    asked = DPOConfig(
        str(directory / "trl"),
        beta=BETA,
        learning_rate=ids["learning_rate"],
        lr_scheduler_type="constant",
        per_device_train_batch_size=pairs,
        gradient_accumulation_steps=BATCH // pairs,
        train_sampling_strategy="sequential",
        num_train_epochs=1,
        max_length=None,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=dtype == "bfloat16",
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        model_init_kwargs={"dtype": "float32", "attn_implementation": _attention(reading)},
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        seed=SEED,
    )
    adapters = lora and LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    rows = Dataset.from_list([ids["pairs"][i] for batch in ids["batches"] for i in batch])
    hashed = mock.patch.object(dpo_trainer, "hash_module", reference.around(dpo_trainer.hash_module))
    scored = mock.patch.object(Trainer, "_precompute_ref_logps", reference.around(Trainer._precompute_ref_logps))
    with hashed, scored, whole:
        trainer = Trainer(
            str(reading), args=asked, train_dataset=rows, processing_class=_tokenizer(reading), peft_config=adapters
        )
        trainer.train()
        trainer.save_model()
    steps = [losses[i : i + BATCH // pairs] for i in range(0, len(losses), BATCH // pairs)]
    return Made(
        {"training": whole.spent - reference.spent, "training and its reference": whole.spent},
        0,
        [sum(step) / len(step) for step in steps],
    )


def _tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _attention(directory: Path) -> str:
    """sdpa, but for models that cap their attention logits, which it cannot."""
    from transformers import AutoConfig

    return "eager" if getattr(AutoConfig.from_pretrained(directory), "attn_logit_softcapping", None) else "sdpa"


# -------------------------------------------------------------------------------------------------------- transformers


def _loaded(auto: Any, directory: Path, dtype: str) -> Any:
    import torch

    attention = _attention(directory)
    model = auto.from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation=attention)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _batches(texts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Which texts go together: `size` of them, longest first."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    yield from (order[i : i + size] for i in range(0, len(order), size))


def _padded(texts: Sequence[Sequence[int]], device: Any, pad: int = 0, left: bool = False) -> tuple[Any, Any]:
    """Token ids and mask, ``[texts, width]``."""
    import torch

    width = max(map(len, texts))

    def rows(of: Any, fill: int) -> Any:
        filled = [([fill] * (width - len(t)) + of(t)) if left else (of(t) + [fill] * (width - len(t))) for t in texts]
        return torch.tensor(filled, device=device)

    return rows(list, pad), rows(lambda text: [1] * len(text), 0)


def log_probabilities(directory: Path, dtype: str, size: int, opponents: int) -> Made:
    """`size`: texts of a batch."""
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM

    pairs, clock = _ids(directory)["pairs"], Clock()
    both = [(p["prompt_ids"], p[side]) for p in pairs for side in ("chosen_ids", "rejected_ids")]
    texts = [[*prompt, *response] for prompt, response in both]
    found: list[float] = []
    with clock, torch.inference_mode():
        for opponent in range(opponents):
            model = _loaded(AutoModelForCausalLM, directory / "model", dtype)
            sums = [0.0] * len(texts)
            for batch in _batches(texts, size):
                values = _sums(model, [both[i] for i in batch])
                for i, value in zip(batch, values, strict=True):
                    sums[i] = value
            pd.DataFrame({"sum": sums}).to_parquet(directory / f"peer-{opponent}.parquet")
            found += sums
    return Made({"": clock.spent}, 0, found)


def _sums(model: Any, batch: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Each response's log-probability, nats: logits where its tokens are predicted, log-softmax, gather."""
    import torch

    ids, mask = _padded([[*prompt, *response] for prompt, response in batch], model.device)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    row = torch.tensor([r for r, (_, response) in enumerate(batch) for _ in response], device=ids.device)
    column = torch.tensor(
        [len(prompt) + i for prompt, response in batch for i in range(len(response))], device=ids.device
    )
    logits = model.get_output_embeddings()(hidden[row, column - 1]).float()
    if cap := getattr(model.config, "final_logit_softcapping", None):
        logits = logits.div_(cap).tanh_().mul_(cap)
    per_token = logits.log_softmax(-1).gather(1, ids[row, column][:, None])[:, 0]
    return torch.zeros(len(batch), device=ids.device).index_add_(0, row, per_token).tolist()


def sampling(directory: Path, dtype: str, size: int, greedy: bool = False) -> Made:
    """`size`: prompts of a batch, each with K responses."""
    import torch
    from transformers import AutoModelForCausalLM

    ids, tokenizer, clock = _ids(directory), _tokenizer(directory / "model"), Clock()
    prompts, stops = ids["prompts"], ids["stops"]
    how: dict[str, Any] = {"do_sample": True, **DECODING, "top_k": 0, "num_return_sequences": K}
    how |= {"max_new_tokens": NEW_TOKENS}
    if greedy:
        how = {"do_sample": False, "max_new_tokens": GREEDY_TOKENS}
    drawn: dict[int, list[list[int]]] = {}
    torch.manual_seed(SEED)
    with clock, torch.inference_mode():
        model = _loaded(AutoModelForCausalLM, directory / "model", dtype)
        for batch in _batches(prompts, size):
            given, mask = _padded([prompts[i] for i in batch], model.device, left=True)
            made = model.generate(given, attention_mask=mask, eos_token_id=stops, pad_token_id=stops[0], **how)
            rows = [_ended(row, stops) for row in made[:, given.shape[1] :].tolist()]
            each = len(rows) // len(batch)
            drawn |= {i: rows[n * each : (n + 1) * each] for n, i in enumerate(batch)}
        responses = [row for i in range(len(prompts)) for row in drawn[i]]
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        (directory / "peer.json").write_text(json.dumps(texts))
    return Made({"": clock.spent}, sum(map(len, responses)), _read(directory, responses) if greedy else [])


def _ended(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """Up to the first token that ends a response."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in stops), len(tokens))]


def _read(directory: Path, responses: Sequence[list[int]]) -> list[str]:
    """Greedy responses as texts, as our stage writes them."""
    from mnpo.config.text import Text
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_tokenizer

    chat = Chat(load_tokenizer(directory / "model"), Text(**TEXT))
    return [chat.decode(response) for response in responses]


def scoring(directory: Path, dtype: str, size: int) -> Made:
    """`size`: texts of a batch."""
    import pandas as pd
    import torch
    from transformers import AutoModelForSequenceClassification

    texts, clock = _ids(directory)["conversations"], Clock()
    scores = [0.0] * len(texts)
    with clock, torch.inference_mode():
        model = _loaded(AutoModelForSequenceClassification, directory / "classifier", dtype)
        for batch in _batches(texts, size):
            given, mask = _padded([texts[i] for i in batch], model.device, model.config.pad_token_id)
            values = model(input_ids=given, attention_mask=mask, use_cache=False).logits[:, 0].float().tolist()
            for i, value in zip(batch, values, strict=True):
                scores[i] = value
        pd.DataFrame({"score": scores}).to_parquet(directory / "peer.parquet")
    return Made({"": clock.spent}, 0, scores)


# ---------------------------------------------------------------------------------------------------------------- vLLM


def vllm(directory: Path, dtype: str, rows: int, greedy: bool = False) -> Made:
    """Its offline engine. What it takes to start is left out, which favours it: a minute on a CPU. `rows`: at once."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, whose peak is that of all
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    import torch
    from vllm import LLM, SamplingParams

    ids, clock = _ids(directory), Clock()
    engine = LLM(
        str(directory / "model"),
        dtype=dtype,
        max_model_len=TEXT["max_prompt_length"] + NEW_TOKENS,
        max_num_seqs=rows,
        enforce_eager=not torch.cuda.is_available(),  # compiling takes a CPU longer than it saves
        generation_config="vllm",
        seed=SEED,
    )
    how: dict[str, Any] = {"n": K, **DECODING, "max_tokens": NEW_TOKENS}
    if greedy:
        how = {"temperature": 0, "max_tokens": GREEDY_TOKENS}
    asked = SamplingParams(**how, stop_token_ids=ids["stops"], ignore_eos=True, detokenize=not greedy)
    prompts = [{"prompt_token_ids": prompt} for prompt in ids["prompts"]]
    with clock:
        outputs = engine.generate(prompts, asked, use_tqdm=False)
    responses = [list(one.token_ids) for output in outputs for one in output.outputs]
    return Made({"": clock.spent}, sum(map(len, responses)), _read(directory, responses) if greedy else [])
