"""Flower's records of a state: written as one flat array with its layout, and read with strict checks."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from sahfl.adapters import AdapterState
from sahfl.errors import PayloadError
from sahfl.payload import Encoding, Header, Layout, layout, pack, steps, unpack

RAW = "raw.little-endian"
"""Serialisation of arrays: the plain bytes, which need no parser."""
LONGEST_SHAPE = 20_000
"""Characters of a shape that are read; a longer shape is refused because its end is missing."""


def read_state(content: RecordDict, *, like: AdapterState, encoding: Encoding = "float32") -> AdapterState:
    """Read the tensors of a message, with the names and shapes of ``like``.

    Raises:
        PayloadError: any name, shape or size differs from ``like``; see ``payload.unpack``.
    """
    array = flat_array(content, "state", dtype=encoding)
    shapes, tensor_steps = _layout(content, most=len(like) + 1, with_steps=encoding == "int8")
    return unpack(array.data, shapes, like=like, encoding=encoding, tensor_steps=tensor_steps)


def state_records(
    header: Header, state: AdapterState, encoding: Encoding = "float32"
) -> dict[str, ArrayRecord | ConfigRecord]:
    """Make the records ``header``, ``layout`` and ``state`` of a message; any shapes, in the order of ``state``."""
    flat = pack(state, encoding)
    shapes = [",".join(map(str, shape)) for _, shape in layout(state)]
    record = ConfigRecord({"names": list(state), "shapes": shapes})
    if encoding == "int8":
        record["steps"] = list(steps(state))
    return {
        "header": ConfigRecord(header.as_dict()),
        "layout": record,
        "state": ArrayRecord({"flat": Array(encoding, (int(flat.size),), RAW, flat.tobytes())}),
    }


def _layout(content: RecordDict, *, most: int, with_steps: bool) -> tuple[Layout, list[Any]]:
    """Read at most the first ``most`` names and shapes, enough to detect that there are too many."""
    record = config_record(content, "layout")
    names, shapes, tensor_steps = record.get("names"), record.get("shapes"), record.get("steps", [])
    if not (isinstance(names, list) and isinstance(shapes, list) and len(names) == len(shapes)):
        raise PayloadError("layout: expected as many names as shapes")
    if set(record) - {"names", "shapes"} != ({"steps"} if with_steps else set()) or not isinstance(tensor_steps, list):
        raise PayloadError("layout: expected names and shapes, and in int8 steps, and nothing else")
    try:
        found = tuple(
            (str(name), tuple(int(size) for size in str(shape)[:LONGEST_SHAPE].split(",") if size))
            for name, shape in zip(names[:most], shapes[:most], strict=True)
        )
        return found, tensor_steps
    except ValueError as error:
        raise PayloadError("layout: expected shapes such as '16,9,3,3'") from error


def config_record(content: RecordDict, name: str) -> ConfigRecord:
    """Look up a record of settings by name; raises PayloadError if it is missing."""
    if name not in content.config_records:
        raise PayloadError(f"record {name!r} is missing")
    return content.config_records[name]


def flat_array(content: RecordDict, name: str, *, dtype: str) -> Array:
    """Look up the only array of a message, of shape (n,).

    Raises:
        PayloadError: the array is missing or not the only one, or its type or its number of bytes is wrong.
    """
    record = content.array_records.get(name)
    if record is None or set(record) != {"flat"} or len(content.array_records) != 1:
        raise PayloadError(f"arrays: expected one flat array under {name!r} and no other")
    array = record["flat"]
    if (array.dtype, array.stype) != (dtype, RAW):
        raise PayloadError(f"arrays: got {str(array.dtype)[:20]} as {str(array.stype)[:20]}, expected {dtype} as {RAW}")
    if len(array.shape) != 1 or array.shape[0] * np.dtype(dtype).itemsize != len(array.data):
        raise PayloadError(f"arrays: got {len(array.data)} bytes, expected as many as the declared shape needs")
    return array


def hash_of_tensors(content: RecordDict) -> str:
    """SHA-256 (hex) of the tensors of a request: the base network, or the start of a round; empty without tensors."""
    arrays = [array.data for record in content.array_records.values() for array in record.values()]
    return hashlib.sha256(b"".join(arrays)).hexdigest() if any(arrays) else ""
