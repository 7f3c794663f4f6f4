"""The cost model against closed forms worked out by hand for a tiny configuration: a policy of one billion parameters,
a reward model of two, 1,000 prompts of 50 tokens a part, 4 responses of 100 tokens each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.reading import load, overlay
from mnpo.config.sources import Model
from mnpo.planning import job_graph
from mnpo.planning.costs.calibration import Measured, Rate, measured
from mnpo.planning.costs.hardware import DEVICES
from mnpo.planning.costs.passes import Pass, seconds
from mnpo.planning.costs.pieces import Estimate, estimate
from mnpo.planning.costs.quantities import Lengths, parameters
from mnpo.planning.plan import Plan
from mnpo.storage.artifacts import manifest_path

N, R = 1e9, 2e9
H100 = DEVICES["h100"]
RUN = {
    "objective": {"name": "inpo", "eta": 0.1, "ratio": 0.5},
    "oracle": "rm",
    "iterations": [{"parts": [1]}, {"parts": [2]}],
}
TINY: dict[str, Any] = {
    "name": "tiny",
    "prompts": {"source": "file", "path": "p.jsonl", "parts": 2, "part_size": 1000, "heldout": 10},
    "models": {"base": {"path": "base", "parameters": 1}, "rm": {"path": "rm", "parameters": 2}},
    "reference": {"model": "base"},
    "oracles": {"rm": {"kind": "reward-model", "model": "rm"}},
    "sampling": {"responses": 4, "shards": 2, "batch_size": 32, "max_new_tokens": 200},
    "runs": {"a": RUN},
    "evaluation": {"oracle": "rm", "responses": 3},
    "resources": {
        "gpus": 8,
        "prompt_tokens": 50,
        "response_tokens": 100,
        "stages": {stage: {"gpus": 1} for stage in ("sample", "score", "logps", "assess", "answer")}
        | {"train": {"gpus": 4}},
    },
}


def tiny(**changes: Any) -> Plan:
    return Plan(Config.model_validate(overlay(TINY, changes)))


def of(plan: Plan, name: str, known: Measured | None = None) -> Estimate:
    """The estimate of one piece of work."""
    (piece,) = [w for w in job_graph.everything(plan) if w.name == name]
    return estimate(plan, [piece], known)[0]


# --------------------------------------------------------------------------------------------------------- closed forms


def test_the_closed_forms_of_a_pass() -> None:
    # Reading: 2 N T FLOPs at 35% of 989 TFLOP/s. Training: 6 N T at 25%, on four GPUs; 8 N T with two forward passes.
    assert seconds(Pass("read", N, 1e6), H100) == pytest.approx(2e15 / 346.15e12)
    assert seconds(Pass("train", N, 1e6), H100, gpus=4) == pytest.approx(6e15 / (4 * 247.25e12))
    assert seconds(Pass("train", N, 1e6, again=True), H100, gpus=4) == pytest.approx(8e15 / (4 * 247.25e12))
    # Writing: 2 GB of weights a step at 25% of 3.35 TB/s is 418.75 steps/s; half of 32 texts write at each.
    assert seconds(Pass("write", N, 6700, batch=32), H100) == pytest.approx(1.0)
    # 1,024 texts: a step's products take longer than its weights, 2 N 1024 FLOPs at 346.15 TFLOP/s.
    assert seconds(Pass("write", N, 512, batch=1024), H100) == pytest.approx(2e9 * 1024 / 346.15e12)


def test_sampling_reads_each_prompt_once_and_writes_the_responses() -> None:
    e = of(tiny(), "sample a.1 part2")
    assert e.tokens == 1000 * 50 + 1000 * 4 * 100
    reading, writing = 2 * N * 50e3 / 346.15e12, 400e3 / 6700
    assert e.computing == pytest.approx(4 * N / 1e9 + (reading + writing) / 2)  # float32 at 1 GB/s; two shards
    assert e.gpu_hours == pytest.approx(2 * e.seconds / 3600)


def test_scoring_reads_a_prompt_once_and_its_responses_with_the_oracles_model() -> None:
    e = of(tiny(), "score a.1 part2 rm")
    assert e.tokens == 1000 * (50 + 4 * 100)
    assert e.computing == pytest.approx(2 * R / 1e9 + 2 * R * 450e3 / 346.15e12 / 2)


def test_a_likelihood_reads_what_a_reward_model_reads() -> None:
    plan = tiny(oracles={"rm": {"kind": "likelihood", "model": "rm"}})
    assert of(plan, "score a.1 part2 rm").tokens == of(tiny(), "score a.1 part2 rm").tokens > 0


def test_log_probabilities_and_training_encode_a_pairs_prompt_once() -> None:
    plan = tiny(training={"epochs": 3})
    assert of(plan, "logps a.1 part2 rm chat under sft").tokens == 1000 * (50 + 100 + 100)
    e = of(plan, "train a.2")
    assert (e.tokens, e.gpus) == (3 * 250e3, 4)
    assert e.computing == pytest.approx(4 * N / 1e9 + 6 * N * 750e3 / (4 * 247.25e12))
    assert e.gpu_hours == pytest.approx(4 * e.seconds / 3600)
    checkpointed = of(tiny(training={"epochs": 3, "gradient_checkpointing": True}), "train a.2")
    assert checkpointed.computing == pytest.approx(4 * N / 1e9 + 8 * N * 750e3 / (4 * 247.25e12))


def test_what_a_job_takes_beside_its_work() -> None:
    """4 GB of a trained policy are read at 1 GB/s and hashed at 1 GB/s on the one core; what is trained, saved too."""
    sampled, trained = of(tiny(), "sample a.1 part2"), of(tiny(), "train a.2")
    assert (sampled.loading, sampled.fixed) == (4, 4)
    assert of(tiny(), "score a.1 part2 rm").loading == of(tiny(), "score a.1 part2 rm").fixed == 4  # 2 G x 2 bytes
    assert of(tiny(), "logps a.1 part2 rm chat under sft").loading == 2  # the fetched model's files
    assert (trained.loading, trained.fixed) == (4, 4 + 4 + 4)  # hashed, saved, hashed
    assert sampled.seconds == 20 + sampled.fixed + sampled.computing
    assert sampled.overhead_hours == pytest.approx(2 * (20 + 4 + 4) / 3600)
    assert trained.overhead_hours == pytest.approx(4 * (20 + 4 + 12) / 3600)
    assert of(tiny(), "pair a.1 part2 rm").overhead_hours == 0  # no GPU waits

    by_vllm = of(tiny(sampling={"sampler": "vllm"}), "sample a.1 part2")
    assert by_vllm.fixed == 60 + 4
    assert (
        of(tiny(sampling={"sampler": "vllm"}, resources={"stages": {"sample": {"gpus": 0}}}), "sample a.1 part2").fixed
        == 4
    )


def test_a_copy_in_bfloat16_is_saved_once_and_halves_what_its_readers_load() -> None:
    """Of a policy of a billion parameters: 4 GB, and the copy's 2. The reward model's 4 GB are read as ever."""
    half: dict[str, Any] = {part: {"dtype": "bfloat16"} for part in ("sampling", "training", "evaluation")}
    kept: dict[str, Any] = {"training": {"dtype": "bfloat16", "bfloat16_copy": True}}
    readers = ("sample a.1 part2", "logps a.1 part2 rm chat under a.1", "assess a.1")
    for changes, loading in (
        (half, (4, 4, 8)),
        (half | kept, (2, 2, 6)),
        ({"training": {"bfloat16_copy": True}}, (4, 4, 8)),  # nobody reads in bfloat16
    ):
        assert tuple(of(tiny(**changes), name).loading for name in readers) == loading
    plan = tiny(**half | kept)
    assert [of(plan, name).fixed for name in readers] == [2, 2, 6]  # hashed: what is loaded, and nothing else
    first, second = of(plan, "train a.1"), of(plan, "train a.2")
    assert (first.loading, first.fixed) == (2, 2 + 6 + 6)  # of the fetched model; both saved, both hashed
    assert (second.loading, second.fixed) == (4, 6 + 6 + 6)  # it loads float32, and checks all of the policy
    assert first.kept == second.kept == 6 * N

    sft = {"steps": 10, "data": {"file": "d.jsonl"}}
    for copied, loading in (({}, 4), ({"bfloat16_copy": True}, 2)):
        plan = tiny(**half, reference={"model": "base", "sft": sft | copied})
        assert of(plan, "logps a.1 part2 rm chat under sft").loading == loading
        assert of(plan, "sft sft").kept == (4 + 2 * bool(copied)) * N


def test_files_are_hashed_side_by_side_and_each_rank_hashes_its_own() -> None:
    """40 GB are eight files: 40 s on a core, 5 s on eight, no less on 64. A checkpoint comes every ten minutes."""
    large: dict[str, Any] = {"models": TINY["models"] | {"base": {"path": "base", "parameters": 10}}}
    for cpus, hashing in ((1, 40), (8, 5), (64, 5)):
        at = {"resources": {"gpus": 8, "stages": {"sample": {"gpus": 1, "cpus": cpus}}}}
        assert of(tiny(**large, **at), "sample a.1 part2").fixed == pytest.approx(hashing)
    # 6 x 1e9 x 250e3 x epochs / (4 x 247.25e12) seconds: 1.517 an epoch
    for epochs, checkpoints in ((395, 0), (790, 0), (793, 1), (1190, 2)):
        e = of(tiny(training={"epochs": epochs}), "train a.2")
        assert e.fixed == pytest.approx(12 + checkpoints * (12 + 12 / 4))


def test_one_queue_keeps_the_batch_full(root: Path) -> None:
    """vLLM's samples wait in one queue: 85% of the batch is writing, not half of it."""
    half, full = of(tiny(), "sample a.1 part2"), of(tiny(sampling={"sampler": "vllm"}), "sample a.1 part2")
    assert half.computing - full.computing == pytest.approx(400e3 / 13400 * (1 / 0.5 - 1 / 0.85) / 2)


