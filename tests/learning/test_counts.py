"""What makes the stages fast, by counts: tokens through the decoder and the head, passes, loads. Never seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import baseline
from mnpo.config.sampling import Decoding, Sampling
from mnpo.config.text import Text
from mnpo.config.training import Training
from mnpo.learning.batches import shuffled
from mnpo.learning.training import precision
from mnpo.models import checkpoints
from mnpo.models.chat import Chat
from mnpo.samplers import Request
from mnpo.samplers.transformers import draw
from mnpo.stages import logps, sample, train
from mnpo.storage.records import PAIRS, read, rows_of
from tests.helpers.tiny import first_iteration


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """Passes and padded tokens through the decoder; rows of hidden states that a head makes logits of."""
    counts: Counter[str] = Counter()

    def decoder(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        counts.update(passes=1, tokens=ids.numel())

    hooks = [model.get_decoder().register_forward_pre_hook(decoder, with_kwargs=True)]
    hooks.append(
        model.lm_head.register_forward_pre_hook(lambda _, args: counts.update(logits=args[0].shape[:-1].numel()))
    )
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture
def model(sft_policy: Path) -> Any:
    return checkpoints.load_model(sft_policy)


def test_a_prompt_is_read_once_for_its_responses(model: Any) -> None:
    requests = [Request([2, 9, 9, 9, prompt], k) for prompt in (7, 8) for k in range(4)]
    with counted(model) as counts:
        drawn = draw(model, requests, Decoding(temperature=1, max_new_tokens=1), [1], 64, "test")
    assert len(drawn) == 8 and counts == {"passes": 1, "tokens": 2 * 5, "logits": 2}  # of each prompt's last token


def test_longest_prompts_go_first(model: Any) -> None:
    widths: list[int] = []
    model.register_forward_pre_hook(lambda _, a, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True)
    draw(model, [Request([9] * n, 0) for n in (3, 7, 5)], Decoding(temperature=0, max_new_tokens=1), [1], 1, "test")
    assert widths == [7, 5, 3]


def test_training_makes_logits_of_response_tokens_only_and_reads_a_prompt_once(
    model: Any, chain: dict[str, Path], text: Text, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A step of eight pairs: one pass where the plain way makes eight, with the prompt twice in each."""
    training = {"batch_size": 8, "micro_batch_tokens": 10_000}
    settings = train.Settings.model_validate(first_iteration(text, training, seed=0))
    rows = read(PAIRS, chain["pairs"])
    scored = train._log_probabilities(settings, rows, [chain["pairs"]], [chain["logps"]])
    chat = Chat(checkpoints.load_tokenizer(chain["policy"]), text)
    data = train._pairs(settings, settings.opponents, rows, scored, chat, model.device)
    batch = next(shuffled(data.lengths, 8, 0))
    with counted(model) as plain:
        baseline.fit(model, settings.training, data, islice([batch], 1), 1)
    from mnpo.models.logprobs import ResponseLogprobs

    with counted(model) as ours:
        data.losses(ResponseLogprobs(model), batch)
    assert (plain["passes"], ours["passes"]) == (8, 1)
    assert ours["logits"] == sum(len(side[i].response) for side in (data.chosen, data.rejected) for i in batch)
    assert plain["logits"] == plain["tokens"] > 3 * ours["logits"] and ours["tokens"] < 0.75 * plain["tokens"]


