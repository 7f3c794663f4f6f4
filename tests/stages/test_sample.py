"""Samples: K responses a prompt, and the same ones however the prompts are spread over jobs and batches."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mnpo.config.sampling import Sampling
from mnpo.config.text import Text
from mnpo.errors import BadInput, Interrupted
from mnpo.stages.sample import Settings, run
from mnpo.storage.records import PROMPTS, SAMPLES, read, write
from tests.helpers import warm
from tests.helpers.interrupting import Signalled
from tests.helpers.templated import THINKING, saying, thinking_policy

MANIFEST = shutil.ignore_patterns("manifest.json")  # as of a policy that was made elsewhere


@pytest.fixture
def sample(
    tmp_path: Path, sampling: Sampling, text: Text, sft_policy: Path, prompts_directory: Path
) -> Callable[..., pd.DataFrame]:
    """Samples of the tiny policy; settings and inputs can be replaced."""

    def _sample(
        shard: int = 0, seed: int = 5, policy: Path = sft_policy, prompts: Path | None = None, **changes: Any
    ) -> pd.DataFrame:
        limits = changes.pop("text", text)
        asked = Sampling(**sampling.model_dump() | changes)
        output = tmp_path / f"samples-{shard}.parquet"
        run(
            Settings(sampling=asked, text=limits, shard=shard, seed=seed),
            policy,
            prompts or prompts_directory / "part1.parquet",
            output,
        )
        return read(SAMPLES, output)

    return _sample


def test_every_prompt_gets_k_responses_with_their_own_seeds(
    chain: dict[str, Path], manifest_of: Callable[[Path], Any]
) -> None:
    prompts, samples = read(PROMPTS, chain["prompts"]), read(SAMPLES, chain["samples"])
    assert len(samples) == 14 * 4
    assert samples["prompt_id"].tolist() == [p for p in prompts["prompt_id"] for _ in range(4)]
    assert samples["k"].tolist() == [0, 1, 2, 3] * 14
    assert samples["seed"].nunique() == len(samples)
    merged = samples.merge(prompts, on="prompt_id", suffixes=("", "_given"))
    assert all((merged[c] == merged[f"{c}_given"]).all() for c in ("family", "prompt", "truth"))
    facts = manifest_of(chain["samples"])
    assert facts["rows"] == 56
    assert facts["tokens"] == samples["tokens"].sum()
    assert facts["cut_responses"] == (samples["finish"] == "length").sum()
    assert facts["empty_responses"] == (samples["response"].str.strip() == "").sum()
    assert facts["prompts_cut"] == 0
    assert set(samples["finish"]) <= {"stop", "length"} and samples["tokens"].between(1, 12).all()
    assert (samples.loc[samples["finish"] == "length", "tokens"] == 12).all()


def test_the_widest_batch_draws_the_same_and_is_told(
    sample: Callable[..., pd.DataFrame], chain: dict[str, Path], tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    """56 responses of at most 12 tokens to short prompts: all at once, which is rounded up to a power of two."""
    whole = read(SAMPLES, chain["samples"])
    assert sample(batch_size="widest").equals(whole)
    assert manifest_of(tmp_path / "samples-0.parquet")["at_once"] == 64
    assert "at_once" not in manifest_of(chain["samples"])  # whose settings say it


def test_shards_partition_the_prompts_and_agree_with_the_whole_row_for_row(
    sample: Callable[..., pd.DataFrame], chain: dict[str, Path]
) -> None:
    whole = read(SAMPLES, chain["samples"])
    shards = [sample(shard, shards=3, batch_size=5) for shard in range(3)]
    assert [s["prompt_id"].nunique() for s in shards] == [5, 5, 4]
    together = pd.concat(shards).set_index(["prompt_id", "k"]).loc[whole.set_index(["prompt_id", "k"]).index]
    pd.testing.assert_frame_equal(together.reset_index()[list(whole.columns)], whole)


def test_another_seed_draws_other_responses(sample: Callable[..., pd.DataFrame], chain: dict[str, Path]) -> None:
    again, other = sample(seed=5), sample(seed=6)
    pd.testing.assert_frame_equal(again, read(SAMPLES, chain["samples"]))
    assert (again["response"] != other["response"]).mean() > 0.5


def test_the_order_of_the_prompts_does_not_matter(
    sample: Callable[..., pd.DataFrame], chain: dict[str, Path], tmp_path: Path
) -> None:
    prompts = read(PROMPTS, chain["prompts"])
    write(PROMPTS, prompts.iloc[::-1].iloc[3:], tmp_path / "prompts.parquet")
    some = sample(prompts=tmp_path / "prompts.parquet")
    whole = read(SAMPLES, chain["samples"]).set_index(["prompt_id", "k"])
    assert len(some) == 11 * 4
    assert all(whole.loc[(r["prompt_id"], r["k"]), "response"] == r["response"] for r in some.to_dict("records"))


def test_long_prompts_are_cut_and_counted_or_refused(
    sample: Callable[..., pd.DataFrame], tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    rows = [
        {"prompt_id": name, "family": "", "prompt": prompt, "truth": ""}
        for name, prompt in (("long", "cat dog " * 60), ("short", "Say cat"))
    ]
    write(PROMPTS, rows, tmp_path / "prompts.parquet")
    samples = sample(prompts=tmp_path / "prompts.parquet")
    assert samples["prompt"].tolist()[0] == "cat dog " * 60  # the table keeps the prompt as it is
    assert manifest_of(tmp_path / "samples-0.parquet")["prompts_cut"] == 1
    with pytest.raises(BadInput, match="long: a prompt of"):
        sample(prompts=tmp_path / "prompts.parquet", text=Text(max_length=80, max_prompt_length=48, overflow="error"))


def test_responses_cut_at_the_limit_are_kept_or_dropped_and_counted(
    sample: Callable[..., pd.DataFrame], tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    kept = sample(max_new_tokens=4)
    assert manifest_of(tmp_path / "samples-0.parquet")["prompts_left_with_one_response"] == 0
    dropped = sample(max_new_tokens=4, truncated="drop")
    cut = (kept["finish"] == "length").sum()
    assert 0 < cut < len(kept) == 56
    pd.testing.assert_frame_equal(dropped, kept[kept["finish"] == "stop"].reset_index(drop=True))
    facts = manifest_of(tmp_path / "samples-0.parquet")
    assert (facts["rows"], facts["cut_responses"], facts["dropped_responses"]) == (56 - cut, cut, cut)
    left = kept[kept["finish"] == "stop"].groupby("prompt_id").size()
    assert facts["prompts_without_a_response"] == 14 - len(left) > 0
    assert facts["prompts_left_with_one_response"] == (left == 1).sum() > 0
    with pytest.raises(BadInput, match=r"all 56 responses were cut at sampling\.max_new_tokens = 1"):
        sample(max_new_tokens=1, truncated="drop")


def test_the_samplers_log_probabilities_are_compared_with_trainings(
    sample: Callable[..., pd.DataFrame],
    tmp_path: Path,
    manifest_of: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In bfloat16 they are apart, which is in the manifest, with a warning above the threshold that is asked for."""
    samples = sample(logprobs=True, dtype="bfloat16", mismatch_warning=1e-4)
    mismatch = manifest_of(tmp_path / "samples-0.parquet")["mismatch"]
    assert mismatch["responses"] == 56 and mismatch["tokens"] == samples["tokens"].sum()
    assert 1e-4 < mismatch["mean"] < mismatch["p99"] <= mismatch["max"]
    assert "above 0.0001 (sampling.mismatch_warning)" in mismatch["warning"]
    assert mismatch["warning"] in capsys.readouterr().err


