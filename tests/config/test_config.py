"""The configuration: what is accepted, what `extends` means, and that every mistake is one clear message."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.blocks import ConfigError
from mnpo.config.configuration import Config
from mnpo.config.reading import load, overlay, read_yaml, schema
from mnpo.errors import BadInput
from mnpo.planning import preflight
from mnpo.planning.plan import Plan

MINIMAL = """\
name: small
prompts: {part_size: 2, heldout: 1, parts: 2}
models: {tiny: {path: somewhere}}
reference: {model: tiny}
oracles: {short: {kind: rule, rule: brevity}}
runs: {one: {objective: {name: dpo, beta: 0.1}, oracle: short, iterations: [{parts: [1]}]}}
evaluation: {oracle: short}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def message(call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    return str(caught.value)


# ----------------------------------------------------------------------------------------------------------- it is read


def test_every_kind_of_oracle_may_decide_on_held_out_prompts(planned: Callable[..., Plan]) -> None:
    own = planned().config.model_dump(exclude_none=True)["oracles"]
    further = {
        "llm": {"kind": "judge", "judge": {"model": "gpt"}},
        "crowd": {"kind": "majority", "of": ["correctness", "llm"]},
        "one": {"kind": "annotator", "of": ["brevity", "crowd"]},
    }
    for name in further:
        plan = planned(
            oracles={**own, **further}, evaluation={"oracle": name, "scores": ["brevity", "llm"], "majority": "crowd"}
        )
        assert plan.oracles.over_reference == list(dict.fromkeys([name, "llm"]))


def test_right_answers_are_not_counted_by_one_who_compares(planned: Callable[..., Plan]) -> None:
    expected = "evaluation.accuracy: majority rests on majority, which compares responses and calls none right"
    assert expected in message(planned, evaluation={"accuracy": "majority"})


def test_held_out_prompts_need_an_oracle_only_where_something_is_made_of_them(planned: Callable[..., Plan]) -> None:
    expected = "evaluation.oracle: required by tables.targets (heldout, figures); name who decides wins"
    assert expected in message(
        planned, evaluation={"oracle": None}, tables={"targets": ["heldout", "figures", "costs"]}
    )
    plan = planned(
        evaluation={"oracle": None, "scores": [], "accuracy": None, "majority": None},
        tables={"targets": ["benchmarks"]},
    )
    assert plan.oracles.of_evaluation == []
    assert "evaluation.oracle: name who decides" in message(plan.settings, "assess", policy="sft")


def test_the_demo_loads(demo: Path) -> None:
    config = load(demo)
    assert config.name == "demo"
    assert list(config.runs) == ["dpo", "inpo", "td-mnpo", "ht-correctness", "ht-brevity", "ht-courtesy"]
    assert [run.iterations[-1].parts for run in config.runs.values()] == [[1, 2, 3], [3], [3], [2], [2], [2]]
    assert config.oracles["overall"].members() == ["correctness", "brevity", "courtesy"]


def test_fractions_and_bare_exponents_are_numbers(write: Callable[..., Path]) -> None:
    config = load(write(MINIMAL + "training: {learning_rate: 5e-7, warmup: 1/10, clip: 1.5E+1}\n"))
    assert config.training.learning_rate == 5e-7
    assert config.training.warmup == 0.1
    assert config.training.clip == 15.0


def test_a_fraction_in_an_objective_is_its_value(configured: Callable[..., Config]) -> None:
    config = configured()
    assert config.runs["inpo"].objective.ratio == pytest.approx(1 / 3, abs=1e-15)
    assert config.runs["td-mnpo"].objective.weights == pytest.approx([2 / 3, 1 / 3], abs=1e-15)


def test_a_fraction_over_zero_is_refused_as_no_number(write: Callable[..., Path]) -> None:
    text = message(load, write(MINIMAL + "training: {warmup: 1/0}\n"))
    assert "training.warmup: " in text and "valid number" in text and '(got "1/0")' in text


def test_yaml_anchors_and_merges_are_understood(write: Callable[..., Path]) -> None:
    path = write("base: &b {a: 1, c: 2}\nother:\n  <<: *b\n  c: 3\n")
    assert read_yaml(path)["other"] == {"a": 1, "c": 3}


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"sampling": {"temprature": 1}}, "sampling.temprature", "'temperature'"),
        ({"trainign": {}}, "trainign", "'training'"),
        ({"reference": {"sft": {"stepz": 3}}}, "reference.sft.stepz", "'steps'"),
        ({"text": {"max_prompt_lenght": 3}}, "text.max_prompt_lenght", "'max_prompt_length'"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(
    configured: Callable[..., Config], demo: Path, changes: dict[str, Any], key: str, hint: str
) -> None:
    assert message(configured, **changes) == f"{demo}: {key}: unknown key; did you mean {hint}?"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("beta: 0.1}", "beta: 0.1, objectiv: 1}", "runs.one.objective.objectiv: unknown key; "),
        ("objective: {name", "objectiv: {name", "runs.one.objectiv: unknown key; did you mean 'objective'?"),
        ("[{parts: [1]}]", "[{part: [1]}]", "runs.one.iterations.0.part: unknown key; did you mean 'parts'?"),
        ("rule: brevity}", "rule: brevity, wieghts: 1}", "oracles.short.wieghts: unknown key; did you mean 'weights'?"),
        ("{path: somewhere}", "{paht: somewhere}", "models.tiny.paht: unknown key; did you mean 'path'?"),
    ],
)
def test_an_unknown_key_inside_mappings_and_lists_is_found(
    write: Callable[..., Path], old: str, new: str, expected: str
) -> None:
    assert old in MINIMAL
    assert expected in message(load, write(MINIMAL.replace(old, new)))


