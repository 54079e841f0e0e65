"""One CT series: from the files of a patient's folder to a volume in HU and its position in the patient."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import RE_VALID_UID
from scipy import ndimage

from sahfl.data.dicom.choice import Chosen, Fits, Notes, choose
from sahfl.data.dicom.foreign import listed
from sahfl.data.dicom.header import PIXEL_ELEMENTS, decoded, private, read_elements
from sahfl.data.dicom.protocol import judge_protocol
from sahfl.data.dicom.slices import read_frames, read_slice
from sahfl.data.dicom.stack import Slice, Stack, stack
from sahfl.data.dicom.survey import Contents, Found, placed, survey
from sahfl.data.series_choice import SeriesChoice
from sahfl.data.volume_size import require_size
from sahfl.errors import ScanProblem

LOWEST_HU = -1024.0
"""Lower values are set to this one: scanners fill the area outside their field of view with values far below air."""
INSIDE_HU = (-900.0, 4000.0)
"""Values that voxels of a head have too: as padding they count only where they reach the edge of the slice."""


@dataclass(frozen=True)
class Series:
    """One CT series as a volume."""

    image: nibabel.Nifti1Image
    """(columns, rows, planes) in HU, float32, with the affine to RAS mm."""
    frame_of_reference: str
    """UID of the coordinate system, which a segmentation must share; empty if the header has no valid one."""
    files: tuple[Path, ...] = ()
    """The file of each slice, in the order of the volume; the same file for all frames of an enhanced CT."""
    frames: tuple[int, ...] = ()
    """The frame of each slice in its file; -1 in a file of one."""
    places: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(n slices,): where each lies among the planes of the volume; as ``Stack.places``."""
    notes: Notes = ()
    """Rules and texts of what a site should see of the series."""

    def shares_frame(self, uids: Collection[str]) -> bool:
        """Test whether an annotation in one of these frames of reference may belong to the series.

        Without a frame of its own, the series has any: only the annotation's geometry decides.
        """
        return not self.frame_of_reference or self.frame_of_reference in uids

    def on_planes(self, by_slices: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A mask (columns, rows, slices) on the volume's planes; each takes the slice that is nearest."""
        nearest = np.abs(np.arange(self.image.shape[2])[:, None] - self.places).argmin(axis=1)
        return by_slices[:, :, nearest]

    def on_slices(self, by_planes: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask (columns, rows, planes) on the series' own slices; each takes the plane that is nearest."""
        return by_planes[:, :, np.clip(np.rint(self.places).astype(int), 0, by_planes.shape[2] - 1)]


def read_series(folder: Path, *, of: Path | None = None, wanted: SeriesChoice | None = None) -> Series:
    """The CT series below a patient's folder (``choice``), or the one that the file ``of`` belongs to.

    With ``of``, the series' files lie beside it, and no other folder is looked at.

    Raises:
        ScanProblem: there is no series, or nothing decides between several, or it is no CT volume; it names the broken
            rule.
    """
    contents = survey(folder, below=of is None)
    if of is not None and not any(item.path == of for item in contents.found):
        contents = Contents(folder, (), {})
    return load_series(contents, choose(contents, wanted, length_mm=length_mm, of=of))


def choose_series(contents: Contents, wanted: SeriesChoice | None, fits: Fits | None) -> Chosen:
    """The series of a patient's folder, with its annotation as one that may decide."""
    return choose(contents, wanted, length_mm=length_mm, fits=fits)


def stack_of(files: Sequence[Found]) -> Stack:
    """The geometry of a series, from its headers.

    Raises:
        ScanProblem: it is no CT volume.
    """
    slices: list[Slice] = []
    paths = [item.path for item in files]
    for item in files:
        with placed(item.path, paths):
            slices += read_frames(item.path) if item.kind == "frames" else [read_slice(item.path)]
    return stack(slices)


def length_mm(files: Sequence[Found]) -> float:
    """How much of the head a series shows along its slices; 0 if it is no volume."""
    try:
        found = stack_of(files)
    except ScanProblem:
        return 0.0
    return float(np.linalg.norm(found.affine[:3, 2]) * (found.n_planes - 1))


def load_series(contents: Contents, chosen: Chosen) -> Series:
    """Read a series of a folder.

    Raises:
        ScanProblem: it is no CT volume.
    """
    stacked = stack_of(chosen.files)
    slices = stacked.slices
    frame_of_reference, notes = _frame_of_reference(slices, chosen)
    rows, columns = slices[0].shape
    require_size((columns, rows, max(len(slices), stacked.n_planes)))
    volume = np.empty((columns, rows, len(slices)), np.float32)
    paths = [item.path for item in contents.found]
    for index, values in enumerate(_hounsfield(slices, paths)):
        volume[:, :, index] = values.T
    if not stacked.even:
        volume = _resampled(volume, stacked)
        low, high = stacked.gaps_mm
        step = float(np.linalg.norm(stacked.affine[:3, 2]))
        text = f"{len(slices)} slices at distances of {low:.2f} to {high:.2f} mm are resampled"
        notes += (("uneven_slices", f"{text} to {stacked.n_planes} planes of {step:.2f} mm"),)
    notes += tuple(judge_protocol(slices[0].path))
    if contents.foreign:
        n = sum(contents.foreign.values())
        notes += (("foreign_files", f"{n} file(s) are no scan and left out: {listed(contents.foreign)}"),)
    return Series(
        image=nibabel.Nifti1Image(volume, stacked.affine),
        frame_of_reference=frame_of_reference,
        files=tuple(part.path for part in slices),
        frames=tuple(part.frame for part in slices),
        places=stacked.places,
        notes=(*chosen.notes, *notes),
    )


def _frame_of_reference(slices: Sequence[Slice], chosen: Chosen) -> tuple[str, Notes]:
    named = (part.frame_of_reference for part in slices)
    found = {uid if re.fullmatch(RE_VALID_UID, uid) else "" for uid in named}  # a word such as REMOVED names no frame
    scrambled = "scrambled_uids" in dict(chosen.notes) and len(found) == len(slices) > 1
    if len(found) > 1 and not scrambled:
        raise ScanProblem("mixed_frames", "the slices have several frames of reference, their places do not compare")
    if scrambled or found == {""}:
        return "", (("no_frame", "the slices have no common frame of reference; their positions are used as they are"),)
    return found.pop(), ()


def _hounsfield(slices: Sequence[Slice], paths: Sequence[Path]) -> Iterator[NDArray[np.float32]]:
    """Each slice's values in HU, (rows, columns); a file of many frames is decoded once."""
    kept: tuple[Path, NDArray[np.float32]] | None = None
    for part in slices:
        with placed(part.path, paths):
            if part.frame < 0 or kept is None or kept[0] != part.path:
                with private():
                    kept = part.path, decoded(read_elements(part.path, PIXEL_ELEMENTS))
            stored = kept[1]
            if part.frame >= 0:
                stored = stored[part.frame] if stored.ndim == 3 else stored
            if stored.shape != part.shape:
                text = f"a slice has pixels of shape {stored.shape}, its header has {part.shape}"
                raise ScanProblem("unreadable", text)
            yield _calibrated(stored, part)


def _calibrated(stored: NDArray[np.float32], part: Slice) -> NDArray[np.float32]:
    values = stored.astype(np.float32) * np.float32(part.slope) + np.float32(part.intercept)
    if part.padding is not None:
        values[_outside(stored, part, part.padding)] = LOWEST_HU
    return np.maximum(values, np.float32(LOWEST_HU))


def _outside(stored: NDArray[np.float32], part: Slice, padding: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels outside the scanner's field of view.

    The header may write the value signed or not, whatever the pixels are. A value that a head has too counts only in
    areas that reach the edge: some programs name 0 HU as padding.
    """
    bits = 8 * stored.dtype.itemsize
    low, high = sorted(
        int(np.array(v % (1 << bits), f"u{bits // 8}").view(f"{stored.dtype.kind}{bits // 8}")) for v in padding
    )
    found = (stored >= low) & (stored <= high)
    hounsfield = [end * part.slope + part.intercept for end in (low, high)]
    if max(hounsfield) <= INSIDE_HU[0] or min(hounsfield) >= INSIDE_HU[1]:
        return found
    areas, _ = ndimage.label(found)
    edge = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    return np.isin(areas, edge[edge > 0])


def _resampled(volume: NDArray[np.float32], stacked: Stack) -> NDArray[np.float32]:
    """A volume on evenly spaced planes, linear between its slices, in whole HU."""
    made = np.empty((*volume.shape[:2], stacked.n_planes), np.float32)
    for plane in range(stacked.n_planes):
        after = min(int(np.searchsorted(stacked.places, plane - 1e-6)), volume.shape[2] - 1)
        before = max(after - 1, 0)
        width = stacked.places[after] - stacked.places[before]
        share = np.clip((plane - stacked.places[before]) / width, 0, 1) if width > 0 else 1.0
        made[:, :, plane] = np.rint((1 - share) * volume[:, :, before] + share * volume[:, :, after])
    return made