def test_the_first_shard_stands_for_the_others(
    sample: Callable[..., pd.DataFrame], tmp_path: Path, manifest_of: Callable[[Path], Any]
) -> None:
    """Responses are those of shards that are all compared; the manifest says where it was done."""
    each = [sample(shard, shards=2, logprobs=True) for shard in (0, 1)]
    first = [sample(shard, shards=2, logprobs="first") for shard in (0, 1)]
    assert all(one.equals(other) for one, other in zip(each, first, strict=True))
    facts = [manifest_of(tmp_path / f"samples-{shard}.parquet")["mismatch"] for shard in (0, 1)]
    assert facts[0]["responses"] == 28 and facts[0]["mean"] < 1e-5
    assert facts[1] == {"compared_in": "shard 0"}
    with pytest.raises(ValueError, match="reuse_logprobs needs logprobs: true"):
        Sampling(logprobs="first", reuse_logprobs=True)


def test_a_shard_without_prompts_is_refused(sample: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(BadInput, match="no prompts for shard 14 of 15; use fewer shards"):
        sample(14, shards=15)


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        ("model.safetensors", "a checkpoint without weights"),
        ("config.json", "no model here"),
        ("tokenizer_config.json", "no tokenizer_config.json"),
    ],
)
def test_an_incomplete_checkpoint_is_refused_and_nothing_is_written(
    sample: Callable[..., pd.DataFrame], sft_policy: Path, tmp_path: Path, removed: str, problem: str
) -> None:
    policy = shutil.copytree(sft_policy, tmp_path / "policy", ignore=MANIFEST)
    (policy / removed).unlink()
    with pytest.raises(BadInput, match=f"{policy}: .*{problem}"):
        sample(policy=policy)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


