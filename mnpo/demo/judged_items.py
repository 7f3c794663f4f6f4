"""The small versions of the benchmarks that a judge rates, with its prompts: AlpacaEval 2, Arena-Hard, MT-Bench."""

from __future__ import annotations

import json
import random
from typing import Any

from mnpo.demo import world
from mnpo.demo.questions import Maker, heldout_prompts

JUDGED_ITEMS = 14


def _alpaca_eval(rng: random.Random, seed: int) -> dict[str, Any]:
    prompts = heldout_prompts(seed, JUDGED_ITEMS)
    baseline = [
        {
            "dataset": "demo",
            "instruction": prompt,
            "output": world.demonstrate(rng, json.dumps(truth)),
            "generator": "gpt4_1106_preview",
        }
        for prompt, truth in prompts
    ]
    gamed = [
        {
            "index": index,
            "instruction_difficulty": round(rng.gauss(0, 1), 4),
            "not_gamed_baseline": False,
            "std_delta_len": delta,
            "preference": round(min(max(0.5 + 0.2 * delta + rng.gauss(0, 0.05), 0.01), 0.99), 4),
            "model": model,
        }
        for model, delta in (("concise", -1.0), ("verbose", 1.0))
        for index in range(len(prompts))
    ]
    return {"alpaca_eval_gpt4_baseline.json": baseline, "df_gamed.csv": gamed}


ARENA_PROMPT = """<|User Prompt|>
{question_1}

<|The Start of Assistant A's Answer|>
{answer_1}
<|The End of Assistant A's Answer|>

<|The Start of Assistant B's Answer|>
{answer_2}
<|The End of Assistant B's Answer|>"""


def _arena_hard(rng: random.Random, seed: int) -> dict[str, Any]:
    prompts = heldout_prompts(seed, JUDGED_ITEMS)
    questions = [
        {"uid": f"q{i}", "category": "arena-hard-v0.1", "cluster": truth["family"], "prompt": prompt}
        for i, (prompt, truth) in enumerate(prompts)
    ]
    answers = [
        {
            "uid": f"q{i}",
            "ans_id": f"a{i}",
            "model": "gpt-4-0314",
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": {"answer": world.demonstrate(rng, json.dumps(truth))}},
            ],
        }
        for i, (prompt, truth) in enumerate(prompts)
    ]
    judge = {
        "system_prompt": "Compare two answers. End with your verdict: [[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]].",
        "prompt_template": [ARENA_PROMPT],
    }
    return {
        "data/arena-hard-v0.1/question.jsonl": questions,
        "data/arena-hard-v0.1/model_answer/gpt-4-0314.jsonl": answers,
        "config/judge_config.yaml": json.dumps(judge, indent=1),  # JSON is YAML
    }


MT_CATEGORIES = {
    "writing": "repeat",
    "roleplay": "list",
    "extraction": "sort",
    "math": "count",
    "reasoning": "opposite",
    "coding": "code",
    "stem": "category",
    "humanities": "list",
}
RATE = "Rate the last answer from 1 to 10. End with your rating, such as [[5]]."
MT_SINGLE = """[Question]
{question}
{reference}
[The Start of Assistant's Answer]
{answer}
[The End of Assistant's Answer]"""
MT_TURNS = """{reference}<|The Start of Assistant A's Conversation with User|>

### User:
{question_1}

### Assistant A:
{answer_1}

### User:
{question_2}

### Assistant A:
{answer_2}

<|The End of Assistant A's Conversation with User|>"""
MT_REFERENCE = "\n[The Start of Reference Answer]\n{ref_answer_1}\n[The End of Reference Answer]\n"
MT_REFERENCES = """<|The Start of Reference Answer|>

### User:
{question_1}

### Reference answer:
{ref_answer_1}

### User:
{question_2}

### Reference answer:
{ref_answer_2}

<|The End of Reference Answer|>

"""


def _mt_bench(rng: random.Random, seed: int) -> dict[str, Any]:
    questions, references = [], []
    for number, (category, family) in enumerate(MT_CATEGORIES.items(), 81):
        turns = rng.sample(heldout_prompts(seed, 6, family), 2)
        questions.append({"question_id": number, "category": category, "turns": [prompt for prompt, _ in turns]})
        if category in ("math", "reasoning", "coding"):
            answers = [truth["answer"] for _, truth in turns]
            references.append({"question_id": number, "model_id": "gpt-4", "choices": [{"index": 0, "turns": answers}]})
    single = {
        "single-v1": MT_SINGLE.replace("{reference}", ""),
        "single-math-v1": MT_SINGLE.replace("{reference}", MT_REFERENCE),
        "single-v1-multi-turn": MT_TURNS.replace("{reference}", ""),
        "single-math-v1-multi-turn": MT_TURNS.replace("{reference}", MT_REFERENCES),
    }
    prompts = [
        {
            "name": name,
            "type": "single",
            "system_prompt": RATE,
            "prompt_template": template,
            "description": "of the demo",
            "category": "math" if "math" in name else "general",
            "output_format": "[[rating]]",
        }
        for name, template in single.items()
    ]
    return {
        "fastchat/llm_judge/data/mt_bench/question.jsonl": questions,
        "fastchat/llm_judge/data/mt_bench/reference_answer/gpt-4.jsonl": references,
        "fastchat/llm_judge/data/judge_prompts.jsonl": prompts,
    }


JUDGED: dict[str, Maker] = {
    "alpaca-eval": _alpaca_eval,
    "arena-hard": _arena_hard,
    "mt-bench": _mt_bench,
}