def test_every_mistake_is_reported_on_its_own_line(write: Callable[..., Path]) -> None:
    path = write(MINIMAL + "sampling: {temprature: 1, responses: many}\n")
    lines = message(load, path).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == ["sampling.responses", "sampling.temprature"]
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            "sampling: {responses: many}",
            "sampling.responses: Input should be a valid integer, unable to parse string as an",
        ),
        ("sampling: {responses: 1}", "sampling.responses: Input should be greater than or equal to 2 (got 1)"),
        (
            "sampling: {batch_size: 0}",
            "sampling.batch_size: expected how many responses are drawn at once, 1 or more, or widest; it is 0",
        ),
        ("sampling: {batch_size: wide}", "1 or more, or widest; it is 'wide'"),
        ("sampling: {top_p: 0}", "sampling.top_p: Input should be greater than 0 (got 0)"),
        ("sampling: {reuse_logprobs: true}", "sampling: reuse_logprobs needs logprobs: true"),
        ("training: {learning_rate: .nan}", "training.learning_rate: "),
        ("training: {learning_rate: -1e-3}", "training.learning_rate: Input should be greater than 0 (got -0.001)"),
        (
            "training: {schedule: square}",
            "training.schedule: Input should be 'cosine', 'linear' or 'constant' (got \"square\")",
        ),
        ("training: {clip: -1}", "training.clip: Input should be greater than or equal to 0 (got -1)"),
        ("training: {betas: [0.9, 1.0]}", "training.betas.1: Input should be less than 1"),
        ("text: {max_length: 100, max_prompt_length: 100}", "text: max_prompt_length 100 leaves no room in 100"),
        ("training: [1]", "training: Input should be"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(write: Callable[..., Path], extra: str, expected: str) -> None:
    assert expected in message(load, write(MINIMAL + extra + "\n"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("oracle: short, iter", "oracle: shrt, iter", "runs.one.oracle: unknown oracle 'shrt'; did you mean 'short'?"),
        ("evaluation: {oracle: short}", "evaluation: {oracle: qqq}", "evaluation: unknown oracle 'qqq'; known: short"),
        (
            "reference: {model: tiny}",
            "reference: {model: tony}",
            "reference.model: unknown model 'tony'; did you mean 'tiny'?",
        ),
        ("parts: [1]", "parts: [3]", "runs.one.iterations[1].parts: no part 3; prompts.parts is 2"),
        ("parts: [1]", "parts: []", "runs.one.iterations.0.parts: "),
        ("name: dpo", "name: dop", "runs.one.objective.name: "),
        (
            "{path: somewhere}",
            "{}",
            "models.tiny: give exactly one of hub, github, path, architecture, miniature, api (got none)",
        ),
        (
            "{path: somewhere}",
            "{path: a, hub: b}",
            "models.tiny: give exactly one of hub, github, path, architecture, miniature, api (got hub, path)",
        ),
        ("kind: rule, rule: brevity", "kind: rule", "oracles.short: kind rule needs rule"),
        (
            "kind: rule, rule: brevity",
            "kind: weighted, weights: {a: 1}, of: [b]",
            "oracles.short: kind weighted does not read of",
        ),
        ("kind: rule, rule: brevity", "kind: function, function: f", "oracles.short: kind function needs file"),
        ("kind: rule, rule: brevity", "kind: function, file: f.py", "oracles.short: kind function needs function"),
        (
            "kind: rule, rule: brevity",
            "kind: function, file: f.py, function: f, comparisons: 2",
            "oracles.short: kind function does not read comparisons",
        ),
        (
            "kind: rule, rule: brevity",
            "kind: function, file: f.py, function: f, compare: true, temperature: 2",
            "oracles.short: kind function that compares does not read temperature",
        ),
        ("runs: {one", "runs: {sft", "runs: nothing here can be called sft: that is the name of a policy"),
        ("runs: {one", "runs: {One run", "runs."),
        ("part_size: 2, ", "", "prompts: source demo needs part_size"),
        ("part_size: 2, ", "source: file, ", "prompts: source file needs path"),
        ("evaluation: {oracle: short}", "", "evaluation.oracle: required by tables.targets (heldout, figures)"),
        ("prompts: {part_size: 2, heldout: 1, parts: 2}", "", "prompts: required, and missing; runs.one needs them"),
        ("heldout: 1, ", "", "prompts: heldout: how many prompts are kept for evaluation? At least 1"),
        ("reference: {model: tiny}", "", "reference: required, and missing"),
        (
            "evaluation: {oracle: short}",
            "evaluation: {oracle: short, majority: short}",
            "short is not an oracle of kind majority",
        ),
    ],
)
def test_names_that_do_not_exist_and_blocks_that_contradict_are_refused(
    write: Callable[..., Path], old: str, new: str, expected: str
) -> None:
    assert old in MINIMAL
    assert expected in message(load, write(MINIMAL.replace(old, new)))


def test_oracles_made_of_each_other_are_refused_with_the_cycle(write: Callable[..., Path]) -> None:
    oracles = (
        "oracles: {short: {kind: rule, rule: brevity}, a: {kind: weighted, weights: {short: 1, b: 1}},"
        " b: {kind: majority, of: [c]}, c: {kind: majority, of: [a, short]}}"
    )
    path = write(MINIMAL.replace("oracles: {short: {kind: rule, rule: brevity}}", oracles))
    assert "oracles: a cycle, a -> b -> c -> a" in message(load, path)


def test_an_oracle_made_of_an_unknown_one_is_refused(write: Callable[..., Path]) -> None:
    path = write(MINIMAL.replace("oracles: {", "oracles: {sum: {kind: weighted, weights: {shott: 1}}, "))
    assert "oracles.sum: unknown oracle 'shott'; did you mean 'short'?" in message(load, path)


def test_a_key_given_twice_is_refused_with_its_line(write: Callable[..., Path]) -> None:
    path = write(MINIMAL + "training:\n  epochs: 2\n  clip: 1\n  epochs: 3\n")
    line = len(MINIMAL.splitlines()) + 4
    assert message(load, path) == f"{path}, line {line}: key 'epochs' given twice"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("name: [unclosed", ": not YAML: "),
        ("- a\n- b\n", ": expected a mapping of blocks, found list"),
        ("", ": expected a mapping of blocks, found NoneType"),
        ("name: {{ template }}\n", ": not YAML: "),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused(write: Callable[..., Path], content: str, expected: str) -> None:
    path = write(content)
    text = message(load, path)
    assert text.startswith(f"{path}{expected}")
    assert "\n" not in text


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: café\n".encode("latin-1"))
    assert message(load, path).startswith(f"{path}: not ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert (
        message(load, path) == f"{path}: cannot be read (No such file or directory); name a configuration that exists"
    )


# -------------------------------------------------------------------------------------------------------------- extends


def test_blocks_merge_key_by_key_and_runs_are_replaced_whole(write: Callable[..., Path]) -> None:
    write(MINIMAL + "training: {epochs: 4, clip: 2.0}\n", "base.yaml")
    path = write(
        "extends: base.yaml\nname: other\ntraining: {epochs: 9}\n"
        "runs: {two: {objective: {name: inpo, eta: 1, ratio: 0.5}, oracle: short, iterations: [{parts: [2]}]}}\n"
    )
    config = load(path)
    assert config.name == "other"
    assert (config.training.epochs, config.training.clip) == (9, 2.0)
    assert list(config.runs) == ["two"]
    assert config.prompts.heldout == 1


@pytest.mark.parametrize("block", ["runs", "oracles", "models"])
def test_mappings_of_names_are_replaced_whole(block: str) -> None:
    assert overlay({block: {"a": {"x": 1}}}, {block: {"b": {"y": 2}}}) == {block: {"b": {"y": 2}}}


def test_overlay_merges_nested_blocks_replaces_lists_and_leaves_its_arguments_alone() -> None:
    base = {"reference": {"sft": {"steps": 1, "betas": [1, 2]}, "model": "m"}, "seed": 1}
    assert overlay(base, {"reference": {"sft": {"betas": [3]}}}) == {
        "reference": {"sft": {"steps": 1, "betas": [3]}, "model": "m"},
        "seed": 1,
    }
    assert base["reference"] == {"sft": {"steps": 1, "betas": [1, 2]}, "model": "m"}


def test_an_overlay_removes_a_block_by_null(configured: Callable[..., Config]) -> None:
    assert configured(reference={"sft": None}).reference.sft is None


def test_a_chain_of_files_applies_the_nearest_last_and_paths_are_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "base.yaml").write_text(MINIMAL + "training: {epochs: 1, clip: 1.0, batch_size: 1}\n")
    (tmp_path / "deep" / "middle.yaml").write_text("extends: ../base.yaml\ntraining: {clip: 2.0, batch_size: 2}\n")
    (tmp_path / "deep" / "top.yaml").write_text("extends: middle.yaml\ntraining: {batch_size: 3}\n")
    training = load(tmp_path / "deep" / "top.yaml").training
    assert (training.epochs, training.clip, training.batch_size) == (1, 2.0, 3)


