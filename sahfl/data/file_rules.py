"""The rules about files and headers: orientation, names and dates. A finding's text never quotes a name or date."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sahfl.data.manifest import Case, case_name, scan_files
from sahfl.data.nifti import extension_texts, is_nifti, load_nifti, reading
from sahfl.data.orientation import unit_of
from sahfl.data.rules import Finding, finding
from sahfl.errors import ScanProblem
from sahfl.regular_files import SCAN_BYTES, open_regular

FORMS_APART_MM = 1.0
TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-_./]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])([-_./])(?:0?[1-9]|1[0-2])\2(?:19|20)\d\d)(?!\d)"
)
"""Matches 20240131, 2024-01-31 and 31.1.2024, with a plausible year, month and day."""
PERSON = re.compile(r"[^\W\d_]+\^[^\W\d_]*|[^\W\d_]{2,}, ?[^\W\d_]{2,}")
"""Matches ``Muster^Hans`` as in DICOM, and ``Muster, Hans``."""
WORD = re.compile(r"[^\W\d_]{3,}")
_PLAIN = """
    abdomen and annotation anon anonymized anonymous ax axial blood bone brain case cases center class
    control coronal cranial cranio cranium csf cta ctp data dataset dicom dose edh eq final fold fsl ground
    haemorrhage head hematoma hemorrhage hemorrhagic hospital ich image images img intracranial iph ivh
    kernel label labels left low manual mask masks mri native ncct nect nibabel nifti nii noisy noncontrast
    normal offset original pat patient patients phantom plain pred raw right roi sagittal sah sample scan
    scans sdh seg segmentation series set sharp site skull slice slices smooth soft spm standard std stroke
    study sub subject tbi test the thick thin tilt tilted time tissue train trauma truth unenhanced val vol
    volume with without
"""
PLAIN_WORDS = frozenset(_PLAIN.split())
"""Words that are common in data sets; any other two adjacent capitalised words count as a person's name."""


def judge_files(case: Case) -> Iterator[Finding]:
    """Findings about a readable case's files, from their names and headers only.

    Raises:
        ScanProblem: a header cannot be read.
    """
    alone = case.image == case.label  # a patient's folder, or a scan without annotation
    files = (("image", case.image), ("label", case.label))[: 1 if alone else 2]
    if named := [which for which, path in files if looks_personal(case_name(path))]:
        what = "folder" if alone and not case.image.is_file() else f"{' and the '.join(named)} file"
        yield finding("file_name", f"case {case.id}: the name of the {what} looks like a name or a date")
    for which, path in (*files[:1], *([] if alone and case.image.is_file() else [("label", _label_file(case))])):
        if not is_nifti(path):
            continue
        header = _header(case, path, which)
        yield from _forms(case, header, which)
        if fields := [name for name, text in _texts(path, header) if looks_personal(text)]:
            text = f"{', '.join(fields)} of the {which} file looks like a name or a date"
            yield finding("header_text", f"case {case.id}: {text}")


def _header(case: Case, path: Path, which: str) -> Any:
    try:
        header = load_nifti(path).header
        with reading("the forms of a file are damaged"):
            header.get_sform(), header.get_qform()
        return header
    except ScanProblem as problem:
        text = str(problem).replace("a file", f"the {which} file", 1)
        raise ScanProblem(problem.rule, f"case {case.id}: {text}") from problem


def _label_file(case: Case) -> Path:
    """The NIfTI annotation that lies beside a DICOM series, or the label as it is."""
    if not case.label.is_dir():
        return case.label
    return next((path for path in scan_files(case.label) if is_nifti(path)), case.label)


def looks_personal(text: str) -> bool:
    """Test whether a text may contain a person's name or a date; a suspicion, not a proof."""
    if DATE.search(text) or PERSON.search(text):
        return True
    words = [word for word in WORD.findall(text) if word.lower() not in PLAIN_WORDS]
    named = [word for word in words if word[0].isupper()]
    return len(named) >= 2 and bool(re.search(rf"{re.escape(named[0])}[ _.-]+{re.escape(named[1])}", text))


def _forms(case: Case, header: Any, which: str) -> Iterator[Finding]:
    start = f"case {case.id}: {'' if which == 'image' else 'of the label, '}"
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:  # such a label is not read at all
        yield finding("no_orientation", f"{start}sform and qform codes are both 0")
    if not sform or not qform:
        return
    by_sform, by_qform = header.get_sform(), header.get_qform()
    # A label is compared with its image; its qform does not matter where its sform fits.
    if which == "image" and np.linalg.det(by_sform[:3, :3]) * np.linalg.det(by_qform[:3, :3]) < 0:
        yield finding("handedness", f"{start}one of sform and qform is left-handed, the other right-handed")
        return
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in header.get_data_shape()[:3])), -1).reshape(-1, 3)
    off = (by_sform - by_qform) * unit_of(header)[1]
    apart = np.linalg.norm(corners @ off[:3, :3].T + off[:3, 3], axis=1).max()
    if apart > FORMS_APART_MM:
        yield finding("forms_differ", f"{start}sform and qform lie up to {apart:.1f} mm apart")


def _texts(path: Path, header: Any) -> Iterator[tuple[str, str]]:
    """Text fields, extensions, and the file name stored inside a .gz."""
    for name in TEXT_FIELDS:
        if name in header:
            yield name, bytes(header[name].tobytes()).split(b"\0")[0].decode("latin-1")
    for content in extension_texts(path):
        yield "an extension", content
    with open_regular(path, most=SCAN_BYTES) as stream:
        start = stream.read(512)
    if start[:2] == b"\x1f\x8b" and len(start) > 10 and start[3] & 8:
        yield "the name inside the .gz", start[10:].split(b"\0")[0].decode("latin-1").split(".nii")[0]
