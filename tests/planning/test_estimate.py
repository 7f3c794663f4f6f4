"""Sharing, wall-clock, disk and slopes of whole plans, by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.reading import load, overlay
from mnpo.errors import BadInput
from mnpo.planning import job_graph
from mnpo.planning.costs.calibration import Measured
from mnpo.planning.estimate import Forecast, forecast, slope, slopes
from mnpo.planning.plan import Plan

N = 1e9
CHEAP = 0.01  # all text, rows and small files of the tiny configuration stay below this share of its checkpoints


def run(iterations: int = 2) -> dict[str, Any]:
    return {
        "objective": {"name": "inpo", "eta": 0.1, "ratio": 0.5},
        "oracle": "rm",
        "iterations": [{"parts": [t]} for t in range(1, iterations + 1)],
    }


TINY: dict[str, Any] = {
    "name": "tiny",
    "checkpoints": "temporary",
    "prompts": {"source": "file", "path": "p.jsonl", "parts": 3, "part_size": 1000, "heldout": 10},
    "models": {"base": {"path": "base", "parameters": 1}, "rm": {"path": "rm", "parameters": 2}},
    "reference": {"model": "base"},
    "oracles": {"rm": {"kind": "reward-model", "model": "rm"}},
    "sampling": {"responses": 4, "shards": 2, "batch_size": 32, "max_new_tokens": 200},
    "runs": {"a": run()},
    "evaluation": {"oracle": "rm"},
    "resources": {
        "gpus": 8,
        "prompt_tokens": 50,
        "response_tokens": 100,
        "stages": {stage: {"gpus": 1} for stage in ("sample", "score", "logps", "train", "assess")},
    },
}


def tiny(**changes: Any) -> Plan:
    return Plan(Config.model_validate(overlay(TINY, changes)))


def models(base: float) -> dict[str, Any]:
    """Those of TINY with another number of parameters, in billions, of the policy."""
    return {**TINY["models"], "base": {"path": "base", "parameters": base}}


def policies(plan: Plan, names: Iterable[str]) -> Forecast:
    """What it costs to make policies, and nothing else."""
    pieces = job_graph.needed(plan, [plan.files.policy(name) for name in names])
    return Forecast(plan, pieces, Measured())


# ----------------------------------------------------------------------------------------------------------------- time


def test_on_one_core_the_wall_clock_is_the_sum_of_all_jobs(planned: Callable[..., Plan]) -> None:
    f = forecast(planned(resources={"cpus": 1}), known=Measured())
    assert f.wall_clock == pytest.approx(sum(e.work.jobs * e.seconds for e in f.estimates))
    assert f.gpu_hours == 0


def test_with_any_number_of_gpus_it_is_the_longest_chain() -> None:
    f = policies(tiny(resources={"gpus": 1000}), ["a.2"])
    takes = {e.work.name: e.seconds for e in f.estimates}
    # The shards of a part are drawn at once. Scores and pairs of part 2 are the way to its log-probabilities.
    first = ["prompts all parts", "sft sft", "sample sft part1", "score sft part1 rm", "pair sft part1 rm"]
    second = ["train a.1", "sample a.1 part2", "score a.1 part2 rm", "pair a.1 part2 rm"]
    logps = ["logps sft part1 rm chat under sft", "logps a.1 part2 rm chat under a.1"]  # a.1's files are the larger
    assert f.wall_clock == pytest.approx(sum(takes[n] for n in [*first, logps[0], *second, logps[1], "train a.2"]))
    assert f.wall_clock == pytest.approx(f.critical_path)


def test_scores_of_a_shard_do_not_wait_for_other_shards() -> None:
    """One GPU, two shards: a shard is scored as soon as it is drawn when a second GPU is there."""
    f = policies(tiny(resources={"gpus": 2}, sampling={"shards": 3}), ["a.1"])
    drawn = sorted(end for e, _, end in f.slots if e.work.stage == "sample")
    scored = min(start for e, start, _ in f.slots if e.work.stage == "score")
    assert drawn[0] <= scored < drawn[-1]


def test_a_job_that_asks_for_more_than_there_is_is_refused() -> None:
    plan = tiny(resources={"gpus": 4, "stages": {"train": {"gpus": 8}}})
    with pytest.raises(ConfigError, match=r"resources\.gpus: 4, but resources\.stages\.train asks for 8"):
        policies(plan, ["a.1"])


# ----------------------------------------------------------------------------------------------------------------- disk


@pytest.mark.parametrize(("checkpoints", "policies_there"), [("temporary", 2), ("keep", 3)])
def test_peak_disk_by_hand(checkpoints: str, policies_there: int) -> None:
    """Training a.3: a.2 and a.3 are there, and a.1 when it is kept, 4 GB each; two checkpoints of 12 GB; the reference
    is links to the files of its model."""
    plan = tiny(runs={"a": run(3)}, checkpoints=checkpoints)
    f = policies(plan, ["a.3"])
    peak, during = f.peak
    assert peak == pytest.approx(policies_there * 4 * N + 2 * 12 * N, rel=CHEAP)
    assert during == "train a.3"
    assert f.kept_bytes == pytest.approx((1 if checkpoints == "temporary" else 3) * 4 * N, rel=CHEAP)


def test_a_policy_of_two_iterations_is_there_until_the_second_is_trained() -> None:
    """a.1 starts the training of a.2, so it is still there: 2 x 4 GB and the checkpoints."""
    assert policies(tiny(), ["a.2"]).peak[0] == pytest.approx(2 * 4 * N + 24 * N, rel=CHEAP)


# -------------------------------------------------------------------------------------------------------------- sharing


def test_what_two_runs_share_by_hand() -> None:
    """Two equal runs share the reference's samples of part 1, their scores and log-probabilities."""
    f = policies(tiny(runs={"a": run(), "b": run()}), ["a.2", "b.2"])
    hours = {e.work.name: e.gpu_hours for e in f.estimates}
    common = ["sample sft part1", "score sft part1 rm", "logps sft part1 rm chat under sft"]
    assert f.sharing.saved == pytest.approx(sum(hours[name] for name in common))
    assert f.sharing.alone["a"] == pytest.approx(f.sharing.alone["b"])
    assert f.sharing.together == pytest.approx(sum(hours.values()))


