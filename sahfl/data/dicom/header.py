"""Reading DICOM files without the patient's data in their headers."""

from __future__ import annotations

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
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sahfl.data.volume_size import require_size
from sahfl.errors import ScanProblem, UnfitFile
from sahfl.regular_files import SCAN_BYTES, check_regular, open_regular

MAGIC_AT, MAGIC = 128, b"DICM"
HEADER_BYTES = 1 << 26
"""Most bytes of a file beside its pixels: a segmentation describes each of its frames."""
_SIZE_ELEMENTS = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")
PIXEL_ELEMENTS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""The elements needed to decode pixels, and no others."""
_MALFORMED = (
    *(InvalidDicomError, OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError),
    *(NotImplementedError, OverflowError, RecursionError, MemoryError, RuntimeError, struct.error, zlib.error),
)
"""What pydicom raises on damaged files."""


def is_dicom(path: Path) -> bool:
    """Test whether a regular file exists, can be read and begins with the DICOM prefix."""
    try:
        with open_regular(path, most=SCAN_BYTES) as stream:
            return stream.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


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
        ScanProblem: the file claims or holds more pixels than a head CT has, or is packed as a whole.
    """
    check_regular(path, most=SCAN_BYTES)
    if read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise ScanProblem(
            "compressed", "a file is packed as a whole (deflated); unpack it, for example with dcmconv +te"
        )
    if with_pixels := "PixelData" in elements:
        _require_pixels(path)
    return pydicom.dcmread(path, specific_tags=list(elements), stop_before_pixels=not with_pixels)


def read_whole(path: Path) -> Dataset:
    """All elements of a file. Only within ``private``.

    Raises:
        ScanProblem: as ``read_elements``.
    """
    read_elements(path, PIXEL_ELEMENTS)
    return pydicom.dcmread(path)


def _require_pixels(path: Path) -> None:
    """Check that a file's pixels, compressed or not, are no more than its header claims, and this is not too much."""
    header = pydicom.dcmread(path, specific_tags=list(_SIZE_ELEMENTS), stop_before_pixels=True)
    rows, columns, frames, samples, bits = (int(header.get(name) or 1) for name in _SIZE_ELEMENTS)
    require_size((columns, rows, frames * samples))
    expected = rows * columns * frames * samples * -(-bits // 8)
    if (found := path.stat().st_size) > 2 * expected + HEADER_BYTES:
        raise ScanProblem("too_large", f"a file has {found} bytes, its header claims {expected} bytes of pixels")


def decoded(dataset: Dataset) -> NDArray[Any]:
    """Stored pixel values, (rows, columns) or (frames, rows, columns). Only within ``private``.

    Raises:
        ScanProblem: the pixels are compressed and no installed decoder supports this compression.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        text = f"pixels are compressed ({syntax.name}) and no decoder is installed; decompress them"
        raise ScanProblem("compressed", f"{text}, for example with dcmdjpeg or gdcmconv --raw, or install pylibjpeg")
    return dataset.pixel_array


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
