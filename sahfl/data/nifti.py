"""NIfTI files: opened without their voxels, and only if their size is known and bounded before anything is unpacked.

The content of a file decides what it is, not its name: ``.nii`` that is packed and ``.nii.gz`` that is not are read.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from sahfl.data.file_kinds import kind_of_content
from sahfl.data.volume_size import MOST_VOXELS, require_size
from sahfl.errors import ScanProblem, UnfitFile
from sahfl.regular_files import SCAN_BYTES, open_regular

GZIP_MAGIC = b"\x1f\x8b"
EXTENSION_BYTES = 1 << 24
"""Most bytes of header and extensions; converters write a few hundred thousand."""
UNPACKED_BYTES = 8 * MOST_VOXELS + EXTENSION_BYTES
"""Most bytes of an unpacked file: voxels of eight bytes, header and extensions."""
_PART_BYTES = 1 << 20
_FORMS: dict[int, tuple[Any, Any, int, bytes]] = {
    348: (nibabel.Nifti1Header, nibabel.Nifti1Image, 344, b"n+1\0"),
    540: (nibabel.Nifti2Header, nibabel.Nifti2Image, 4, b"n+2\0"),
}
"""By the length of the header: its class, the class of the image, and place and text of the mark of one file."""
_MALFORMED = (
    *(OSError, EOFError, zlib.error, struct.error, HeaderDataError, WrapStructError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, ArithmeticError, NotImplementedError, RuntimeError, MemoryError),
)
"""What nibabel raises on damaged files."""


@contextmanager
def reading(what: str = "a file is not readable NIfTI") -> Iterator[None]:
    """Call nibabel on a file that may be damaged.

    Raises:
        ScanProblem: the file is missing, may not be read, or nibabel raised an error.
    """
    try:
        yield
    except ScanProblem:
        raise
    except UnfitFile as error:
        raise ScanProblem("unreadable", f"{what}: it {error.strerror}") from error
    except FileNotFoundError as error:
        raise ScanProblem("missing", "a file is missing") from error
    except PermissionError as error:
        raise ScanProblem("permission", "no permission to read a file") from error
    except _MALFORMED as error:
        raise ScanProblem("unreadable", what) from error


class Voxels(ArrayProxy):
    """The voxels of a file, read when they are asked for; its content decides whether it is packed, not its name."""

    @contextmanager
    def _get_fileobj(self) -> Iterator[Any]:  # nibabel's own chooses by the name's ending
        with opened(Path(self.file_like)) as stream:
            yield stream


_voxels: Any = Voxels
"""The class, for which nibabel declares no types."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file for reading, unpacked if it is a gzip file."""
    with open_regular(path, most=SCAN_BYTES) as stream:
        packed = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        if not packed:
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as unpacked:
            yield unpacked


def is_nifti(path: Path) -> bool:
    """Test whether a regular file can be read and begins, unpacked, like one file of NIfTI."""
    try:
        start = _unpacked_start(path, 544)
    except (OSError, zlib.error):
        return False
    return _form(start) is not None


def load_nifti(path: Path) -> nibabel.Nifti1Image:
    """Open a NIfTI file, packed or not, without reading its voxels; extensions are left out (``extension_texts``).

    Guarantees: at most ``EXTENSION_BYTES`` are unpacked here, and at most ``MOST_VOXELS`` voxels when they are read.

    Raises:
        ScanProblem: the file is missing, is not NIfTI, is damaged, or claims more voxels than a head CT has.
    """
    with reading():
        header, image_of = _header(path)
        for _ in _extensions(path, header):  # a chain of impossible lengths is a damaged file
            pass
        _require_sizes(path, header)
        with np.errstate(all="ignore"):  # what is beyond every float is refused in the next line
            affine = header.get_best_affine()
        if not np.isfinite(affine).all():
            raise ScanProblem("affine", "the affine of a file holds NaN or infinite numbers")
        # Not mapped: a file that is cut while a scan of it is in memory would end the process.
        return image_of(_voxels(str(path), header.copy(), mmap=False), affine, header)