@pytest.mark.parametrize(("form", "pairs"), [("all", 6), ("each", 2)])  # of four responses
def test_several_pairs_of_a_prompt_cost_as_much_each(form: str, pairs: int) -> None:
    one, several = tiny(), tiny(pairing={"form": form})
    for name in ("train a.1", "logps a.1 part2 rm chat under sft"):
        assert of(several, name).tokens == pairs * of(one, name).tokens


def test_held_out_prompts_are_answered_greedily_and_sampled_compared_and_scored() -> None:
    e = of(tiny(), "assess a.1")
    greedy, sampled, for_divergence = 1, 3, 1
    drawn = 3 * 50 + (greedy + sampled + for_divergence) * 100
    assert e.tokens == 10 * (drawn + 2 * 150 + 2 * 50 + (greedy + sampled) * 100)


def test_lengths_are_bounded_by_the_configurations() -> None:
    plan = tiny(text={"max_length": 60, "max_prompt_length": 20}, sampling={"max_new_tokens": 30})
    assert of(plan, "sample a.1 part2").tokens == 1000 * (20 + 4 * 30)
    assert of(plan, "score a.1 part2 rm").tokens == 1000 * (20 + 4 * 40)


def test_oracles_that_are_rules_need_no_model(planned: Callable[..., Plan]) -> None:
    e = of(planned(), "score sft part1 overall")
    assert (e.tokens, e.device, e.gpu_hours) == (0, "cpu", 0)


