"""MetaImage files (``.mha``, and ``.mhd`` with its voxels in a file beside it), as ITK and elastix write them.

The header is read here, because ITK opens whatever path stands in ``ElementDataFile``.

Source: https://itk.org/Wiki/ITK/MetaIO/Documentation; ITK's MetaImageIO for the meaning of ``TransformMatrix``, whose
rows are the directions of the axes in LPS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sahfl.data.formats.voxels import OpenVolume, Packing, Voxels, as_image, beside, read_header
from sahfl.errors import ScanProblem

START = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|ID|Name)\s*=")
DTYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4"},
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def load_metaimage(path: Path) -> OpenVolume:
    """Open a MetaImage file without reading its voxels.

    Raises:
        ScanProblem: it is no volume, has no orientation, or claims more voxels than a head CT has.
        ValueError: its header is faulty.
        OSError: it cannot be opened.
    """
    content = read_header(path)
    header, length = _parse(content)
    if header.get("NDims") != "3":
        raise ScanProblem("not_3d", f"it has {header.get('NDims', 'no number of')[:20]} axes, expected three")
    _require_plain(header)
    shape = tuple(int(n) for n in _numbers(header, ("DimSize",), 3))
    dtype = np.dtype(f"{'>' if _is_true(header, 'MSB') else '<'}{DTYPES[header['ElementType']]}")
    source = header["ElementDataFile"]
    local = source.upper() == "LOCAL"
    start = length if local else int(header.get("HeaderSize", "0"))
    file = path if local else beside(path, source)
    packing: Packing = "zlib" if header.get("CompressedData", "False").lower() == "true" else "raw"
    return as_image(Voxels(file, shape, dtype, packing, start), _affine(header))


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None if they are in the same file.

    Raises:
        ValueError: the header is faulty.
        OSError: it cannot be opened.
    """
    source = _parse(read_header(path))[0]["ElementDataFile"]
    return None if source.upper() == "LOCAL" else beside(path, source)


def _parse(content: bytes) -> tuple[dict[str, str], int]:
    """The header's fields, and its length in bytes; ``ElementDataFile`` is the last one."""
    header: dict[str, str] = {}
    place = 0
    while "ElementDataFile" not in header:
        end = content.find(b"\n", place)
        if end < 0:
            raise ValueError("the header has no ElementDataFile")
        name, equals, value = content[place:end].decode("utf-8", "replace").partition("=")
        if not equals or name.strip() in header:
            raise ValueError("a line of the header is no field, or is given twice")
        header[name.strip()] = value.strip()
        place = end + 1
    return header, place


def _require_plain(header: Mapping[str, str]) -> None:
    """Refuse what changes the meaning of voxels: channels, text, and a scale that ITK ignores too."""
    expected = {
        "ElementNumberOfChannels": 1,
        "ElementToIntensityFunctionSlope": 1,
        "ElementToIntensityFunctionOffset": 0,
    }
    odd = [name for name, value in expected.items() if name in header and float(header[name]) != value]
    if odd or header.get("BinaryData", "True").lower() != "true" or header.get("ElementType") not in DTYPES:
        raise ValueError("the voxels are not plain numbers")


def _is_true(header: Mapping[str, str], ending: str) -> bool:
    """Whether one of the two names of the byte order says that the highest byte comes first."""
    names = (f"BinaryDataByteOrder{ending}", f"ElementByteOrder{ending}")
    return any(header.get(name, "False").lower() == "true" for name in names)


def _numbers(header: Mapping[str, str], names: tuple[str, ...], count: int) -> list[float]:
    text = next((header[name] for name in names if name in header), "")
    found = [float(part) for part in text.split()]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{names[0]} is not {count} numbers")
    return found


def _affine(header: Mapping[str, str]) -> NDArray[np.float64]:
    matrix = ("TransformMatrix", "Rotation", "Orientation")
    if not header.keys() & set(matrix):
        raise ScanProblem("no_orientation", "the header has no TransformMatrix")
    directions = np.array(_numbers(header, matrix, 9)).reshape(3, 3).T
    if not np.allclose(np.linalg.norm(directions, axis=0), 1, atol=1e-3):
        raise ValueError(
            "the directions of TransformMatrix are not 1 long, so that the size of the voxels is not known"
        )
    spacing = _numbers(header, ("ElementSpacing", "ElementSize"), 3)
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ directions @ np.diag(spacing)
    affine[:3, 3] = _LPS_TO_RAS @ _numbers(header, ("Offset", "Position", "Origin"), 3)
    return affine
