"""One run of EvalScope, with our policy, judge and sandbox in the place of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from mnpo.benchmarks import sandbox
from mnpo.benchmarks.evalscope_tasks import TASKS, JudgePrompt, Row
from mnpo.config.evaluation import BenchmarkSettings
from mnpo.errors import BadInput
from mnpo.judging.prompts import replaced
from mnpo.storage.records import read_rows


def run_evalscope(
    benchmark: str,
    chosen: BenchmarkSettings,
    directory: Path,
    stage: str,
    reply: Callable[[str], str],
    judge: Callable[[JudgePrompt], str] | None = None,
) -> list[Row]:
    """EvalScope's reviews of all items, in their order, with our policy, our judge and our sandbox in its place."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        from evalscope import TaskConfig, run_task
        from evalscope.api.mixin import llm_judge_mixin
        from evalscope.benchmarks.humaneval.humaneval_adapter import HumanevalAdapter
    except ImportError as error:
        raise BadInput(f"evalscope is not in this environment ({error}); it has its own, envs/evalscope.txt") from None
    import numpy as np

    task = TASKS[benchmark]
    subsets = {file.name.split(".")[0] for file in directory.glob("*.jsonl")}
    if benchmark == "mmlu":
        subsets = {row["subject"] for row in read_rows(directory / f"{task.subset}.test.jsonl")}
    of: Row = {"dataset_id": str(directory), "subset_list": sorted(subsets)}
    if chosen.shots is not None:
        of["few_shot_num"] = chosen.shots
    work = directory / stage
    config = TaskConfig(
        model=_policy(reply),
        model_id="policy",
        eval_type="llm_ckpt",
        datasets=[task.name],
        dataset_args={task.name: of},
        limit=chosen.limit,
        work_dir=str(work),
        judge_strategy="llm" if judge else "rule",
    )
    programs = _run_in_sandbox if stage == "scored" else _run_nothing
    with (
        mock.patch.object(llm_judge_mixin, "LLMJudge", _judge(judge)),
        mock.patch.object(HumanevalAdapter, "match_score", programs),
        mock.patch.object(np, "NAN", np.nan, create=True),  # its Arena-Hard is older than NumPy 2
    ):
        run_task(config)
    files = sorted(work.rglob("reviews/policy/*.jsonl"))
    return [row | {"subset": file.stem} for file in files for row in sorted(read_rows(file), key=lambda r: r["index"])]


def _policy(reply: Callable[[str], str]) -> Any:
    from evalscope.api.model import ModelAPI, ModelOutput

    class Policy(ModelAPI):  # type: ignore[misc]
        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            return ModelOutput.from_content("policy", reply("\n\n".join(message.text for message in input)))

    return Policy("policy")


def _judge(reply: Callable[[JudgePrompt], str] | None) -> Any:
    """EvalScope's judge without its endpoint: it has no key, and a call of it cannot fail."""
    from evalscope.metrics import LLMJudge

    class Judged(LLMJudge):  # type: ignore[misc]
        def _init_server_adapter(self) -> None:
            pass

        def judge(self, prompt: str = "", system_prompt: str | None = None, messages: Any = None) -> str:
            assert reply is not None and messages is None
            return reply((system_prompt, prompt))

        def build_prompt(self, pred: str, gold: str, question: str | None = None) -> str:
            """As its own, which looks for `{gold}` in the answer too."""
            asked = "Not provided" if question is None else question
            return replaced(self.prompt_template, {"question": asked, "pred": pred, "gold": gold})

    return Judged


def _run_in_sandbox(
    adapter: Any, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
) -> Any:
    """HumanEval's score, by our sandbox instead of EvalScope's own processes."""
    outcome = sandbox.run(sandbox.humaneval_program(task_state.metadata, filtered_prediction))
    return _passed(original_prediction, filtered_prediction, outcome.passed, outcome.reason)


def _run_nothing(
    adapter: Any, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
) -> Any:
    return _passed(original_prediction, filtered_prediction, False, "not run")


def _passed(original_prediction: str, filtered_prediction: str, passed: bool, reason: str) -> Any:
    from evalscope.api.metric import Score

    return Score(
        prediction=original_prediction,
        extracted_prediction=filtered_prediction,
        value={"pass": float(passed)},
        metadata={"reason": reason},
    )
