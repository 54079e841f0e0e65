"""Fields as bytes, each with its length in front, so that different fields never give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from sahfl.errors import PayloadError

LENGTH_BYTES = 4


def pack(*fields: bytes) -> bytes:
    """Join fields, each behind its length in four bytes, big-endian."""
    return b"".join(len(field).to_bytes(LENGTH_BYTES, "big") + field for field in fields)


def unpack(data: bytes) -> list[bytes]:
    """Split what ``pack`` joined.

    Raises:
        PayloadError: a length is cut, or goes beyond the end.
    """
    fields, start = [], 0
    while start < len(data):
        begin = start + LENGTH_BYTES
        end = begin + int.from_bytes(data[start:begin], "big")
        if begin > len(data) or end > len(data):
            raise PayloadError(f"fields: got {len(data)} bytes, expected {end} or more")
        fields.append(data[begin:end])
        start = end
    return fields


def pack_names(names: Iterable[str]) -> bytes:
    """Join names."""
    return pack(*(name.encode() for name in names))


def unpack_names(data: bytes) -> tuple[str, ...]:
    """Split what ``pack_names`` joined.

    Raises:
        PayloadError: it is damaged, or not UTF-8.
    """
    try:
        return tuple(field.decode() for field in unpack(data))
    except UnicodeDecodeError as error:
        raise PayloadError("names: are not UTF-8") from error


def digest_of_names(names: Iterable[str]) -> bytes:
    """SHA-256 of names, whatever their order; each counts once."""
    return sha256(pack_names(sorted(set(names)))).digest()
