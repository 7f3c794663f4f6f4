"""Promises that the repository's own files make to each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import mnpo
from mnpo.config.reading import load

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_every_equation_that_code_cites_is_on_the_methods_page() -> None:
    numbered = set(re.findall(r"^\((\d+)\)", (ROOT / "docs/method.md").read_text(), re.M))
    cited: set[str] = set()
    for file in (ROOT / "mnpo").rglob("*.py"):
        for first, last in re.findall(r"\beq\. (\d+)(?:(?: to | and |, )(\d+))?", file.read_text()):
            cited |= set(map(str, range(int(first), int(last or first) + 1)))
    assert {"4", "9", "13"} <= cited
    assert cited <= numbered


def test_every_link_in_the_documentation_leads_somewhere() -> None:
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
            if "://" in target:
                continue
            other = page.parent / target if target else page
            assert other.exists(), f"{page.name}: {target}"
            assert not heading or heading in headings(other), f"{page.name}: {target}#{heading}"


def headings(page: Path) -> set[str]:
    """The names by which GitHub links to a page's headings."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_the_newest_released_version_is_the_package_s() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert released[0] == mnpo.__version__


def test_the_configuration_that_beginners_are_given_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/getting-started.md").read_text(), re.M | re.S)
    (tmp_path / "own.yaml").write_text(block)
    config = load(tmp_path / "own.yaml")
    assert config.prompts.source == "file"
    assert config.models["base"].path is not None
    assert len(config.runs["td-mnpo"].iterations) == config.prompts.parts


def test_the_picture_of_the_layers_shows_every_module() -> None:
    shown = set(re.findall(r"\w+", " ".join(re.findall(r">([^<]+)</text>", (ROOT / "docs/layers.svg").read_text()))))
    modules = {f.stem for f in (ROOT / "mnpo").rglob("*.py") if not f.stem.startswith("_")}
    assert modules | {f.parent.name for f in (ROOT / "mnpo").glob("*/__init__.py")} <= shown, "run: make layers"


def test_make_help_lists_the_targets_that_the_readme_names() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"(?:`|^ +)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M):
        assert f"make {target} " in shown
