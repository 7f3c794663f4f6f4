"""Sampling with vLLM: one offline engine, fed with token ids from one queue; what is finished survives a kill.

Every request has its own seed, and so its own stream of random numbers. What vLLM promises of it: with one version on
one kind of hardware, the same requests given together to an engine in the same state get the same responses. The engine
therefore runs in this process, which makes its scheduling deterministic, and begins every queue with an empty prefix
cache. In other company (other shards or batch sizes, or the requests that a killed job left over), probabilities differ
by rounding, which can tip a draw: far more of them in bfloat16 than in float32. VLLM_BATCH_INVARIANT=1 in the
environment makes vLLM use kernels that rule this out, where it has them (GPUs only; beta in 0.32).

The K requests of a prompt lie side by side, so the prompt is read once for all of them (prefix caching).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mnpo.config.sampling import WIDEST, Decoding, Sampling
from mnpo.errors import BadInput
from mnpo.models.checkpoints import readable
from mnpo.progress import counter
from mnpo.samplers import Request, Response, longest_first
from mnpo.storage.artifacts import loading
from mnpo.storage.journal import Journal

TOGETHER = 64
"""Finished responses that are kept at once, or as many as there are after SECONDS."""
SECONDS = 10.0


def draw(
    policy: Path,
    requests: Sequence[Request],
    sampling: Sampling,
    stop_ids: Sequence[int],
    window: int,
    what: str,
    journal: Journal | None = None,
) -> list[Response]:
    """One response for each request, in the requests' order, by an engine of their own: see `Engine`."""
    with Engine(policy, sampling, stop_ids, window) as engine:
        return engine.draw(requests, sampling, what, journal)


class Engine:
    """vLLM, started by the first request that has to be drawn and ended with the context.

    Args:
        policy: a directory with a causal LM that vLLM knows; the files that are read are those of `readable`.
        sampling: batch_size: sequences decoded together (`widest`: as many as vLLM sees fit); dtype; tensor_parallel:
            GPUs; gpu_memory; logprobs: whether responses come with them.
        stop_ids: tokens that end a response, the only ones; the one drawn is kept.
        window: prompt and response together, at most, in tokens. The same for all shards, as what is compiled for one
            then serves the others.
    """

    def __init__(self, policy: Path, sampling: Sampling, stop_ids: Sequence[int], window: int) -> None:
        self._policy, self._sampling, self._stop_ids, self._window = policy, sampling, list(stop_ids), window
        self._llm: Any = None

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        """Whoever comes next in this process finds the GPU's memory free."""
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None  # nobody else may hold it: what is not held is freed next
        _free()

    def draw(
        self, requests: Sequence[Request], decoding: Decoding, what: str, journal: Journal | None = None
    ) -> list[Response]:
        """One response for each request, in the requests' order.

        Args:
            requests: all wait in one queue, so the batch is full until the last of them are being written.
            decoding: temperature (0 is greedy), top_p, max_new_tokens.
            what: the work's name, for progress.
            journal: keeps what is finished, some responses at a time, and has that of an earlier session.

        Raises:
            BadInput: vLLM is not installed, or does not start with this policy and these settings.
            RuntimeError: the engine read another prompt than it was given, or failed to answer one.
            Interrupted: a signal asked the journal's session to stop.
        """
        parts = [_part(request, decoding) for request in requests]
        kept = [None if journal is None else journal.get(part) for part in parts]
        responses = {i: Response(*value) for i, value in enumerate(kept) if value is not None}
        left = [i for i in longest_first(requests) if i not in responses]
        show, last = counter(what, "responses"), time.monotonic()
        fresh: dict[str, Response] = {}
        for finished in self._steps([requests[i] for i in left], decoding):
            responses |= (done := {left[n]: response for n, response in finished})
            if done:
                show(len(left) - len(requests) + len(responses), len(left))
            fresh |= {parts[i]: response for i, response in done.items()}
            late = len(fresh) >= TOGETHER or time.monotonic() - last >= SECONDS
            if journal is not None and (late or journal.stopping):
                journal.add_all(fresh)
                fresh, last = {}, time.monotonic()
        if journal is not None and fresh:
            journal.add_all(fresh)
        return [responses[i] for i in range(len(requests))]

    def _steps(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[list[tuple[int, Response]]]:
        """What each of the engine's steps finishes: (which request, its response)."""
        if not requests:
            return
        if self._llm is None:
            self._llm = _start(self._policy, self._sampling, self._window)
        self._llm.reset_prefix_cache()
        prompts = [{"prompt_token_ids": request.prompt} for request in requests]
        logprobs = bool(self._sampling.logprobs)
        how = [_params(request, decoding, self._stop_ids, logprobs) for request in requests]
        first, *_ = self._llm.enqueue(prompts, how, use_tqdm=False)
        start = int(first.partition("-")[0])  # it numbers requests, and adds characters of its own
        while self._llm.llm_engine.has_unfinished_requests():
            outputs = [(int(o.request_id) - start, o) for o in self._llm.llm_engine.step() if o.finished]
            yield [(n, _response(self._policy, requests[n], output)) for n, output in outputs]


def _part(request: Request, decoding: Decoding) -> str:
    """What a response follows from, in a journal."""
    return Journal.name([request, decoding.temperature, decoding.top_p, decoding.max_new_tokens])


def _params(request: Request, decoding: Decoding, stop_ids: Sequence[int], logprobs: bool) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_tokens=decoding.max_new_tokens,
        seed=request.seed,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,  # stop_ids has it, where it is one
        logprobs=0 if logprobs else None,  # of the drawn token only
        detokenize=False,
    )