def test_a_file_that_extends_itself_through_others_is_refused(write: Callable[..., Path]) -> None:
    write("extends: b.yaml\n", "a.yaml")
    path = write("extends: a.yaml\n", "b.yaml")
    assert "extends itself" in message(load, path)


def test_what_is_extended_must_exist_and_be_a_file_name(write: Callable[..., Path], tmp_path: Path) -> None:
    assert message(load, write("extends: nowhere.yaml\n")).startswith(f"{tmp_path / 'nowhere.yaml'}: cannot be read")
    assert "extends" in message(load, write("extends: [a.yaml, b.yaml]\n"))


def test_changes_of_a_command_line_come_last(demo: Path) -> None:
    config = load(demo, {"seed": 7, "sampling": {"temperature": 0.5}})
    assert (config.seed, config.sampling.temperature, config.sampling.top_p) == (7, 0.5, 0.95)


# --------------------------------------------------------------------------------------------- objectives, by iteration


def with_objective(run: str, iterations: list[dict[str, Any]] | None = None, **objective: Any) -> dict[str, Any]:
    rounds = iterations or [{"parts": [1]}, {"parts": [2]}]
    return {
        "runs": {run: {"objective": objective, "oracle": "overall", "iterations": rounds}},
        "tables": {"win_against": ["sft"]},
    }


