"""AlpacaEval 2 (Dubois et al., 2024, arXiv 2404.04475) by its own package: plain and length-controlled win rates.

The package shows each pair in its own random order, reads the verdicts and computes the rates; only its questions to
the judge go through our client. Baseline outputs and df_gamed.csv, which the length-controlled fit needs, are data:
the hub's data set tatsu-lab/alpaca_eval.
"""

from __future__ import annotations

import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from mnpo.benchmarks import judged_common
from mnpo.benchmarks.cards import CARDS
from mnpo.benchmarks.questions import QUESTION_FILES, data_file, read_json, read_questions
from mnpo.config.oracles import Judge, is_reasoning
from mnpo.errors import BadInput
from mnpo.judging.client import Client
from mnpo.judging.prompts import Turn, filled_turns
from mnpo.judging.requests import Answer, Request
from mnpo.judging.verdicts import judge_decoding, read_verdicts
from mnpo.storage.artifacts import digest

BENCHMARK = "alpaca-eval"
STOCK = "weighted_alpaca_eval_gpt4_turbo"  # the package's configuration of AlpacaEval 2
GAMED = "df_gamed.csv"
ALTERNATIVES = 5  # tokens whose log-probabilities the stock configuration asks for
PROTOCOL = (
    "Win rate over {baseline} by alpaca_eval {version}, which draws the order of each pair; judged by {judge}: "
    "{verdict}. Length-controlled: {length_controlled}{differs}."
)
WEIGHED = "the probability that its first token names the policy's output rather than the baseline's"
NAMED = "the share of replies that name the policy's output, as it gives no log-probabilities to weigh them by"


