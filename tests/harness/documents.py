"""The Markdown files of the project: their texts, headings, links and code blocks."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "sahfl/bases/*.md", "docs/*.md", "client/*.md", "server/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
"""Text of each page by its path."""
TASKS = tuple(f"docs/{task}.md" for task in ("study", "data", "methods", "results", "privacy", "deployment"))
TASKS += ("docs/architecture.md",)
"""The pages by task, which begin with what their reader wants to do."""

_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return [code for _, found, code in _BLOCK.findall(text) if found == language]


def links(text: str) -> list[str]:
    """Targets of the links and pictures of a page, without links to other servers."""
    prose = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", text))
    return [target for target in _LINK.findall(prose) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as GitHub and the built site make them."""
    found: set[str] = set()
    for title in _HEADING.findall(_BLOCK.sub("", text)):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        repeats = (f"{name}-{n}" for n in range(1, 100))
        found.add(next(repeat for repeat in repeats if repeat not in found) if name in found else name)
    return found