@pytest.mark.slow  # of importing the library
def test_parameters_of_the_demos_model_are_those_of_the_library(demo: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = load(demo).models["tiny"]
    built = Gemma2ForCausalLM(Gemma2Config(vocab_size=512, **(model.architecture or {})))
    assert parameters(model) == sum(p.numel() for p in built.parameters())


# ---------------------------------------------------------------------------------------------------------------- disk


def test_what_lies_on_disk() -> None:
    plan = tiny()
    assert of(plan, "train a.1").kept == 4 * N  # float32
    assert of(plan, "train a.1").passing == 2 * 12 * N  # weights and two moments, twice while one replaces the other
    assert of(plan, "sample a.1 part2").passing == 0
    assert of(plan, "sample a.1 part2").kept == pytest.approx(4000 * (150 * 4.5 + 100))
    assert of(plan, "logps a.1 part2 rm chat under sft").kept == 1000 * 100


def test_downloads_are_as_large_as_the_configuration_says(root: Path) -> None:
    plan = Plan(load(root / "config.yaml"))
    assert of(plan, "download gemma").kept == 18.5e9
    e = of(plan, "download armorm")
    assert (e.kept, e.device) == (15e9, "cpu")


# --------------------------------------------------------------------------------------------------------------- judges


def judged(root: Path, **judge: Any) -> Plan:
    changes = {"judges": {"j": {"model": "m", "price_input": 2, "price_output": 8, **judge}}}
    return Plan(load(root / "config.yaml", changes | {"evaluation": {"judges": ["j"]}}))


def test_calls_and_price_by_hand(root: Path) -> None:
    plan = judged(root)
    calls = {b: of(plan, f"judge sft {b}.j").calls for b in ("alpaca-eval", "arena-hard", "mt-bench")}
    assert {b: c.count for b, c in calls.items()} == {"alpaca-eval": 805, "arena-hard": 2 * 500, "mt-bench": 160}
    arena = calls["arena-hard"]  # system prompt and template 450, question 120, two answers of 600; a verdict of 700
    assert arena.input_tokens == 1000 * (450 + 120 + 2 * 600)
    assert arena.price == pytest.approx((1000 * 1770 * 2 + 1000 * 700 * 8) / 1e6)
    alpaca = calls["alpaca-eval"]
    assert alpaca.price == pytest.approx(805 * ((300 + 50 + 2 * 450) * 2 + 16 * 8) / 1e6)


def test_evalscopes_protocol_replies_to_every_item_and_asks_a_judge_about_minerva(root: Path) -> None:
    changes = {"judges": {"j": {"model": "m"}}, "resources": {"stages": {"harness": {"gpus": 2}}}}
    evaluation = {"judges": ["j"], "protocol": "evalscope", "benchmarks": ["minerva", "arc", "gsm8k"]}
    plan = Plan(load(root / "config.yaml", changes | {"evaluation": evaluation}))
    e = of(plan, "evalscope sft")  # both sets of ARC: questions of 40 and 900 tokens, replies of 120 and 150
    assert e.tokens == 3548 * (40 + 120) + 1319 * (900 + 150) and (e.device, e.gpus) == ("h100", 2)
    assert of(plan, "answer sft minerva").tokens == 272 * (800 + 350)
    judging = of(plan, "judge sft minerva.j").calls  # a question of 800, reply and reference solution of 350
    assert (judging.count, judging.input_tokens) == (272, 272 * (150 + 800 + 2 * 350))


def test_a_limit_on_verdicts_limits_their_price(root: Path) -> None:
    assert of(judged(root, max_tokens=100), "judge sft arena-hard.j").calls.output_tokens == 1000 * 100


def test_a_policy_behind_an_endpoint_is_called_and_needs_no_gpu_time(root: Path) -> None:
    plan = Plan(load(root / "config.yaml", {"evaluation": {"models": ["gpt-5"]}}))
    e = of(plan, "answer gpt-5 mt-bench")
    assert (e.calls.count, e.tokens) == (160, 0)


LLM = {"kind": "judge", "judge": {"model": "m", "price_input": 2, "price_output": 8, "concurrency": 4}}


def scored_by(**oracle: Any) -> Estimate:
    """What it costs to score the reference's 1,000 x 4 responses to part 1, by one of several kinds of oracles."""
    models = TINY["models"] | {"pm": {"path": "pm", "parameters": 2}}
    oracles = TINY["oracles"] | {"llm": LLM | {"comparisons": 3}, "every-two": LLM, "mine": oracle}
    return of(tiny(oracles=oracles, models=models, runs={"a": RUN | {"oracle": "mine"}}), "score sft part1 mine")


def test_an_oracle_that_asks_a_judge_is_priced_by_its_calls_and_runs_without_a_gpu() -> None:
    """Every two of 4 responses in both orders: 12 calls a prompt, each of 150 tokens around 50 and twice 100, for 150
    tokens; 10 seconds each, four at once, in two jobs."""
    e = scored_by(**LLM)
    assert (e.calls.count, e.calls.input_tokens, e.calls.output_tokens) == (12_000, 12_000 * 400, 12_000 * 150)
    assert e.calls.price == pytest.approx(4.8 * 2 + 1.8 * 8)
    assert (e.gpus, e.device, e.tokens, e.computing) == (0, "cpu", 0, 12_000 * 10 / 4 / 2)
    assert scored_by(**LLM, comparisons=3).calls.count == 6_000
    assert e.kept == 4000 * 100 + 12_000 * 550 * 4.5  # every answer is kept for good


def test_an_ensemble_asks_what_its_members_ask() -> None:
    """One annotator of two has half of the prompts; what two members ask is asked once."""
    half = scored_by(kind="annotator", of=["rm", "every-two"])
    assert (half.calls.count, half.tokens) == (6_000, 500 * (50 + 4 * 100))
    assert half.computing > 6_000 * 10 / 4 / 2
    assert scored_by(kind="majority", of=["llm", "every-two", "rm"]).calls.count == 6_000 + 12_000
    assert scored_by(kind="weighted", weights={"rm": 1.0}).calls.count == 0


def test_a_pair_model_reads_every_two_responses_in_both_orders() -> None:
    assert scored_by(kind="pair-model", model="pm").tokens == 1000 * 12 * (50 + 2 * 100)
    assert scored_by(kind="pair-model", model="pm", comparisons=4).tokens == 1000 * 8 * (50 + 2 * 100)


# ---------------------------------------------------------------------------------------------------------- calibration


def finish(directory: Path, output: str, **facts: Any) -> None:
    """What a finished job leaves: its manifest."""
    path = manifest_path(directory / output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts), encoding="utf-8")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_finished_jobs_replace_the_defaults_by_their_median(here: Path) -> None:
    plan = tiny()
    files = [w.outputs[0] for w in job_graph.everything(plan) if w.stage == "logps"]
    assert len(files) == 3
    for file, took in zip(files, (10.0, 40.0, 25.0), strict=True):
        finish(here, file, tokens=200e3, seconds=took, device="NVIDIA H100 80GB HBM3", parameters=N)
    known = measured(plan, job_graph.everything(plan))
    assert known.rates == {("logps", "h100"): Rate(200e3 * N / 25, 3)}
    assert known.tokens == {"logps": 0.8}  # of 250,000 estimated
    e = of(plan, "logps a.1 part2 rm chat under sft", known)
    assert (e.computing, e.tokens, e.source) == (pytest.approx(25.0), 200e3, "measured (3 jobs)")
    assert of(plan, "sample a.1 part2", known).source == "default"


