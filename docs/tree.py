"""Write the tree of the code into ``architecture.md``, a line for each package and module, from their docstrings.

Example: python docs/tree.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("sahfl", "server/sahfl_server", "client/sahfl_client", "tests/harness", "benchmarks")
BEGIN, END = "<!-- tree: python docs/tree.py -->\n", "<!-- end of tree -->"


def tree() -> str:
    """The tree as Markdown: packages above their modules, each with the first sentence of its docstring."""
    lines = [line for package in PACKAGES for line in _package(ROOT / package, depth=0)]
    return "\n".join(["```", *lines, "```"]) + "\n"


def _package(folder: Path, *, depth: int) -> list[str]:
    name = folder.relative_to(ROOT).as_posix() if depth == 0 else folder.name
    init = folder / "__init__.py"
    lines = [_line(f"{name}/", _summary(init) if init.exists() else "", depth)]
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    lines += [_line(path.name, _summary(path), depth + 1) for path in modules]
    packages = [path for path in sorted(folder.iterdir()) if (path / "__init__.py").exists()]
    return lines + [line for path in packages for line in _package(path, depth=depth + 1)]


def _line(name: str, summary: str, depth: int) -> str:
    return f"{'  ' * depth}{name}".ljust(30) + f" {summary}".rstrip()


def _summary(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split()).removesuffix(".")


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + tree() + END + rest.partition(END)[2], encoding="utf-8")
