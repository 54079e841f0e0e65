"""What was probably meant by a wrong value of a setting, for a message about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

_FOLDERS = "bids csv dicom dicomdir dir directory disc files images mha mhd nifti nii nnunet nrrd pairs path scans zip"
FOLDERS = frozenset(_FOLDERS.split())
"""Words in the place of a source of scans that mean ``folder``, which recognises what is there."""
OTHER_VALUES = {"fedavg": "mean", "average": "mean", "avg": "mean", "random": "none", "scratch": "none"}
"""Values of other programs."""


def meant(item: Mapping[str, Any], place: tuple[str | int, ...]) -> str:
    """The end of a message about a value; empty if nothing is probable.

    Args:
        item: a problem as pydantic describes it.
        place: of the value in the file.
    """
    context = item.get("ctx", {})
    value = context.get("tag", item["input"])
    expected = context.get("expected_tags", context.get("expected"))
    if isinstance(value, list) and place[:2] == ("finetune", "methods"):
        return "; a list of values stands in an entry of finetune.grid"
    if not isinstance(value, str):
        return ""
    if place == ("base",) and value.endswith(".safetensors"):
        return f"; did you mean {{path: {value}}}?"
    if item["type"].startswith(("int", "float")) and re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", value, re.IGNORECASE):
        return "; take the quotes off"
    if item["type"].startswith(("tuple", "list")):
        return f"; did you mean [{value[:80]}]?"
    if not isinstance(expected, str):
        return ""
    names = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
    words = {*re.split("[^a-z]+", value.lower()), re.sub("[^a-z]", "", value.lower())}
    if "folder" in names and words & FOLDERS:
        return "; did you mean folder? It recognises what lies at its path"
    close = get_close_matches(value.lower().replace("-", "_"), names, 1)
    close = close or [other for word, other in OTHER_VALUES.items() if word in words and other in names]
    return f"; did you mean {close[0]}?" if close else ""
