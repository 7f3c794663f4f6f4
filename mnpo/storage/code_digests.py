"""Digests of the source files behind a stage, so that editing a stage reruns that stage and nothing else.

A digest covers the module and all that it imports from this package, at any depth, also inside functions. It is taken
of the syntax tree without docstrings: comments and formatting rerun nothing. The package's own
`__init__.py` holds its version, and is left out: a new version alone reruns nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


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


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(file(module).read_bytes())


def file(module: str) -> Path:
    """The source file of a module or package."""
    base = PACKAGE.joinpath(*module.split(".")[1:])
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


@cache
def _imports(module: str) -> list[str]:
    """The modules of this package that `module` imports."""
    names: list[str] = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [n for n in names if n.startswith(f"{PACKAGE.name}.") and file(n).is_file()]


@cache
def _fingerprint(module: str) -> str:
    return _digest(_tree(module))


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
