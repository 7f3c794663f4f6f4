"""Miniatures have what the published models and data have, but for sizes; the product reads them as those."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.reading import load
from mnpo.config.sources import Prompts
from mnpo.demo import benchmarks, miniatures
from mnpo.errors import BadInput
from mnpo.models.checkpoints import load_model, load_tokenizer, parameters
from mnpo.oracles import Question
from mnpo.oracles.reward_models import reward_model
from mnpo.planning.plan import Plan
from mnpo.stages import miniature, prompts
from mnpo.storage.records import PROMPTS, read, read_rows

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = ROOT / "configs/rehearsal.yaml"
KINDS = ("gemma-2", "armorm", "skywork", "athene")
HEADS = {
    "armorm": {"regression_layer.weight", "reward_transform_matrix", "gating.logit_scale"},
    "skywork": {"score.weight"},
    "athene": {"v_head.weight"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("miniatures")
    for kind in KINDS:
        miniatures.build(directory / kind, kind, seed=42)  # type: ignore[arg-type]
    return directory


def headers(directory: Path) -> dict[str, str]:
    """Weight -> its dtype, by the first bytes of the files: 8 for a length, then JSON."""
    found: dict[str, str] = {}
    for file in directory.glob("*.safetensors"):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        found |= {name: of["dtype"] for name, of in header.items() if name != "__metadata__"}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_lie_in_several_files_under_an_index_as_published(made: Path, kind: str) -> None:
    index = json.loads((made / kind / "model.safetensors.index.json").read_text())
    files = {path.name for path in (made / kind).glob("*.safetensors")}
    assert len(files) > 1 and set(index["weight_map"].values()) == files
    dtypes = headers(made / kind)
    assert set(index["weight_map"]) == set(dtypes)
    in_float32 = {name for name, dtype in dtypes.items() if dtype == "F32"}
    assert set(dtypes.values()) <= {"BF16", "F32"}
    assert all(name.startswith(("gating", "regression", "reward")) for name in in_float32)
    assert HEADS.get(kind, set()) <= set(dtypes) and "lm_head.weight" not in dtypes


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_bytes(made: Path, tmp_path: Path, kind: str) -> None:
    miniatures.build(tmp_path / "again", kind, seed=42)  # type: ignore[arg-type]
    miniatures.build(tmp_path / "other", kind, seed=43)  # type: ignore[arg-type]
    files = sorted(path.name for path in (made / kind).iterdir())
    assert files == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((made / kind / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)
    assert any((made / kind / name).read_bytes() != (tmp_path / "other" / name).read_bytes() for name in files)


def test_gemma_2_is_loaded_as_the_real_one_with_its_caps_and_its_tied_head(made: Path) -> None:
    model: Any = load_model(made / "gemma-2")
    config = model.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping, config.head_dim) == (50.0, 30.0, 256)
    assert (config.sliding_window, config.max_position_embeddings) == (4096, 8192)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert config._attn_implementation == "eager"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    tokenizer = load_tokenizer(made / "gemma-2")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    ids = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id]
    assert ids == [config.pad_token_id, config.eos_token_id, config.bos_token_id] == [0, 1, 2]


@pytest.mark.parametrize("kind", HEADS)
def test_reward_models_are_known_by_their_weights_and_tell_responses_apart(made: Path, kind: str) -> None:
    model = reward_model(str(made / kind), "bfloat16")
    assert type(model).__name__.lower() == {"skywork": "classifier"}.get(kind, kind)
    (scores,) = model.score([Question("Say cat 3 times", "", ["cat cat cat", "dog", "cat"], "p")])
    assert len(set(scores)) == 3


def test_the_rehearsal_states_their_parameters(made: Path) -> None:
    models = load(REHEARSAL).models
    for kind in KINDS:
        for model in models.values():
            if model.miniature == kind:
                assert model.parameters is not None
                assert model.parameters * 1e9 == pytest.approx(parameters(made / kind), abs=1000)


def test_prompts_are_read_with_the_papers_settings(tmp_path: Path) -> None:
    """96 train prompts in three parts, held-out ones of a split of their own, five responses to each."""
    data = tmp_path / "ultrafeedback"
    miniature.run(miniature.Settings(benchmark="ultrafeedback", seed=42), data)
    rows = read_rows(data / "data/train-00000-of-00001.parquet")
    assert set(rows[0]) == {"prompt_id", "prompt", "all_generated_responses", "all_rm_scores", "chosen", "rejected"}
    assert rows[0]["chosen"][0] == {"role": "user", "content": rows[0]["prompt"]}
    best = max(range(5), key=lambda i: rows[0]["all_rm_scores"][i])
    assert rows[0]["chosen"][1]["content"] == rows[0]["all_generated_responses"][best]
    asked: Prompts = load(REHEARSAL).prompts
    prompts.run(prompts.Settings(prompts=asked, seed=42), tmp_path / "prompts", data)
    parts = [read(PROMPTS, tmp_path / f"prompts/part{t}.parquet") for t in (1, 2, 3)]
    heldout = read(PROMPTS, tmp_path / "prompts/heldout.parquet")
    assert [len(part) for part in parts] == [32, 32, 32] and len(heldout) == 16
    assert len({p for rows in (*parts, heldout) for p in rows["prompt_id"]}) == 112


def test_an_unknown_small_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"datasets.piqa: demo: there is a small version of alpaca-eval, .* only"):
        benchmarks.make(tmp_path, "piqa", 0)


def test_a_miniature_is_of_data_or_of_a_model() -> None:
    with pytest.raises(ValueError, match="give exactly one of benchmark, model"):
        miniature.Settings(seed=1)


# ------------------------------------------------------------------------------------------------------- configurations

SIZES = (
    "name",
    "models.",
    "datasets.",
    "judges.gpt-5-mini.",
    "prompts.heldout",
    "prompts.expected",
    "sampling.max_new_tokens",
    "sampling.prompts_a_job",
    "training.batch_size",
    "training.micro_batch_tokens",
    "evaluation.settings.",
    "tables.targets",
    "resources.prompt_tokens",
    "resources.response_tokens",
    "resources.stages.",
)


def leaves(content: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {path: content}
    return {k: v for key, value in content.items() for k, v in leaves(value, f"{path}.{key}" if path else key).items()}


def test_the_rehearsal_replaces_sizes_and_nothing_else() -> None:
    real, small = (leaves(load(file).model_dump(exclude_none=True)) for file in (ROOT / "config.yaml", REHEARSAL))
    changed = {key for key in real.keys() | small.keys() if real.get(key) != small.get(key)}
    assert [key for key in sorted(changed) if not key.startswith(SIZES)] == []
    assert {key for key in changed if key.startswith("resources.stages.")} <= {
        f"resources.stages.{stage}.hours" for stage in load(REHEARSAL).resources.stages
    }
    assert {key for key in changed if key.startswith("judges.")} == {"judges.gpt-5-mini.endpoint"}
    entries = load(REHEARSAL).models.keys() - load(ROOT / "config.yaml").models.keys()
    assert not entries


def test_the_rehearsal_makes_the_papers_policies_on_its_benchmarks_for_its_tables() -> None:
    real, small = (Plan(load(file)) for file in (ROOT / "config.yaml", REHEARSAL))
    assert list(real.policies.fits) == list(small.policies.fits)
    assert real.policies.finals == small.policies.finals
    assert list(real.measurements.measured) == list(small.measurements.measured)
    assert [*real.config.tables.targets, "rehearsal"] == small.config.tables.targets
    assert small.files.shards == 2


def test_the_small_cut_has_every_reward_model_and_both_kinds_of_game() -> None:
    small = load(ROOT / "configs/rehearsal-small.yaml")
    assert {run.oracle for run in small.runs.values()} == {"armorm", "skywork", "athene"}
    assert {run.objective.name for run in small.runs.values()} == {"td-mnpo", "ht-mnpo"}
    assert all(len(run.iterations) == 2 for run in small.runs.values()) and len(small.evaluation.benchmarks) == 5
    assert small.resources.of("train").gpus == 2
    assert set(small.tables.rows["table3"].values()) == {"sft", *small.runs}
