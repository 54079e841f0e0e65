"""NIfTI files: opened without their voxels, and only if their size is known and bounded before anything is unpacked."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from sahfl.data.volume_size import MOST_VOXELS, require_size
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, open_regular

GZIP_MAGIC = b"\x1f\x8b"
EXTENSION_BYTES = 1 << 24
"""Most bytes of header and extensions; converters write a few hundred thousand."""
UNPACKED_BYTES = 8 * MOST_VOXELS + EXTENSION_BYTES
"""Most bytes of an unpacked file: voxels of eight bytes, header and extensions."""
_PART_BYTES = 1 << 20
_FORMS: dict[int, tuple[Any, Any, int]] = {
    348: (nibabel.Nifti1Header, nibabel.Nifti1Image, 348),
    540: (nibabel.Nifti2Header, nibabel.Nifti2Image, 544),
}
"""By the length of the header: its class, the class of the image, and the byte after which extensions are announced."""


def load_nifti(path: Path) -> nibabel.Nifti1Image:
    """Open a NIfTI file (``.nii``, ``.nii.gz``) without reading its voxels.

    Guarantees: at most ``EXTENSION_BYTES`` are unpacked here, and at most ``MOST_VOXELS`` voxels when they are read.

    Raises:
        ScanProblem: the header claims more voxels than a head CT has.
        OSError: the file cannot be opened, is no regular file, or has another ending.
        HeaderDataError: it is not NIfTI.
        zlib.error: it is damaged.
    """
    start = _unpacked_start(path, 544)
    length = next((n for n in _FORMS if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), None)
    if length is None or len(start) < length:
        raise HeaderDataError("no header of NIfTI")
    header_of, image_of, extended_at = _FORMS[length]
    header = header_of(start[:length], check=False)
    require_size(header.get_data_shape())
    _check_extensions(path, header, extended_at)
    return image_of.from_filename(path)


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


def _unpacked_start(path: Path, n_bytes: int) -> bytes:
    """The first bytes of a file, unpacked if it is a ``.gz``."""
    with open_regular(path, most=SCAN_BYTES) as stream:
        packed = stream.read(2 * n_bytes + _PART_BYTES)
    return zlib.decompressobj(31).decompress(packed, n_bytes) if packed[:2] == GZIP_MAGIC else packed[:n_bytes]


def _check_extensions(path: Path, header: nibabel.Nifti1Header, at: int) -> None:
    """Check the chain of extensions, whose lengths nibabel believes."""
    voxels_at = float(header["vox_offset"])
    if not header.is_single or not math.isfinite(voxels_at) or not 0 <= voxels_at <= EXTENSION_BYTES:
        raise HeaderDataError("voxels at an impossible place")
    start, place = _unpacked_start(path, int(voxels_at)), at + 4
    if start[at : at + 1] in (b"", b"\0"):
        return
    while place + 16 <= voxels_at:
        length = int(np.frombuffer(start[place : place + 4].ljust(4, b"\0"), f"{header.endianness}i4")[0])
        if not 16 <= length <= voxels_at - place:
            raise HeaderDataError("an extension of impossible length")
        place += length
