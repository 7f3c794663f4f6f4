"""Digests of the source files behind a stage, so that editing a stage reruns that stage and nothing else.

A digest covers the module and all that it imports from this package, at any depth, also inside functions. It is taken
of the syntax tree without docstrings: comments and formatting rerun nothing. The package's own
`__init__.py` holds its version, and is left out: a new version alone reruns nothing.

To read all syntax trees takes a second, for every job and every call of Snakemake. So what was read of a file is kept
beside Python's own compiled files, by the file's content.
"""

from __future__ import annotations

import ast
import atexit
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
KEPT = PACKAGE / "__pycache__" / f"code_digests.{sys.implementation.cache_tag}.json"
MOST = 2000
"""Contents that are kept; with more, older ones are forgotten."""


class _Source(NamedTuple):
    """What there is to know of a file."""

    names: list[str]
    """All that it imports of this package, and attributes of modules that might be modules."""
    fingerprint: str


@cache
def digest(*modules: str) -> str:
    """Twelve hex digits that change when code reachable from `modules` (dotted names below mnpo) does."""
    reached = sorted(closure(*modules))
    text = "\n".join(f"{name} {_fingerprint(name)}" for name in reached)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def closure(*modules: str) -> frozenset[str]:
    """`modules` and all of this package that they import, at any depth."""
    return frozenset().union(*map(_reached, modules))


@cache
def _reached(module: str) -> frozenset[str]:
    reached, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _imports(name)
    return frozenset(reached)


def file(module: str) -> Path:
    """The source file of a module or package."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def _imports(module: str) -> list[str]:
    """The modules of this package that `module` imports."""
    return [name for name in _source(module).names if file(name).is_file()]


def _fingerprint(module: str) -> str:
    return _source(module).fingerprint


@cache
def _source(module: str) -> _Source:
    content, kept = file(module).read_bytes(), _kept()
    key = hashlib.sha256(_own() + content).hexdigest()
    if key not in kept:
        tree = ast.parse(content)
        kept[key] = _Source(_names(tree), _digest(tree))
        atexit.unregister(_keep)  # once
        atexit.register(_keep)
    return kept[key]


@cache
def _own() -> bytes:
    """This file's digest: whoever reads trees in another way keeps what it finds apart."""
    return hashlib.sha256(Path(__file__).read_bytes()).digest()


@cache
def _kept() -> dict[str, _Source]:
    """By content. Nothing where there is no such file, or where it was damaged."""
    try:
        return {key: _Source(*source) for key, source in json.loads(KEPT.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _keep() -> None:
    """Write it whole or not at all; where this may not be written, as of an installed package, it is read anew."""
    if sys.dont_write_bytecode:
        return
    new = KEPT.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        new.write_text(json.dumps(dict([*_kept().items()][-MOST:])), encoding="utf-8")
        os.replace(new, KEPT)


def _names(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.startswith(f"{PACKAGE.name}.")]


def fingerprint(source: bytes) -> str:
    """The digest of a source text's code: comments, formatting and docstrings aside. Raises SyntaxError."""
    return _digest(ast.parse(source))


def _digest(tree: ast.Module) -> str:
    return hashlib.sha256(repr(list(_canonical(tree))).encode()).hexdigest()


def _canonical(node: object) -> Iterator[object]:
    """What of a syntax tree decides behaviour, in a form that does not depend on the Python version's `ast.dump`."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                value = [item for item in value if not _is_docstring(item)]
            if value not in (None, []):
                yield (field, *_canonical(value))
    elif isinstance(node, list):
        for item in node:
            yield tuple(_canonical(item))
    else:
        yield repr(node)


def _is_docstring(node: object) -> bool:
    """Whether a statement is a text by itself: of a module, class or function, or below an attribute."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
