"""Opening a volume of whatever format its content shows, and telling volumes from other files."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import nibabel
from nibabel.spatialimages import HeaderDataError

from sahfl.data.formats import metaimage, nrrd_file
from sahfl.data.formats.names import DETACHED
from sahfl.data.nifti import GZIP_MAGIC, load_nifti, reading
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, open_regular

Kind = Literal["nifti", "nrrd", "metaimage"]
NAMES: dict[Kind, str] = {"nifti": "NIfTI", "nrrd": "NRRD", "metaimage": "MetaImage"}
_NIFTI = tuple(n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big"))


def kind_of(path: Path) -> Kind | None:
    """The format of a regular file, from its first bytes; None for other files and files that cannot be read."""
    try:
        with open_regular(path, most=SCAN_BYTES) as stream:
            start = stream.read(1024)
        if start.startswith(nrrd_file.START):
            return "nrrd"
        if metaimage.START.match(start):
            return "metaimage"
        if start.startswith(GZIP_MAGIC):
            start = zlib.decompressobj(31).decompress(start, 4)
    except (OSError, zlib.error):
        return None
    return "nifti" if start.startswith(_NIFTI) else None


def open_volume(path: Path, blood: Sequence[str | int] = (), *, by_value: bool = False) -> nibabel.Nifti1Image:
    """Open a NIfTI, NRRD or MetaImage file without reading its voxels.

    ``blood`` is for named segments; with ``by_value`` a file's voxels count, whatever its segments are named.

    Raises:
        ScanProblem: it cannot be read, is no volume, has no orientation, or claims more voxels than a head CT has.
    """
    kind = kind_of(path)
    if kind not in ("nrrd", "metaimage"):
        return load_nifti(path)
    with reading(f"a file is not readable {NAMES[kind]}"):
        try:
            if kind == "nrrd":
                return nrrd_file.load_nrrd(path, blood, by_value=by_value)
            return metaimage.load_metaimage(path)
        except (ValueError, OverflowError, TypeError, HeaderDataError) as error:
            text = str(error) if type(error) is ValueError else "a field of its header has an impossible value"
            raise ScanProblem("unreadable", f"a file is no {NAMES[kind]} that can be read: {text}") from error


def files_of(path: Path) -> tuple[Path, ...]:
    """A volume's file, and the one beside it that holds its voxels if the header is a file of its own."""
    if not path.name.lower().endswith(DETACHED):
        return (path,)
    try:
        kind = kind_of(path)
        other = (nrrd_file if kind == "nrrd" else metaimage).data_file(path)
    except (OSError, ValueError):
        return (path,)  # the check reports the file
    return (path,) if other is None else (path, other)
