"""The fourteen benchmarks, declared: what runs them, on which data, how, and where that differs from the paper.

Sources of the facts: the task definitions of lm-eval 0.4.13, the papers of the benchmarks, the adapters of EvalScope
(the paper's harness, all but MT-Bench) and docs/ledger.md. Tokens per item are estimates, for the plan's costs only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Harness = Literal["lm-eval", "alpaca-eval", "arena-hard", "mt-bench"]
LETTER = "the paper's harness asks for the letter of a choice in a chat and reads it from the reply"
BOXED = "the paper's harness asks for steps and a \\boxed{} answer"


@dataclass(frozen=True)
class Card:
    """One benchmark."""

    name: str
    title: str
    column: str
    """Of the paper's tables."""
    harness: Harness
    items: int
    evalscope_items: int = 0
    """Where EvalScope has another number."""
    hub: str | None = None
    """Data set of the Hugging Face hub."""
    github: str | None = None
    """Repository with the data, where it is not on the hub."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Split (of lm-eval), or what it is -> where it lies in that repository, as a pattern."""
    columns: tuple[str, ...] = ()
    """That every row has."""
    task: str = ""
    """lm-eval's definition, below its `tasks` directory; `{}` is a subject."""
    metric: str = "value"
    """The key of its results that is the benchmark's value."""
    chat: bool = True
    """Whether prompts are rendered by the policy's chat template."""
    shots: int = 0
    requests: int = 1
    """Times that the policy reads an item."""
    prompt_tokens: int = 0
    """Estimate, per request."""
    generated_tokens: int = 0
    """Estimate, per request."""
    max_new_tokens: int = 0
    """0: nothing is generated. Where lm-eval's definition has no limit of its own, ours, not its general 256."""
    unit: Literal["percent", "rating"] = "percent"
    protocol: str = ""
    paper: str = ""
    """The paper's protocol, where it differs."""

    @property
    def split(self) -> str:
        """What `files` names first: the split whose items are counted."""
        return next(iter(self.files))

    @property
    def differs(self) -> str:
        """What the protocol of a result adds: how the paper's differs."""
        return f"; in the paper: {self.paper}" if self.paper else ""

    def splits(self, shots: int) -> tuple[str, ...]:
        """The splits that are read: the one with the items, and with shots the one that these come from."""
        return tuple(self.files)[: 2 if shots else 1]


def _judged(name: str, title: str, column: str, items: int, **rest: Any) -> Card:
    return Card(name, title, column, name, items, **rest)  # type: ignore[arg-type]


def _choices(name: str, title: str, items: int, choices: int, tokens: int, **rest: Any) -> Card:
    """A multiple choice: the choice with the highest log-likelihood after the bare text of the question."""
    return Card(name, title, name, "lm-eval", items, chat=False, requests=choices, prompt_tokens=tokens, **rest)


