"""vLLM itself, on a CPU, against transformers: in an environment of its own (`make test-vllm`)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM is not in this environment; `make test-vllm` has one"
    ),
]

VOCABULARY = 320
LENGTHS = (3, 8, 17, 26, 40, 130, 150, 190)  # some fill a block of the prefix cache, 128 tokens on a CPU
NEW = 64
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # logits far enough apart for an argmax that rounding does not move
    "bos_token_id": 2,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True, scope="module")
def small_cache() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield


def random_model(directory: Path, kind: str) -> Path:
    """A Gemma-2 whose soft-caps and window matter, or a Llama, of random weights; no tokenizer."""
    import torch
    import transformers

    if kind == "gemma2":
        config: Any = transformers.Gemma2Config(
            **COMMON,
            query_pre_attn_scalar=32,
            sliding_window=32,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=20.0,
            dtype="float32",
        )
        model: Any = transformers.Gemma2ForCausalLM
    else:
        config, model = transformers.LlamaConfig(**COMMON, dtype="float32"), transformers.LlamaForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model(config).float().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("gemma2"), "gemma2")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("llama"), "llama")


def random_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, VOCABULARY, LENGTHS[i % len(LENGTHS)]).tolist() for i in range(count)]


def decode(
    policy: Path, requests: Any, stop_ids: tuple[int, ...] = (), window: int = max(LENGTHS) + NEW, **settings: Any
) -> Any:
    from mnpo.config.sampling import Sampling
    from mnpo.samplers.vllm import draw

    asked = {"sampler": "vllm", "temperature": 1.0, "top_p": 0.95, "max_new_tokens": NEW, "batch_size": 16, **settings}
    return draw(policy, requests, Sampling.model_validate(asked), stop_ids, window, "test")


# ------------------------------------------------------------------------------------------------ against transformers


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_greedy_continuations_and_log_probabilities_are_those_of_transformers(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """100 continuations of 64 tokens in float32: against `generate`, and against one forward pass over each whole.

    Every prompt is asked twice, so that the second one comes from the prefix cache where it is long enough.
    """
    import torch

    from mnpo.models.checkpoints import load_model
    from mnpo.samplers import Request
    from mnpo.samplers.mismatch import mismatch

    policy = request.getfixturevalue(kind)
    prompts = [p for p in random_prompts(50) for _ in range(2)]
    requests = [Request(p, 0) for p in prompts]
    responses = decode(policy, requests, temperature=0, logprobs=True, batch_size=50)
    assert all(r.finish == "length" and len(r.tokens) == len(r.logprobs) == NEW for r in responses)
    assert len({tuple(r.tokens) for r in responses}) > 40  # there is something to get wrong

    model = load_model(policy)
    equal, apart = 0, 0.0
    with torch.no_grad():
        for length in LENGTHS:  # without padding, that is
            rows = [i for i, p in enumerate(prompts) if len(p) == length]
            given, drawn = torch.tensor([prompts[i] for i in rows]), torch.tensor([responses[i].tokens for i in rows])
            out = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=NEW)
            equal += int((out[:, length:] == drawn).all(-1).sum())
            logits = model(input_ids=torch.cat([given, drawn], dim=1)).logits[:, length - 1 : -1].double()
            theirs = logits.log_softmax(-1).gather(-1, drawn[..., None])[..., 0]
            apart = max(apart, float((theirs - torch.tensor([responses[i].logprobs for i in rows])).abs().max()))
    print(f"{kind}: {equal}/100 continuations equal, log-probabilities at most {apart:.2g} nats apart")
    assert equal >= 99
    assert apart < 1e-3
    facts = mismatch(policy, requests, responses, warning=1e-3)
    assert facts["responses"] == 50 and facts["tokens"] == 50 * NEW
    assert facts["mean"] <= facts["p99"] <= facts["max"] < 1e-3 and "warning" not in facts


def test_bfloat16_is_a_mismatch_that_is_warned_of(gemma2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mnpo.samplers import Request
    from mnpo.samplers.mismatch import mismatch

    requests = [Request(p, seed) for seed, p in enumerate(random_prompts(20))]
    responses = decode(gemma2, requests, dtype="bfloat16", logprobs=True)
    facts = mismatch(gemma2, requests, responses, warning=1e-3)
    print(facts)
    assert facts["mean"] > 1e-3
    assert f"{facts['mean']:.3g} nats per token from training's, above 0.001" in facts["warning"]
    assert facts["warning"] in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- what seeds promise


@pytest.mark.parametrize("kind", ["gemma2", "llama"])
def test_a_copy_in_bfloat16_draws_what_the_policy_cast_to_it_draws(kind: str, tmp_path: Path) -> None:
    """Tokens and log-probabilities to the last bit. Once the copy is there, the policy's own weights are not read."""
    from mnpo.models.checkpoints import readable, save_copy
    from mnpo.samplers import Request

    policy = random_model(tmp_path / kind, kind)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(random_prompts(8))]
    cast = decode(policy, requests, dtype="bfloat16", logprobs=True)
    save_copy(policy)
    (policy / "manifest.json").write_text("{}")
    (policy / "model.safetensors").unlink()
    assert readable(policy, "bfloat16") == policy / "bfloat16"
    assert decode(policy, requests, dtype="bfloat16", logprobs=True) == cast


