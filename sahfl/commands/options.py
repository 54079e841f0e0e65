"""Options that several commands have: ``--datalist FILE`` and ``--fold K|all``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sahfl.errors import ConfigError

Datalist = Annotated[
    Path | None, typer.Option(help="Datalist of NIfTI scans; takes the place of data.path in the study file.")
]


def read_fold(text: str) -> int | None:
    """A fold counted from 0; None for all.

    Raises:
        ConfigError: it is neither.
    """
    if text == "all":
        return None
    if text.isascii() and text.isdigit():
        return int(text)
    raise ConfigError(f"--fold: got {text!r}, expected a number from 0, or all")
