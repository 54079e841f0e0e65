"""A folder in which some patients have DICOM and others volumes in files.

SITE/p1/slices, mask.nii.gz      a folder with DICOM is a patient, read as in a folder of DICOM alone
SITE/p2/ct.nrrd, ct.seg.nrrd     all other volumes are paired by their names
SITE/p3.nii.gz, p3_mask.nii.gz
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sahfl.data.formats.names import is_volume
from sahfl.data.manifest import Case, scan_files
from sahfl.data.sources.pairs import find_pairs, read_pairs
from sahfl.errors import DataError


def has_images(folder: Path, files: Sequence[Path]) -> bool:
    """Test whether images in files lie beside the folders with DICOM; masks alone may have lost their series."""
    found = find_pairs(folder, _volumes(folder, files))
    return bool(found.pairs or found.images)


def read_mixed(folder: Path, site: str) -> tuple[Case, ...]:
    """One case per image in a file, and per other folder directly below ``folder``, in the order of their paths.

    Raises:
        DataError: the folder cannot be read, a mask fits no image, or DICOM files lie in no patient's folder.
    """
    from sahfl.data import dicom
    from sahfl.data.dicom.patients import patient_folders, patient_keys

    try:
        files = scan_files(folder)
        folders, left_out = patient_folders(folder)
    except OSError as error:
        raise DataError(f"site {site}: {folder}: {error.strerror}") from error
    if loose := sum(dicom.is_dicom(path) for path in files if path.parent == folder):
        text = f"got {loose} DICOM file(s) beside the patients' folders, expected them in a folder for each patient"
        raise DataError(f"site {site}: {folder}: {text}")
    volumes = _volumes(folder, files)
    found = find_pairs(folder, volumes)
    used = {_top(path, folder) for pair in found.pairs for path in pair} | {_top(path, folder) for path in found.images}
    of_dicom = [path for path in folders if path not in used]
    in_files = read_pairs(folder, site, [path for path in volumes if _top(path, folder) not in of_dicom])
    keys = patient_keys(of_dicom)
    cases = [
        *in_files,
        *(Case("", place, place, key, n_same_id=n) for place, (key, n) in zip(of_dicom, keys, strict=True)),
    ]
    cases.sort(key=lambda case: case.image)
    return tuple(
        replace(case, id=f"{site}-{index:04d}", left_out=() if index else left_out) for index, case in enumerate(cases)
    )


def _volumes(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The volumes that lie in no folder with DICOM, where they would be its annotations."""
    from sahfl.data import dicom

    by_top: dict[Path, list[Path]] = defaultdict(list)
    for path in files:
        by_top[_top(path, folder)].append(path)
    return [
        volume
        for top, inside in by_top.items()
        if (volumes := list(filter(is_volume, inside))) and (top in volumes or not any(map(dicom.is_dicom, inside)))
        for volume in volumes
    ]


def _top(path: Path, folder: Path) -> Path:
    """The file or folder directly in ``folder`` that a path leads through."""
    return folder / path.relative_to(folder).parts[0]
