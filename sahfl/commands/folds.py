"""The option ``--fold K|all``."""

from __future__ import annotations

from sahfl.errors import ConfigError


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
