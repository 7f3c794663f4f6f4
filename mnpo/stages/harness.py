"""Stage `harness`: a policy on the benchmarks that need no judge. It is loaded once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mnpo.benchmarks import lm_eval
from mnpo.benchmarks.result_cache import Measuring, Results
from mnpo.config.blocks import Block
from mnpo.models.checkpoints import readable

ENVIRONMENT = "eval"


class Settings(Block):
    """What this stage reads."""

    harness: lm_eval.Settings
    code: str = ""
    """The digest of the code behind the results: another one measures anew."""


def run(settings: Settings, policy: Path, data: Mapping[str, Path], output: Path) -> None:
    """Measure a policy on the benchmarks that need no judge, loading it once.

    Args:
        policy: the policy's directory.
        data: the directory of each benchmark's data.
        output: the directory of the policy's results: `{benchmark}.json` and `{benchmark}.parquet`.

    Raises:
        BadInput: see mnpo.benchmarks.lm_eval.results.
    """
    text = settings.model_dump(mode="json")
    for key in ("strip", "text"):  # which results of earlier versions do not have
        if getattr(settings.harness, key) is None:
            del text["harness"][key]
    benchmarks = text["harness"].pop("benchmarks")
    policy = readable(policy, settings.harness.dtype)

    def measured(names: list[str]) -> Results:
        chosen = {b: c for b, c in settings.harness.benchmarks.items() if b in names}
        return lm_eval.results(settings.harness.model_copy(update={"benchmarks": chosen}), policy, data)

    Measuring("harness", text, benchmarks, policy, data, output).run(measured)