def test_weights_are_loaded_once_a_job_however_many_tokens_it_reads(here: Path) -> None:
    """A job of 100 s loads for 20: 250,000 tokens take 80 s. Twice the prompts take 20 + 160 s, and no 200."""
    plan, twice = tiny(), tiny(prompts={"part_size": 2000})
    name, file = "logps a.1 part2 rm chat under sft", plan.files.logps("a.1", 2, "rm", "chat", "sft")
    took = {"seconds": 100.0, "loading_seconds": 20.0}
    finish(here, file, tokens=250e3, **took, device="NVIDIA H100", parameters=N)
    known = measured(plan, job_graph.everything(plan))
    assert known.rates == {("logps", "h100"): Rate(250e3 * N / 80, 1)}
    assert known.loading == {("logps", "h100"): 20.0}
    assert of(plan, name, known).computing == pytest.approx(100.0)
    assert of(twice, name, known).computing == pytest.approx(180.0)


def test_what_another_device_measured_changes_nothing(here: Path) -> None:
    plan = tiny()
    name = "logps a.1 part2 rm chat under sft"
    finish(here, plan.files.logps("a.1", 2, "rm", "chat", "sft"), tokens=200e3, seconds=9.0, device="cpu", parameters=N)
    known = measured(plan, job_graph.everything(plan))
    assert list(known.rates) == [("logps", "cpu")]
    e, plain = of(plan, name, known), of(plan, name)
    assert e.source == "default"
    assert (e.start, e.computing) == (plain.start, plain.computing)
    assert e.tokens == 0.8 * plain.tokens  # but lengths are what they are everywhere


