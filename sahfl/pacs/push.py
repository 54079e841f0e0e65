"""Storing segmentations of pseudonymised scans in the archive, each in its patient's study."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import SegmentationStorage

from sahfl.data.dicom.header import private, read_whole
from sahfl.errors import PacsError, ScanProblem
from sahfl.pacs.archive import Archive
from sahfl.pacs.mapping import Known, Mapping
from sahfl.pacs.pseudonyms import name_again
from sahfl.regular_files import check_inside

SEGMENTATION = "segmentation.dcm"


@dataclass
class Pushed:
    """What became of the segmentations."""

    n_pushed: int = 0
    n_earlier: int = 0
    """Pushed by earlier calls."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Pseudonym to the reason why its segmentation was refused."""


def push(archive: Archive, results: Path, scans: Path) -> Pushed:
    """Store ``results/<pseudonym>/segmentation.dcm`` of every fetched study, under the patient's own name.

    Args:
        archive: from which the studies were fetched.
        results: folder of the results of ``sahfl predict`` with the folder of the scans.
        scans: folder of the fetched scans; its mapping says whose they are.

    Raises:
        PacsError: there is no segmentation in the folder, or the mapping is damaged.
    """
    mapping, pushed = Mapping(scans), Pushed()
    found = sorted(results.glob(f"*/{SEGMENTATION}"))
    if not found:
        raise PacsError(
            f"{results}: holds no FOLDER/{SEGMENTATION}; predict the folder of scans with a DICOM segmentation"
        )
    for path in found:
        try:
            known = mapping.read(path.parent.name)
            if known is None or not known.finished:
                raise PacsError("no study was fetched as this pseudonym")
            if _push_one(archive, path, results, known):
                pushed.n_pushed += 1
                mapping.write(known)
            else:
                pushed.n_earlier += 1
        except (PacsError, ScanProblem) as error:
            pushed.reasons[path.parent.name] = str(error)
    return pushed


def _push_one(archive: Archive, path: Path, results: Path, known: Known) -> bool:
    """Store one segmentation; False if it is in the archive already."""
    made = _read(path, results)
    uid = str(made.SOPInstanceUID)
    if uid in known.pushed:
        return False
    studies = archive.search("studies", StudyInstanceUID=known.study)
    study = next((item for item in studies if str(item.get("StudyInstanceUID")) == known.study), None)
    if study is None:
        raise PacsError("the archive has this study no more")
    name_again(made, known.uids, study)
    archive.store(made)
    known.pushed.append(uid)
    return True


def _read(path: Path, results: Path) -> Dataset:
    with private():
        check_inside(path, results)
        made = read_whole(path)
        if made.get("SOPClassUID") != SegmentationStorage:
            raise PacsError("the file is no DICOM segmentation")
        return made
