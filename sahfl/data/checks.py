"""Checks of a site's data, done once before the first round: a verdict per case and rule, kept at the site."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sahfl.data.ct import Scan, read_scan
from sahfl.data.manifest import Case, pseudonym
from sahfl.errors import DataError, ScanProblem

SPACING_MM = (0.3, 3.0), (0.5, 10.0)
"""Plausible pixel size and slice distance of a head CT."""
HEAD_SHARE_HU = (-200.0, 300.0)
"""A head CT has air below the first value and bone above the second."""
MOST_BLOOD_ML = 500.0
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Finding:
    """One rule that a case breaks."""

    rule: str
    severity: Literal["error", "warning"]
    text: str


@dataclass(frozen=True)
class CheckedCase:
    """A case with its verdict."""

    case: Case
    volume_ml: float
    """Annotated blood; 0 for a legal empty mask, and where the case cannot be read."""
    content: str
    """SHA-256 over the bytes of image and annotation (of every file, for DICOM); empty where they cannot be read."""
    stamp: tuple[int, ...]
    """Sizes and modification times of the case's files when they were checked."""
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """No rule with severity error is broken."""
        return all(finding.severity != "error" for finding in self.findings)


def check_case(case: Case) -> CheckedCase:
    """Read one case and apply every rule; never raises for bad data."""
    stamp = _stamp(case)  # before reading, so that a change while reading shows later
    try:
        scan, content = read_scan(case), _content(case)
    except ScanProblem as problem:
        return CheckedCase(case, 0.0, "", stamp, (Finding(problem.rule, "error", str(problem)),))
    return CheckedCase(case, scan.volume_ml, content, stamp, tuple(_judge(case, scan)))


def check_cases(
    cases: Sequence[Case], *, on_case: Callable[[int, int], None] = lambda done, total: None
) -> tuple[CheckedCase, ...]:
    """Check all cases of a site; ``on_case`` hears (done, total) after each."""
    checked = []
    for case in cases:
        checked.append(check_case(case))
        on_case(len(checked), len(cases))
    return tuple(checked)


def usable_cases(checked: Iterable[CheckedCase]) -> tuple[CheckedCase, ...]:
    """The cases that a site may use.

    Raises:
        DataError: not one case is usable; the message lists each broken rule with its count and one example.
    """
    checked = tuple(checked)
    usable = tuple(item for item in checked if item.usable)
    if not usable:
        examples = {finding.rule: finding.text for item in checked for finding in item.findings}
        counts = count_findings(checked)
        listed = "\n".join(f"  {rule} ({counts[rule]}x), for example: {text}" for rule, text in examples.items())
        raise DataError(f"none of {len(checked)} case(s) can be used:\n{listed}")
    return usable


def count_findings(checked: Iterable[CheckedCase]) -> dict[str, int]:
    """Number of cases per broken rule; this is all that a site tells of its findings."""
    return dict(sorted(Counter(finding.rule for item in checked for finding in item.findings).items()))


def verify_unchanged(checked: CheckedCase) -> None:
    """Raise DataError if a case's files changed after the check: a study must not train on moving data."""
    if _stamp(checked.case) != checked.stamp:
        raise DataError(f"case {checked.case.id}: its files changed after they were checked; start a new run")


def patient_keys(checked: Iterable[CheckedCase], salt: str) -> dict[str, str]:
    """Salted key per patient, from the content of the patient's scans: nobody without the scans can compute it."""
    contents: dict[str, list[str]] = {}
    for item in checked:
        contents.setdefault(item.case.patient, []).append(item.content)
    return {patient: pseudonym(" ".join(sorted(parts)), salt) for patient, parts in contents.items()}


def _content(case: Case) -> str:
    """SHA-256 over all files; a .gz is unpacked to its end, because nibabel never compares the checksum there."""
    sha = hashlib.sha256()
    try:
        for path in case.files():
            data = path.read_bytes()
            if data.startswith(GZIP_MAGIC):
                gzip.decompress(data)
            sha.update(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ScanProblem("unreadable", f"case {case.id}: a file is damaged (its checksum does not fit)") from error
    return sha.hexdigest()


def _stamp(case: Case) -> tuple[int, ...]:
    try:
        stats = [path.stat() for path in case.files()]
    except OSError:
        return ()
    return tuple(value for stat in stats for value in (stat.st_size, stat.st_mtime_ns))


def _judge(case: Case, scan: Scan) -> Iterable[Finding]:
    in_plane, between = SPACING_MM
    x, y, z = scan.spacing_mm
    if not (in_plane[0] <= x <= in_plane[1] and in_plane[0] <= y <= in_plane[1] and between[0] <= z <= between[1]):
        yield Finding("spacing", "warning", f"case {case.id}: unusual voxel size {x:.2f} x {y:.2f} x {z:.2f} mm")
    low, high = float(scan.image.min()), float(scan.image.max())
    if low > HEAD_SHARE_HU[0] or high < HEAD_SHARE_HU[1]:
        text = f"values from {low:.0f} to {high:.0f} are not HU of a whole head (air to bone); a windowed picture?"
        yield Finding("not_hu", "error", f"case {case.id}: {text}")
    if not scan.label.any():
        yield Finding("no_blood", "warning", f"case {case.id}: the annotation is empty")
        return
    if scan.volume_ml > MOST_BLOOD_ML:
        yield Finding("much_blood", "warning", f"case {case.id}: {scan.volume_ml:.0f} mL of annotated blood")
    if float(np.median(scan.image[scan.label])) < 0:
        yield Finding("label_place", "error", f"case {case.id}: most of the annotation lies on fat or air")
