"""Settings of Sphinx, with which ``make docs`` builds the documents as a site in ``site/``.

The source folder is the whole checkout, so that links lead to the same files on the site and in the repository.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
TASKS = ["study", "data", "methods", "results", "privacy", "deployment", "architecture"]
REFERENCE = sorted({page.stem for page in (ROOT / "docs").glob("*.md")} - set(TASKS))
GROUPS = {
    "By task": [f"docs/{page}" for page in TASKS],
    "Reference": [*(f"docs/{page}" for page in REFERENCE), "sahfl/bases/phantom"],
    "Runbooks": ["server/README", "client/README", "SECURITY"],
    "Project": ["benchmarks/README", "CONTRIBUTING", "CHANGELOG"],
}

project = "sahfl"
html_title = "sahfl"
root_doc = "README"
include_patterns = ["README.md", *(f"{page}.md" for pages in GROUPS.values() for page in pages)]
exclude_patterns = [".*", "build", "runs", "site"]
extensions = ["myst_parser"]
myst_heading_anchors = 4
highlight_language = "text"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_show_search_summary = False  # a browser does not load it from a file


def _add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        for title, pages in GROUPS.items():
            source[0] += "\n\n```{toctree}\n" + f":hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n"


def _copy_first_page(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    """List all pages at the side, and make the README the first page."""
    app.connect("source-read", _add_contents)
    app.connect("build-finished", _copy_first_page)