def _generated(name: str, title: str, items: int, column: str = "", **rest: Any) -> Card:
    return Card(name, title, column or name, "lm-eval", items, **rest)


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        _judged(
            "alpaca-eval",
            "AlpacaEval 2",
            "alpaca_eval_2_lc_wr",
            805,
            hub="tatsu-lab/alpaca_eval",
            files={"questions": "alpaca_eval*.json", "instruction difficulty": "df_gamed.csv"},
            prompt_tokens=50,
            generated_tokens=450,
            max_new_tokens=2048,
            protocol="win rate against gpt4_1106_preview, length-controlled, one judgement in random order",
            paper="no length control, the baseline always first, the first m or M of the reply decides",
        ),
        _judged(
            "arena-hard",
            "Arena-Hard v0.1",
            "arena_hard_wr",
            500,
            github="lmarena/arena-hard-auto",
            files={
                "questions": "data/arena-hard-v0.1/question.jsonl",
                "baseline": "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl",
            },
            prompt_tokens=120,
            generated_tokens=600,
            max_new_tokens=4096,
            protocol="two games a question against gpt-4-0314, >> counts three times, logistic fit",
        ),
        _judged(
            "mt-bench",
            "MT-Bench",
            "mt_bench",
            80,
            github="lm-sys/FastChat",
            files={
                "questions": "fastchat/llm_judge/data/mt_bench/question.jsonl",
                "references": "fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl",
                "judge prompts": "fastchat/llm_judge/data/judge_prompts.jsonl",
            },
            requests=2,
            prompt_tokens=250,
            generated_tokens=350,
            max_new_tokens=1024,
            unit="rating",
            protocol="mean rating over both turns, references in mathematics, reasoning and coding",
        ),
        _generated(
            "ifeval",
            "IFEval",
            541,
            hub="google/IFEval",
            files={"train": "*.jsonl"},
            columns=("key", "prompt", "instruction_id_list", "kwargs"),
            task="ifeval/ifeval.yaml",
            metric="prompt_level_strict_acc,none",
            prompt_tokens=60,
            generated_tokens=350,
            max_new_tokens=1280,
            protocol="share of prompts whose instructions are all followed, strictly (the harness's first of four), "
            "languages by langdetect with a fixed seed",
            paper="the same measure, in its own copy of the checks",
        ),
        _choices(
            "gpqa",
            "GPQA diamond",
            198,
            4,
            250,
            hub="Idavidrein/gpqa",
            files={"train": "gpqa_diamond.csv"},
            columns=("Question", "Correct Answer", *(f"Incorrect Answer {i}" for i in (1, 2, 3))),
            task="gpqa/zeroshot/gpqa_diamond_zeroshot.yaml",
            metric="acc_norm,none",
            protocol="likelihood of (A) to (D) after the question, choices shuffled with lm-eval's seed",
            paper=LETTER,
        ),
        _choices(
            "mmlu",
            "MMLU",
            14042,
            4,
            700,
            hub="cais/mmlu",
            files={"test": "{}/test-*.parquet", "dev": "{}/dev-*.parquet"},
            columns=("question", "choices", "answer"),
            task="mmlu/default/mmlu_{}.yaml",
            metric="acc,none",
            shots=5,
            protocol="likelihood of A to D, 57 subjects weighted by size",
            paper=f"{LETTER}, after steps",
        ),
        _choices(
            "arc",
            "ARC-Challenge",
            1172,
            4,
            40,
            evalscope_items=3548,
            hub="allenai/ai2_arc",
            files={split: f"ARC-Challenge/{split}-*.parquet" for split in ("test", "train")},
            columns=("question", "choices", "answerKey"),
            task="arc/arc_challenge.yaml",
            metric="acc_norm,none",
            protocol="likelihood of each answer per character; the Challenge set only",
            paper=f"ARC-Easy and ARC-Challenge together (3,548 items); {LETTER}",
        ),
        _choices(
            "hellaswag",
            "HellaSwag",
            10042,
            4,
            90,
            hub="Rowan/hellaswag",
            files={split: f"data/{split}-*.parquet" for split in ("validation", "train")},
            columns=("ctx_a", "ctx_b", "activity_label", "endings", "label"),
            task="hellaswag/hellaswag.yaml",
            metric="acc_norm,none",
            protocol="likelihood of each ending per character",
            paper=LETTER,
        ),
        _choices(
            "truthfulqa",
            "TruthfulQA (mc2)",
            817,
            7,
            170,
            hub="truthfulqa/truthful_qa",
            files={"validation": "multiple_choice/validation-*.parquet"},
            columns=("question", "mc1_targets", "mc2_targets"),
            task="truthfulqa/truthfulqa_mc2.yaml",
            metric="acc,none",
            protocol="share of the likelihood that is on true answers (mc2), after the task's own six examples",
            paper=f"the one true answer (mc1), choices shuffled; {LETTER}",
        ),
        _choices(
            "winogrande",
            "Winogrande",
            1267,
            2,
            30,
            hub="allenai/winogrande",
            files={split: f"winogrande_xl/{split}-*.parquet" for split in ("validation", "train")},
            columns=("sentence", "option1", "option2", "answer"),
            task="winogrande/default.yaml",
            metric="acc,none",
            protocol="likelihood of the sentence's end after each option",
            paper=LETTER,
        ),
        _generated(
            "gsm8k",
            "GSM8K",
            1319,
            hub="openai/gsm8k",
            files={"test": "main/test-*.parquet", "train": "main/train-*.parquet"},
            columns=("question", "answer"),
            task="gsm8k/gsm8k.yaml",
            metric="exact_match,flexible-extract",
            shots=5,
            prompt_tokens=900,
            generated_tokens=150,
            max_new_tokens=1024,
            protocol="the last number of the reply, examples as turns of the chat; compared as text, $1,234.00 is not "
            "1234 (by value: exact_match,mended in the metrics)",
            paper="four examples in one turn; asks for steps and a last line ANSWER:, and reads the last number",
        ),
        _generated(
            "minerva",
            "Minerva-Math",
            272,
            column="minerva_math",
            hub="math-ai/minervamath",
            files={"test": "**/*test*"},
            columns=("problem", "solution"),
            task="minerva_math/minerva_math_algebra.yaml",
            metric="math_verify,none",
            shots=4,
            prompt_tokens=800,
            generated_tokens=350,
            max_new_tokens=2048,
            protocol="equal in value to the reference (math-verify), the task's examples as turns of the chat; "
            "the 272 problems of OpenCourseWare (the 5,000 of MATH run the same way)",
            paper=f"no examples; {BOXED}, and a judge says whether the reply is right",
        ),
        _generated(
            "aime24",
            "AIME-24",
            30,
            hub="Maxwell-Jia/AIME_2024",
            files={"train": "aime_2024*.parquet"},
            columns=("Problem", "Answer"),
            task="aime/aime24.yaml",
            metric="exact_match,none",
            prompt_tokens=120,
            generated_tokens=900,
            max_new_tokens=32768,
            protocol="the reply is the answer, or has it in \\boxed{} or between dollar signs",
            paper=BOXED,
        ),
        _generated(
            "humaneval",
            "HumanEval",
            164,
            hub="openai/openai_humaneval",
            files={"test": "openai_humaneval/test-*.parquet"},
            columns=("task_id", "prompt", "test", "entry_point"),
            task="humaneval/humaneval_instruct.yaml",
            metric="pass@1,create_test",
            prompt_tokens=350,
            generated_tokens=200,
            max_new_tokens=1024,
            protocol="one greedy completion that the prompt begins, its tests run in a sandbox; a reply that opens "
            "with a code fence is an empty program (its code run: pass@1_mended in the metrics)",
            paper="the whole function is asked for and read from the reply's first code block",
        ),
    )
}
