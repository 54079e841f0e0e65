"""Requests whose last answer was an error, by kind of request, as the status files of server and sites have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sahfl.process import now_text
from sahfl.regular_files import LIST_BYTES, read_json

LastErrors = Mapping[str, Mapping[str, str]]
"""For each kind of request whose last answer was an error: the class of the error, and since when it is the same."""


def after_answer(errors: LastErrors, what: str, error: str | None) -> LastErrors:
    """The last errors after an answer to a request of the kind ``what``; ``error`` is None for a usable answer."""
    others = {kind: known for kind, known in errors.items() if kind != what}
    if error is None:
        return others
    known = errors.get(what, {})
    return others | {what: known if known.get("error") == error else {"error": error, "since": now_text()}}


def errors_text(errors: LastErrors) -> str:
    """Each kind of request with its error, for people."""
    return "; ".join(f"{what}: {known['error']} since {known['since']}" for what, known in errors.items())


def checked_errors(found: Any) -> LastErrors:
    """What a status file has as last errors, without what is damaged."""
    if not isinstance(found, dict):
        return {}
    return {
        str(what): {"error": str(known["error"]), "since": str(known["since"])}
        for what, known in found.items()
        if isinstance(known, dict) and {"error", "since"} <= known.keys()
    }


def read_status(path: Path) -> dict[str, Any]:
    """The content of a status file; empty if there is none, or if it is damaged."""
    try:
        found = read_json(path, most=LIST_BYTES)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