def test_a_rate_is_of_one_gpu(here: Path) -> None:
    plan = tiny()
    finish(here, plan.files.training("a.1"), tokens=250e3, seconds=100.0, device="NVIDIA H100", parameters=N)
    known = measured(plan, job_graph.everything(plan))
    assert known.rates["train", "h100"].value == 250e3 * N / 100 / 4
    assert of(plan, "train a.2", known).computing == pytest.approx(100.0)
    assert of(tiny(resources={"stages": {"train": {"gpus": 8}}}), "train a.2", known).computing == pytest.approx(50.0)


def test_without_a_count_of_parameters_the_plans_is_taken(here: Path) -> None:
    plan = tiny()
    finish(here, plan.files.samples("a.1", 2, 0), tokens=200e3, seconds=10.0, device="NVIDIA H100", stage="sample")
    assert measured(plan, job_graph.everything(plan)).rates["sample", "h100"].value == 200e3 * N / 10


def test_the_harness_is_one_job_with_a_manifest_for_each_benchmark(here: Path, root: Path) -> None:
    plan = Plan(load(root / "config.yaml"))
    outputs = [plan.files.evaluation("sft", benchmark) for benchmark in plan.measurements.harness]
    for output in outputs[1:]:
        finish(here, output, tokens=1e6, seconds=50.0, device="NVIDIA H100", parameters=9e9)
    assert not measured(plan, job_graph.everything(plan)).rates  # one benchmark is not done
    finish(here, outputs[0], tokens=1e6, seconds=50.0, device="NVIDIA H100", parameters=9e9)
    known = measured(plan, job_graph.everything(plan))
    assert known.rates == {("harness", "h100"): Rate(pytest.approx(1e6 * 9e9 / 50), 1)}
    assert of(plan, "harness inpo.3", known).tokens == pytest.approx(len(outputs) * 1e6)