def test_weights_of_another_architecture_are_refused(
    sample: Callable[..., pd.DataFrame], sft_policy: Path, tmp_path: Path
) -> None:
    import json

    policy = shutil.copytree(sft_policy, tmp_path / "policy", ignore=MANIFEST)
    config = json.loads((policy / "config.json").read_text())
    layers = {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3}
    (policy / "config.json").write_text(json.dumps(config | layers))
    with pytest.raises(BadInput, match=r"weights are missing or have the wrong shape, such as model\.layers\.2\."):
        sample(policy=policy)


# ------------------------------------------------------------------------------------------------------- interruptions


def test_stopped_after_a_wave_and_continued_the_file_is_the_same_byte_for_byte(
    sample: Callable[..., pd.DataFrame],
    chain: dict[str, Path],
    tmp_path: Path,
    manifest_of: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Waves of 20 of 56 responses, five at once: none is drawn in other company than before."""
    from mnpo.samplers import transformers

    draw = Signalled(monkeypatch, transformers, "_draw_wave")
    output = tmp_path / "samples-0.parquet"
    sample(batch_size=5)
    whole, once = output.read_bytes(), manifest_of(output)
    assert draw.calls == 3
    for point in (0, 1, 2):
        draw.again(point)
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM after {point + 1} waves; to be continued"):
            output.unlink()
            sample(batch_size=5)
        assert not output.exists()
        draw.again()
        sample(batch_size=5)
        assert output.read_bytes() == whole
        facts = manifest_of(output)
        assert facts["resumed"] == 1 and facts["digest"] == once["digest"] and facts["tokens"] == once["tokens"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("now", "drawn_again"), [(8, 0), (5, 0), (4, 1)], ids=["more", "as before", "less"])
def test_a_wide_batch_is_as_wide_after_an_interruption_as_before_where_memory_allows(
    now: int,
    drawn_again: int,
    sample: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifest_of: Callable[..., Any],
) -> None:
    """Waves of 20 of 56 responses, and the first was kept; with room for four, waves have 16."""
    from mnpo.samplers import transformers

    whole, memory = sample(batch_size=5), [5]
    monkeypatch.setattr(transformers, "widest", lambda *_: memory[0])
    draw = Signalled(monkeypatch, transformers, "_draw_wave")
    draw.again(0)
    with pytest.raises(Interrupted):
        (tmp_path / "samples-0.parquet").unlink()
        sample(batch_size="widest")
    memory[0] = now
    draw.again()
    assert sample(batch_size="widest").equals(whole)
    assert draw.calls == (4 if drawn_again else 2)
    assert manifest_of(tmp_path / "samples-0.parquet")["at_once"] == min(now, 5)


def test_work_on_another_shard_or_with_other_settings_is_not_taken_up(
    sample: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manifest_of: Callable[..., Any],
) -> None:
    from mnpo.samplers import transformers

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        Signalled(patch, transformers, "_draw_wave").again(0)
        sample(batch_size=5)
    hotter = sample(batch_size=5, temperature=1.5)
    assert "resumed" not in manifest_of(tmp_path / "samples-0.parquet")
    pd.testing.assert_frame_equal(hotter, sample(batch_size=5, temperature=1.5))


@pytest.mark.slow
def test_a_command_killed_without_a_warning_keeps_its_finished_waves(
    tmp_path: Path, sampling: Sampling, text: Text, chain: dict[str, Path], sft_policy: Path
) -> None:
    asked = Settings(sampling=Sampling(**sampling.model_dump() | {"batch_size": 1}), text=text, shard=0, seed=5)
    run(asked, sft_policy, chain["prompts"], tmp_path / "whole.parquet")
    out, journal = tmp_path / "out.parquet", tmp_path / ".work-out.parquet" / "journal.jsonl"
    files = [f"--policy={sft_policy}", f"--prompts={chain['prompts']}", f"--output={out}"]
    command = ["mnpo", "sample", "--settings", asked.model_dump_json(), *files]

    def finished() -> int:
        return journal.read_bytes().count(b"\n") if journal.exists() else 0

    for after in (1, 8):
        with warm.started(*command) as process:
            while finished() < after and process.returncode is None:
                time.sleep(0.002)
            process.signal(signal.SIGKILL)
            assert process.done().returncode == -signal.SIGKILL
        assert not out.exists() and finished() >= after
    kept = finished()
    done = warm.run(*command)
    assert done.returncode == 0, done.stderr
    assert f"journal.jsonl: {kept} waves were finished before, and are not done again" in done.stderr
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_samples_are_whole_and_say_how_much_of_them_is_thinking(
    sample: Callable[..., pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = thinking_policy(tmp_path / "policy", THINKING["opened"], special=True)
    saying(monkeypatch, policy, lambda prompt: ("So 6.</think>cat", "stop"))
    found = sample(policy=policy, text=Text(max_length=400, max_prompt_length=300))
    assert set(found["response"]) == {"So 6.</think>cat"} and set(found["thinking"]) == {len("So 6.</think>")}
