"""Reading DICOM files without the patient's data in their headers."""

from __future__ import annotations

import io
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
)

from sahfl.data.dicom.codestream import claimed_size
from sahfl.data.volume_size import require_size
from sahfl.errors import ScanProblem, UnfitFile
from sahfl.regular_files import SCAN_BYTES, check_regular, open_regular, read_bytes

MAGIC_AT, MAGIC = 128, b"DICM"
_FIRST_TAGS = (b"\x08\0", b"\x02\0", b"\0\x08", b"\0\x02")
"""Groups 2 and 8, little and big endian: how a file begins that lacks the preamble."""
_VR = re.compile(rb"AE|AS|AT|CS|DA|DS|DT|IS|LO|LT|OB|OW|PN|SH|ST|TM|UI|UL|UN|US|UT")
HEADER_BYTES = 1 << 26
"""Most bytes of a file beside its pixels: a segmentation describes each of its frames."""
START_BYTES = 1 << 21
"""Most bytes of header in a file that is packed as a whole."""
_SIZE_ELEMENTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")
_SIZES: dict[str, Any] = {"specific_tags": list(_SIZE_ELEMENTS), "stop_before_pixels": True}
PIXEL_ELEMENTS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""The elements needed to decode pixels, and no others."""
_MALFORMED = (
    *(
        BytesLengthException,
        InvalidDicomError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        IndexError,
    ),
    *(NotImplementedError, OverflowError, RecursionError, MemoryError, RuntimeError, struct.error, zlib.error),
)
"""What pydicom raises on damaged files."""


def is_dicom(path: Path) -> bool:
    """Test whether a regular file exists, can be read and begins as DICOM does, with the preamble or without it."""
    try:
        with open_regular(path, most=SCAN_BYTES) as stream:
            return begins_as_dicom(stream.read(MAGIC_AT + len(MAGIC)))
    except OSError:
        return False


def begins_as_dicom(start: bytes) -> bool:
    """Test the first 132 bytes of a file: the prefix after the preamble, or an element of group 2 or 8."""
    return start[MAGIC_AT:] == MAGIC or _lacks_preamble(start)


def _lacks_preamble(start: bytes) -> bool:
    if start[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC or start[:2] not in _FIRST_TAGS or len(start) < 12:
        return False
    length = int.from_bytes(start[4:8], "little")  # of an implicit VR
    return bool(_VR.fullmatch(start[4:6])) or (start[:2] == b"\x08\0" and length <= 64 and length % 2 == 0)


@contextmanager
def private() -> Iterator[None]:
    """Work on a header privately: discard pydicom's warnings and log lines, which quote header values.

    Inside this context, values are converted to numbers and checked texts; no ``Dataset`` is used outside.

    Raises:
        ScanProblem: pydicom raised an error; its message, which may quote the header, is discarded.
    """
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    except ScanProblem:
        raise
    except UnfitFile as error:
        raise ScanProblem("unreadable", f"a file {error.strerror}") from None
    except PermissionError:
        raise ScanProblem("permission", "no permission to read a DICOM file") from None
    except FileNotFoundError:
        raise ScanProblem("missing", "a DICOM file is missing") from None
    except _MALFORMED:
        raise ScanProblem("unreadable", "a DICOM file is damaged") from None
    finally:
        log.disabled = before


def read_elements(path: Path, elements: tuple[str, ...]) -> Dataset:
    """The named elements of a file; all others are skipped, patient name and dates included.

    Pixels are read only if their size, which the other elements give, is one of a head CT. Only within ``private``.

    Raises:
        ScanProblem: the file claims or holds more pixels than a head CT has, or has fewer pixels than it claims.
    """
    check_regular(path, most=SCAN_BYTES)
    with_pixels, source = "PixelData" in elements, _source(path)
    if with_pixels:
        _require_pixels(source)
    return _read(source, stop_before_pixels=not with_pixels, specific_tags=list(elements))


def read_whole(path: Path) -> Dataset:
    """All elements of a file. Only within ``private``.

    Raises:
        ScanProblem: as ``read_elements``.
    """
    read_elements(path, PIXEL_ELEMENTS)
    return _read(_source(path))


def _source(path: Path) -> Path | io.BytesIO:
    """The file, or its elements in memory if it is packed as a whole (deflated)."""
    with open_regular(path, most=SCAN_BYTES) as stream:
        start = stream.read(1024)
    if start[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        return path
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return path
    begin = MAGIC_AT + len(MAGIC) + 12 + int(meta.FileMetaInformationGroupLength)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    start_of = unpacker.decompress(read_bytes(path, most=SCAN_BYTES)[begin:], START_BYTES)
    if not unpacker.unconsumed_tail:
        return io.BytesIO(start_of)
    expected = _expected_bytes(_read(io.BytesIO(start_of), **_SIZES))
    rest = unpacker.decompress(unpacker.unconsumed_tail, 2 * expected)
    if unpacker.unconsumed_tail:
        raise ScanProblem("too_large", f"a file unpacks to more than the {expected} bytes of pixels that it claims")
    return io.BytesIO(start_of + rest)


def _read(source: Path | io.BytesIO, **options: Any) -> Dataset:
    if isinstance(source, io.BytesIO):
        source.seek(0)
    found = pydicom.dcmread(source, force=True, **options)
    if "TransferSyntaxUID" not in found.file_meta:  # without a preamble, only the bytes show how they are written
        implicit, little = found.original_encoding
        written = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        found.file_meta.TransferSyntaxUID = written
    return found


def _require_pixels(source: Path | io.BytesIO) -> None:
    """Check that a file's pixels, compressed or not, are what its header claims, and this is not too much."""
    header = _read(source, **_SIZES)
    expected = _expected_bytes(header)
    found = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())
    if found > 2 * expected + HEADER_BYTES:
        raise ScanProblem("too_large", f"a file has {found} bytes, its header claims {expected} bytes of pixels")
    if (
        found < expected
        and int(header.get("BitsAllocated") or 1) >= 8
        and not header.file_meta.TransferSyntaxUID.is_compressed
    ):
        text = f"a DICOM file is cut short: it has {found} bytes, its header claims {expected} bytes of pixels"
        raise ScanProblem("unreadable", text)


