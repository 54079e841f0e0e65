"""Pictures of single cases from the run's folder, if the results name them because their release is allowed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from sahfl.errors import UnfitFile
from sahfl.regular_files import check_inside, read_bytes
from sahfl.report.names import names
from sahfl.report.text import Results, number

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_BYTES = 2_000_000


@dataclass(frozen=True)
class Overlay:
    """One case on the page."""

    title: str
    words: str
    png: str
    """Base64; empty if the picture is missing."""
    missing: str
    """Why it is missing."""


def read_overlays(results: Results, folder: Path) -> tuple[Overlay, ...]:
    """Read the pictures that the results name.

    Guarantees: nothing outside ``folder`` is read, not even through a link. A file that is not a PNG of at most 2 MB is
    left out, and the page states this.
    """
    titles, found = names(results), []
    for overlay in results.get("overlays", []):
        data, missing = _read_png(overlay["png"], folder)
        words = (
            f"{titles.get(overlay['method'], overlay['method'])}, {overlay['site']}, fold {overlay['fold']}: Dice "
            f"{number(overlay['dice'])}, {number(overlay['volume_ml'], 1)} mL annotated, "
            f"{number(overlay['predicted_ml'], 1)} mL predicted."
        )
        title = f"{overlay['case'].capitalize()} case"
        found.append(Overlay(title, words, base64.b64encode(data).decode(), missing))
    return tuple(found)


def _read_png(name: str, folder: Path) -> tuple[bytes, str]:
    path = folder / name
    try:
        check_inside(path, folder)
    except UnfitFile:
        return b"", "its path leads out of the run's folder"
    except ValueError:  # a NUL in it
        return b"", "its file is not there"
    if not path.is_file():
        return b"", "its file is not there"
    try:
        data = read_bytes(path, most=LARGEST_BYTES)
    except UnfitFile:
        return b"", "its file is larger than 2 MB"
    except OSError:
        return b"", "its file cannot be read"
    return (data, "") if data.startswith(PNG) else (b"", "its file is no PNG")
