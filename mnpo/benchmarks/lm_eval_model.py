"""The policy as lm-eval's model, with an eye on what it is fed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

from mnpo.config.sources import Strip
from mnpo.config.text import Reading, Text
from mnpo.errors import BadInput
from mnpo.models.thinking import Reader, decode
from mnpo.progress import counter

if TYPE_CHECKING:
    from mnpo.models.chat import Chat

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
    reading: Reading | None = None,
) -> Any:
    """lm-eval's model of a checkpoint, with the attributes of `_Chatting`.

    Raises BadInput for a backend that is not installed.
    """
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer, readable
    from mnpo.models.templates import end_of_text

    tokenizer = load_tokenizer(policy)
    chat = Chat(tokenizer, Text(**(reading or Reading()).model_dump()))
    bos = False if chat.text.bos == "none" else None  # None: as the tokenizer does
    if backend == "vllm":
        if find_spec("vllm") is None:
            raise BadInput("evaluation.backend: vllm is not installed here; use its environment, or transformers")
        from mnpo.samplers.vllm import before_import

        before_import()
        import torch
        from lm_eval.models.vllm_causallms import VLLM

        gpu = torch.cuda.is_available()
        further = sorted(set(chat.stop_ids) - set(end_of_text(tokenizer)))
        return type("Policy", (_Chatting, VLLM), {"chat": chat, "further_stops": further})(
            pretrained=str(readable(policy, dtype)),
            dtype=dtype,
            batch_size="auto",
            max_length=max_length,
            seed=seed,
            add_bos_token=bos,
            enforce_eager=not gpu,  # compiling takes a CPU longer than it saves
            **(_within_memory(len(tokenizer)) if gpu else {}),
        )
    model = load_model(policy, dtype=dtype)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = chat.stop_ids
    return type("Policy", (_Batching, _bounded()), {"chat": chat})(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length, add_bos_token=bos
    )


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


class _Chatting:
    """In front of one of lm-eval's classes: conversations become the tokens that they are everywhere else here."""

    chat: Chat
    conversing = False
    """Whether texts are what `apply_chat_template` made."""
    further_stops: Sequence[int] = ()
    """What ends a turn though none of the policy's files, where vLLM looks, says so."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.chat.rendered(chat_history, going_on=not add_generation_prompt)

    def tok_encode(self, string: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(string, str):
            return [self.tok_encode(one, *args, **kwargs) for one in string]
        if self.conversing:
            return self.chat.ids(string)
        ids, bos = super().tok_encode(string, *args, **kwargs), self.chat.tokenizer.bos_token_id  # type: ignore[misc]
        wanted = self.chat.text.bos == "add" and bos is not None
        return [bos, *ids] if wanted and ids[:1] != [bos] else ids


class _Batching(_Chatting):
    """Of the class that pads prompts itself."""

    def tok_batch_encode(
        self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None, **kwargs: Any
    ) -> Any:
        if not self.conversing:
            return super().tok_batch_encode(strings, padding_side, left_truncate_len, **kwargs)  # type: ignore[misc]
        import torch

        ids = [self.chat.ids(one) for one in strings]
        longest = max(map(len, ids))
        kept = min(longest, left_truncate_len or longest)
        padding = self.chat.tokenizer.pad_token_id or 0
        rows = [[padding] * (longest - len(row)) + row for row in ids]
        masks = [[0] * (longest - len(row)) + [1] * len(row) for row in ids]
        return torch.tensor(rows)[:, -kept:], torch.tensor(masks)[:, -kept:]


class Watched:
    """lm-eval's model, with an eye on what it is fed.

    Refuses a prompt without exactly one BOS where the policy's prompts begin with one; shortens replies rather than
    prompts where both do not fit; counts the prompts and replies that are cut all the same; takes off thinking; shows
    progress.

    `replies`: what was generated, each with its `response`, its `tokens` and those of its `thinking`, and its `finish`.

    Args:
        model: what `load_policy` returned.
        what: for messages.
        conversing: whether prompts are conversations.
        strip: what is taken off the replies.
    """

    def __init__(self, model: Any, what: str, conversing: bool = False, strip: Strip | None = None) -> None:
        self._model = model
        self._reader = Reader(model.chat, strip)
        self.replies: list[dict[str, Any]] = []
        self._what = what
        model.conversing = conversing
        self._bos = None if model.chat.text.bos == "template" and not conversing else model.chat.bos
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
            if self._model.further_stops:
                request.args[1]["stop_token_ids"] = self._model.further_stops
        self.prompts_cut = sum(length > most - self.max_new_tokens for length in lengths)
        self._count(len(requests))
        stops = [request.args[1].get("until", []) for request in requests]
        with self._whole(requests):
            replies: list[str] = self._model.generate_until(requests, disable_tqdm=True)
        lengths = [self.tokens(reply) for reply in replies]
        self.replies_cut = sum(length >= self.max_new_tokens for length in lengths)
        self.replies += map(self._read, replies, lengths, stops)
        return [reply["response"] for reply in self.replies[-len(requests) :]]

    @contextmanager
    def _whole(self, requests: Sequence[Any]) -> Iterator[None]:
        """Where thinking is taken off: let replies run on over the strings that end an answer, which thinking may hold,
        and decode the tags that enclose it."""
        if not self._reader.strips:
            yield
            return
        for request in requests:
            request.args[1]["until"] = []
        if not hasattr(self._model, "tok_decode"):  # vLLM's, which decodes all tokens
            yield
            return
        tokenizer, usual = self._model.tokenizer, self._model.tok_decode

        def tok_decode(tokens: Any, skip_special_tokens: bool = True) -> Any:
            ids = [tokens] if isinstance(tokens, int) else list(tokens)
            return decode(tokenizer, ids) if skip_special_tokens else usual(tokens, skip_special_tokens)

        with mock.patch.object(self._model, "tok_decode", tok_decode):
            yield

    def _read(self, reply: str, tokens: int, stops: str | Sequence[str]) -> dict[str, Any]:
        """A reply of so many tokens without its thinking, up to the first string that ends an answer."""
        if not self._reader.strips:
            return {"response": reply, "tokens": 0, "thinking": 0, "finish": ""}
        response, thinking = self._reader.split(reply, tokens)
        for stop in [stops] if isinstance(stops, str) else stops:
            response = response.split(stop)[0] if stop else response
        finish = "length" if tokens >= self.max_new_tokens else "stop"
        return {"response": response, "tokens": self.tokens(response), "thinking": thinking, "finish": finish}

    def tokens(self, text: str) -> int:
        """Tokens of a reply, its text encoded anew: lm-eval does not hand on the policy's own."""
        return len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prompt_ids(self, prompt: str) -> list[int]:
        if not self._model.conversing and hasattr(self._model, "tok_batch_encode"):
            return self._model.tok_batch_encode([prompt])[0][0].tolist()  # type: ignore[no-any-return]
        return self._model.tok_encode(prompt)  # type: ignore[no-any-return]

    def _check(self, ids: list[int], request: Any) -> int:
        if self._bos is not None and (ids[:1] != [self._bos] or self._bos in ids[1:2]):
            n = 0 if ids[:1] != [self._bos] else 2
            raise BadInput(
                f"{self._what}, item {request.doc_id}: {n} BOS before the prompt where the policy's chat template has "
                "one; say what becomes of it in text.bos, or mend bos_token or add_bos_token in its tokenizer"
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
