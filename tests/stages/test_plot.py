"""Figures: valid SVG and PNG, the same bytes twice, with the policies they are about."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest

from mnpo.errors import BadInput
from mnpo.stages.plot import FIGURES, Settings, run

POLICIES = ["off.1", "game.1", "game.2"]


@pytest.fixture
def settings() -> Settings:
    return Settings(
        labels={"sft": "SFT", "off.1": "Offline", "game.1": "Game 1", "game.2": "Game 2"},
        runs={"off": ["off.1"], "game": ["game.1", "game.2"]},
        trainings={"off": ["off.1"], "game": ["game.1", "game.2"]},
        run_labels={"off": "Offline", "game": "Game"},
        oracle="overall",
        scores=["overall", "brevity"],
    )


@pytest.fixture
def inputs(tmp_path: Path, settings: Settings) -> tuple[Path, list[Path]]:
    """Tables, and policies with training metrics."""
    tables = tmp_path / "tables"
    tables.mkdir()
    labels = list(settings.labels.values())
    wins = [
        {
            "policy": a,
            "opponent": b,
            "win_rate": 0.5 + 0.1 * (i - j),
            "win_rate_low": 0.45 + 0.1 * (i - j),
            "win_rate_high": 0.55 + 0.1 * (i - j),
        }
        for i, a in enumerate(labels)
        for j, b in enumerate(labels)
        if a != b
    ]
    pd.DataFrame(wins).to_csv(tables / "wins.csv", index=False)
    families = [{"policy": label, "count": 0.2 + 0.1 * i, "sort": 0.5} for i, label in enumerate(labels)]
    pd.DataFrame(families).to_csv(tables / "families.csv", index=False)
    main = {
        "policy": labels,
        "tokens": [9, 8, 7, 5],
        "score_overall": [1, 2, 4, 8],
        "score_brevity": [0.3, 0.2, 0.1, 0],
    }
    pd.DataFrame(main).to_csv(tables / "main.csv", index=False)
    for policy in POLICIES:
        rows = [{"step": s, "loss": 6.0 - s / 9, "margin": s / 5, "accuracy": 0.5 + s / 50} for s in range(12)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{policy}.jsonl").write_text(text)
    return tables, [tmp_path / f"{p}.jsonl" for p in POLICIES]


@pytest.fixture
def drawn(tmp_path: Path, settings: Settings, inputs: tuple[Path, list[Path]]) -> Callable[[str, str], Path]:
    def _drawn(figure: str, name: str) -> Path:
        run(settings, figure, inputs[0], tmp_path / name, inputs[1] if figure == "training" else [])
        return tmp_path / name

    return _drawn


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_is_svg_and_png_and_the_same_bytes_twice(drawn: Callable[[str, str], Path], figure: str) -> None:
    one, two = drawn(figure, "one"), drawn(figure, "two")
    for ending in (".svg", ".png"):
        assert one.with_suffix(ending).read_bytes() == two.with_suffix(ending).read_bytes()
        assert one.with_name(f"one{ending}.manifest.json").is_file()
    root = ET.parse(one.with_suffix(".svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 5
    image = matplotlib.image.imread(one.with_suffix(".png"))
    assert image.shape[0] > 200 and image.shape[1] > 200
    assert 0.005 < (image[..., :3] < 0.9).any(-1).mean() < 0.95  # something is drawn, on white


def test_other_tables_of_the_directory_are_no_input(drawn: Callable[[str, str], Path], tmp_path: Path) -> None:
    (tmp_path / "tables/costs.csv").write_text("edited\n")
    (tmp_path / "tables/costs.csv.manifest.json").write_text('{"digest": "of what it was"}')
    manifest = json.loads(drawn("win_rate", "figure").with_name("figure.svg.manifest.json").read_text())
    assert [Path(file).name for file in manifest["inputs"]] == ["families.csv", "main.csv", "wins.csv"]


def test_the_win_rates_shown_are_the_tables(settings: Settings, inputs: tuple[Path, list[Path]]) -> None:
    """Against SFT, label i has win rate .5 + .1 i: offline .6 as a line across, the game .7 and .8, .05 each way."""
    axes = FIGURES["win_rate"](settings, inputs[0], {}).axes[0]
    curve = next(c for c in axes.containers if c.get_label() == "Game")
    line, _, (bars,) = curve.lines
    assert line.get_ydata() == pytest.approx([0.7, 0.8])
    assert [float(x) for x in line.get_xdata()] == pytest.approx([1, 2])
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == [pytest.approx([0.65, 0.75]), pytest.approx([0.75, 0.85])]
    across = [li for li in axes.get_lines() if li.get_label() == "Offline"]
    assert list(across[0].get_ydata()) == pytest.approx([0.6, 0.6])


def test_training_curves_follow_each_other_over_the_iterations(
    settings: Settings, inputs: tuple[Path, list[Path]]
) -> None:
    from mnpo.stages.plot import _metrics

    metrics = {p.stem: _metrics(p) for p in inputs[1]}
    loss, margin, _, kl = FIGURES["training"](settings, inputs[0], metrics).axes
    steps = [[float(x) for x in line.get_xdata()] for line in margin.get_lines() if len(line.get_xdata()) == 12]
    assert steps == [list(range(12)), list(range(12)), list(range(12, 24))]
    assert all(
        line.get_ydata()[0] == 1 for line in loss.get_lines() if len(line.get_xdata()) == 12
    )  # relative to the first
    assert [t.get_text() for t in kl.texts] == ["not recorded throughout: Offline, Game"]


def test_the_divergence_is_drawn_where_a_training_recorded_it(
    settings: Settings, inputs: tuple[Path, list[Path]]
) -> None:
    from mnpo.stages.plot import _metrics

    metrics = {p.stem: _metrics(p) for p in inputs[1]}
    for policy in ("game.1", "game.2"):
        metrics[policy]["kl"] = 0.25  # constant: so are its running means
    kl = FIGURES["training"](settings, inputs[0], metrics).axes[3]
    curves = [line for line in kl.get_lines() if len(line.get_xdata()) == 12]
    assert [set(line.get_ydata()) for line in curves] == [{0.25}, {0.25}]
    assert [t.get_text() for t in kl.texts] == ["not recorded throughout: Offline"]


def test_lengths_stand_against_the_win_rates_of_the_same_policies(
    settings: Settings, inputs: tuple[Path, list[Path]]
) -> None:
    axes = FIGURES["length"](settings, inputs[0], {}).axes[0]
    shown = {li.get_label(): (list(li.get_xdata()), list(li.get_ydata())) for li in axes.get_lines()}
    assert shown["Offline"] == ([8], pytest.approx([0.6]))
    assert shown["Game"] == ([7, 5], pytest.approx([0.7, 0.8]))
    assert shown["SFT"] == ([9], [0.5])


def test_every_policys_score_is_shown_under_every_oracle(settings: Settings, inputs: tuple[Path, list[Path]]) -> None:
    panels = FIGURES["oracles"](settings, inputs[0], {}).axes
    assert [p.get_title() for p in panels] == ["overall", "brevity"]
    shown = [[(float(li.get_xdata()[0]), li.get_ydata()[0]) for li in p.get_lines()[1:]] for p in panels]
    assert shown == [[(1, 0), (2, 1), (4, 2), (8, 3)], [(0.3, 0), (0.2, 1), (0.1, 2), (0, 3)]]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["SFT", "Offline", "Game 1", "Game 2"]
    assert len({li.get_marker() for li in panels[0].get_lines()[1:]}) == 3  # told apart without colours


def test_the_matrix_shows_rows_over_columns(settings: Settings, inputs: tuple[Path, list[Path]]) -> None:
    axes = FIGURES["win_matrix"](settings, inputs[0], {}).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["SFT", "Offline", "Game 1", "Game 2"]
    shown = {tuple(round(v) for v in t.get_position()): t.get_text() for t in axes.texts}
    assert len(shown) == 12
    assert shown[(0, 3)] == "0.80" and shown[(3, 0)] == "0.20"  # (column, row): Game 2 over SFT
    assert axes.get_title() == "Cyclic triples: 0 of 4"


def test_cyclic_triples_are_counted(settings: Settings, inputs: tuple[Path, list[Path]]) -> None:
    """SFT now beats Game 2, which beats the two that beat SFT: two circles, one of them beyond its intervals."""
    wins = pd.read_csv(inputs[0] / "wins.csv").set_index(["policy", "opponent"])
    wins.loc[("SFT", "Game 2")] = [0.6, 0.55, 0.65]
    wins.loc[("Game 2", "SFT")] = [0.4, 0.35, 0.45]
    wins.loc[("Game 2", "Game 1")] = [0.6, 0.49, 0.7]
    wins.reset_index().to_csv(inputs[0] / "wins.csv", index=False)
    axes = FIGURES["win_matrix"](settings, inputs[0], {}).axes[0]
    assert axes.get_title() == "Cyclic triples: 2 of 4, 1 with all three intervals above one half"


def test_an_unknown_figure_is_refused_with_the_nearest(
    settings: Settings, inputs: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="unknown figure 'win_rates'; did you mean 'win_rate'"):
        run(settings, "win_rates", inputs[0], tmp_path / "out")


def test_missing_tables_are_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wins.csv"):
        run(settings, "win_rate", tmp_path, tmp_path / "out")