def test_jobs_that_count_no_tokens_are_known_by_their_seconds(here: Path) -> None:
    plan = tiny()
    finish(here, plan.files.pairs("a.1", 2, "rm"), seconds=77.0, device="cpu")
    known = measured(plan, job_graph.everything(plan))
    e = of(plan, "pair sft part1 rm", known)
    assert (e.computing, e.source) == (77.0, "measured (1 job)")


def test_texts_are_as_long_as_those_that_were_sampled(here: Path) -> None:
    """Two shards of 500 prompts: 20 and 40 tokens a prompt, 120 and 280 a response; a reward model counts 1.5 times as
    many. Twice the responses are then twice those tokens, and a prompt's stay."""
    plan, twice = tiny(), tiny(sampling={"responses": 8})
    for shard, (asked, written) in enumerate(((20, 120), (40, 280))):
        drawn = {"prompts": 500, "prompt_tokens": 500 * asked, "drawn": 2000, "tokens": 2000 * written}
        finish(here, plan.files.samples("a.1", 2, shard), **drawn, seconds=9.0, device="cpu")
        read = 1.5 * 500 * (asked + 4 * written)
        finish(here, plan.files.scores("a.1", 2, "rm", shard), tokens=read, seconds=9.0, device="cpu")
    known = measured(plan, job_graph.everything(plan))
    assert known.lengths == Lengths(30, 200)
    assert known.tokens == {"sample": 1.0, "score": pytest.approx(1.5)}
    assert of(plan, "sample a.1 part2", known).tokens == 1000 * (30 + 4 * 200)
    assert of(plan, "score a.1 part2 rm", known).tokens == pytest.approx(1.5 * 1000 * (30 + 4 * 200))
    assert of(twice, "score a.1 part2 rm", known).tokens == pytest.approx(1.5 * 1000 * (30 + 8 * 200))
    assert of(twice, "train a.2", known).tokens == 1000 * (30 + 2 * 200)


