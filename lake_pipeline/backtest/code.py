"""Which code computes a result: the source of a module and of everything of this package that it imports.

So a result's key changes with any line that could change its numbers, and with the versions of the libraries that
compute them.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lake_pipeline.core.canonical import sha256_hex

__all__ = ["code_identity", "module_digests"]

_ROOT: Final = Path(__file__).parents[1]
_LIBRARIES: Final = ("numba", "numpy", "pyarrow")


def code_identity(*modules: str) -> dict[str, Any]:
    """What decides the results of these modules, as JSON values: `modules` (name to SHA-256) and `libraries`."""
    digests: dict[str, str] = {}
    for module in modules:
        digests |= _digests_once(module)
    return {"modules": digests, "libraries": {name: _version_once(name) for name in _LIBRARIES}}


# As the process began: what is imported does not change any more.
@functools.cache
def _digests_once(module: str) -> dict[str, str]:
    return module_digests(module)


@functools.cache
def _version_once(library: str) -> str:
    return version(library)


def module_digests(module: str) -> dict[str, str]:
    """SHA-256 of the source of a module and of each module of the package that it imports, directly or not.

    Imports inside functions count, those for type checkers alone do not. Names imported from a package count as
    modules where they are; a package's own `__init__` holds names only and does not count.
    """
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _source(name)
        if path is None:
            continue
        source = path.read_bytes()
        found[name] = sha256_hex(source)
        waiting += _imports(ast.parse(source).body)
    return dict(sorted(found.items()))


def _source(name: str) -> Path | None:
    """The file of a module of the package; None for anything else, packages included."""
    package, _, inner = name.partition(".")
    path = _ROOT.joinpath(*inner.split(".")).with_suffix(".py")
    return path if package == _ROOT.name and path.is_file() else None


def _imports(statements: list[ast.stmt]) -> Iterator[str]:
    """Full names of what may be modules; the package writes absolute imports only."""
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