def test_the_same_requests_get_the_same_responses_and_seeds_decide_which(llama: Path) -> None:
    """Exactly where nothing changes; but for rounding in other company, which moves no draw here."""
    from mnpo.samplers import Request

    requests = [Request(p, 1000 * i + k) for i, p in enumerate(random_prompts(12)) for k in range(5)]
    responses = decode(llama, requests)
    assert decode(llama, requests) == responses
    assert len({tuple(r.tokens) for r in responses}) > 50
    same = decode(llama, [Request(requests[0].prompt, 7)] * 3)
    assert same[0] == same[1] == same[2]
    shuffled = np.random.default_rng(0).permutation(len(requests))
    others = decode(llama, [requests[i] for i in shuffled], batch_size=4)  # other neighbours
    equal = sum(other == responses[i] for i, other in zip(shuffled, others, strict=True))
    print(f"{equal}/60 responses equal in other company")
    assert equal >= 0.95 * len(requests)


def test_tokens_have_the_frequencies_of_the_exact_distribution(llama: Path) -> None:
    import torch
    from scipy.stats import chisquare

    from mnpo.models.checkpoints import load_model
    from mnpo.samplers import Request

    prompt, draws, temperature, top_p = random_prompts(3)[2], 2000, 1.5, 0.8
    responses = decode(
        llama,
        [Request(prompt, seed) for seed in range(draws)],
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=1,
        batch_size=250,
    )
    seen = Counter(r.tokens[0] for r in responses)
    with torch.no_grad():
        logits = load_model(llama)(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    probabilities = (logits / temperature).softmax(-1).numpy()
    order = np.argsort(-probabilities)
    nucleus = order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1]
    assert set(seen) <= set(nucleus.tolist())
    expected = probabilities[nucleus] / probabilities[nucleus].sum() * draws
    common = expected >= 5
    cells, means = [seen[int(t)] for t in nucleus[common]], expected[common].tolist()
    if not common.all():
        cells, means = [*cells, draws - sum(cells)], [*means, draws - sum(means)]
    assert len(cells) >= 4
    assert chisquare(cells, np.array(means) * draws / np.sum(means)).pvalue > 1e-3


def test_responses_end_with_a_stop_token_or_at_the_limit(llama: Path) -> None:
    from mnpo.samplers import Request

    requests = [Request(p, seed) for seed, p in enumerate(random_prompts(40))]
    free = decode(llama, requests, max_new_tokens=20)
    stops = tuple(t for t, _ in Counter(t for r in free for t in r.tokens).most_common(12))
    stopped = decode(llama, requests, stops, max_new_tokens=20)
    assert {r.finish for r in stopped} == {"stop", "length"}
    for whole, cut in zip(free, stopped, strict=True):  # the same response, up to and with its first stop token
        ends = [i for i, token in enumerate(whole.tokens) if token in stops]
        assert cut.tokens == whole.tokens[: ends[0] + 1 if ends else 20]
        assert cut.finish == ("stop" if ends else "length")


