"""Stage `judge`: a judge's verdicts on a policy's answers. Summary as JSON, per-item rows as Parquet beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

from mnpo.benchmarks import alpaca_eval, arena_hard, evalscope, judged_common, mt_bench
from mnpo.config.blocks import DEMO, Block
from mnpo.config.evaluation import EvaluationProtocol
from mnpo.config.oracles import Judge
from mnpo.storage.artifacts import artifact
from mnpo.storage.records import ANSWERS, ITEMS, read, rows_of, write

ENVIRONMENT = "eval"
OWN = {"alpaca-eval": alpaca_eval.evaluate, "arena-hard": arena_hard.evaluate, "mt-bench": mt_bench.evaluate}


class Settings(Block):
    """What this stage reads."""

    benchmark: str
    protocol: EvaluationProtocol = "harness"
    judged: judged_common.Settings
    judge: Judge


def run(settings: Settings, answers: Path, data: Path, store: Path, output: Path) -> None:
    """Let a judge judge a policy's answers.

    Args:
        answers: what `mnpo answer` wrote.
        data: the directory of the benchmark's data.
        store: where every verdict is kept the moment it arrives; asked again is only what is not there.
        output: the summary, a JSON file; per-item rows go beside it, as Parquet.

    Raises:
        BadInput: answers and data that do not fit, a missing key, a spent budget, an endpoint that fails.
    """
    rows = rows_of(read(ANSWERS, answers))
    by_evalscope = partial(evalscope.evaluate, settings.benchmark)
    evaluate = by_evalscope if settings.protocol == "evalscope" else OWN[settings.benchmark]
    items = output.with_suffix(".parquet")
    store.parent.mkdir(parents=True, exist_ok=True)
    settings_text = settings.model_dump(exclude_none=True)
    with (
        _answering(settings.judge) as judge,
        artifact(output, "judge", settings_text, [answers, data]) as made,
        artifact(items, "judge", settings_text, [answers, data]) as made_items,
    ):
        summary, verdicts = evaluate(settings.judged, rows, data, judge, store)
        summary |= judged_common.facts(rows)
        write(ITEMS, verdicts, made_items.path)
        made.path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        made.facts = made_items.facts = {k: summary[k] for k in ("items", "missing", "refused", "tally")}


@contextmanager
def _answering(judge: Judge) -> Iterator[Judge]:
    """The judge, at an endpoint that answers: the demo's own is started for as long as it is needed."""
    if judge.endpoint != DEMO:
        yield judge
        return
    with import_module(
        "mnpo.demo.judge"
    ).serve() as server:  # by name: only the demo depends on it (mnpo/storage/code_digests.py)
        yield judge.model_copy(update={"endpoint": server.url})
