"""What a bundle or an ONNX folder has beside its networks: settings as JSON, and scripts that work without sahfl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from sahfl import __version__
from sahfl.data.ct import AIR_HU, HEAD_HU
from sahfl.data.views import BONE_HU, BONE_MM2, MIN_SLICES
from sahfl.export.merged import Merged

PREPROCESSING, README, SCAN_SCRIPT = "preprocessing.json", "README.md", "head_ct.py"
SCRIPTS = "sahfl.export.scripts"


def script(name: str, *, package: str = "") -> str:
    """Source of a script, importing the other scripts from ``package``, by default from beside it."""
    source = files(SCRIPTS).joinpath(name).read_text(encoding="utf-8")
    return source.replace(f"{SCRIPTS}.", f"{package}." if package else "")


def preprocessing(merged: Sequence[Merged], *, folder: str, ending: str) -> str:
    """Content of ``preprocessing.json``: all that a program needs to use the networks, and their origin.

    Args:
        merged: the networks of the folds.
        folder: path of the networks' files in the export, empty or ending in a slash.
        ending: of the networks' files, with its dot.
    """
    note = merged[0].note
    views = note.views
    settings: dict[str, Any] = {
        "intended_use": note.intended_use,
        "axes": "RAS+",
        "spacing_mm": views.spacing_mm,
        "size": list(views.size),
        "air_hu": AIR_HU,
        "head_hu": HEAD_HU,
        "bone": {"hu": BONE_HU, "mm2": BONE_MM2},
        "min_slices": MIN_SLICES,
        "neighbours": views.neighbours,
        "windows_hu": [list(window) for window in views.windows_hu],
        "channels": channel_names(merged[0]),
        "weights": dict(views.weights),
        "threshold": note.threshold,
        "networks": {view: [f"{folder}{one.stem(view)}{ending}" for one in merged] for view in views.weights},
        "study": note.study,
        "fingerprint": note.fingerprint,
        "method": note.method,
        "part": note.part,
        "folds": [one.note.fold for one in merged if one.note.fold is not None],
        "adapter_sha256": [one.note.adapter_sha256 for one in merged],
        "sha256": [one.note.sha256 for one in merged],
        "sahfl": __version__,
    }
    return json.dumps(settings, indent=1) + "\n"


def channel_names(merged: Merged) -> list[str]:
    """Meaning of each channel of a network, in order: windows outermost, in each window the slices by position."""
    views = merged.note.views
    around = range(-views.neighbours, views.neighbours + 1)
    return [f"slice {n:+d}, window {low:g} to {high:g} HU" for low, high in views.windows_hu for n in around]