def _expected_bytes(header: Dataset) -> int:
    """Bytes of the pixels that a header claims; raises ScanProblem if they are more than a head CT has."""
    rows, columns, frames, samples, bits = (int(header.get(name) or 1) for name in _SIZE_ELEMENTS)
    require_size((columns, rows, frames * samples))
    return rows * columns * frames * samples * -(-bits // 8)


def decoded(dataset: Dataset) -> NDArray[Any]:
    """Stored pixel values, (rows, columns) or (frames, rows, columns). Only within ``private``.

    Raises:
        ScanProblem: the pixels are compressed and no installed decoder supports this compression.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return dataset.pixel_array
    if not get_decoder(syntax).is_available or (syntax == JPEGExtended12Bit and int(dataset.BitsStored) > 8):
        text = f"pixels are compressed ({syntax.name}) in a way that this installation cannot read"
        raise ScanProblem("compressed", f"{text}; decompress them, for example with dcmdjpeg or gdcmconv --raw")
    _require_packed_sizes(dataset)
    try:
        return dataset.pixel_array
    except _MALFORMED:
        raise ScanProblem("unreadable", f"a slice's packed pixels ({syntax.name}) are damaged") from None


def _require_packed_sizes(dataset: Dataset) -> None:
    """Check what packed pixels claim, because a decoder takes memory for it."""
    wanted, n_frames = (int(dataset.Rows), int(dataset.Columns)), int(dataset.get("NumberOfFrames") or 1)
    syntax = dataset.file_meta.TransferSyntaxUID
    for frame in generate_frames(dataset.PixelData, number_of_frames=n_frames):
        size = claimed_size(frame)
        if size not in (None, wanted):
            raise ScanProblem("unreadable", f"a slice is packed as {size} pixels, its header claims {wanted}")
        if size is None and syntax in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
            raise ScanProblem("unreadable", f"a slice's packed pixels are not {syntax.name}, as its header says")


def numbers(dataset: Dataset, keyword: str, count: int, *, rule: str) -> tuple[float, ...]:
    """An element's finite numbers. Only within ``private``.

    Raises:
        ScanProblem: with ``rule``, if they are not ``count`` finite numbers.
    """
    try:
        value = dataset[keyword].value
        found = tuple(float(part) for part in (value if count > 1 else [value]))
    except (KeyError, ValueError, TypeError):
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ScanProblem(rule, f"a slice's header has no usable {keyword}")
    return found


def code(dataset: Dataset, keyword: str) -> str:
    """An element that holds an upper-case code such as CT, or ``unknown``: free text is never returned."""
    value = str(dataset.get(keyword, ""))
    return value if re.fullmatch(r"[A-Z0-9_]{2,16}", value) else "unknown"
