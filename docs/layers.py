"""Draw docs/layers.svg: the layers of mnpo/, what is in them, and which imports which. Run by `make layers`.

The order is that of import-linter's contract in pyproject.toml, the words are the packages' docstrings, the counts are
of grimp's graph: nothing is said here that the code does not say.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grimp
import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath

ROOT = Path(__file__).parents[1]
WIDTH, MARGIN, BOX, CELL, HEAD = 900, 8, 540, 22, 92  # in px, as all below: the picture, a box, a cell, what is on top
LINE, GAP, PAD = 15, 6, 12
INK, DIM, EDGE, FILL, GRID, TINT = "#1b1f24", "#57606a", "#8c959f", "#f6f8fa", "#d0d7de", "#0969da"


@dataclass(frozen=True)
class Layer:
    """One line of the contract: a package, or modules that know nothing of each other."""

    names: list[str]
    words: list[str]
    """What it is for, line by line."""
    modules: list[str]
    """What is in a package, line by line."""

    @classmethod
    def of(cls, names: list[str]) -> Layer:
        """A package says its own line; several modules one each, until its first colon or full stop."""
        if len(names) > 1:
            said = {name: _first_line(ROOT / "mnpo" / f"{name}.py") for name in names}
            return cls(names, [f"{name}: {line.split(':')[0].removesuffix('.')}" for name, line in said.items()], [])
        package = ROOT / "mnpo" / names[0]
        files = sorted(package.rglob("[!_]*.py"), key=lambda file: (len(file.parts), file))
        modules = [file.relative_to(package).with_suffix("").as_posix() for file in files]
        words = _first_line(package / "__init__.py").split()
        return cls(names, _wrapped(words, " ", 11.5), _wrapped(modules, " · ", 10.5))

    @property
    def height(self) -> int:
        """Of its box."""
        return 30 + LINE * (len(self.words) + len(self.modules))


def _first_line(file: Path) -> str:
    return (ast.get_docstring(ast.parse(file.read_bytes())) or "").splitlines()[0]


def _wrapped(words: list[str], between: str, px: float) -> list[str]:
    """`words` as lines that fit into a box."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}{between}{word}" if lines[-1] else word
        if TextPath((0, 0), longer, size=px).get_extents().width <= 0.95 * (BOX - 2 * PAD):  # fonts differ
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def layers() -> list[Layer]:
    """From the top down, as the contract has them."""
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return [Layer.of([name.strip() for name in line.split(":")]) for line in contract["layers"]]


def imports(found: list[Layer]) -> Counter[tuple[int, int]]:
    """(layer, other) -> how many modules of the other each of the layer's modules imports, all added up."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph("mnpo", cache_dir=None)
    place = {name: i for i, layer in enumerate(found) for name in layer.names}
    of = {module: place[module.split(".")[1]] for module in graph.modules - {"mnpo", "mnpo.__main__"}}
    return Counter((of[m], of[n]) for m in of for n in graph.find_modules_directly_imported_by(m) & of.keys())


def draw(target: Path) -> None:
    """Write the picture: a box a layer, and right of it a row of the table of imports."""
    found = layers()
    counts = imports(found)
    height = HEAD + sum(layer.height + GAP for layer in found) + MARGIN
    figure = Figure(figsize=(WIDTH / 96, height / 96), dpi=96, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.set_axis_off()

    def text(x: float, y: float, words: str, px: float = 11.5, color: str = INK, **how: str | int) -> None:
        axes.text(x, y, words, fontsize=px * 72 / 96, color=color, parse_math=False, **{"va": "center_baseline", **how})

    text(MARGIN, HEAD - 42, "The layers of mnpo: each imports only from those below it", 14, weight="bold")
    text(MARGIN, HEAD - 20, "Numbers: how often modules of the row's layer import one of the column's", color=DIM)
    top = HEAD
    for row, layer in enumerate(found):
        box = FancyBboxPatch((MARGIN, top), BOX, layer.height, "round,pad=0,rounding_size=4", fc=FILL, ec=EDGE, lw=0.8)
        axes.add_patch(box)
        text(MARGIN + PAD, top + 15, ", ".join(layer.names), 13, weight="bold")
        for i, line in enumerate([*layer.words, *layer.modules], 1):
            is_module = i > len(layer.words)
            text(MARGIN + PAD, top + 19 + LINE * i, line, *((10.5, DIM) if is_module else ()))
        for column in range(row, len(found)):
            x, count = MARGIN + BOX + 10 + CELL * column, counts[row, column]
            if column == row:
                name = layer.names[0] + (", ..." if len(layer.names) > 1 else "")
                text(x + CELL / 2 - 1, HEAD - 6, name, rotation=90, ha="center", va="bottom")
            shade = {"fc": EDGE} if column == row else {"fc": TINT, "alpha": min(0.08 + count / 100, 0.4) * bool(count)}
            axes.add_patch(Rectangle((x, top), CELL - 2, layer.height, lw=0, **shade))
            axes.add_patch(Rectangle((x, top), CELL - 2, layer.height, fill=False, ec=GRID, lw=0.6))
            if count and column != row:
                text(x + CELL / 2 - 1, top + layer.height / 2, str(count), 11, ha="center")
        top += layer.height + GAP
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mnpo"})
    draw(ROOT / "docs" / "layers.svg")