@pytest.mark.parametrize(
    ("read", "tokens", "finish", "problem"),
    [
        ([2, 2, 9], [5], "stop", "vLLM read a prompt of 3 tokens that are not the 2 it was given"),
        ([2, 9], [5], "abort", "ended a response after 1 tokens with 'abort'"),
        ([2, 9], [], "stop", "ended a response after 0 tokens with 'stop'"),
    ],
    ids=["a second BOS", "failed", "empty"],
)
def test_another_prompt_or_no_answer_is_an_error(read: list[int], tokens: list[int], finish: str, problem: str) -> None:
    from vllm import CompletionOutput, RequestOutput

    from mnpo.samplers import Request
    from mnpo.samplers.vllm import _response

    drawn = CompletionOutput(0, "", tokens, None, None, finish_reason=finish)
    output = RequestOutput("0", None, read, None, [drawn], finished=True)
    with pytest.raises(RuntimeError, match=problem):
        _response(Path("policy"), Request([2, 9], 0), output)


def test_a_policy_that_the_engine_cannot_take_is_refused(llama: Path, tmp_path: Path) -> None:
    from mnpo.errors import BadInput
    from mnpo.samplers import Request

    with pytest.raises(BadInput, match=r"vLLM does not start \(.*text.max_prompt_length \+ sampling.max_new_tokens"):
        decode(llama, [Request([2, 3], 0)], window=300)
    with pytest.raises(BadInput, match=f"{tmp_path}: vLLM does not start"):
        decode(tmp_path, [Request([2, 3], 0)])


# ---------------------------------------------------------------------------------------------------- through the stage


@pytest.fixture(scope="session")
def sft_settings(sft_settings: dict[str, Any], architecture: dict[str, Any]) -> dict[str, Any]:
    """Heads of a size that vLLM's attention for CPUs has."""
    model = {"architecture": architecture | {"head_dim": 32, "query_pre_attn_scalar": 32}, "vocab_size": 340}
    return sft_settings | {"model": model}


class Command:
    """`mnpo sample` with sampler vllm, on part1's fourteen prompts; 8 finished responses are kept together."""

    def __init__(self, directory: Path, policy: Path, prompts: Path, text: Any) -> None:
        from mnpo.config.sampling import Sampling
        from mnpo.stages.sample import Settings

        asked = Sampling(sampler="vllm", responses=8, temperature=1.0, max_new_tokens=12, batch_size=1, logprobs=True)
        self.settings = Settings(sampling=asked, text=text, shard=0, seed=5)
        self.directory, self.policy, self.prompts = directory, policy, prompts

    def start(self, output: str) -> subprocess.Popen[str]:
        files = [f"--policy={self.policy}", f"--prompts={self.prompts}", f"--output={self.directory / output}"]
        together = "from mnpo import cli; from mnpo.samplers import vllm; vllm.TOGETHER = 8; cli.main()"
        command = [sys.executable, "-c", together, "sample", "--settings", self.settings.model_dump_json(), *files]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})

    def run(self, output: str) -> str:
        process = self.start(output)
        _, said = process.communicate()
        assert process.returncode == 0, said
        return said


def test_the_stage_samples_with_vllm_and_survives_kills(
    tmp_path: Path,
    sft_policy: Path,
    prompts_directory: Path,
    text: Any,
    manifest_of: Callable[[Path], dict[str, Any]],
) -> None:
    """112 responses, one at a time; killed after two eights, and the file is that of a session that was not."""
    from mnpo.storage.records import SAMPLES, read

    command = Command(tmp_path, sft_policy, prompts_directory / "part1.parquet", text)
    command.run("whole.parquet")
    samples = read(SAMPLES, tmp_path / "whole.parquet")
    assert len(samples) == 112 and samples["response"].nunique() > 20
    assert set(samples["finish"]) <= {"stop", "length"} and samples["tokens"].between(1, 12).all()
    facts = manifest_of(tmp_path / "whole.parquet")
    assert facts["mismatch"]["responses"] == 56  # every second one
    assert 56 <= facts["mismatch"]["tokens"] < samples["tokens"].sum()
    assert facts["mismatch"]["max"] < 1e-3

    journal = tmp_path / ".work-killed.parquet" / "journal.jsonl"
    with command.start("killed.parquet") as process:
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 16):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "killed.parquet").exists()
    kept = journal.read_bytes().count(b"\n")
    assert 16 <= kept < 112
    said = command.run("killed.parquet")
    assert f"journal.jsonl: {kept} responses were finished before, and are not done again" in said
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert manifest_of(tmp_path / "killed.parquet")["resumed"] == 1
    assert not list(tmp_path.glob(".*"))
