"""The policy as lm-eval's model, with an eye on what it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mnpo.errors import BadInput
from mnpo.progress import counter

MOST_LOGITS = 1 << 29
"""Of a batch of choices: 1 GB in bfloat16, of which a soft-cap and the log-softmax make three more."""


def load_policy(
    policy: Path,
    backend: Literal["transformers", "vllm"],
    *,
    dtype: Literal["float32", "bfloat16"],
    batch_size: int,
    max_length: int | None,
    seed: int,
) -> Any:
    """lm-eval's model of a checkpoint. Raises BadInput for a backend that is not installed."""
    from mnpo.models.checkpoints import load_model, load_tokenizer

    tokenizer = load_tokenizer(policy)
    if backend == "vllm":
        if find_spec("vllm") is None:
            raise BadInput("evaluation.backend: vllm is not installed here; use its environment, or transformers")
        from mnpo.samplers.vllm import without_compiler

        without_compiler()
        import torch
        from lm_eval.models.vllm_causallms import VLLM

        gpu = torch.cuda.is_available()
        return VLLM(
            pretrained=str(policy),
            dtype=dtype,
            batch_size="auto",
            max_length=max_length,
            seed=seed,
            enforce_eager=not gpu,  # compiling takes a CPU longer than it saves
            **(_within_memory(len(tokenizer)) if gpu else {}),
        )
    model = load_model(policy, dtype=dtype)
    return _bounded()(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)


def _within_memory(vocabulary: int) -> dict[str, Any]:
    """vLLM's settings that leave room for the logits of prompts, which it does not count among what it takes.

    It computes them, and their log-softmax in float32, for all of a prompt's tokens that one step reads.
    """
    return {"max_num_batched_tokens": max(512, MOST_LOGITS // vocabulary), "gpu_memory_utilization": 0.8}


def _bounded() -> type[Any]:
    """lm-eval's model of transformers, which is imported when it is needed, with a bound on what choices take.

    lm-eval itself computes logits at every position of a batch, and their log-softmax: 16 texts of 3,000 tokens with
    Gemma-2's vocabulary are 12 G numbers. Here a batch has logits from where its first choice begins, and as many texts
    as keep that below MOST_LOGITS. The numbers of a text do not depend on it, but for rounding.
    """
    from lm_eval.models.huggingface import HFLM

    class Bounded(HFLM):  # type: ignore[misc]
        batch_size_per_gpu: int | str
        _usual: int
        """Texts of a batch, as long as they are short."""
        _batch: list[tuple[int, int]]
        """Tokens that are fed of each text in the batch that is being put together, and of these before its choice."""

        def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **options: Any) -> Any:
            self._batch, self._usual = [], int(self.batch_size_per_gpu)
            self.batch_size_per_gpu = "auto"  # lm-eval then asks _batch_scheduler after each text
            try:
                return super()._loglikelihood_tokens(requests, *arguments, **options)
            finally:
                self.batch_size_per_gpu = self._usual

        def _batch_scheduler(self, pos: int, n_reordered_requests: Any) -> int:
            """The size of the batch that the text at `pos` ends, else 0. The longest come first."""
            if pos == 0 or self._full(n_reordered_requests[pos]):
                self._batch = []
            self._batch.append(self._fed(n_reordered_requests[pos]))
            following = n_reordered_requests[pos + 1 : pos + 2]
            return len(self._batch) if following and self._full(following[0]) else 0

        def _full(self, request: Any) -> bool:
            """Whether a request does not fit into the batch."""
            grown = [*self._batch, self._fed(request)]
            return len(grown) > self._usual or len(grown) * _kept(grown) * self.vocab_size > MOST_LOGITS

        def _fed(self, request: Any) -> tuple[int, int]:
            _, context, choice = request
            fed = min(len(context) + len(choice) - 1, self.max_length)
            return fed, fed - len(choice)

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            import torch

            with torch.no_grad():  # lm-eval counts positions from the end of what it gets
                return self.model(inps, logits_to_keep=_kept(self._batch)).logits

    return Bounded


def _kept(batch: Sequence[tuple[int, int]]) -> int:
    """Positions of a padded batch from where the first of its choices begins."""
    return max(fed for fed, _ in batch) - min(before for _, before in batch)


class Watched:
    """lm-eval's model, with an eye on what it is fed.

    Refuses a prompt without exactly one BOS where the policy's template has one; shortens replies rather than prompts
    where both do not fit; counts the prompts and replies that are cut all the same; shows progress.
    """

    def __init__(self, model: Any, what: str) -> None:
        self._model = model
        self._what = what
        self._bos = _template_bos(model.tokenizer)
        self.prompts_cut = 0
        self.replies_cut = 0
        self.max_new_tokens = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one."""
        cut = set()
        for request in requests:
            context, continuation = self._model._encode_pair(*request.args)
            self._check(context + continuation, request)
            if len(continuation) > self._model.max_length:
                raise BadInput(
                    f"{self._what}, item {request.doc_id}: a choice of {len(continuation)} tokens, and the policy "
                    f"takes {self._model.max_length}; raise max_length or leave this benchmark out"
                )
            if len(context) + len(continuation) > self._model.max_length + 1:
                cut.add((request.task_name, request.doc_id))
        self.prompts_cut = len(cut)
        self._count(len(requests))
        return self._model.loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A reply to each prompt."""
        lengths = [self._check(self._prompt_ids(request.args[0]), request) for request in requests]
        most = self._model.max_length
        asked = requests[0].args[1]["max_gen_toks"]
        self.max_new_tokens = min(asked, max(most - max(lengths), most // 4))
        for request in requests:
            request.args[1]["max_gen_toks"] = self.max_new_tokens
        self.prompts_cut = sum(length > most - self.max_new_tokens for length in lengths)
        self._count(len(requests))
        replies: list[str] = self._model.generate_until(requests, disable_tqdm=True)
        self.replies_cut = sum(self.tokens(reply) >= self.max_new_tokens for reply in replies)
        return replies

    def tokens(self, text: str) -> int:
        """Tokens of a reply, its text encoded anew: lm-eval does not hand on the policy's own."""
        return len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_ids(self, prompt: str) -> list[int]:
        if hasattr(self._model, "tok_batch_encode"):
            return self._model.tok_batch_encode([prompt])[0][0].tolist()  # type: ignore[no-any-return]
        return self._model.tok_encode(prompt)  # type: ignore[no-any-return]

    def _check(self, ids: list[int], request: Any) -> int:
        if self._bos is not None and (ids[:1] != [self._bos] or self._bos in ids[1:2]):
            n = 0 if ids[:1] != [self._bos] else 2
            raise BadInput(
                f"{self._what}, item {request.doc_id}: {n} BOS before the prompt where the policy's chat template has "
                "one; mend bos_token, add_bos_token or the template in its tokenizer"
            )
        return len(ids)

    def _count(self, total: int) -> None:
        show = counter(self._what, "requests")
        self._model.set_cache_hook(_Finished(lambda done: show(done, total)))


class _Finished:
    """lm-eval tells its cache of every answer; this one only counts them."""

    def __init__(self, show: Any) -> None:
        self._done, self._show = 0, show

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self._done += 1
        self._show(self._done)


def _template_bos(tokenizer: Any) -> int | None:
    """The BOS with which the tokenizer's chat template begins, if it does."""
    bos = tokenizer.bos_token_id
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bos if bos is not None and ids[:1] == [bos] else None
