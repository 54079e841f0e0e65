"""NRRD files (``.nrrd``, and ``.nhdr`` with its voxels in a file beside it), and segmentations of 3D Slicer in them.

pynrrd reads the header. The voxels are read here, because pynrrd opens whatever path stands in ``data file`` and
unpacks without a limit.

A segmentation of 3D Slicer (``.seg.nrrd``) covers only the part of its image that holds segments, and lists them by
name; those that overlap lie in layers. The blood is the segments that are named as blood.

Source: https://teem.sourceforge.net/nrrd/format.html; 3D Slicer, vtkMRMLSegmentationStorageNode (``SegmentN_...``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
from numpy.typing import NDArray

from sahfl.data.formats.segments import choose_blood
from sahfl.data.formats.voxels import OpenVolume, Packing, Voxels, as_image, beside, read_header
from sahfl.errors import ScanProblem

START = b"NRRD000"
PACKINGS: dict[str, Packing] = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
TYPES = {
    "i1": "signed char|int8|int8_t",
    "u1": "uchar|unsigned char|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "ushort|unsigned short|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "uint|unsigned int|uint32|uint32_t",
    "i8": "longlong|long long|long long int|signed long long|signed long long int|int64|int64_t",
    "u8": "ulonglong|unsigned long long|unsigned long long int|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
"""By the type of voxels, its names."""
SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
"""By the name of a space, the factors to RAS."""
UNITS = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "um": 1e-3, "cm": 10.0, "m": 1000.0}
"""By the name of a unit, its millimetres; without a unit they are mm."""
MOST_NAMED = 20
"""Values that a message lists."""
_SEGMENT = re.compile(r"Segment(\d+)_(?:ID|Name|Layer|LabelValue)")


def load_nrrd(path: Path, blood: Sequence[str | int] = (), *, by_value: bool = False) -> OpenVolume:
    """Open a NRRD file without reading its voxels; a segmentation of 3D Slicer is 1 where there is blood.

    With ``by_value`` the names of its segments do not count, and its voxels are as they are.

    Raises:
        ScanProblem: it is no volume, has no orientation, claims more voxels than a head CT has, or is a segmentation in
            which no segment is named as blood, or in which blood cannot be told from another segment.
        ValueError: its header is faulty.
        OSError: it cannot be opened.
    """
    header, length = _parse(read_header(path))
    sizes = tuple(int(n) for n in header["sizes"])
    affine, spatial = _affine(header)
    if all(sizes[axis] == 1 for axis in range(len(sizes)) if axis not in spatial):
        sizes, spatial = tuple(sizes[axis] for axis in spatial), [0, 1, 2]
    voxels = _voxels(path, header, length, sizes)
    segments = [] if by_value else _segments(header, layered=len(sizes) == 4)
    if segments:
        if not 3 <= len(sizes) <= 4:
            raise ScanProblem("not_3d", f"the segmentation has {len(sizes)} axes, expected three and one for layers")
        numbers = [segment.value for segment in segments]
        chosen, text = choose_blood([segment.name for segment in segments], numbers, blood)
        places = {segments[index].place for index in chosen}
        if any(segment.place in places for index, segment in enumerate(segments) if index not in chosen):
            text = "a segment that is blood and another one have the same value in one layer"
            raise ScanProblem("seg_segments", f"{text}; give each segment a value of its own")
        return as_image(_Blood(voxels, spatial, tuple(segments), tuple(chosen)), affine, text, named=True)
    if len(sizes) != 3:
        raise ScanProblem("not_3d", f"it has {len(sizes)} axes, expected three")
    return as_image(voxels, affine)


def data_file(path: Path) -> Path | None:
    """The file beside a header that holds its voxels; None if they are in the same file.

    Raises:
        ValueError: the header is faulty.
        OSError: it cannot be opened.
    """
    header, _ = _parse(read_header(path))
    name = header.get("data file", header.get("datafile"))
    return None if name is None else beside(path, str(name))


def _parse(content: bytes) -> tuple[Mapping[str, Any], int]:
    """The header's fields, and its length in bytes with the empty line behind it."""
    ends = [(content.find(end), len(end)) for end in (b"\n\n", b"\r\n\r\n")]
    end, n = min([(at, n) for at, n in ends if at >= 0], default=(len(content), 0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a number that does not fit its type is no more than a warning
            header = nrrd.read_header(content[:end].decode("utf-8", "replace").split("\n"))
        missing = [name for name in ("dimension", "type", "encoding", "sizes") if name not in header]
        if missing or len(header["sizes"]) != header["dimension"] or not all(n > 0 for n in header["sizes"]):
            raise ValueError("the header lacks a field, or its fields contradict each other")
        return header, end + n
    except (nrrd.NRRDError, KeyError, TypeError, IndexError, StopIteration, SyntaxError, Warning) as error:
        raise ValueError("the header is faulty") from error


def _voxels(path: Path, header: Mapping[str, Any], length: int, sizes: tuple[int, ...]) -> Voxels:
    name = header.get("data file", header.get("datafile"))
    file, start = (path, length) if name is None else (beside(path, str(name)), 0)
    packing = PACKINGS.get(str(header["encoding"]).lower())
    line_skip = int(header.get("line skip", header.get("lineskip", 0)))
    byte_skip = int(header.get("byte skip", header.get("byteskip", 0)))
    if packing is None or line_skip or (byte_skip and packing != "raw"):
        raise ValueError("the voxels are stored in a way that is not read here, expected raw, gzip or bzip2")
    code = next((code for code, names in TYPES.items() if header["type"] in names.split("|")), None)
    order = str(header.get("endian", "little" if code in ("i1", "u1") else "")).lower()
    if code is None or order not in ("big", "little"):
        raise ValueError("the voxels are not plain numbers")
    dtype = np.dtype(f"{'>' if order == 'big' else '<'}{code}")
    return Voxels(file, sizes, dtype, packing, -1 if byte_skip < 0 else start + byte_skip)


def _affine(header: Mapping[str, Any]) -> tuple[NDArray[np.float64], list[int]]:
    """Affine to RAS mm, and the axes of space among the file's axes."""
    factors = SPACES.get(str(header.get("space", "")).lower())
    if factors is None or "space directions" not in header or "space origin" not in header:
        raise ScanProblem("no_orientation", "the header does not say where right, front and top are (space)")
    rows = [None if row is None else np.asarray(row, np.float64) for row in header["space directions"]]
    spatial = [axis for axis, row in enumerate(rows) if row is not None and not np.isnan(row).all()]
    directions = np.array([rows[axis] for axis in spatial])
    origin = np.asarray(header["space origin"], np.float64)
    if directions.shape != (3, 3) or origin.shape != (3,):
        raise ScanProblem("not_3d", f"it has {len(spatial)} axes of space, expected three")
    if not np.isfinite(directions).all() or not np.isfinite(origin).all():
        raise ValueError("space directions or space origin are no numbers")
    units = [str(unit).strip('" ').lower() for unit in header.get("space units", ())] or [""]
    if len(set(units)) > 1 or units[0] not in UNITS:
        raise ValueError("the unit of the space is not known, expected mm")
    to_mm = np.diag(factors) * UNITS[units[0]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = to_mm @ directions.T, to_mm @ origin
    return affine, spatial


@dataclass(frozen=True)
class _Segment:
    """One segment of a segmentation of 3D Slicer."""

    name: str
    layer: int
    value: int

    @property
    def place(self) -> tuple[int, int]:
        """What tells its voxels from those of others."""
        return self.layer, self.value


def _segments(header: Mapping[str, Any], *, layered: bool) -> list[_Segment]:
    """All segments; files of Slicer before 4.11 have no layers and values: each segment is 1 in a layer of its own."""
    numbers = sorted({int(match[1]) for key in header if (match := _SEGMENT.fullmatch(key))})
    return [
        _Segment(
            name=str(header.get(f"Segment{n}_Name", header.get(f"Segment{n}_ID", ""))),
            layer=int(header.get(f"Segment{n}_Layer", n if layered else 0)),
            value=int(header.get(f"Segment{n}_LabelValue", 1)),
        )
        for n in numbers
    ]


@dataclass(frozen=True)
class _Blood:
    """The union of segments as voxels (X, Y, Z)."""

    voxels: Voxels
    spatial: list[int]
    """The axes of space among those of ``voxels``; the other one, if any, counts the layers."""
    segments: tuple[_Segment, ...]
    """All segments of the file."""
    chosen: tuple[int, ...]
    """Which of them are united."""
    dtype = np.dtype(np.uint8)
    ndim = 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along x, y and z."""
        return tuple(self.voxels.shape[axis] for axis in self.spatial)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = np.asarray(self.voxels)
        layers = [axis for axis in range(found.ndim) if axis not in self.spatial]
        parts = np.moveaxis(found, layers[0], 0) if layers else found[None]
        if not all(0 <= segment.layer < len(parts) for segment in self.segments):
            raise ValueError("a segment lies in a layer that the file does not have")
        blood = np.zeros(self.shape, np.uint8)
        for layer, part in enumerate(parts):
            self._require_declared(layer, part)
            values = [self.segments[index].value for index in self.chosen if self.segments[index].layer == layer]
            blood |= np.isin(part, values).astype(np.uint8)
        return blood if dtype is None else blood.astype(dtype, copy=False)

    def _require_declared(self, layer: int, part: NDArray[Any]) -> None:
        """Refuse values of no segment: they may be the blood."""
        declared = [segment.value for segment in self.segments if segment.layer == layer]
        if odd := sorted({*np.unique(part).tolist()} - {0, *declared})[:MOST_NAMED]:
            found, known = (", ".join(f"{value:g}" for value in values) or "none" for values in (odd, declared))
            text = f"the label holds value {found}, and its segments have {known}"
            raise ScanProblem("label_undeclared", text)