def test_both_forms_of_eta_are_refused_with_run_and_iteration(planned: Callable[..., Plan]) -> None:
    changes = with_objective(
        "mine", [{"parts": [1]}, {"parts": [2], "objective": {"eta_rate": 2.0}}], name="inpo", eta=0.2, ratio=0.5
    )
    text = message(planned, **changes)
    assert text.startswith("runs.mine, iteration 2: ")
    assert "eta=0.2" in text and "eta_rate=2.0" in text


def test_an_objective_without_its_eta_is_refused(planned: Callable[..., Plan]) -> None:
    text = message(planned, **with_objective("mine", name="inpo", ratio=0.5))
    assert text.startswith("runs.mine, iteration 1: ") and "give eta" in text


def test_a_setting_that_the_objective_does_not_read_is_refused(planned: Callable[..., Plan]) -> None:
    text = message(planned, **with_objective("mine", name="dpo", beta=0.1, ratio=0.5))
    assert text.startswith("runs.mine, iteration 1: ") and "does not read ratio" in text
    text = message(planned, **with_objective("mine", name="inpo", eta=1, ratio=0.5, history=2))
    assert text == "runs.mine, iteration 1: objective inpo does not read history; td-mnpo does"


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (
            [1, 1, 1],
            "runs.mine, iteration 1: weights [1.0, 1.0, 1.0] for 1 opponents (history 2); give one weight for each",
        ),
        ([1], "runs.mine, iteration 2: weights [1.0] for 2 opponents (history 2); give one weight for each"),
        ([2, -1], "runs.mine, iteration 1: weight -1.0 in [2.0, -1.0] is not a finite number >= 0"),
        ([0, 0], "runs.mine, iteration 1: weights [0.0] of the opponents that exist sum to zero"),
    ],
)
def test_weights_that_do_not_fit_the_opponents_are_refused(
    planned: Callable[..., Plan], weights: list[float], expected: str
) -> None:
    text = message(planned, **with_objective("mine", name="td-mnpo", eta=1.0, history=2, weights=weights))
    assert text.startswith(expected)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "a third"])
