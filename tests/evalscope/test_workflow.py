"""`mnpo evaluate` with EvalScope's protocol: each rule in the environment of its family (`make test-evalscope`)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("evalscope") is None, reason="not in this environment; `make test-evalscope` has it"
    ),
]
BENCHMARKS = [
    *("alpaca-eval", "arena-hard", "mt-bench", "ifeval", "gpqa", "mmlu", "arc", "hellaswag", "truthfulqa"),
    *("winogrande", "gsm8k", "minerva", "aime24", "humaneval"),
]
JUDGED = ("alpaca-eval", "arena-hard", "mt-bench", "minerva")
CONFIG = {
    "extends": str(ROOT / "configs/demo.yaml"),
    "evaluation": {
        "protocol": dict.fromkeys((b for b in BENCHMARKS if b not in ("mt-bench", "hellaswag")), "evalscope"),
        "max_length": 512,
        "settings": {b: {"limit": 2, "max_new_tokens": 4} for b in BENCHMARKS},
    },
}
MODEL = """
from pathlib import Path
from mnpo.demo.model import build
architecture = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    intermediate_size=48, query_pre_attn_scalar=16, max_position_embeddings=512, sliding_window=128)
build(Path("mine"), ["What is the answer? The answer is B."] * 9, vocab_size=300, architecture=architecture, seed=0)
"""


def test_all_fourteen_numbers_the_papers_way_but_for_two(tmp_path: Path) -> None:
    """A policy of random weights; MT-Bench, which EvalScope has not, and HellaSwag by their own packages."""
    demo = ROOT / ".venv"
    (tmp_path / "environments").mkdir()
    for family, environment in {"infer": demo, "eval": demo, "evalscope": Path(sys.prefix)}.items():
        (tmp_path / "environments" / family).symlink_to(environment)
    (tmp_path / "few.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    environment = {"MNPO_ENVIRONMENTS": str(tmp_path / "environments"), "PYTHONPATH": str(ROOT)}
    subprocess.run([demo / "bin/python", "-c", MODEL], cwd=tmp_path, check=True, env=os.environ | environment)
    done = subprocess.run(
        [demo / "bin/python", "-m", "mnpo", "evaluate", "--policy", "mine", "--config", "few.yaml", "--", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for benchmark in BENCHMARKS:
        file = tmp_path / f"results/mine/evals/mine/{benchmark}{'.demo' if benchmark in JUDGED else ''}.json"
        summary = json.loads(file.read_text())
        by_evalscope = benchmark not in ("mt-bench", "hellaswag")
        assert ("EvalScope 1.0.2" in summary["protocol"]) == by_evalscope
        assert ("evalscope" in json.loads(Path(f"{file}.manifest.json").read_text())["versions"]) == by_evalscope
        assert 0 < summary["items"] <= 6 and file.with_suffix(".parquet").is_file()
    table = (tmp_path / "results/mine/tables/benchmarks.md").read_text()
    assert table.count("(EvalScope 1.0.2, ") == 12 and "n/a |" not in table
