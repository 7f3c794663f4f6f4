"""Every card says of its benchmark what the installed harness, the configuration and the paper's tables say."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from mnpo.benchmarks.cards import CARDS, Card
from mnpo.config.evaluation import JUDGED, Benchmark
from mnpo.planning.paper_tables import TABLES

HARNESS = [card for card in CARDS.values() if card.harness == "lm-eval"]


def test_there_is_a_card_for_each_of_the_fourteen_in_their_order() -> None:
    assert tuple(CARDS) == get_args(Benchmark)
    assert tuple(card.name for card in CARDS.values() if card.harness != "lm-eval") == JUDGED["harness"]


def test_columns_are_the_papers() -> None:
    published = {c.name: c for table in TABLES.values() for c in table.columns if c.published}
    for card in CARDS.values():
        assert published[card.column].benchmark == card.name
        assert published[card.column].rating == (card.unit == "rating")


def test_items_are_the_papers_but_where_the_card_says_why() -> None:
    measured = [card for card in CARDS.values() if card.name != "mt-bench"]  # the paper's table counts judgements
    published = {c.name: c.items for table in TABLES.values() for c in table.columns if c.published}
    other = {card.name: published[card.column] for card in measured if published[card.column] != card.items}
    assert other == {"arc": 3548} and "3,548" in CARDS["arc"].paper  # with ARC-Easy


@pytest.mark.parametrize("card", HARNESS, ids=lambda card: card.name)
def test_the_harness_has_the_task_with_these_splits_and_this_metric(card: Card) -> None:
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    path = Path(lm_eval.__file__).parent / "tasks" / card.task.format("anatomy")
    task = load_yaml(path, resolve_func=False)
    if card.name != "minerva":  # its definition is MATH's, its problems are not
        assert task["dataset_path"] == card.hub
    evaluated = task.get("test_split") or task["validation_split"]
    assert evaluated == card.split
    if len(card.files) > 1:
        examples = task.get("fewshot_split") or task["training_split"]
        assert card.splits(1) == (card.split, examples) and card.splits(0) == (card.split,)
    metric, rule = card.metric.split(",")
    metrics = {str(entry["metric"]) for entry in task["metric_list"]}
    filters = {entry["name"] for entry in task.get("filter_list", [])} or {"none"}
    assert (metric in metrics or card.name == "humaneval") and rule in filters
    assert (task["output_type"] == "generate_until") == bool(card.max_new_tokens) == bool(card.generated_tokens)
    assert card.chat == (task["output_type"] == "generate_until")
    stock = task.get("generation_kwargs", {}).get("max_gen_toks")
    assert stock in (None, card.max_new_tokens)
    assert task.get("num_fewshot") in (None, card.shots)


def test_mmlu_is_57_subjects() -> None:
    import lm_eval

    directory = Path(lm_eval.__file__).parent / "tasks" / Path(CARDS["mmlu"].task).parent
    assert len(list(directory.glob("mmlu_*.yaml"))) == 57


def test_cards_are_light() -> None:
    import subprocess
    import sys

    code = "import sys, mnpo.benchmarks.cards; print([m for m in ('torch', 'lm_eval', 'datasets') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