def test_a_weight_that_is_no_number_is_refused(configured: Callable[..., Config], weight: Any) -> None:
    text = message(configured, **with_objective("mine", name="td-mnpo", eta=1.0, history=2, weights=[weight, 1]))
    assert "runs.mine.objective.weights.0: " in text


def test_an_iterations_overrides_apply_to_it_alone(planned: Callable[..., Plan]) -> None:
    rounds = [
        {"parts": [1]},
        {"parts": [2], "objective": {"eta": 0.5, "weights": [3, 1]}, "training": {"epochs": 7}},
        {"parts": [3]},
    ]
    changes = with_objective("mine", rounds, name="td-mnpo", eta=0.2, history=2, weights=[1, 1])
    changes["runs"]["mine"]["training"] = {"learning_rate": 1e-3}
    fits = planned(**changes).policies.fits
    assert [fits[f"mine.{t}"].objective.eta for t in (1, 2, 3)] == [0.2, 0.5, 0.2]
    assert [fits[f"mine.{t}"].opponents for t in (2, 3)] == [
        (("mine.1", 0.75), ("sft", 0.25)),
        (("mine.2", 0.5), ("mine.1", 0.5)),
    ]
    assert [fits[f"mine.{t}"].training.epochs for t in (1, 2, 3)] == [3, 7, 3]
    assert {fit.training.learning_rate for fit in fits.values()} == {1e-3}
    assert {fit.training.batch_size for fit in fits.values()} == {16}  # of the common block


def test_an_unknown_key_in_an_iterations_overrides_is_named_with_run_and_iteration(
    planned: Callable[..., Plan],
) -> None:
    rounds: list[dict[str, Any]] = [{"parts": [1]}, {"parts": [2], "objective": {"etta": 1}}]
    text = message(planned, **with_objective("mine", rounds, name="inpo", eta=0.2, ratio=0.5))
    assert text.startswith("runs.mine, iteration 2, objective: etta: unknown key; did you mean 'eta'?")
    rounds = [{"parts": [1], "training": {"epoch": 1}}]
    text = message(planned, **with_objective("mine", rounds, name="inpo", eta=0.2, ratio=0.5))
    assert text == "runs.mine, iteration 1, training: epoch: unknown key; did you mean 'epochs'?"


def iterated(**iteration: Any) -> dict[str, Any]:
    run = {"objective": {"name": "dpo"}, "oracle": "overall", "iterations": [iteration]}
    return {"runs": {"mine": run}, "tables": {"win_against": ["sft"]}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (iterated(parts=[1, 2, 1]), "runs.mine.iterations.0.parts: part 1 is given twice in [1, 2, 1]"),
        ({"exploitability": {"parts": [[1], [2, 2]]}}, "exploitability.parts.1: part 2 is given twice in [2, 2]"),
        (
            {"sampling": {"temperature": 0}},
            "sampling.temperature: 0 is greedy, so a prompt's 5 responses would all be one",
        ),
        ({"seed": True}, "seed: true where no true or false is expected"),
        (iterated(parts=[True]), "runs.mine.iterations.0.parts: [true] where no true or false is expected"),
        (iterated(parts=[1], training={"epochs": True}), "epochs: true where no true or false is expected"),
        ({"evaluation": {"confidence": True}}, "evaluation.confidence: true where no true or false is expected"),
        ({"seeds": 100_000}, "seeds: Input should be less than or equal to 100 (got 100000)"),
        ({"prompts": {"parts": 10**8}}, "prompts.parts: Input should be less than or equal to 1000 (got 100000000)"),
        ({"sampling": {"shards": 10**8}}, "sampling.shards: Input should be less than or equal to 10000"),
        ({"evaluation": {"repeats": 10**8}}, "evaluation.repeats: Input should be less than or equal to 100"),
    ],
)
def test_what_could_only_be_a_mistake_is_refused(
    planned: Callable[..., Plan], changes: dict[str, Any], said: str
) -> None:
    assert said in message(planned, **changes)


