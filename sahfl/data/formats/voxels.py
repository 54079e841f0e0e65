"""The voxels of a NRRD or MetaImage file, which stay on disk until an array is made of them."""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import nibabel
import numpy as np
from numpy.typing import NDArray

from sahfl.data.volume_size import require_size
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, open_regular

Packing = Literal["raw", "gzip", "zlib", "bzip2"]
HEADER_BYTES = 1 << 20
"""Most bytes of a header in text; that of a segmentation with a hundred segments has 100 000."""


@dataclass(frozen=True)
class Voxels:
    """The voxels of one file; an array of them reads exactly as many bytes as the header claims, or fails.

    Raises:
        ScanProblem: ``shape`` has more voxels than a head CT.
    """

    path: Path
    shape: tuple[int, ...]
    """The first axis is the one that changes fastest in the file."""
    dtype: np.dtype[Any]
    """With the byte order of the file."""
    packing: Packing = "raw"
    start: int = 0
    """Byte at which the voxels begin; negative: they are the last bytes of the file."""

    def __post_init__(self) -> None:
        require_size(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        with open_regular(self.path, most=SCAN_BYTES) as stream:
            stream.seek(*((-n_bytes, 2) if self.start < 0 else (self.start, 0)))
            content = unpacked(stream, self.packing, n_bytes)
        array = np.frombuffer(content, self.dtype).reshape(self.shape, order="F")
        return array if dtype is None else array.astype(dtype, copy=False)


def unpacked(stream: BinaryIO, packing: Packing, n_bytes: int) -> bytes:
    """Exactly ``n_bytes`` from the place of the stream on; never more than one byte beyond them is unpacked.

    Raises:
        EOFError: there are fewer, or a packed stream has more.
        OSError, zlib.error: what is packed is damaged.
    """
    if packing == "gzip":
        content = gzip.GzipFile(fileobj=stream).read(n_bytes + 1)
    elif packing == "bzip2":
        content = bz2.BZ2File(stream).read(n_bytes + 1)
    elif packing == "zlib":
        unpacker = zlib.decompressobj()
        # What cannot be packed grows by less than a thousandth.
        content = unpacker.decompress(stream.read(n_bytes + n_bytes // 1000 + 1024), n_bytes + 1)
        if not unpacker.eof:
            raise EOFError("the packed voxels are cut short")
    else:
        content = stream.read(n_bytes)
    if len(content) != n_bytes:
        raise EOFError("fewer or more voxels than the header claims")
    return content


class OpenVolume(nibabel.Nifti1Image):
    """An open volume, with what was chosen among its segments."""

    chosen: str = ""
    """A text without names; empty if the file has no segments, or all of them count."""
    named: bool = False
    """Whether its segments were chosen by their names: the voxels are 1 where there is blood."""


def as_image(voxels: Any, affine: NDArray[np.float64], chosen: str = "", *, named: bool = False) -> OpenVolume:
    """Voxels (X, Y, Z) that are read when they are used, as an open image with its affine to RAS mm.

    Raises:
        ScanProblem: the voxels have no volume.
    """
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 0:
        raise ScanProblem("affine", "the voxels have no volume (the affine's determinant is 0)")
    image = OpenVolume(voxels, affine, dtype=voxels.dtype)  # type: ignore[no-untyped-call]
    image.chosen, image.named = chosen, named
    return image


def read_header(path: Path) -> bytes:
    """The first ``HEADER_BYTES`` of a file."""
    with open_regular(path, most=SCAN_BYTES) as stream:
        return stream.read(HEADER_BYTES)


def beside(path: Path, name: str) -> Path:
    """The file that a header names for its voxels, which must lie in the header's own folder.

    Raises:
        ValueError: it could lie elsewhere, or is a list or a pattern of files.
    """
    name = name.removeprefix("./")
    odd = name in ("", ".", "..", "LIST") or set(name) & set("/\\%\0:*")
    if odd or name.split()[0] in ("LIST", "SKIPLIST"):
        raise ValueError("the voxels lie in several files, or in another folder")
    return path.parent / name