def test_a_stage_loads_its_model_once(
    chain: dict[str, Path], text: Text, sampling: Sampling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []
    load: Callable[..., Any] = checkpoints.load_model
    monkeypatch.setattr(checkpoints, "load_model", lambda path, *a, **k: (loaded.append(path), load(path, *a, **k))[1])
    logps.run(logps.Settings(form={}, text=text), chain["policy"], chain["pairs"], tmp_path / "logps")
    asked = sample.Settings(sampling=sampling, text=text, shard=0, seed=5)
    sample.run(asked, chain["policy"], chain["prompts"], tmp_path / "samples")
    assert loaded == [chain["policy"]] * 2


def test_a_pairs_head_sees_its_response_tokens_only(
    chain: dict[str, Path], text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest_of: Callable[..., Any]
) -> None:
    """And the decoder each prompt once, and a response's last token never: it is predicted, not read."""
    rows, project = [], logps_module().project
    monkeypatch.setattr(logps_module(), "project", lambda m, h, *a: (rows.append(len(h)), project(m, h, *a))[1])
    logps.run(logps.Settings(form={}, text=text), chain["policy"], chain["pairs"], tmp_path / "logps")
    chat = Chat(checkpoints.load_tokenizer(chain["policy"]), text)
    pairs = [
        [chat.encode(p["prompt"], p[s]) for s in ("chosen", "rejected")] for p in rows_of(read(PAIRS, chain["pairs"]))
    ]
    assert sum(rows) == sum(len(t.response) for pair in pairs for t in pair)
    facts, needed = manifest_of(tmp_path / "logps"), sum(len(c) + len(r.response) - 2 for c, r in pairs)
    assert facts["tokens"] * (1 - facts["padding_share"]) == pytest.approx(needed, rel=1e-3)


def logps_module() -> Any:
    import mnpo.models.logprobs

    return mnpo.models.logprobs


def test_a_policy_on_disk_is_its_weights_once_and_nothing_of_its_training(chain: dict[str, Path]) -> None:
    """In float32, the tied head not twice; no optimiser, and what a kill would have left is gone."""
    files = [file for file in chain["policy"].rglob("*") if file.is_file()]
    assert not [file for file in files if file.suffix in (".pt", ".bin")]
    weights = sum(file.stat().st_size for file in files if file.suffix == ".safetensors")
    assert weights == pytest.approx(4 * checkpoints.parameters(chain["policy"]), rel=0.1)
    assert checkpoints.parameters(chain["policy"]) == checkpoints.load_model(chain["policy"]).num_parameters()
    assert not list(chain["policy"].parent.glob(".*"))


def test_stages_without_a_model_import_no_torch(chain: dict[str, Path], tmp_path: Path, root: Path) -> None:
    """Prompts, scores by rules, and pairs, each of which is many jobs on a CPU."""
    program = f"""
import sys
from pathlib import Path
from mnpo.stages import pair, prompts, score
few = {{"demonstrations": 14, "part_size": 7, "heldout": 7, "parts": 1}}
prompts.run(prompts.Settings(prompts=few, seed=0), Path("p"))
rule = {{"brevity": {{"kind": "rule", "rule": "brevity"}}}}
score.run(score.Settings(oracle="brevity", oracles=rule), Path({str(chain["samples"])!r}), Path("s.parquet"))
pair.run(pair.Settings(pairing={{}}), [Path({str(chain["samples"])!r})], [Path("s.parquet")], Path("q.parquet"))
print([name for name in ("torch", "transformers", "scipy", "matplotlib", "datasets") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_the_gpus_benchmark_says_so(root: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("make bench-gpu: no CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "rows"),
    [(["gpu", "--toy"], 5), (["stages", "--toy", "--only", "logps"], 1), (["paper"], 7)],
    ids=["gpu", "stages", "paper"],
)
def test_benchmarks_run_at_toy_size(root: Path, command: list[str], rows: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:]], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == rows + 1


@pytest.mark.parametrize("kept", [False, True])
def test_no_copy_of_a_weight_outlives_its_product(kept: bool) -> None:
    """A copy that autocast keeps shows: the weight is gone, products of it are not. torch keeps it by default."""
    layer, ones = torch.nn.Linear(8, 4, bias=False), torch.ones(1, 8)
    ours = precision(Training(dtype="bfloat16"), layer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if kept else ours:
        assert layer(ones).abs().sum() > 0
        layer.weight.data.zero_()
        assert bool(layer(ones).abs().sum() > 0) is kept


@pytest.mark.slow
def test_a_ranks_memory_is_counted_from_tensors_without_content(root: Path) -> None:
    """Beside what passes take, a rank of four has a quarter of weights, gradients and both moments, in float32."""
    start = "import json; from benchmarks.gpu import TOY; from benchmarks.memory import model, peak; "
    end = "print(json.dumps([sum(p.numel() for p in model(TOY).parameters()), peak(TOY, 4, 320, 160, %s)]))"
    runs = [
        subprocess.run([sys.executable, "-c", start + end % way], cwd=root, capture_output=True, text=True)
        for way in ("True", "False")
    ]
    assert all(done.returncode == 0 for done in runs), [done.stderr[-3000:] for done in runs]
    (size, again), (_, kept) = (json.loads(done.stdout) for done in runs)
    share = 4 * size / 4 / 1e9
    by_name = {name.rpartition(".")[2]: value for name, value in again.items()}
    assert by_name["SHARDED_PARAM"] == by_name["SHARDED_GRAD"] == pytest.approx(share, rel=0.01)
    assert by_name["OPT"] == pytest.approx(2 * share, rel=0.01)
    assert sum(value for name, value in by_name.items() if name != "Total") == pytest.approx(by_name["Total"])
    assert 4 * share < again["Total"] < kept["Total"]
