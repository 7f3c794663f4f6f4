"""`mnpo why` against `snakemake -n`: the same decision, the same jobs, and the cause that the edit was.

The run is one that Snakemake believes in: `--touch` records files of no meaning as if its jobs had made them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mnpo.planning import explain
from tests.helpers.checkouts import Checkout

CONFIG = "small.yaml"
SMALL = """\
extends: configs/demo.yaml
name: small
prompts: { parts: 2 }
sampling: { shards: 2, temperature: 0.8 }
training: { learning_rate: 2.0e-4 }
cache: cache
add:
  models: { judge-rm: { hub: lab/judge-rm, revision: %s } }
  oracles:
    learned: { kind: reward-model, model: judge-rm }
    own: { kind: function, file: rewards.py, function: short }
runs:
  dpo: { objective: { name: dpo }, oracle: own, iterations: [{ parts: [1] }] }
  inpo: { objective: { name: inpo, eta: 0.2 }, oracle: learned, iterations: [{ parts: [1] }, { parts: [2] }] }
  td-mnpo:
    objective: { name: td-mnpo, eta: 0.2, history: 2, weights: [3/4, 1/4] }
    oracle: overall
    iterations:
      - parts: [1]
      - parts: [2] # iteration 2
evaluation: { bootstrap: 100 }
tables: { targets: [heldout, figures], win_against: [sft] }
"""
REWARDS = "from words import count\n\n\ndef short(responses):\n    return [-count(r) for r in responses]\n"
WORDS = "def count(text):\n    return len(text.split())\n"
OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"  # revisions
RESULTS = "results/small"
MAIN = f"{RESULTS}/tables/main.csv"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout.of_project(tmp_path_factory.mktemp("finished"), CONFIG)
    (checkout.path / CONFIG).write_text(SMALL % OLD)
    (checkout.path / "rewards.py").write_text(REWARDS)
    (checkout.path / "words.py").write_text(WORDS)
    checkout.believe()
    return checkout


@pytest.fixture
def checkout(finished: Checkout, tmp_path: Path) -> Checkout:
    return finished.copy(tmp_path / "checkout")


def asked(checkout: Checkout, file: str) -> str:
    result = checkout.python("mnpo", "why", file, "--config", CONFIG)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def nothing(checkout: Checkout) -> None:
    pass


def overwrite(checkout: Checkout) -> None:
    (checkout.path / RESULTS / "prompts/heldout.parquet").write_text("other prompts")


def begin_sft(checkout: Checkout) -> None:
    """Leave the mark of a job that was killed after its output appeared."""
    name = urlsafe_b64encode(f"{RESULTS}/policies/sft".encode()).decode()
    (checkout.path / ".snakemake/incomplete" / name).write_text('{"external_jobid": null}')


def remove(file: str) -> Callable[[Checkout], None]:
    return lambda checkout: (checkout.path / RESULTS / file).unlink()


def edit(file: str, old: str, new: str) -> Callable[[Checkout], None]:
    return lambda checkout: checkout.edit(file, old, new)


ETA = edit(CONFIG, "- parts: [2] # iteration 2", "- { parts: [2], objective: { eta: 0.1 } }")
CASES: dict[str, tuple[Callable[[Checkout], None], str, list[str]]] = {
    # the edit, the file asked about, and the causes in words; none: up to date
    "nothing": (nothing, MAIN, []),
    "a comment in the configuration": (edit(CONFIG, "# iteration 2", "# two"), MAIN, []),
    "a comment in a stage's code": (
        edit("mnpo/stages/train.py", "import annotations\n", "import annotations\n\n# hello\n"),
        MAIN,
        [],
    ),
    "a touched input": (lambda c: os.utime(c.path / RESULTS / "prompts/heldout.parquet"), MAIN, []),
    "iteration 2's eta": (ETA, MAIN, ["train td-mnpo.2: objective.eta was 0.2 and is 0.1"]),
    "iteration 2's eta, asked of another run": (ETA, f"{RESULTS}/evals/inpo.2/heldout.json", []),
    "iteration 2's eta, asked of its weights": (
        ETA,
        f"{RESULTS}/policies/td-mnpo.2/model.safetensors",
        ["train td-mnpo.2: objective.eta was 0.2 and is 0.1"],
    ),
    "the weight of an opponent": (
        edit(CONFIG, "weights: [3/4, 1/4]", "weights: [1/2, 1/2]"),
        MAIN,
        [
            'train td-mnpo.2: opponents was [["td-mnpo.1", 0.75], ["sft", 0.25]] '
            'and is [["td-mnpo.1", 0.5], ["sft", 0.5]]'
        ],
    ),
    "the learning rate of all trainings": (
        edit(CONFIG, "learning_rate: 2.0e-4", "learning_rate: 4.0e-4"),
        MAIN,
        # the first iterations are what started it; the second ones changed too, each shown as one of the four
        ["train dpo.1 (and 4 more of train): training.learning_rate was 0.0002 and is 0.0004"],
    ),
    "sampling temperature": (
        edit(CONFIG, "temperature: 0.8", "temperature: 0.9"),
        f"{RESULTS}/pairs/sft/part1/overall.parquet",
        ["sample sft part1 shard 0 (and 1 more of sample): sampling.temperature was 0.8 and is 0.9"],
    ),
    "the resamples of the bootstrap": (
        edit(CONFIG, "bootstrap: 100", "bootstrap: 200"),
        MAIN,
        ["tabulate heldout: bootstrap was 100 and is 200"],
    ),
    "a user's function": (
        edit("rewards.py", "-count(r)", "-2 * count(r)"),
        MAIN,
        ["score sft part1 own shard 0 (and 1 more of score): the code of rewards.py changed"],
    ),
    "what a user's function imports from beside it": (
        edit("words.py", "text.split()", "text"),
        MAIN,
        ["score sft part1 own shard 0 (and 1 more of score): the code of words.py changed"],
    ),
    "a comment in a user's function": (edit("rewards.py", "def short", "# words\ndef short"), MAIN, []),
    "a plot's code": (
        edit("mnpo/stages/plot.py", "capsize=3", "capsize=4"),
        f"{RESULTS}/figures/win_rate.svg",
        ["plot win_rate: the code of plot changed"],
    ),
    "one more run": (
        edit(
            CONFIG,
            "evaluation:",
            "  ipo: { objective: { name: ipo, eta: 0.1 }, oracle: overall, iterations: [{ parts: [1] }] }\nevaluation:",
        ),
        MAIN,
        [f"{RESULTS}/evals/ipo.1/heldout.json, {RESULTS}/evals/ipo.1/heldout.parquet is among its inputs now"],
    ),
    "another command of a rule": (
        edit("workflow/rules/pairs.smk", " --output {output:q}", "  --output {output:q}"),
        f"{RESULTS}/pairs/sft/part1/overall.parquet",
        ["pair sft part1 overall: the command of rule pair changed"],
    ),
    "another content of an input": (
        overwrite,
        f"{RESULTS}/evals/sft/heldout.json",
        [f"assess sft: {RESULTS}/prompts/heldout.parquet has another content"],
    ),
    "an output gone": (remove("tables/main.csv"), MAIN, [f"tabulate heldout: {MAIN} is gone"]),
    "an intermediate output gone": (remove("pairs/sft/part1/overall.parquet"), MAIN, []),
    "a job killed": (
        begin_sft,
        f"{RESULTS}/evals/sft/heldout.json",
        [f"sft: {RESULTS}/policies/sft is incomplete: its job was killed, or is running"],
    ),
}


def test_settings_are_compared_key_by_key() -> None:
    old = {"a": {"b": 1, "c": [1, 2], "gone": 0}, "same": {"x": None}}
    new = {"a": {"b": 2, "c": [2, 1]}, "same": {"x": None}, "code": "000000000001"}
    changed = [(key, None if was is explain._ABSENT else was) for key, was, _ in explain._keys(old, new)]
    assert changed == [("a.b", 1), ("a.c", [1, 2]), ("a.gone", 0), ("code", None)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_it_says_what_snakemake_does_and_why(checkout: Checkout, case: str) -> None:
    change, file, causes = CASES[case]
    change(checkout)
    target = file.removesuffix("/model.safetensors")
    planned = Counter(re.findall(r"^(?:local)?rule (\w+):$", checkout.made("-n", "--rerun-incomplete", target), re.M))
    answer = asked(checkout, file)
    said = {rule: int(n) for rule, n in re.findall(r"(\w+) (\d+)(?=[,)])", answer.rpartition("will run for it:")[2])}
    assert said == planned, answer
    assert bool(planned) == bool(causes)
    for cause in causes:
        assert cause in answer
    assert ("up to date" in answer) == (not causes)


@pytest.mark.slow
def test_a_new_revision_of_a_reward_model_reruns_what_it_scored(checkout: Checkout) -> None:
    checkout.edit(CONFIG, OLD, NEW)
    jobs = Counter(job.partition(" ")[0] for job in checkout.planned())
    # Iteration 1 scores two old shards again; iteration 2 starts from another policy, whose samples are new. The
    # opponent of each is its own last policy, and without a ratio nobody reads the reference.
    assert jobs == {
        "download": 1,
        "sample": 2,
        "score": 4,
        "pair": 2,
        "logps": 2,
        "train": 2,
        "assess": 2,
        "tabulate": 1,
        "plot": 6,
    }
    assert not any("td-mnpo" in job for job in checkout.planned())


@pytest.mark.slow
def test_changed_code_is_named_where_git_knows_the_commit(checkout: Checkout) -> None:
    git = ["git", "-C", str(checkout.path), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "-q"], ["add", "mnpo"], ["commit", "-q", "-m", "before"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    manifest = checkout.path / RESULTS / "figures/win_rate.svg.manifest.json"
    manifest.write_text(json.dumps({"stage": "plot", "git_commit": f"{commit}-dirty"}))
    checkout.edit("mnpo/stages/plot.py", "capsize=3", "capsize=4")
    checkout.edit("mnpo/statistics.py", "import annotations\n", "import annotations\n\n# a comment\n")
    expected = f"the code of plot changed (mnpo/stages/plot.py, since commit {commit[:7]})\n"
    assert expected in asked(checkout, f"{RESULTS}/figures/win_rate.svg")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"),
    {
        "results/small/nothing.csv": "No rule to produce results/small/nothing.csv",
        "figures": "not an output of a rule",
    }.items(),
)
def test_what_no_rule_makes_is_one_message(finished: Checkout, file: str, message: str) -> None:
    result = finished.python("mnpo", "why", file, "--config", CONFIG)
    assert result.returncode == 3
    assert result.stderr.startswith(f"mnpo: {file}: {message}")
    assert "Traceback" not in result.stderr
