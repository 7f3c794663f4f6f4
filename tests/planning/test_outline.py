"""What `mnpo plan` prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mnpo.cli import app
from mnpo.config.configuration import Config
from mnpo.config.reading import load
from mnpo.planning import job_graph, outline
from mnpo.planning.costs.calibration import Measured
from mnpo.planning.estimate import Forecast, forecast
from mnpo.planning.plan import Plan


@pytest.fixture(scope="module")
def paper(root: Path) -> Forecast:
    return forecast(Plan(load(root / "config.yaml")), known=Measured())


@pytest.fixture(scope="module")
def text(paper: Forecast) -> str:
    return outline.describe(paper)


@pytest.fixture(scope="module")
def content(paper: Forecast) -> Any:
    return json.loads(outline.dump(paper))


def row(text: str, first: str) -> list[str]:
    """The cells of the table row that begins with `first`."""
    (line,) = [line for line in text.splitlines() if line.split("  ")[0] == first]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_every_policy_has_a_row_with_whose_samples_it_learns_from_and_who_opposes(text: str) -> None:
    """Weights of all that oppose: 0.85 for the reference, and 0.25 and 0.75 of the other 0.15."""
    opposed = "td-mnpo.2 0.038, td-mnpo.1 0.11, sft 0.85"
    assert row(text, "td-mnpo.3") == ["td-mnpo.3", "td-mnpo", "td-mnpo.2", "td-mnpo.2", "3", "armorm", opposed]
    assert row(text, "simpo.1")[2:] == ["sft", "the data set's own", "1", "armorm", "nobody"]


def test_the_weights_of_those_who_oppose_sum_to_one(content: Any) -> None:
    for policy in content["policies"]:
        assert sum(policy["opponents"].values()) == pytest.approx(1 if policy["opponents"] else 0)


def test_an_oracle_that_asks_a_judge_has_a_row_of_calls_and_hides_no_gpu_hours(root: Path) -> None:
    """Every two of 5 responses to 20,000 prompts in both orders, in each of three iterations of the first run."""
    content = load(root / "config.yaml").model_dump(exclude_unset=True)
    content["oracles"]["llm"] = {"kind": "judge", "judge": {"model": "m", "price_input": 1, "price_output": 2}}
    inpo = content["runs"].pop("inpo") | {"oracle": "llm"}
    content["runs"] = {"inpo": inpo, **content["runs"]}
    f = forecast(Plan(Config.model_validate(content)), ["heldout"], Measured())
    assert next(e for e in f.estimates if e.work.stage == "score").gpus == 0
    text = outline.describe(f)
    read, written = 3 * 400_000 * (150 + 190 + 2 * 400) / 1e6, 3 * 400_000 * 150 / 1e6
    assert row(text, "llm")[:3] == ["llm", "preferences", "1,200,000"]
    assert row(text, "llm")[-1] == f"${read * 1 + written * 2:,.2f}"
    hours = sum(e.gpu_hours for e in f.estimates if e.work.stage == "score")
    assert hours > 0 and json.loads(outline.dump(f))["stages"]["score"]["gpus"] == 1
    assert row(text, "score")[2] == "1 x h100"


def test_the_stages_are_counted(text: str, content: Any, paper: Forecast) -> None:
    pieces = job_graph.needed(paper.plan, job_graph.files(paper.plan, paper.plan.config.tables.targets))
    for stage in {w.stage for w in pieces}:
        jobs = sum(w.jobs for w in pieces if w.stage == stage)
        assert row(text, stage)[1] == str(jobs)
        assert content["stages"][stage]["jobs"] == jobs
    assert content["totals"]["jobs"] == sum(w.jobs for w in pieces)


def test_the_closing_line_says_what_it_comes_to(text: str, content: Any) -> None:
    totals = content["totals"]
    closing = text.splitlines()[-2]
    assert closing.startswith(f"{totals['jobs']} jobs, about {totals['gpu_hours']:.0f} GPU-hours (")
    assert "on 8 x h100), peak disk " in closing
    assert closing.endswith(f"about {9 * (805 + 1000 + 160):,} judge calls, ${totals['price']:.0f}")


def test_what_is_guessed_is_said(text: str) -> None:
    assert "prompts of 190 and responses of 400 tokens" in text.splitlines()[-1]
    assert text.splitlines()[-1].endswith("measured: nothing, for none of these jobs is done")


def test_it_fits_a_screen(text: str) -> None:
    assert max(map(len, text.splitlines())) <= 160


def test_json_adds_up(content: Any) -> None:
    assert sum(w["jobs"] for w in content["work"]) == content["totals"]["jobs"]
    for key in ("gpu_hours", "tokens"):
        assert sum(w[key] for w in content["work"]) == pytest.approx(content["totals"][key])
        assert sum(s[key] for s in content["stages"].values()) == pytest.approx(content["totals"][key])
    assert sum(j["price"] for j in content["judges"]) == pytest.approx(content["totals"]["price"])
    assert sum(content["sharing"]["alone"].values()) - content["sharing"]["together"] == content["sharing"]["saved"]


def test_numbers_are_shown_in_the_unit_that_reads_best() -> None:
    assert [outline._span(s) for s in (5, 119, 120, 7200, 172800)] == ["5 s", "119 s", "2.0 min", "2.0 h", "2.0 days"]
    assert [outline._size(b) for b in (12, 1.5e9, 664e9, 1.2e12)] == ["12 B", "1.5 GB", "664 GB", "1.2 TB"]


def test_the_command_prints_a_plan_of_one_target_and_json(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    printed = CliRunner().invoke(app, ["plan", "--target", "table3", "--json"])
    assert printed.exit_code == 0
    assert "judge" not in json.loads(printed.stdout)["stages"]


def test_the_command_needs_neither_torch_nor_results(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from mnpo.cli import app; app(['plan', '--config', sys.argv[1]], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root / "config.yaml")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "GPU-hours" in done.stdout


def test_a_mistake_is_one_line(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnpo", "plan", "--target", "tabel2"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 3
    assert done.stderr == "mnpo: --target: unknown target 'tabel2'; did you mean 'table2'?\n"
