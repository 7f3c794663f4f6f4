"""Stage `sample`: K responses of a policy to each prompt of a shard."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnpo.config.blocks import Block
from mnpo.config.sampling import WIDEST, Sampling
from mnpo.config.text import Text
from mnpo.errors import BadInput
from mnpo.models.chat import Chat, Encoded
from mnpo.seeds import derive
from mnpo.storage.artifacts import artifact
from mnpo.storage.conversations import turns
from mnpo.storage.journal import Journal, replace
from mnpo.storage.records import PROMPTS, SAMPLER_LOGPS, SAMPLES, read, rows_of, write
from mnpo.storage.resume import resumable

if TYPE_CHECKING:
    from mnpo.samplers import Request, Response

ENVIRONMENT = "infer"
Row = dict[str, Any]


class Settings(Block):
    """What this stage reads."""

    sampling: Sampling
    text: Text
    shard: int
    seed: int


def run(settings: Settings, policy: Path, prompts: Path, output: Path, logps: Path | None = None) -> None:
    """Draw K responses of a policy to each prompt.

    The prompts are a shard's: every `shards`-th one. The seed of a response derives from the policy's, the prompt's id
    and k, so shards and batches do not matter. Empty responses stay in the table, are counted in the manifest, and
    never become part of a pair. Those that were cut at the length limit stay and are counted, unless
    `sampling.truncated` drops them; prompts that lose all of their responses so, or all but one, are counted too. What
    is trained later is a response's text: those whose text has other tokens than were drawn are counted.

    Args:
        policy: the policy's directory.
        prompts: the part's prompts.
        output: the shard's samples, a Parquet file.
        logps: where the sampler's own log-probabilities go, for the stage `logps`: none of them when they are further
            than `sampling.mismatch_warning` from training's.

    Raises:
        BadInput: also when nothing would be left to write.
    """
    rows = read(PROMPTS, prompts).iloc[settings.shard :: settings.sampling.shards]
    if rows.empty:
        raise BadInput(
            f"{prompts}: no prompts for shard {settings.shard} of {settings.sampling.shards}; use fewer shards"
        )
    from mnpo.models.checkpoints import load_tokenizer, parameters, readable
    from mnpo.models.thinking import Reader
    from mnpo.samplers import Request
    from mnpo.samplers.mismatch import mismatch

    compared = settings.sampling.logprobs is True or (settings.sampling.logprobs == "first" and settings.shard == 0)
    sampling = settings.sampling.model_copy(update={"logprobs": compared})
    drawn_from = readable(policy, sampling.dtype)
    inputs = [drawn_from, *([policy] if compared else []), prompts]  # training's numbers are float32's
    with resumable(output, "sample", settings.model_dump(), inputs) as (made, session):
        chat = Chat(load_tokenizer(drawn_from), settings.text)
        reader = Reader(chat)  # what a setting says otherwise is for who reads samples
        tasks = [(row, k) for row in rows_of(rows) for k in range(sampling.responses)]
        seeds = [derive(settings.seed, row["prompt_id"], k) for row, k in tasks]
        encoded = {
            row["prompt_id"]: chat.prompt(turns(row["prompt"], row["context"]), row["prompt_id"])
            for row in rows_of(rows)
        }
        requests = [Request(encoded[row["prompt_id"]], seed) for (row, _), seed in zip(tasks, seeds, strict=True)]
        window = settings.text.max_prompt_length + sampling.max_new_tokens
        unit = "responses" if sampling.sampler == "vllm" else "waves"
        drawn, how = _drawn(sampling, window, policy, requests, chat.stop_ids, session.journal(unit), session.directory)
        samples = [
            {
                **row,
                "k": k,
                "response": (text := chat.decode(response.tokens)),
                "tokens": len(response.tokens),
                "finish": response.finish,
                "seed": seed,
                "thinking": reader.characters(text),
            }
            for (row, k), seed, response in zip(tasks, seeds, drawn, strict=True)
        ]
        kept = [s for s in samples if sampling.truncated == "keep" or s["finish"] != "length"]
        if not kept:
            raise BadInput(
                f"{output}: all {len(samples)} responses were cut at sampling.max_new_tokens = "
                f"{sampling.max_new_tokens}, and sampling.truncated drops them; raise the one or change the other"
            )
        write(SAMPLES, kept, made.path)
        left = Counter(s["prompt_id"] for s in kept)
        lost = Counter(left[prompt] for prompt in {s["prompt_id"] for s in samples if s["finish"] == "length"})
        made.facts = {
            "rows": len(kept),
            "prompts": len(rows),
            "prompt_tokens": sum(map(len, encoded.values())),
            "drawn": len(samples),
            "tokens": sum(s["tokens"] for s in samples),
            **how,
            "parameters": parameters(policy),
            "empty_responses": sum(not s["response"].strip() for s in samples),
            "cut_responses": sum(s["finish"] == "length" for s in samples),
            "dropped_responses": len(samples) - len(kept),
            "prompts_without_a_response": lost[0],
            "prompts_left_with_one_response": lost[1] if len(kept) < len(samples) else 0,
            "prompts_cut": chat.counts["prompts_cut"],
            **chat.counted,
            "responses_read_otherwise": _read_otherwise(chat, samples, drawn),
        }
        if compared:
            made.facts["mismatch"] = mismatch(policy, requests, drawn, sampling.mismatch_warning)
        elif settings.sampling.logprobs:
            made.facts["mismatch"] = {"compared_in": "shard 0"}
        if logps is not None:
            trusted = "warning" not in made.facts["mismatch"]
            with artifact(logps, "sample", settings.model_dump(), inputs) as beside:
                write(SAMPLER_LOGPS, _logps(samples, requests, drawn) if trusted else [], beside.path)
                beside.facts = {"rows": len(samples) if trusted else 0, "mismatch": made.facts["mismatch"].get("mean")}


def _read_otherwise(chat: Chat, samples: list[Row], responses: list[Response]) -> int:
    """How many finished responses have other tokens when their text is read again, as `logps` and `train` read it."""
    reader = Chat(chat.tokenizer, chat.text)
    return sum(
        reader.encode(turns(sample["prompt"], sample["context"]), sample["response"]).response != response.tokens
        for sample, response in zip(samples, responses, strict=True)
        if response.finish == "stop" and sample["response"].strip()
    )


def _logps(samples: list[Row], requests: list[Request], responses: list[Response]) -> list[Row]:
    """What the sampler holds each response's log-probability to be, and of which tokens."""
    return [
        {
            "prompt_id": sample["prompt_id"],
            "k": sample["k"],
            "read": Encoded(request.prompt, response.tokens).fingerprint(),
            "logp": math.fsum(response.logprobs or []),
        }
        for sample, request, response in zip(samples, requests, responses, strict=True)
    ]


def _drawn(
    sampling: Sampling,
    window: int,
    policy: Path,
    requests: list[Request],
    stop_ids: list[int],
    journal: Journal,
    directory: Path,
) -> tuple[list[Response], dict[str, int]]:
    """The responses, and the manifest's facts of how they were drawn."""
    what = f"sample {policy.name}"
    if sampling.sampler == "vllm":
        from mnpo.samplers import vllm

        return vllm.draw(policy, requests, sampling, stop_ids, window, what, journal), {}
    from mnpo.models.checkpoints import load_model
    from mnpo.samplers import transformers

    model = load_model(policy, dtype=sampling.dtype)
    rows = transformers.at_once(model, requests, sampling, sampling.batch_size, what)
    how = {}
    if sampling.batch_size == WIDEST:
        how["at_once"] = rows = _as_before(rows, directory / "at_once")
    return transformers.draw(model, requests, sampling, stop_ids, rows, what, journal, bool(sampling.logprobs)), how


def _as_before(rows: int, file: Path) -> int:
    """As many rows as an interrupted session had, so that what it drew is taken up; fewer where memory has room for
    fewer, and then all is drawn again."""
    if file.exists():
        rows = min(rows, int(file.read_text()))
    replace(file, str(rows).encode())
    return rows
