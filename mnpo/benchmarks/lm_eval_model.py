"""The policy as lm-eval's model, with an eye on what it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mnpo.errors import BadInput
from mnpo.progress import counter


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

        return VLLM(
            pretrained=str(policy),
            dtype=dtype,
            batch_size="auto",
            max_length=max_length,
            seed=seed,
            enforce_eager=not torch.cuda.is_available(),  # compiling takes a CPU longer than it saves
        )
    from lm_eval.models.huggingface import HFLM

    model = load_model(policy, dtype=dtype)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)


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
