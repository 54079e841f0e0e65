"""Head CT as exported by a hospital's archive: one folder per patient, with a DICOM series and its annotation.

    SITE/anything/            one folder per patient ──> ``read_patients`` ──> cases, patient id hashed
        .../slices            the CT series          ──> ``read_series`` ──> HU and affine
        .../mask.nii.gz       or a DICOM SEG object  ──> ``read_case``   ──> both on the same voxels
        .../viewer.exe        or any other file      ──> ``survey``      ──> left out and counted

pydicom reads the files, not SimpleITK. ITK's readers sort, repair and average a wrong geometry with at most a warning,
cannot represent a gantry tilt in their direction matrix, read the whole header of each file, and do not read SEG. With
pydicom, every rule is ours and has a name. Only the listed elements of a header are read: a patient's name or birth
date is skipped in the file and never becomes an object (``header``).

No message contains names of files or folders, or header texts, because folders of an export carry patients' names.
"""

from sahfl.data.dicom.case import read_case
from sahfl.data.dicom.content import dicom_hash, scan_parts
from sahfl.data.dicom.header import is_dicom
from sahfl.data.dicom.patients import read_patients
from sahfl.data.dicom.segmentation import read_segmentation
from sahfl.data.dicom.series import Series, read_series

__all__ = [
    "Series",
    "dicom_hash",
    "is_dicom",
    "read_case",
    "read_patients",
    "read_segmentation",
    "read_series",
    "scan_parts",
]