def test_one_run_shares_nothing() -> None:
    assert policies(tiny(), ["a.2"]).sharing.saved == pytest.approx(0)


# ---------------------------------------------------------------------------------------------------------------- notes


def test_what_does_not_fit_into_memory_is_said() -> None:
    """6 billion parameters take 96 GB to train, in bfloat16 12 GB to sample."""
    plan = tiny(models=models(6))
    (note,) = policies(plan, ["a.1"]).notes
    assert note.startswith("train of base: 96 GB do not fit into 1 x h100 (80 GB)")
    assert not policies(tiny(models=models(4.9)), ["a.1"]).notes


# -------------------------------------------------------------------------------------------------------------- targets


def test_all_targets_are_planned_when_none_is_named(root: Path) -> None:
    plan = Plan(load(root / "config.yaml"))
    named = job_graph.needed(plan, job_graph.files(plan, plan.config.tables.targets))
    assert forecast(plan, known=Measured()).jobs == sum(w.jobs for w in named)
    assert forecast(plan, ["table4"], Measured()).jobs < forecast(plan, known=Measured()).jobs


def test_an_unknown_target_names_the_nearest(root: Path) -> None:
    with pytest.raises(BadInput, match="unknown target 'tabel2'; did you mean 'table2'"):
        forecast(Plan(load(root / "config.yaml")), ["tabel2"])


# --------------------------------------------------------------------------------------------------------------- slopes


@pytest.fixture(scope="module")
def added(root: Path) -> dict[str, Any]:
    config = load(root / "config.yaml")
    two = config.runs["td-mnpo"]
    one = two.model_copy(update={"objective": two.objective.model_copy(update={"history": 1, "weights": None})})
    iterations = [
        i.model_copy(update={"objective": {k: v for k, v in i.objective.items() if k != "weights"}})
        for i in two.iterations
    ]
    runs = {**config.runs, "td-mnpo": one.model_copy(update={"iterations": iterations})}
    return slopes(config.model_copy(update={"runs": runs}), "td-mnpo", Measured())


def test_one_more_player_costs_its_log_probabilities_and_nothing_else(added: dict[str, Any]) -> None:
    """The second opponent of iteration 2 is the reference, which is scored anyway; that of iteration 3 is td-mnpo.1."""
    player = added["one more player"]
    assert player.jobs == {"logps": 1}
    assert player.tokens == {"logps": 20000 * (190 + 2 * 400)}
    hashing = 4 * 9.24 / 8  # GB of float32, in eight files on eight cores, at 1 GB/s each
    assert player.gpu_hours == pytest.approx((player.seconds["logps"] + 20 + hashing) / 3600)


def test_twice_the_prompts_is_twice_the_tokens_in_the_same_jobs(root: Path, added: dict[str, Any]) -> None:
    prompts = added["twice the prompts"]
    before = forecast(Plan(load(root / "config.yaml")), known=Measured())
    tokens = {stage: sum(e.tokens for e in some) for stage, some in before.stages.items()}
    assert prompts.jobs == {}
    assert {stage: prompts.tokens[stage] for stage in ("sample", "score", "train")} == {
        stage: pytest.approx(tokens[stage]) for stage in ("sample", "score", "train")
    }
    assert set(prompts.tokens) == {"sample", "score", "train", "logps"}


def test_twice_the_responses_are_paid_where_they_are_drawn_and_scored(added: dict[str, Any]) -> None:
    responses = added["twice the responses"]
    assert responses.jobs == {}
    assert set(responses.tokens) == {"sample", "score"}


def test_one_more_run_is_spared_what_comes_with_the_prompts(added: dict[str, Any]) -> None:
    """Iterations 2 and 3 have samples of their own, in 8 shards, scored and paired; iteration 1 is shared but for its
    training. Log-probabilities: of part 2 under sft and .1; of part 3 under sft and .2."""
    assert added["one more run"].jobs == {
        "sample": 16, "score": 16, "pair": 2, "logps": 4, "train": 3, "harness": 1, "answer": 3, "judge": 3,
    }  # fmt: skip


def test_equal_plans_have_no_slope() -> None:
    f = policies(tiny(), ["a.1"])
    assert slope(f, f).jobs == {} and slope(f, f).gpu_hours == 0


def test_a_run_without_history_has_no_further_player(root: Path) -> None:
    with pytest.raises(ConfigError, match="inpo has no history"):
        slopes(load(root / "config.yaml"), "inpo", Measured())