def test_greedy_sampling_is_no_mistake_where_nothing_is_sampled(configured: Callable[..., Config]) -> None:
    responses = {"prompts": {"responses": "answers"}}
    greedy = {"sampling": {"temperature": 0}}
    assert configured(**iterated(parts=[1], samples="dataset") | responses | greedy).sampling.temperature == 0
    assert configured(sampling={"logprobs": True}, floating=True).floating  # where true is meant, it is taken


def test_a_judges_limit_of_money_without_prices_is_refused(configured: Callable[..., Config]) -> None:
    judge = {"model": "j", "max_cost": 3.0}
    with pytest.raises(ConfigError, match=r"judges.demo: judge j: max_cost 3 limits nothing without prices"):
        configured(judges={"demo": judge})
    assert configured(judges={"demo": judge | {"price_output": 1.0}}).judges["demo"].max_cost == 3


def test_null_drops_a_row_that_the_extended_configuration_has(root: Path, tmp_path: Path) -> None:
    (tmp_path / "fewer.yaml").write_text(
        f"extends: {root / 'config.yaml'}\ntables: {{rows: {{table3: {{DPO: null, INPO: null}}, table4: null}}}}\n"
    )
    rows, theirs = load(tmp_path / "fewer.yaml").tables.rows, load(root / "config.yaml").tables.rows
    assert list(rows["table3"]) == [row for row in theirs["table3"] if row not in ("DPO", "INPO")]
    assert rows["table4"] == {} and rows["table2"] == theirs["table2"]


# ---------------------------------------------------------------------------------------------------- schema and weight


def test_the_committed_schema_is_current(root: Path) -> None:
    assert (root / "configs" / "schema.json").read_text() == schema(), "run: mnpo schema > configs/schema.json"


def test_reading_a_configuration_and_planning_import_no_heavy_library(root: Path) -> None:
    code = (
        "import sys, time; started = time.monotonic()\n"
        "import mnpo.cli, mnpo.planning.plan\n"
        "from mnpo.config.reading import load\n"
        "plan = mnpo.planning.plan.Plan(load('configs/demo.yaml'))\n"
        "plan.settings('train', policy='td-mnpo.2'), plan.code('train')\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time())\n"
    )
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    heavy, seconds = result.stdout.rsplit(" ", 1)
    assert heavy == "[]"
    assert float(seconds) < 2, f"{seconds} s of CPU, {time.monotonic() - started:.1f} s of wall clock"


