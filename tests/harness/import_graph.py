"""Which module of this project imports which, read from the source: at the top, in functions, for type checkers."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import sahfl

PACKAGE = Path(sahfl.__file__).parent
ROOT = PACKAGE.parent
LAUNCHERS = {"sahfl_server": ROOT / "server" / "sahfl_server", "sahfl_client": ROOT / "client" / "sahfl_client"}
"""Packages of the commands of a deployment; they stand to the right of all of sahfl, and never import each other."""
FILES = sorted([*PACKAGE.rglob("*.py"), *(path for folder in LAUNCHERS.values() for path in folder.rglob("*.py"))])
Graph = dict[str, set[str]]


def module_of(path: Path) -> str:
    """Dotted name of a file's module; a package is the module of its ``__init__.py``."""
    root = next((folder.parent for folder in LAUNCHERS.values() if path.is_relative_to(folder)), ROOT)
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


@cache
def imports(path: Path) -> frozenset[str]:
    """Names of the modules that a file imports, our own and others'."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: use absolute imports"
            taken = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (taken & MODULES.keys()) | ({node.module} if taken - MODULES.keys() else set())
    return frozenset(found)


def packages_around(name: str) -> list[str]:
    """Packages that Python imports before this module, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def import_graph() -> Graph:
    """Each module of the project with the modules that it makes Python import, itself and its own packages left out."""
    graph: Graph = {}
    for name, path in MODULES.items():
        ours = imports(path) & MODULES.keys()
        loaded = ours.union(*(packages_around(other) for other in ours))
        graph[name] = loaded - {name, *packages_around(name)} | (ours - {name})
    return graph


def inside(graph: Graph, package: str) -> Graph:
    """The graph of a package's direct children, each standing for all that it holds."""
    depth = package.count(".") + 2
    found: Graph = {}
    for name, others in graph.items():
        if name.startswith(f"{package}."):
            child = ".".join(name.split(".")[:depth])
            ends = {".".join(other.split(".")[:depth]) for other in others if other.startswith(f"{package}.")}
            found.setdefault(child, set()).update(ends - {child})
    return found


def circle(graph: Graph) -> list[str]:
    """Modules of one circle of imports, the first repeated at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def reach(graph: Graph, roots: Iterable[str]) -> set[str]:
    """Everything of the project that importing ``roots`` may load."""
    seen: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [*graph[name], *packages_around(name)]
    return seen