def test_what_the_sampler_said_is_not_computed() -> None:
    plan = tiny(sampling={"logprobs": True, "reuse_logprobs": True})
    own, reference = "logps a.1 part2 rm chat under a.1", "logps a.1 part2 rm chat under sft"
    assert of(plan, own).tokens == 0 < of(tiny(), own).tokens
    assert of(plan, reference) == of(tiny(), reference)


def test_a_finished_plan_predicts_what_it_measured(here: Path) -> None:
    """Jobs of one true rate, lengths that vary by a third: the sum over each stage is met within 15%."""
    plan = tiny()
    took: dict[str, float] = {}
    for w in job_graph.everything(plan):
        if w.stage in ("sample", "logps", "train"):
            rate = {"sample": 3e12, "logps": 8e13, "train": 2e13}[w.stage]
            for i, file in enumerate(w.outputs[: w.jobs]):
                tokens = 1e5 * (1, 1.3, 0.9)[(i + len(took)) % 3]
                took[f"{w.name} {i}"] = tokens * N / rate
                target = plan.files.training(w.policy or "") if w.stage == "train" else file
                finish(here, target, tokens=tokens, seconds=tokens * N / rate, device="NVIDIA H100", parameters=N)
    pieces = job_graph.everything(plan)
    for stage in ("sample", "logps", "train"):
        predicted = sum(
            e.work.jobs * e.computing for e in estimate(plan, pieces, measured(plan, pieces)) if e.work.stage == stage
        )
        assert predicted == pytest.approx(sum(s for name, s in took.items() if name.startswith(stage)), rel=0.15)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpu: unknown GPU type 'h10'; did you mean 'h100'"):
        of(tiny(resources={"gpu": "h10"}), "train a.1")
    with pytest.raises(ConfigError, match="known: a100-80gb, cpu, h100, h200, l40s"):
        of(tiny(resources={"gpu": "xyz9"}), "train a.1")


def test_a_model_of_unknown_size_and_prompts_of_unknown_number_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="the plan needs its `parameters`"):
        parameters(Model(hub="somebody/something"))
    unknown = {"prompts": {"expected": None}}
    with pytest.raises(ConfigError, match=r"sampling\.prompts_a_job needs prompts\.part_size, or prompts\.expected"):
        load(root / "config.yaml", unknown)
    with pytest.raises(ConfigError, match="part_size, or expected"):
        of(Plan(load(root / "config.yaml", unknown | {"sampling": {"prompts_a_job": 1}})), "train inpo.1")


def test_a_judge_that_decides_on_held_out_prompts_is_asked_twice_a_response(demo: Path) -> None:
    """600 prompts, 4 samples and a greedy response, both orders; nothing for the reference."""
    content = load(demo).model_dump(exclude_none=True)["oracles"]
    llm = {"kind": "judge", "judge": {"model": "m", "price_input": 1, "price_output": 1}}
    changes = {"oracles": {**content, "llm": llm}, "evaluation": {"oracle": "llm", "responses": 4}}
    plan = Plan(load(demo, changes))
    assert of(plan, "assess sft").calls.count == 0
    assert of(plan, "assess inpo.1").calls.count == 600 * 5 * 2
    crowd = {"kind": "majority", "of": ["correctness", "llm"]}
    changes["oracles"]["crowd"] = crowd
    ranked = Plan(load(demo, changes | {"evaluation": {"oracle": "overall", "responses": 4, "majority": "crowd"}}))
    for policy in ("sft", "inpo.1"):  # every two of 4 samples, in both orders; a greedy response has no other
        assert of(ranked, f"assess {policy}").calls.count == 600 * 6 * 2