def before_import() -> None:
    """Set what vLLM reads of the environment when it is imported.

    An engine in this process: in processes of its own it would import all libraries twice more, half a minute on two
    cores. On nodes without nvcc no FlashInfer sampler, which is compiled as it warms up: requests with seeds, and
    greedy ones, never use it.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")


@loading()
def _start(policy: Path, sampling: Sampling, window: int) -> Any:
    before_import()
    try:
        import torch
        from vllm import LLM
    except ImportError as error:
        raise BadInput(
            f"sampling.sampler: vllm, but vLLM cannot be imported here ({error}); run this stage in the environment "
            "`infer` (envs/infer.txt; envs/infer.yaml for snakemake --sdm conda), or set sampling.sampler: transformers"
        ) from error
    # Without a tokenizer it cannot warm up its chat template, and shows a traceback for that.
    logging.getLogger("vllm.renderers.base").setLevel(logging.ERROR)
    gpu = torch.cuda.is_available()
    try:
        return LLM(
            model=str(readable(policy, sampling.dtype)),
            skip_tokenizer_init=True,  # ids in, ids out
            generation_config="vllm",  # nothing of the directory's generation_config.json
            dtype=sampling.dtype,
            seed=0,
            max_model_len=window,
            max_num_seqs=None if sampling.batch_size == WIDEST else sampling.batch_size,
            tensor_parallel_size=sampling.tensor_parallel,
            gpu_memory_utilization=sampling.gpu_memory,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",
            enforce_eager=not gpu,  # compiling takes a CPU longer than it saves
            # Where a prompt is split over steps, vLLM 0.32 rewinds the request's random numbers, as torch's CPU
            # generators cannot ("CPU Generator does not use offset").
            enable_chunked_prefill=gpu,
            max_num_batched_tokens=None if gpu else max(4096, window),
        )
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{policy}: vLLM does not start ({_reason(error)}); it wants an architecture that it knows, room for "
            f"text.max_prompt_length + sampling.max_new_tokens = {window} tokens in the policy's context and in the "
            "share sampling.gpu_memory of the GPU's memory, and sampling.tensor_parallel GPUs"
        ) from error


def _free() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _reason(error: BaseException) -> str:
    """What went wrong, without the frame that pydantic puts around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("Value error")), lines[0] if lines else repr(error))


def _response(policy: Path, request: Request, output: Any) -> Response:
    """What the engine made of a request, once it is sure that it was that request, and that it was answered."""
    if list(output.prompt_token_ids) != request.prompt:
        raise RuntimeError(
            f"{policy}: vLLM read a prompt of {len(output.prompt_token_ids)} tokens that are not the "
            f"{len(request.prompt)} it was given; no sampler may add to a prompt or cut it"
        )
    (drawn,) = output.outputs
    tokens = list(drawn.token_ids)
    if drawn.finish_reason not in ("stop", "length") or not tokens:
        raise RuntimeError(
            f"{policy}: vLLM ended a response after {len(tokens)} tokens with {drawn.finish_reason!r}; "
            "what was finished before is kept, so run it again, and look into vLLM's log if it happens again"
        )
    if drawn.logprobs is None:
        return Response(tokens, drawn.finish_reason)
    logprobs = [step[token].logprob for token, step in zip(tokens, drawn.logprobs, strict=True)]
    return Response(tokens, drawn.finish_reason, logprobs)
