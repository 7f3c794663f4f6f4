"""`mnpo init`: what it writes is taken by `mnpo plan`, with sizes read from files; what it refuses, with the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mnpo.config.reading import load
from mnpo.errors import BadInput
from mnpo.planning import starting
from mnpo.planning.costs.quantities import parameters
from mnpo.planning.plan import Plan
from mnpo.planning.starting import begin

ROWS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Say {n}"}],
        "answer": str(n),
    }
    for n in range(40)
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "rewards.py").write_text("def right(responses, columns): return [0.0 for _ in responses]\n")
    return tmp_path


def test_sizes_are_read_from_the_models_files(random_policy: Path, here: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = begin("own", str(random_policy), "prompts.jsonl", ["function:rewards.py:right"])
    assert file == Path("own.yaml")
    config = load(file)
    counted = AutoModelForCausalLM.from_pretrained(random_policy).num_parameters()
    assert config.models["base"].parameters is None and parameters(config.models["base"]) == counted
    assert config.prompts.model_dump(exclude_defaults=True) == {
        "source": "file", "path": "prompts.jsonl", "further": ["answer"], "parts": 2, "heldout": 4, "expected": 36,
    }  # fmt: skip
    assert config.oracles["right"].function == "right" and config.evaluation.oracle == "right"
    assert config.training.batch_size == 4  # a quarter of a part's 18 prompts
    assert config.text.max_length == 128 and config.text.max_prompt_length + config.sampling.max_new_tokens == 128
    Plan(config)
    again = begin("three", str(random_policy), "prompts.jsonl", ["function:rewards.py:right"], iterations=3)
    assert [i.parts for i in load(again).runs["td-mnpo"].iterations] == [[1], [2], [3]]


def test_models_and_prompts_may_be_the_hubs(here: Path) -> None:
    (here / "configs").mkdir()
    file = begin(
        "hub",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "some/prompts",
        ["judge:gpt-5-mini", "reward-model:a/rm-8B"],
        expected=9000,
    )
    assert file == Path("configs/hub.yaml")
    config = load(file)
    assert config.models["base"].parameters == 0.135 and config.models["reward"].parameters == 8
    assert config.datasets["prompts"].hub == "some/prompts" and config.prompts.expected == 9000
    assert list(config.oracles) == ["judge", "reward"] and config.evaluation.oracle == "judge"
    objective = config.runs["td-mnpo"].objective
    assert objective.eta == 0.05 and config.training.learning_rate == 2e-5  # measured on this model
    large = load(begin("large", "google/gemma-2-9b-it", "some/prompts", ["reward-model:a/rm-8B"], expected=60000))
    assert large.runs["td-mnpo"].objective.eta == 0.0075 and large.training.learning_rate == 5e-7  # the paper's
    assert large.training.gradient_checkpointing and large.resources.of("train").memory_gb > 9 * 16


def test_constraints_of_a_hubs_data_set_are_further_columns_of_it(here: Path) -> None:
    config = load(begin("hub", "a/model-1B", "some/prompts", ["constraints"], expected=9000))
    assert config.prompts.further == ["instruction_id_list", "kwargs"]


def test_what_is_written_has_the_users_own_names(random_policy: Path, here: Path) -> None:
    (here / "prompts.jsonl").rename(here / "PARTS.jsonl")
    file = begin("own", str(random_policy), "PARTS.jsonl", ["function:rewards.py:right"])
    assert load(file).prompts.path == "PARTS.jsonl"


def test_rows_may_have_constraints(here: Path, random_policy: Path) -> None:
    rows = [{"prompt": f"Say {n}", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for n in range(20)]
    (here / "checks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load(begin("own", str(random_policy), "checks.jsonl", ["constraints"]))
    assert config.prompts.further == ["instruction_id_list", "kwargs"]
    with pytest.raises(BadInput, match=r"prompts\.jsonl: row 1: instruction_id_list and kwargs are None and None"):
        begin("other", str(random_policy), "prompts.jsonl", ["constraints"])
    assert not list(here.glob("*other*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Own"}, r"'Own': a name has small letters"),
        ({"oracles": []}, r"--oracle: who decides .*function:FILE:NAME, reward-model:ID-or-DIR, judge:MODEL or"),
        ({"oracles": ["fun:rewards.py"]}, r"--oracle fun:rewards\.py: expected function:FILE:NAME"),
        ({"oracles": ["function:rewards.py:rigth"]}, r"rewards\.py has no function 'rigth'; did you mean 'right'"),
        ({"model": "nowhere"}, r"nowhere: neither a directory nor a repository of the hub"),
        ({"model": "."}, r"config\.json"),
        ({"model": "owner/model"}, r"owner/model: its name does not say how large it is; give --parameters"),
        ({"prompts": "nothing"}, r"nothing: neither a file nor a data set of the hub"),
        *(({"prompts": f"my/none.{e}"}, rf"^my/none\.{e}: no such file$") for e in ("jsonl", "json", "parquet")),
        ({"prompts": "some/prompts"}, r"some/prompts: about how many prompts are there\? Give --expected"),
        ({"prompts": "bad.jsonl"}, r"bad\.jsonl: row 2: messages: the conversation ends with the assistant|row 2"),
        ({"iterations": 60}, r"prompts\.jsonl: 40 different prompts are too few for 60 iterations"),
    ],
)
def test_what_cannot_begin_is_refused_and_nothing_is_written(
    here: Path, random_policy: Path, changes: dict[str, Any], message: str
) -> None:
    bad = [ROWS[0], {"messages": [{"role": "system", "content": "Be brief."}]}]
    (here / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    before = sorted(here.iterdir())
    asked = {
        "name": "own",
        "model": str(random_policy),
        "prompts": "prompts.jsonl",
        "oracles": ["function:rewards.py:right"],
    }
    with pytest.raises(BadInput, match=message):
        begin(**(asked | changes))
    assert sorted(here.iterdir()) == before


def test_pairs_need_no_oracle_and_are_shown_where_to_begin(here: Path, random_policy: Path) -> None:
    (here / "pairs.jsonl").write_text(json.dumps({"prompt": "Say 1", "chosen": "1", "rejected": "2"}) + "\n")
    with pytest.raises(
        BadInput, match=r"pairs\.jsonl has pairs, .* need no oracle: .* docs/data\.md, 'Preference pairs"
    ):
        begin("own", str(random_policy), "pairs.jsonl", [])
    with pytest.raises(BadInput, match=r"judge:MODEL or constraints$"):
        begin("own", str(random_policy), "prompts.jsonl", [])


def test_a_file_that_is_there_stays(here: Path, random_policy: Path) -> None:
    (here / "own.yaml").write_text("mine")
    with pytest.raises(BadInput, match=r"own\.yaml: is there already, and is not overwritten; give another name"):
        begin("own", str(random_policy), "prompts.jsonl", ["function:rewards.py:right"])
    assert (here / "own.yaml").read_text() == "mine"


def test_the_page_for_beginners_shows_what_is_written(root: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (root / "docs/getting-started.md").read_text(), re.M | re.S)
    asked = starting._Prompts(re.findall(r"# docs/data.md\n(.*?)\n\n", block, re.S)[0], "", 1080, 20)
    city = starting._Oracle("city", '{ kind: function, file: "rewards.py", function: city }')
    model = starting._Model('{ path: "/data/models/my-instruct-model" }', 0.135e9, 8192)
    assert starting._text("cities", Path("configs/cities.yaml"), model, asked, [city], 2) == block
