"""Stage `answer`: a policy's answers to the questions of a benchmark that a judge judges."""

from __future__ import annotations

from pathlib import Path

from mnpo.benchmarks import answers
from mnpo.benchmarks.questions import read_questions
from mnpo.config.blocks import Block
from mnpo.config.sources import Model
from mnpo.errors import BadInput
from mnpo.models.checkpoints import readable
from mnpo.storage.records import ANSWERS, write
from mnpo.storage.resume import resumable

ENVIRONMENT = "infer"


class Settings(Block):
    """What this stage reads."""

    asked: answers.Settings
    endpoint: Model | None = None
    """Of a policy that is behind an API and has no files."""


def run(settings: Settings, data: Path, output: Path, policy: Path | None = None, store: Path | None = None) -> None:
    """Let a policy answer the questions of a judged benchmark.

    Answers of an API are kept in a store: none is paid for twice.

    Args:
        data: the directory of the benchmark's data.
        output: the answers, a Parquet file.
        policy: the policy's directory; none for one behind an API.
        store: where an API's answers are kept; beside the output, if it is not given.

    Raises:
        BadInput: data that are not the benchmark's, or an endpoint that fails.
    """
    questions = read_questions(settings.asked.benchmark, data, settings.asked.limit)
    policy = policy and readable(policy, settings.asked.dtype)
    inputs = [data] if policy is None else [policy, data]
    with resumable(output, "answer", settings.model_dump(exclude_none=True), inputs) as (made, session):
        unit = "answers" if settings.asked.backend == "vllm" else "waves"
        if policy is not None:
            rows, facts = answers.of_policy(settings.asked, policy, questions, session.journal(unit))
        elif settings.endpoint is not None:
            kept = store or output.with_suffix(".sqlite")
            rows, facts = answers.of_api(settings.asked, settings.endpoint, kept, questions)
        else:
            raise BadInput(f"{settings.asked.policy}: give its directory (--policy), or its endpoint in the settings")
        write(ANSWERS, rows, made.path)
        made.facts = facts
