"""Recognising what lies at a path: a list of cases, or scans in one of several arrangements.

a file      datalist (JSON) | CSV | zip, which is unpacked into the site's folder and recognised again
a folder    nnU-Net (dataset.json) | disc (DICOMDIR) | one list in it | DICOM (a folder for each patient) | pairs
            | mixed (DICOM in some folders, pairs beside them)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from sahfl import csv_table
from sahfl.data.json_lists import read_json, starts_like_json
from sahfl.data.manifest import Blood, Case, is_text, listed, read_datalist, scan_files
from sahfl.data.nnunet import read_nnunet
from sahfl.data.sources import csv_list, zipped
from sahfl.data.sources.mixed import has_images, read_mixed
from sahfl.data.sources.pairs import find_pairs, read_pairs
from sahfl.errors import DataError

Format = Literal["datalist", "nnU-Net", "DICOM", "DICOM disc", "pairs", "mixed", "CSV", "zip"]
EXPECTED = (
    "a datalist (.json), a table (.csv), an nnU-Net raw folder (with dataset.json), a folder of DICOM series, a disc "
    "(with DICOMDIR), a folder of images and masks (NIfTI, NRRD, MetaImage), DICOM and such files in one folder, or a "
    ".zip of one of these"
)
NO_DATALIST = frozenset({"dataset.json", "splits_final.json", "patients.json", "dataset_description.json"})


def recognise(path: Path, site: str, blood: Blood = None) -> Format:
    """The format at a site's path. It reads only what is needed to decide; ``read_cases`` reads the cases.

    Raises:
        DataError: the path holds nothing of this kind, or its datalist is faulty or does not contain this site.
    """
    try:
        if path.is_file():
            if (found := _file_format(path, site, blood)) is not None:
                return found
        elif path.is_dir() and (found := _folder_format(path)) is not None:
            return found
        got = _found(path)
    except OSError as error:
        raise DataError(f"site {site}: {path}: {error.strerror}") from error
    remedy = "" if path.exists() else "; correct the path"
    if path.is_dir() and (path.parent / "dataset.json").is_file():
        remedy = "; it is a part of an nnU-Net raw folder: name the folder above"
    raise DataError(f"site {site}: {path}: got {got}, expected {EXPECTED}{remedy}")


def read_cases(path: Path, site: str, into: Path, blood: Blood = None) -> tuple[Case, ...]:
    """The cases at a site's path, whose labels ``blood`` (names or values) are blood.

    What has to be unpacked or sorted is written into ``into``, the site's folder.

    Raises:
        DataError: the source is not recognised, its list of cases is faulty, or the path of a scan is no text.
        StorageError: there is no room to unpack.
    """
    cases = _read_cases(path, site, into, blood)
    paths = (path for case in cases for path in (case.image, case.label))
    if odd := {path for path in paths if not is_text(str(path))}:
        text = f"{len(odd)} path(s) that are not in UTF-8, expected names that a list of scans can hold"
        raise DataError(f"site {site}: got {text}; rename them, such as with convmv, which lists them too")
    return cases


def _read_cases(path: Path, site: str, into: Path, blood: Blood) -> tuple[Case, ...]:
    from sahfl.data import dicom
    from sahfl.data.dicom.disc import read_disc

    format_ = recognise(path, site, blood)
    if format_ == "zip":
        return _read_cases(zipped.unpack(path, into), site, into, blood)
    if format_ == "DICOM disc":
        return _naming(blood, read_disc(path if path.is_dir() else path.parent, site, into))
    if path.is_dir() and format_ in ("datalist", "CSV"):
        path = _lists(path)[0]
    if format_ in ("datalist", "nnU-Net"):  # which declare their labels
        return (read_datalist if format_ == "datalist" else read_nnunet)(path, site, blood)
    readers: dict[str, Callable[[Path, str], tuple[Case, ...]]] = {
        **{"CSV": csv_list.read_csv, "DICOM": dicom.read_patients, "pairs": read_pairs, "mixed": read_mixed}
    }
    return _naming(blood, readers[format_](path, site))


def _naming(blood: Blood, cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return cases if blood is None else tuple(replace(case, blood=tuple(blood)) for case in cases)


def _file_format(path: Path, site: str, blood: Blood) -> Format | None:
    if path.suffix.lower() == ".json" or starts_like_json(path):
        read_datalist(path, site, blood)
        return "datalist"
    if path.suffix.lower() in csv_table.ENDINGS:
        csv_list.read_csv(path, site)
        return "CSV"
    if path.name.upper() == "DICOMDIR":
        return "DICOM disc"
    return "zip" if zipped.is_zip(path) else None


def _folder_format(path: Path) -> Format | None:
    from sahfl.data import dicom
    from sahfl.data.dicom.disc import is_disc

    if (path / "dataset.json").is_file():
        return "nnU-Net"
    if is_disc(path):
        return "DICOM disc"
    if lists := _lists(path):
        return "datalist" if lists[0].suffix.lower() == ".json" else "CSV"
    files = scan_files(path)
    if any(map(dicom.is_dicom, files)):
        return "mixed" if has_images(path, files) else "DICOM"
    return "pairs" if find_pairs(path).pairs else None


def _lists(folder: Path) -> list[Path]:
    """The datalist or table of cases that lies in a folder itself, if there is one.

    Raises:
        DataError: there are several; the patients of one may be in another.
    """
    lists = [path for path in sorted(folder.iterdir()) if path.is_file() and _is_list(path)]
    if len(lists) > 1:
        text = f"got {len(lists)} lists of cases ({listed([path.name for path in lists])}), expected one"
        raise DataError(f"{folder}: {text}; write all cases into one, or name the one to use as the path")
    return lists


def _is_list(path: Path) -> bool:
    if path.suffix.lower() in csv_table.ENDINGS:
        return csv_list.lists_files(path)
    return path.suffix.lower() == ".json" and path.name not in NO_DATALIST and _is_datalist(path)


def _is_datalist(path: Path) -> bool:
    try:
        content = read_json(path, str(path))
    except DataError:
        return False
    return isinstance(content, dict) and bool(content.keys() & {"sites", "training"})


def _found(path: Path) -> str:
    """What lies at a path of no known format, in words."""
    if not path.exists():
        return "nothing (no such file or folder)"
    if not path.is_dir():
        return "a file"
    if images := len(find_pairs(path).images):
        return f"a folder of {images} volume(s), none with a mask (name each mask like its image with _mask behind it)"
    return "a folder"
