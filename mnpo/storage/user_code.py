"""A user's own Python file: what of it decides a result, and whether it has a function. Nothing of it runs here.

A result depends on the file, and on the modules that it imports from its own directory, at any depth: digests are taken
of their syntax trees, as those of this package are (code_digests.py). What it imports from elsewhere, and the data that
it reads, are not seen.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from mnpo.config.blocks import nearest
from mnpo.errors import BadInput
from mnpo.storage import code_digests


def digests(file: str | Path) -> dict[str, str]:
    """`file`, and each module that it imports from its own directory -> twelve hex digits that change with its code.

    Raises:
        BadInput: a file that is not there or is not Python, or a module that is called as one of Python's own.
    """
    return {str(path): code_digests.fingerprint(path.read_bytes())[:12] for path in _closure(Path(file))}


def local_modules(file: str | Path) -> list[str]:
    """The names by which those modules are imported. Raises BadInput."""
    return sorted({path.relative_to(Path(file).parent).parts[0].removesuffix(".py") for path in _closure(Path(file))})


def require_unchanged(files: Mapping[str, str]) -> None:
    """Raises BadInput where a file's code is not what `files`, of `digests`, says."""
    for file, planned in files.items():
        if not Path(file).is_file() or code_digests.fingerprint(Path(file).read_bytes())[:12] != planned:
            raise BadInput(f"{file}: its code changed after this job was planned; start the run again")


def signature(file: str | Path, function: str) -> inspect.Signature | None:
    """The parameters of a function of `file`, defaults as None; None where only running the file would tell.

    Raises:
        BadInput: also for a file without it.
    """
    tree = _tree(Path(file))
    found: dict[str, ast.AST] = {}
    for node in _outside_functions(tree):
        found |= dict.fromkeys(_bound(node), node)
    if function not in found and "*" not in found:
        defined = [name for name, node in found.items() if isinstance(node, ast.FunctionDef)]
        raise BadInput(f"{file} has no function {function!r}{nearest(function, defined)}")
    chosen = found.get(function)
    if isinstance(chosen, ast.AsyncFunctionDef):
        raise BadInput(f"{file}: {function} is an async function; make it a plain one")
    if not isinstance(chosen, ast.FunctionDef) or chosen.decorator_list:
        return None
    return _signature(chosen.args)


def arguments(where: str, wanted: inspect.Signature, given: Collection[str]) -> list[str]:
    """Those of `given` that a function wants, by the names of its parameters. Raises BadInput when it wants others."""
    parameters = wanted.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return list(given)
    for p in parameters:
        needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if p.kind is p.POSITIONAL_ONLY or (needed and p.name not in given):
            raise BadInput(
                f"{where} has a parameter {p.name!r}; arguments are given by name, and those there are: "
                f"{', '.join(given)}"
            )
    return [name for name in given if name in wanted.parameters]


def _closure(file: Path) -> list[Path]:
    found, waiting = list[Path](), [file]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            waiting += _imported(path, file.parent)
    return sorted(found)


def _imported(path: Path, directory: Path) -> Iterator[Path]:
    """The files of `directory` that the file `path` imports; of a package there, all."""
    for node in ast.walk(_tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in {name.partition(".")[0] for name in names}:
            module, package = directory / f"{name}.py", directory / name / "__init__.py"
            files = sorted(package.parent.rglob("*.py")) if package.is_file() else [module] if module.is_file() else []
            if files and name in sys.stdlib_module_names:
                raise BadInput(f"{files[0]}: Python has a module {name!r} of its own, and {path} imports it; rename it")
            yield from files


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); paths start at {Path.cwd()}") from None
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise BadInput(f"{path}{line}: not Python ({getattr(error, 'msg', error)}); mend the file") from None


def _outside_functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The statements that run when the file is imported."""
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting += [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)
            ]


def _bound(node: ast.AST) -> list[str]:
    """The names that a statement gives something to."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _signature(args: ast.arguments) -> inspect.Signature:
    """Of a function that has them, without what its defaults and annotations would compute."""
    for arg in filter(None, (*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg)):
        arg.annotation = None
    args.defaults = [ast.Constant(None) for _ in args.defaults]
    args.kw_defaults = [default and ast.Constant(None) for default in args.kw_defaults]
    bare = ast.fix_missing_locations(ast.Expression(ast.Lambda(args, ast.Constant(None))))
    return inspect.signature(eval(compile(bare, "<signature>", "eval")))