def extension_texts(path: Path) -> list[str]:
    """The contents of a NIfTI file's extensions as Latin-1, without reading them as what they claim to be.

    Raises:
        ScanProblem: as ``load_nifti``.
    """
    with reading():
        return [content.decode("latin-1") for content in _extensions(path, _header(path)[0])]


def check_unpacked(path: Path) -> None:
    """Unpack a ``.gz`` to its end, in parts, because nibabel does not compare its checksum.

    Raises:
        ScanProblem: it unpacks to more than ``UNPACKED_BYTES``.
        OSError: its checksum does not fit.
        EOFError: it is cut short.
        zlib.error: it is damaged.
    """
    with open_regular(path, most=SCAN_BYTES) as stream:
        if stream.read(2) != GZIP_MAGIC:
            return
        stream.seek(0)
        n_bytes = 0
        with gzip.GzipFile(fileobj=stream) as unpacked:
            while part := unpacked.read(_PART_BYTES):
                if (n_bytes := n_bytes + len(part)) > UNPACKED_BYTES:
                    raise ScanProblem("too_large", f"a file unpacks to more than {UNPACKED_BYTES / 1e9:.1f} GB")


def _header(path: Path) -> tuple[nibabel.Nifti1Header, Any]:
    """The header of a file, and the class of its image; only within ``reading``."""
    start = _unpacked_start(path, 544)
    length = _form(start)
    if length is None:
        kind = kind_of_content(start)
        raise ScanProblem("unreadable", f"a file is not readable NIfTI{kind and f': it is {kind}'}")
    header_of, image_of, _, _ = _FORMS[length]
    require_size(header_of(start[:length], check=False).get_data_shape())
    return header_of(start[:length]), image_of


def _require_sizes(path: Path, header: nibabel.Nifti1Header) -> None:
    """Refuse a qform on its own whose voxels have no size: nibabel would take 1 mm for 0, and drop a sign."""
    if int(header["sform_code"]) or not int(header["qform_code"]):
        return
    stored = type(header)(_unpacked_start(path, len(header.binaryblock)), check=False)
    sizes = [float(size) for size in stored["pixdim"][1:4]]
    if not all(size > 0 for size in sizes):
        found = " x ".join(f"{size:g}" for size in sizes)
        raise ScanProblem("affine", f"the voxels of a file have no size: pixdim is {found}, and there is no sform")


def _form(start: bytes) -> int | None:
    """The length of the header of one file of NIfTI; None if it is something else."""
    length = next((n for n in _FORMS if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if length is None or len(start) < length:
        return None
    _, _, place, mark = _FORMS[length]
    return length if start[place : place + len(mark)] == mark else None


def _unpacked_start(path: Path, n_bytes: int) -> bytes:
    """The first bytes of a file, unpacked if it is a ``.gz``."""
    with open_regular(path, most=SCAN_BYTES) as stream:
        packed = stream.read(2 * n_bytes + _PART_BYTES)
    return zlib.decompressobj(31).decompress(packed, n_bytes) if packed[:2] == GZIP_MAGIC else packed[:n_bytes]


def _extensions(path: Path, header: nibabel.Nifti1Header) -> Iterator[bytes]:
    """The contents of the extensions, whose lengths nibabel believes."""
    voxels_at = float(header["vox_offset"])
    if not math.isfinite(voxels_at) or not 0 <= voxels_at <= EXTENSION_BYTES:
        raise HeaderDataError("voxels at an impossible place")
    at = len(header.binaryblock)
    start = _unpacked_start(path, int(voxels_at))
    place = at + 4
    if start[at : at + 1] in (b"", b"\0"):
        return
    while place + 16 <= voxels_at:
        length = int(np.frombuffer(start[place : place + 4].ljust(4, b"\0"), f"{header.endianness}i4")[0])
        if not 16 <= length <= voxels_at - place:
            raise HeaderDataError("an extension of impossible length")
        yield start[place + 8 : place + length]
        place += length
