"""Scores: what the oracle says of every response, and of each against the prompt's others."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.demo.judge import serve
from mnpo.demo.world import RULES
from mnpo.errors import BadInput, Interrupted
from mnpo.stages.score import COMPARISONS, Settings, run
from mnpo.storage import user_code
from mnpo.storage.records import SAMPLES, SCORES, read, write
from tests.helpers import warm


def test_scores_are_the_rules_own_and_wins_are_counted_against_the_others(
    chain: dict[str, Path], manifest_of: Callable[[Path], Any]
) -> None:
    samples, scores = read(SAMPLES, chain["samples"]), read(SCORES, chain["scores"])
    assert scores[["prompt_id", "k"]].equals(samples[["prompt_id", "k"]])
    by_prompt: dict[str, list[float]] = {}
    for row, score in zip(samples.to_dict("records"), scores["score"], strict=True):
        c, b, p = (RULES[name](row["truth"], row["response"]) for name in ("correctness", "brevity", "courtesy"))
        assert score == pytest.approx(c + 0.4 * b + 0.2 * p)
        by_prompt.setdefault(row["prompt_id"], []).append(score)
    for row in scores.to_dict("records"):
        all_ = by_prompt[row["prompt_id"]]
        mine = all_[row["k"]]
        others = [*all_[: row["k"]], *all_[row["k"] + 1 :]]
        assert row["win"] == pytest.approx(sum((mine > o) + 0.5 * (mine == o) for o in others) / 3)
    facts = manifest_of(chain["scores"])
    assert facts["rows"] == 56 and facts["prompts"] == 14 and facts["prompts_with_a_cycle"] == 0
    assert facts["mean_score"] == pytest.approx(scores["score"].mean())


def test_a_response_counts_against_itself_where_the_oracle_says_so(
    tmp_path: Path, chain: dict[str, Path], oracle_settings: dict[str, Any]
) -> None:
    """Four responses a prompt: (3 win + 1/2) / 4."""
    own = oracle_settings | {"overall": oracle_settings["overall"] | {"own_response": True}}
    run(Settings(oracle="overall", oracles=own), chain["samples"], tmp_path / "scores.parquet")
    ours, theirs = read(SCORES, chain["scores"]), read(SCORES, tmp_path / "scores.parquet")
    assert theirs["win"].tolist() == pytest.approx([(3 * win + 0.5) / 4 for win in ours["win"]])
    assert theirs["score"].equals(ours["score"])


def test_condorcet_cycles_of_a_majority_are_counted(
    tmp_path: Path, oracle_settings: dict[str, Any], manifest_of: Callable[[Path], Any]
) -> None:
    """Right and wordy, nearly right and curt, wrong and polite: each beats the next by two rules of three."""
    truth = '{"answer": "cat cat cat", "family": "repeat"}'
    circle = ["I think it is cat cat cat. I hope this helps.", "cat cat", "Of course: dog, dog, dog."]
    ranked = ["cat cat cat", "cat cat cat.", "cat dog dog dog"]
    rows = [
        {"prompt_id": prompt, "family": "repeat", "prompt": "Say cat 3 times", "truth": truth}
        | {"k": k, "response": r, "tokens": 5, "finish": "stop", "seed": k}
        for prompt, responses in (("circle", circle), ("ranked", ranked))
        for k, r in enumerate(responses)
    ]
    write(SAMPLES, rows, tmp_path / "samples.parquet")
    run(Settings(oracle="majority", oracles=oracle_settings), tmp_path / "samples.parquet", tmp_path / "scores.parquet")
    assert manifest_of(tmp_path / "scores.parquet")["prompts_with_a_cycle"] == 1
    assert read(SCORES, tmp_path / "scores.parquet")["win"].tolist()[:3] == [0.5, 0.5, 0.5]


def test_against_another_policy_scores_are_win_rates_and_whom_it_meets_decides(
    tmp_path: Path, oracle_settings: dict[str, Any], manifest_of: Callable[[Path], Any]
) -> None:
    """Right and wordy beats nearly right and curt beats wrong and polite beats the first: against either end, the other
    response is the better one. An equal response counts half."""
    truth = '{"answer": "cat cat cat", "family": "repeat"}'
    right, near, polite = "I think it is cat cat cat. I hope this helps.", "cat cat", "Of course: dog, dog, dog."

    def samples(name: str, *responses: str) -> Path:
        row = {"prompt_id": "p", "family": "repeat", "prompt": "Say cat 3 times", "truth": truth, "tokens": 5}
        rows = [row | {"k": k, "response": r, "finish": "stop", "seed": k} for k, r in enumerate(responses)]
        write(SAMPLES, rows, tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    def wins(against: Path) -> list[float]:
        run(Settings(oracle="majority", oracles=oracle_settings), mine, tmp_path / "scores.parquet", against)
        scores = read(SCORES, tmp_path / "scores.parquet")
        assert scores["score"].equals(scores["win"]) and len(manifest_of(tmp_path / "scores.parquet")["inputs"]) == 2
        return scores["score"].tolist()

    mine = samples("mine", right, near, polite)
    assert wins(samples("near", near)) == [1.0, 0.5, 0.0]
    assert wins(samples("polite", polite)) == [0.0, 1.0, 0.5]
    assert wins(samples("both", near, polite)) == [0.5, 0.75, 0.25]
    write(SAMPLES, read(SAMPLES, mine).assign(prompt_id="q"), tmp_path / "other.parquet")
    with pytest.raises(BadInput, match=r"other\.parquet: no response to 1 prompts, such as p, to compare with"):
        wins(tmp_path / "other.parquet")


def test_a_users_function_scores_and_its_code_is_on_record(
    tmp_path: Path, chain: dict[str, Path], manifest_of: Callable[[Path], Any]
) -> None:
    file, output = tmp_path / "rewards.py", tmp_path / "scores.parquet"
    file.write_text(
        "def short(responses, columns):\n    return [-len(r) if c else 0 for r, c in zip(responses, columns)]\n"
    )
    own = {"own": {"kind": "function", "file": str(file), "function": "short"}}
    settings = Settings(oracle="own", oracles=own, functions=user_code.digests(file))
    run(settings, chain["samples"], output)
    responses = read(SAMPLES, chain["samples"])["response"]
    assert read(SCORES, output)["score"].tolist() == [-float(len(r)) for r in responses]
    assert manifest_of(output)["settings"]["functions"] == settings.functions
    assert str(file) in manifest_of(output)["inputs"]
    file.write_text("def short(responses): return [0] * len(responses)\n")
    with pytest.raises(BadInput, match=r"rewards\.py: its code changed after this job was planned"):
        run(settings, chain["samples"], output)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Two prompts, three responses and two; the k of the first are out of order."""
    rows = [
        {"prompt_id": prompt, "family": "", "prompt": f"Say {prompt}", "truth": "", "tokens": 5, "finish": "stop"}
        | {"k": k, "response": response, "seed": k}
        for prompt, responses in (("cat", {2: "cat", 0: "a dog", 1: "cat cat"}), ("dog", {0: "dog", 1: "cow cow"}))
        for k, response in responses.items()
    ]
    write(SAMPLES, rows, tmp_path / "samples.parquet")
    return tmp_path / "samples.parquet"


