"""Stage `sample`: K responses of a policy to each prompt of a shard."""

from __future__ import annotations

from pathlib import Path

from mnpo.artifacts import artifact
from mnpo.config import Block, Sampling, Text
from mnpo.errors import BadInput
from mnpo.records import PROMPTS, SAMPLES, read, rows_of, write
from mnpo.seeds import derive


class Settings(Block):
    """What this stage reads."""

    sampling: Sampling
    text: Text
    shard: int
    seed: int


def run(settings: Settings, policy: Path, prompts: Path, output: Path) -> None:
    """Write the samples of this shard: every `shards`-th prompt, each K times.

    The seed of a response derives from the policy's, the prompt's id and k, so shards and batches do not matter.
    Empty responses stay in the table, are counted in the manifest, and never become part of a pair.
    """
    rows = read(PROMPTS, prompts).iloc[settings.shard :: settings.sampling.shards]
    if rows.empty:
        raise BadInput(
            f"{prompts}: no prompts for shard {settings.shard} of {settings.sampling.shards}; use fewer shards"
        )
    from mnpo.chat import Chat
    from mnpo.checkpoints import load_model, load_tokenizer
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    sampling = settings.sampling
    with artifact(output, "sample", settings.model_dump(), [policy, prompts]) as made:
        chat = Chat(load_tokenizer(policy), settings.text)
        tasks = [(row, k) for row in rows_of(rows) for k in range(sampling.responses)]
        seeds = [derive(settings.seed, row["prompt_id"], k) for row, k in tasks]
        encoded = {row["prompt_id"]: chat.prompt(row["prompt"], row["prompt_id"]) for row in rows_of(rows)}
        requests = [Request(encoded[row["prompt_id"]], seed) for (row, _), seed in zip(tasks, seeds, strict=True)]
        drawn = draw(
            load_model(policy), requests, sampling, chat.stop_ids, sampling.batch_size, f"sample {policy.name}"
        )
        samples = [
            {
                **row,
                "k": k,
                "response": chat.decode(response.tokens),
                "tokens": len(response.tokens),
                "finish": response.finish,
                "seed": seed,
            }
            for (row, k), seed, response in zip(tasks, seeds, drawn, strict=True)
        ]
        write(SAMPLES, samples, made.path)
        made.facts = {
            "rows": len(samples),
            "tokens": sum(s["tokens"] for s in samples),
            "empty_responses": sum(not s["response"].strip() for s in samples),
            "cut_responses": sum(s["finish"] == "length" for s in samples),
            "prompts_cut": chat.counts["prompts_cut"],
        }