def test_a_benchmarks_protocol_is_one_that_it_has(configured: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.protocol: EvalScope has no mt-bench; leave it out"):
        configured(evaluation={"protocol": {"mt-bench": "evalscope"}})
    mixed = configured(evaluation={"protocol": {"minerva": "evalscope", "gsm8k": "harness"}}).evaluation
    assert [mixed.protocol_of(b) for b in ("minerva", "gsm8k", "arc")] == ["evalscope", "harness", "harness"]
    assert [mixed.judged(b) for b in ("minerva", "gsm8k", "mt-bench")] == [True, False, True]
    with pytest.raises(ConfigError, match=r"evaluation\.judges: minerva need a judge, and none is named"):
        configured(evaluation={"protocol": "evalscope", "benchmarks": ["minerva", "gsm8k"], "judges": []})


@pytest.mark.parametrize(
    ("text", "function", "expected"),
    [
        (None, "short", r"^oracles\.own: .*own\.py: cannot be read \(No such file"),
        ("def shor(responses): ...", "short", r"^oracles\.own: .*own\.py has no function 'short'; did you mean 'shor'"),
        ("def short(answers): ...", "short", r"^oracles\.own: .*own\.py: short has a parameter 'answers'"),
        ("def short(first, second): ...", "short", r"short has a parameter 'first'"),
        ("def short(responses:", "short", r"^oracles\.own: .*own\.py, line 1: not Python"),
    ],
)
def test_a_function_that_cannot_be_asked_is_refused_by_the_plan(
    tmp_path: Path, planned: Callable[..., Plan], text: str | None, function: str, expected: str
) -> None:
    if text is not None:
        (tmp_path / "own.py").write_text(text)
    oracles = planned().config.model_dump(exclude_none=True)["oracles"]
    own = {"kind": "function", "file": str(tmp_path / "own.py"), "function": function}
    with pytest.raises(ConfigError, match=expected):
        planned(oracles={**oracles, "own": own})


WORDS = {"id": "length_constraints:number_words", "num_words": 9, "relation": "less than"}
SENTENCES = {"id": "length_constraints:number_sentences", "num_sentences": 2, "relation": "less than"}


def with_oracle(planned: Callable[..., Plan], **changes: Any) -> Callable[..., Plan]:
    own = planned().config.model_dump(exclude_none=True)["oracles"]
    return lambda **further: planned(oracles={**own, "checks": {"kind": "constraints", **changes}}, **further)


def test_constraints_that_nobody_can_verify_are_refused(
    planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NLTK_DATA", raising=False)
    plan = with_oracle(planned, constraints=[WORDS])()
    assert plan.oracles.sources(["checks"]) == [] and "nltk" not in json.loads(plan.settings("score", oracle="checks"))
    wrong = with_oracle(planned, constraints=[WORDS | {"id": "length_constraints:words"}])
    expected = "oracles.checks.constraints.0: unknown constraint 'length_constraints:words'; did you mean"
    assert expected in message(wrong)
    sentences = with_oracle(planned, constraints=[SENTENCES])
    assert "oracles.checks: length_constraints:number_sentences needs NLTK's punkt_tab" in message(sentences)
    datasets = planned().config.model_dump(exclude_none=True)["datasets"]
    plan = sentences(datasets={**datasets, "nltk": {"path": str(tmp_path)}})
    assert plan.oracles.sources(["checks"]) == [str(tmp_path)] and plan.oracles.sources(["overall"]) == []
    assert json.loads(plan.settings("score", oracle="checks"))["nltk"] == str(tmp_path)
    assert "nltk" not in json.loads(plan.settings("score", oracle="overall"))


OF_FILE = """\
name: own
prompts: {source: file, path: PATH, heldout: 1, parts: 1, further: [instruction_id_list, kwargs]}
models: {tiny: {path: somewhere}}
reference: {model: tiny}
oracles: {checks: {kind: constraints}, short: {kind: rule, rule: brevity}}
runs: {one: {objective: {name: dpo, beta: 0.1}, oracle: checks, iterations: [{parts: [1]}]}}
evaluation: {oracle: checks}
"""


def test_constraints_of_rows_are_read_before_anything_runs(write: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    text = OF_FILE.replace("PATH", str(path))
    rows = [
        {"prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
        {"prompt": "b", "instruction_id_list": ["startend:end_checker"], "kwargs": [{}]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    plan = Plan(load(write(text)))
    expected = r"^oracles\.checks: .*prompts\.jsonl: row 2: startend:end_checker needs end_phrase"
    with pytest.raises(ConfigError, match=expected):
        plan.oracles.require_constraints_of_rows()
    with pytest.raises(BadInput, match=expected):
        preflight.check(plan, [])
    rows[1]["kwargs"] = [{"end_phrase": "Bye."}]
    path.write_text("\n".join(map(json.dumps, rows)))
    plan.oracles.require_constraints_of_rows()
    without = text.replace(", further: [instruction_id_list, kwargs]", ", further: [kwargs]")
    assert "columns instruction_id_list and kwargs; name both in prompts.further" in message(load, write(without))


def test_rules_judge_the_demos_prompts_alone(write: Callable[..., Path]) -> None:
    for old, new in (
        ("oracle: checks, iter", "oracle: short, iter"),
        ("{oracle: checks}", "{oracle: checks, scores: [short]}"),
    ):
        said = message(load, write(OF_FILE.replace(old, new)))
        assert "oracles.short: a rule judges prompts of the demo's world" in said and "source is file" in said