def test_a_judges_comparisons_are_kept_beside_the_scores_and_its_answers_outlive_a_failure(
    samples: Path, manifest_of: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    scores = samples.with_name("scores.parquet")

    def settings(endpoint: str, **more: Any) -> Settings:
        judge = {"model": "demo", "endpoint": endpoint, "concurrency": 1, "retries": 0, **more}
        return Settings(oracle="llm", oracles={"llm": {"kind": "judge", "judge": judge, "comparisons": 2}})

    with serve() as server:
        with pytest.raises(BadInput, match="max_calls"):
            run(settings(server.url, max_calls=3), samples, scores)
        assert not scores.exists() and server.requests == 3
        run(settings(server.url), samples, scores)
        assert server.requests == 6  # two of three pairs, and one: six games, of which three were there
    rows = read(COMPARISONS, scores.with_suffix(".comparisons.parquet"))
    assert len(rows) == 3 and set(rows["preference"]) <= {0.0, 0.5, 1.0}
    wins: dict[tuple[str, int], list[float]] = {}
    for row in rows.to_dict("records"):
        wins.setdefault((row["prompt_id"], row["k"]), []).append(row["preference"])
        wins.setdefault((row["prompt_id"], row["other"]), []).append(1 - row["preference"])
    table = read(SCORES, scores)
    for row in table.to_dict("records"):
        mine = wins[row["prompt_id"], row["k"]]
        assert row["win"] == row["score"] == pytest.approx(sum(mine) / len(mine))
    facts = manifest_of(scores)
    assert facts["games"] == 6 and facts["tally"]["stored"] == 3 and facts["responses_without_a_comparison"] == 0
    assert facts["prompts_with_a_cycle"] == 0


def stopped(command: list[str], ready: Callable[[], bool], number: int) -> int:
    """The exit code of a command that gets a signal once `ready`."""
    with warm.started(*command) as process:
        while not ready() and process.returncode is None:
            time.sleep(0.002)
        process.signal(number)
        return process.done().returncode


def scoring(settings: Settings, samples: Path, scores: Path) -> list[str]:
    files = [f"--samples={samples}", f"--output={scores}"]
    return ["mnpo", "score", "--settings", settings.model_dump_json(exclude_none=True), *files]


@pytest.mark.slow
def test_a_command_killed_without_a_warning_keeps_the_batches_that_its_models_have_read(
    tmp_path: Path, random_policy: Path, architecture: dict[str, Any], manifest_of: Callable[[Path], Any]
) -> None:
    """Two reward models with the same tokenizer: what one thinks of a batch is not taken for the other's opinion."""
    import torch
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    from mnpo.models.checkpoints import load_tokenizer

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = Gemma2Config(**architecture | {"max_position_embeddings": 2048}, vocab_size=340, num_labels=1)
        Gemma2ForSequenceClassification(config).save_pretrained(tmp_path / name)
        load_tokenizer(random_policy).save_pretrained(tmp_path / name)
    rows = [
        {"prompt_id": f"p{i}", "family": "", "prompt": f"Say {i}", "truth": "", "tokens": 5, "finish": "stop"}
        | {"k": k, "response": f"{k} " + "cat dog " * (150 + k), "seed": k}
        for i in range(12)
        for k in range(4)
    ]
    samples, whole, scores = (tmp_path / f"{name}.parquet" for name in ("samples", "whole", "scores"))
    write(SAMPLES, rows, samples)
    oracles = {name: {"kind": "reward-model", "model": name} for name in ("a", "b")}
    sum_ = {"sum": {"kind": "weighted", "weights": {"a": 1, "b": 2}}}
    models = {name: {"path": str(tmp_path / name)} for name in ("a", "b")}
    settings = Settings(oracle="sum", oracles=oracles | sum_, models=models)
    run(settings, samples, whole)
    journal = tmp_path / ".work-scores.parquet" / "journal.jsonl"

    def finished() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    code = stopped(scoring(settings, samples, scores), lambda: finished() >= 3, signal.SIGKILL)
    assert code == -signal.SIGKILL and not scores.exists() and finished() >= 3
    kept = finished()
    done = warm.run(*scoring(settings, samples, scores))
    assert done.returncode == 0 and f"{kept} batches were finished before, and are not done again" in done.stderr
    assert scores.read_bytes() == whole.read_bytes()
    facts, once = manifest_of(scores), manifest_of(whole)
    assert facts["resumed"] == 1 and facts["tokens"] == once["tokens"] and facts["members"] == once["members"]
    assert not list(tmp_path.glob(".*"))


def test_a_judge_is_left_at_once_and_its_answers_stay(samples: Path) -> None:
    """A signal does not wait for the judge's other answers: each is kept when it arrives."""
    scores = samples.with_name("scores.parquet")
    with serve(faults=["hang@3"]) as server:
        judge = {"model": "demo", "endpoint": server.url, "concurrency": 1}
        settings = Settings(oracle="llm", oracles={"llm": {"kind": "judge", "judge": judge}})
        code = stopped(scoring(settings, samples, scores), lambda: server.requests >= 3, signal.SIGTERM)
        assert code == Interrupted.exit_code and not scores.exists()
        run(settings, samples, scores)
        assert server.requests == 3 + 6  # eight games, of which two were there


def test_a_table_of_an_earlier_run_does_not_stay_beside_other_scores(
    chain: dict[str, Path], tmp_path: Path, oracle_settings: dict[str, Any]
) -> None:
    """Preferences of a softened rule are more than who scores higher; those of the rule are not."""
    scores, beside = tmp_path / "scores.parquet", tmp_path / "scores.comparisons.parquet"
    soft = {"soft": {"kind": "rule", "rule": "brevity", "temperature": 0.5}}
    run(Settings(oracle="soft", oracles=soft), chain["samples"], scores)
    assert len(read(COMPARISONS, beside)) == 14 * 6  # four responses, six pairs
    run(Settings(oracle="brevity", oracles=oracle_settings), chain["samples"], scores)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["scores.parquet", "scores.parquet.manifest.json"]


def test_rules_refuse_prompts_that_are_not_of_their_world(tmp_path: Path, oracle_settings: dict[str, Any]) -> None:
    row = {"prompt_id": "p", "family": "", "prompt": "Who are you?", "truth": ""}
    rows = [row | {"k": k, "response": "me", "tokens": 1, "finish": "stop", "seed": k} for k in range(2)]
    write(SAMPLES, rows, tmp_path / "samples.parquet")
    with pytest.raises(BadInput, match=r"'Who are you\?' has none"):
        run(
            Settings(oracle="overall", oracles=oracle_settings),
            tmp_path / "samples.parquet",
            tmp_path / "scores.parquet",
        )
    assert not (tmp_path / "scores.parquet").exists()


def test_an_oracle_is_shown_no_thinking_unless_a_setting_says_so(
    tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    """The first by its template, the second only where it is said, the third never ends it."""
    texts = [("So 6.</think>\n\ncat", 13), ("<think>So 7.</think>dog", 0), ("So 8.", 5)]
    row = {"prompt_id": "p", "family": "", "prompt": "Say cat", "truth": "", "tokens": 1, "finish": "stop", "seed": 0}
    rows = [row | {"k": k, "response": text, "thinking": n} for k, (text, n) in enumerate(texts)]
    samples, other = tmp_path / "samples.parquet", tmp_path / "others.parquet"
    write(SAMPLES, rows, samples)
    write(SAMPLES, rows[:1], other)
    shown = {
        None: {"cat", texts[1][0], ""},
        "think": {"cat", "dog", ""},
        "none": {text for text, _ in texts},
    }
    for strip, expected in shown.items():
        for against in (None, other):
            with serve() as server:
                judge = {"kind": "judge", "judge": {"model": "demo", "endpoint": server.url}}
                asked = Settings(oracle="llm", oracles={"llm": judge}, strip=strip)  # type: ignore[arg-type]
                output = tmp_path / f"{strip}-{against is None}.parquet"
                run(asked, samples, output, against)
            shown_as = re.compile(r"Start of Assistant [AB]'s Answer\|>\n(.*?)\n<\|The End", re.S)
            assert {text for e in server.exchanges for text in shown_as.findall(e.prompt)} == expected
    facts = manifest_of(tmp_path / "None-True.parquet")
    assert (facts["without_thinking"], facts["empty_without_thinking"]) == (2, 1)
    assert "without_thinking" not in manifest_of(tmp_path / "none-True.parquet")


def test_samples_of_an_earlier_version_have_no_thinking(chain: dict[str, Path], tmp_path: Path) -> None:
    old = tmp_path / "samples.parquet"
    pd.read_parquet(chain["samples"]).drop(columns="thinking").to_parquet(old)
    assert read(SAMPLES, old).equals(read(SAMPLES, chain["samples"])) and not read(SAMPLES, old)["thinking"].any()
