"""Tensors on disk: safetensors, never a pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load, save

from sahfl.adapters import AdapterState
from sahfl.atomic import write_atomic
from sahfl.errors import AdapterError
from sahfl.regular_files import TENSORS_BYTES, parse_json, read_bytes

MOST_TENSORS = 10_000
"""Most tensors of a file; a network of three views and its adapter have a few hundred."""
_ENTRY = re.compile(rb'(?<!\\)(?:\\\\)*"\s*:\s*\{')
"""The end of a key whose value is a mapping, as each tensor and the metadata have; the note is one text in quotes."""


def save_tensors(path: Path, state: AdapterState, note: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a note of JSON values as safetensors, atomically; equal ones give the same bytes."""
    # One metadata key only, because safetensors writes several in random order.
    metadata = {"sahfl": json.dumps(note, sort_keys=True)} if note is not None else None
    content = save({name: np.asarray(value, order="C") for name, value in state.items()}, metadata)
    write_atomic(path, content)


def load_tensors(path: Path) -> tuple[AdapterState, dict[str, Any]]:
    """Read what ``save_tensors`` wrote: the tensors in alphabetical order, and the note.

    Guarantees: the tensors are counted before one of them is made.

    Raises:
        AdapterError: the file is missing, damaged, too large, holds too many tensors or another type than float32; the
            message names it.
    """
    try:
        content = read_bytes(path, most=TENSORS_BYTES)
        header = content[8 : 8 + int.from_bytes(content[:8], "little")]
        if (n := sum(1 for _ in _ENTRY.finditer(header))) > MOST_TENSORS + 1:
            raise AdapterError(f"{path}: holds {n} tensors, expected at most {MOST_TENSORS}")
        state, note = load(content), _read_note(header)
    except OSError as error:
        raise AdapterError(f"{path}: {error.strerror}") from error
    except KeyError as error:  # a type that numpy does not have, such as BF16
        raise AdapterError(f"{path}: holds tensors of type {error.args[0]}, expected float32") from error
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: is damaged or not safetensors") from error
    if odd := [name for name, value in state.items() if value.dtype != np.float32]:
        raise AdapterError(f"{path}: tensor {odd[0]!r} is {state[odd[0]].dtype}, expected float32")
    return dict(sorted(state.items())), note


def _read_note(content: bytes) -> dict[str, Any]:
    """The note in a header of safetensors."""
    header = parse_json(content)
    if not isinstance(header, dict):
        raise ValueError(f"header: got {type(header).__name__}, expected a mapping")
    metadata = header.get("__metadata__") or {}
    note = parse_json(metadata.get("sahfl", "{}").encode())
    if not isinstance(note, dict):
        raise ValueError(f"note: got {type(note).__name__}, expected a mapping")
    return note