def evaluate(
    settings: judged_common.Settings, answers: Iterable[Mapping[str, Any]], data: Path, judge: Judge, store: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The policy's summary, and one row per question: how far its output is preferred, from 0 to 1.

    The value is the plain win rate. `length_controlled` says why that rate is missing where df_gamed.csv is.

    Raises:
        BadInput: data or answers that do not fit, too few verdicts (max_missing), or a failing endpoint (see Client).
    """
    asked = read_questions(BENCHMARK, data, settings.limit)
    given = {item_id: rows[0] for item_id, rows in judged_common.answered(BENCHMARK, asked, answers).items()}
    baseline = baseline_outputs(data)[: len(asked)]
    outputs = [
        {"instruction": q.turns[0], "output": given[q.item_id]["response"], "generator": settings.policy} for q in asked
    ]
    client = Client(judge, store, progress_name=f"judge {BENCHMARK}, {settings.policy}")
    annotations, template = _annotations(baseline, outputs, client, settings.repeat)
    preferences = [_preference(row) for row in annotations]
    ties = sum(given[q.item_id]["response"] == theirs["output"] for q, theirs in zip(asked, baseline, strict=True))
    rates, length_controlled = win_rates(annotations, data)
    items = [
        {
            "item_id": question.item_id,
            "value": preference - 1,
            "weight": 1.0,
            "response": given[question.item_id]["response"],
            "tokens": given[question.item_id]["tokens"],
        }
        for question, preference in zip(asked, preferences, strict=True)
        if preference is not None
    ]
    protocol = PROTOCOL.format(
        baseline=baseline[0]["generator"],
        version=version("alpaca_eval"),
        judge=judge.model,
        verdict=NAMED if is_reasoning(judge.reasoning_effort) else WEIGHED,
        length_controlled=length_controlled,
        differs=CARDS[BENCHMARK].differs,
    )
    summary = {
        "policy": settings.policy,
        "benchmark": BENCHMARK,
        "judge": judge.model,
        "value": rates["win_rate"],
        "stderr": rates["standard_error"],
        "metric": "win_rate",
        "items": len(items),
        "metrics": {**rates, **judged_common.lengths(given.values())},
        "length_controlled": length_controlled,
        "protocol": protocol,
        "missing": len(asked) - len(items),
        "refused": client.tally["refused"],
        "judgements": len(asked) - ties,
        "repeat": settings.repeat,
        "prompt_digest": judged_common.digest(template),
        "tally": client.tally,
    }
    return summary, items


def baseline_outputs(data: Path) -> list[dict[str, Any]]:
    """The baseline's outputs by their instructions, in the official order. Raises BadInput."""
    path = data_file(data, *QUESTION_FILES[BENCHMARK])
    rows = read_json(path)
    for number, row in enumerate(rows):
        for key in ("instruction", "output", "generator"):
            if not isinstance(row.get(key), str):
                raise BadInput(f"{path}: row {number}: no {key}; fetch the baseline's outputs anew")
    return [{key: row[key] for key in ("instruction", "output", "generator")} for row in rows]


# -------------------------------------------------------------------------------------------------------- the package


@contextmanager
def _package() -> Iterator[None]:
    """Import the package without its warning of pkg_resources, and without a root logger that it makes talkative."""
    root = logging.getLogger()
    level = root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        root.setLevel(level)


def _annotations(
    baseline: list[dict[str, Any]], outputs: list[dict[str, Any]], client: Client, repeat: int
) -> tuple[list[dict[str, Any]], str]:
    """The package's annotations in the order of `outputs`, and its prompt template.

    A pair of equal outputs is a tie that the judge is not asked about: no verdict of its own.
    """
    with _package():
        from alpaca_eval.annotators import PairwiseAnnotator
    config, template = _annotator(client.judge)
    with TemporaryDirectory() as directory:
        (Path(directory) / "configs.yaml").write_text(yaml.safe_dump({client.judge.model: config}), encoding="utf-8")
        annotator = PairwiseAnnotator(
            annotators_config=directory, caching_path=None, fn_completions=_completions(client, repeat, config)
        )
        _build_turns_first(annotator, template)
        annotations = annotator.annotate_head2head(outputs_1=baseline, outputs_2=outputs, chunksize=None)
    if [row["instruction"] for row in annotations] != [row["instruction"] for row in outputs]:
        raise BadInput(f"{BENCHMARK}: an instruction stands twice; the package cannot tell such questions apart")
    return annotations, template


def _annotator(judge: Judge) -> tuple[dict[str, Any], str]:
    """The stock configuration, less who is asked and how, and its prompt template.

    A judge that reasons gives no log-probabilities: the verdict is then the name that it writes, alone.
    """
    from alpaca_eval.constants import EVALUATORS_CONFIG_DIR

    stock = yaml.safe_load((EVALUATORS_CONFIG_DIR / STOCK / "configs.yaml").read_text(encoding="utf-8"))[STOCK]
    path = EVALUATORS_CONFIG_DIR / stock["prompt_template"]
    config = {key: value for key, value in stock.items() if key not in ("fn_completions", "completions_kwargs")}
    config["prompt_template"] = str(path)
    if is_reasoning(judge.reasoning_effort):
        first, second = stock["completion_parser_kwargs"]["denominator_tokens"]
        names = {n: rf"\A\W*{name}\W*\Z" for n, name in enumerate((first, second), 1)}
        config |= {
            "fn_completion_parser": "regex_parser",
            "completion_parser_kwargs": {"outputs_to_match": names},
            "completion_key": "completions",
        }
    return config, path.read_text(encoding="utf-8")


def _build_turns_first(annotator: Any, template: str) -> None:
    """Have the package ask with turns. Its own prompts are texts, filled in place by place, each place also in what
    was filled in before; whoever splits such a text into turns splits the answers too."""
    from alpaca_eval import utils

    turns = utils.prompt_to_chatml(template.strip())
    fields = re.findall(r"\{([^ \s{}]+)\}", template)

    def make_prompts(pairs: Any) -> tuple[list[Any], Any]:
        shown = [{field: str(pair[field]) for field in fields} for pair in pairs.to_dict(orient="records")]
        return [filled_turns(turns, pair) for pair in shown], pairs.copy()

    for single in annotator.annotators.values():
        single._make_prompts = make_prompts


def _completions(client: Client, repeat: int, config: Mapping[str, Any]) -> Callable[..., dict[str, list[Any]]]:
    """What the package calls for completions: our client, which asks again where the package would read nothing."""
    from alpaca_eval import completion_parsers

    parser = getattr(completion_parsers, config["fn_completion_parser"])
    weighted = config["completion_key"] == "completions_all"
    decoding = judge_decoding(client.judge, temperature=1.0, max_tokens=1)  # weights do not depend on temperature

    def readable(answer: Answer) -> Any | None:
        completion = _choice(answer) if weighted else answer.text.strip()
        try:
            verdicts = parser(completion, **config["completion_parser_kwargs"])
        except ValueError:  # an empty reply
            return None
        return completion if len(verdicts) == 1 and 1 <= verdicts[0] <= 2 else None

    def completions(prompts: Sequence[tuple[Turn, ...]]) -> dict[str, list[Any]]:
        requests = [
            Request(
                f"{BENCHMARK}, pair {number}",
                turns,
                logprobs=ALTERNATIVES if weighted else 0,
                repeat=repeat,
                **decoding,
            )
            for number, turns in enumerate(prompts)
        ]
        nothing: Any = _choice(None) if weighted else "?"
        read = read_verdicts(client, BENCHMARK, requests, readable)
        return {config["completion_key"]: [nothing if completion is None else completion for completion in read]}

    return completions


def _choice(answer: Answer | None) -> dict[str, Any]:
    """The first token's alternatives, where the package looks for them."""
    alternatives = (answer.logprobs if answer else None) or ()
    return {"logprobs": {"content": [{"top_logprobs": [{"token": t, "logprob": p} for t, p in alternatives]}]}}


def _preference(annotation: Mapping[str, Any]) -> float | None:
    """From 1 (the baseline's output) to 2 (the policy's); None where there is none."""
    value = annotation["preference"]
    return None if value is None or value != value else float(value)


def win_rates(annotations: Sequence[Mapping[str, Any]], data: Path) -> tuple[dict[str, float], str]:
    """The package's win rates with their standard errors, percent, and where the length-controlled one is from.

    `annotations` are in the order of the official questions; without `preference`, they are left out. A data directory
    without df_gamed.csv gets no length-controlled rate, and the reason.
    """
    with _package():
        from alpaca_eval.metrics import get_length_controlled_winrate, get_winrate

    rows, gamed = list(annotations), data / GAMED
    if not gamed.is_file():
        return _floats(get_winrate(rows)), f"missing, as the data has no {GAMED} to fit it with"
    with _local(gamed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of scikit-learn, about what the package sets
        try:
            rates = get_length_controlled_winrate(rows, save_weights_dir=None, is_warn_extreme_changes=False)
        except (KeyError, ValueError) as error:
            raise BadInput(f"{gamed}: the length-controlled rate cannot be fitted with it ({error!r})") from error
    found = _floats(rates)
    found["length_controlled_standard_error"] = found.pop("lc_standard_error")
    return found, f"the package's length_controlled_v1 with {GAMED} {digest(gamed)[:12]}"


@contextmanager
def _local(gamed: Path) -> Iterator[None]:
    """The package asks the hub's cache for df_gamed.csv and lets nobody say where it is: answer in the hub's place."""
    from alpaca_eval.metrics import glm_winrate

    hub = glm_winrate.hf_hub_download
    glm_winrate.hf_hub_download = lambda **_: str(gamed)
    try:
        yield
    finally:
        glm_winrate.hf_hub_download = hub


def _floats(rates: Mapping[str, Any]) -> dict[str, float]:
    """As JSON has them; a single item's standard error, which is not a number, as 0."""
    return {name: float(value) if math.isfinite(value) else 0.0 for name, value in rates.items()}
