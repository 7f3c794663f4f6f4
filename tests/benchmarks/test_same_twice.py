"""The same replies give the same number in two processes, whose hashes are ordered differently."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mnpo.demo import benchmarks as demo

pytestmark = pytest.mark.slow  # each process imports a harness
ROOT = Path(__file__).parents[2]
ITEMS = 60
AMBIGUOUS = "Der Hund is in the water and de kat. " * 3  # German to langdetect about as often as English

IFEVAL = f"""
from lm_eval.models.huggingface import HFLM
from mnpo.benchmarks import lm_eval
HFLM.generate_until = lambda self, requests, **_: [{AMBIGUOUS!r}] * len(requests)
settings = lm_eval.Settings(policy="x", benchmarks={{"ifeval": {{"max_new_tokens": 8}}}})
summary, rows = lm_eval.evaluate(settings, here / "policy", {{"ifeval": here / "ifeval"}})["ifeval"]
"""
JUDGED = """
import hashlib
from mnpo.benchmarks import {module} as protocol
from mnpo.benchmarks.judged_common import Settings
from mnpo.benchmarks.questions import read_questions
from mnpo.config.oracles import Judge
from mnpo.judging.client import Client
from mnpo.judging.requests import Answer

def reply(request):
    '''A verdict that depends on all that was asked.'''
    chance = hashlib.sha256(repr(request.messages).encode()).digest()[0] / 256
    text = {text}
    return Answer(text, "stop", (("m", -0.1 - chance), ("M", -1.1 + chance)), 1, 1)

Client.verdicts = lambda self, requests, parse, asker: [parse(reply(request)) for request in requests]
asked = read_questions({name!r}, here / {name!r})
answers = [
    dict(item_id=q.item_id, turn=n, category=q.category, prompt=p, response=p[:9 + i], tokens=3, finish="stop")
    for i, q in enumerate(asked)
    for n, p in enumerate(q.turns, 1)
]
judge = Judge(model="j", endpoint="http://127.0.0.1:9/v1")
summary, rows = protocol.evaluate(Settings(policy="x", judge="j"), answers, here / {name!r}, judge, here / "store")
"""
CODES = {
    "ifeval": IFEVAL,
    "alpaca-eval": JUDGED.format(module="alpaca_eval", name="alpaca-eval", text="'m'"),
    "arena-hard": JUDGED.format(
        module="arena_hard", name="arena-hard", text="'[[A>B]]' if chance > 0.4 else '[[B>A]]' if chance > 0.1 else 'x'"
    ),
    "mt-bench": JUDGED.format(module="mt_bench", name="mt-bench", text="f'[[{int(chance * 10)}]]'"),
}


def measured(name: str, here: Path, hash_seed: int) -> Any:
    """Summary and rows, in a process of their own."""
    start = "import json, sys; from pathlib import Path; here = Path(sys.argv[1])\n"
    end = '\nprint("FOUND", json.dumps([{k: v for k, v in summary.items() if k != "tally"}, rows]))'
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(here), "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", start + CODES[name] + end, str(here)]
    ran = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"OPENAI_API_KEY": "x"}, cwd=ROOT, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("FOUND "))[6:])


@pytest.mark.parametrize("name", CODES)
def test_two_processes_agree(name: str, sft_policy: Path, tmp_path: Path) -> None:
    demo.make(tmp_path / name, name, seed=0)
    os.symlink(sft_policy, tmp_path / "policy")
    if name == "ifeval":
        row = {
            "prompt": "Answer in English",
            "instruction_id_list": ["language:response_language"],
            "kwargs": [{"language": "en"}],
        }
        items = (json.dumps({"key": key, **row}) + "\n" for key in range(ITEMS))
        (tmp_path / name / "ifeval_input_data.jsonl").write_text("".join(items), encoding="utf-8")
    first, second = (measured(name, tmp_path, hash_seed) for hash_seed in (1, 2))
    assert first == second
    if name == "ifeval":  # identical replies: all follow, or none does
        assert first[0]["items"] == ITEMS and first[0]["value"] in (0, 100)
        assert "langdetect" in first[0]["protocol"]
